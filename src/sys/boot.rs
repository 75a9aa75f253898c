//! Identifies the current boot of the machine.
//!
//! Bytes that were written during this boot can be read back, even if they have not reached the disk. After a reboot
//! only those bytes are left that reached the disk. Invariant: two boots have different numbers, except for a collision
//! of 32-bit numbers. If the kernel does not tell the boot, every process gets a random number, so that holofs trusts
//! less and never more.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

/// The number of a boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Boot(pub u32);

/// The current boot. Read once in each process.
#[must_use]
pub fn this() -> Boot {
    static BOOT: OnceLock<Boot> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        parse(&id).unwrap_or_else(|| Boot((RandomState::new().hash_one(std::process::id()) >> 32) as u32))
    })
}

/// The first 32 bits of the random UUID that the kernel assigns to each boot.
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
