//! Which boot of the machine this is.
//!
//! What was written in this boot is in the page cache, whether or not it reached the disk; what was written in an
//! earlier boot is only what the disk kept. Invariant: two boots have different numbers, as far as 32 bits can tell.
//! Where the kernel does not say which boot it is, every process has a number of its own, so that less is trusted and
//! never more.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

/// A boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Boot(pub u32);

/// The present boot. Read once for each process.
#[must_use]
pub fn this() -> Boot {
    static BOOT: OnceLock<Boot> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        parse(&id).unwrap_or_else(|| {
            // No number of 32 bits is taken from more of a hash than that.
            Boot((RandomState::new().hash_one(std::process::id()) >> 32) as u32)
        })
    })
}

/// The first 32 bits of the random UUID that the kernel gives each boot.
fn parse(id: &str) -> Option<Boot> {
    let first = id.get(..8).filter(|_| id.trim_end().len() == 36)?;
    u32::from_str_radix(first, 16).ok().map(Boot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_id_is_read_and_anything_else_is_not() {
        assert_eq!(parse("6e2a9f0c-3f1b-4f9e-9d0c-0123456789ab\n"), Some(Boot(0x6e2a_9f0c)));
        for bad in ["", "6e2a9f0c", "zzzz9f0c-3f1b-4f9e-9d0c-0123456789ab\n"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(this(), this());
    }
}
