//! What a file that can be made again says of its bytes, by its modification time.
//!
//! Nobody waits for the disk to have such a file, so after a loss of power it may be empty, or lack what was written to
//! it last. Its time costs nothing to write and is lost with any later change. Invariant: a time that is believed was set
//! after all of the bytes were there, and either in this boot, whose page cache has them, or after they
//! were read back from the disk in a later one.

use std::os::fd::AsFd;

use rustix::io::Errno;

use crate::sys::boot::{self, Boot};

/// Where the times begin that name a boot; they end before 2038, which every filesystem can hold.
const BOOTS: i64 = 1_620_000_000;

/// The time of what is safe: a second after rcc's own, which earlier versions gave to every copy.
const SAFE: i64 = super::MOTHER_TIME + 1;

/// What the bytes of a file are known to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stamp {
    /// Whole while the machine runs.
    ThisBoot,
    /// Whole, and on the disk.
    Safe,
}

impl Stamp {
    fn time(self) -> i64 {
        match self {
            Self::ThisBoot => time_of(boot::this()),
            Self::Safe => SAFE,
        }
    }

    /// Stamps a file. Its access time becomes the present.
    ///
    /// # Errors
    /// The errno of `futimens`.
    pub fn set(self, file: impl AsFd) -> Result<(), Errno> {
        let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        let time = rustix::fs::Timespec { tv_sec: self.time(), tv_nsec: 0 };
        rustix::fs::futimens(file, &rustix::fs::Timestamps { last_access: now, last_modification: time })
    }

    /// The stamp that a modification time is, if it is one to be believed in this boot.
    #[must_use]
    pub fn read(seconds: i64, nanoseconds: i64) -> Option<Self> {
        let at = |stamp: &Self| (stamp.time(), 0) == (seconds, nanoseconds);
        [Self::ThisBoot, Self::Safe].into_iter().find(at)
    }

    /// Whether a modification time was a stamp of any boot, so that the file may be whole.
    #[must_use]
    pub fn was_one(seconds: i64, nanoseconds: i64) -> bool {
        let boots = BOOTS..=BOOTS + i64::from(u32::MAX >> 4);
        nanoseconds == 0 && (seconds == super::MOTHER_TIME || seconds == SAFE || boots.contains(&seconds))
    }
}

fn time_of(Boot(number): Boot) -> i64 {
    BOOTS + i64::from(number >> 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_believed_in_its_boot_only() {
        let Boot(number) = boot::this();
        let (ours, other) = (time_of(Boot(number)), time_of(Boot(number.wrapping_add(1 << 4))));
        assert_eq!(Stamp::read(ours, 0), Some(Stamp::ThisBoot));
        assert_eq!(Stamp::read(SAFE, 0), Some(Stamp::Safe));
        for (seconds, nanoseconds) in [(other, 0), (ours, 1), (crate::library::MOTHER_TIME, 0), (0, 0)] {
            assert_eq!(Stamp::read(seconds, nanoseconds), None);
        }
        assert!(Stamp::was_one(other, 0) && Stamp::was_one(crate::library::MOTHER_TIME, 0));
        assert!(!Stamp::was_one(other, 1) && !Stamp::was_one(0, 0));
        assert!(time_of(Boot(u32::MAX)) < i64::from(i32::MAX));
    }
}
