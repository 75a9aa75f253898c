//! Marks files that need no verification, by their modification time.
//!
//! A cached copy is not fsynced, because it can be made again. So after a power cut it may be empty or lack its last bytes.
//! The modification time says in which boot the copy was finished. Writing it costs nothing, and any later change of the
//! file overwrites it.
//!
//! Invariant: a stamp that counts was set after all bytes were written, in this boot or after the bytes were read back from
//! the disk in a later one.

use std::os::fd::AsFd;

use rustix::io::Errno;

use crate::sys::boot::{self, Boot};

/// The first time that stands for a boot. The last one is before 2038, so every filesystem can store it.
const BOOTS: i64 = 1_620_000_000;

/// The time of a file that is safe: a second after rcc's time, which earlier versions gave to every copy.
const SAFE: i64 = super::MOTHER_TIME + 1;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stamp {
    /// The file is complete in this boot.
    ThisBoot,
    /// The file is complete on the disk.
    Safe,
    /// The file may be complete. It does not count before it is verified.
    Unverified,
}

impl Stamp {
    fn time(self) -> i64 {
        match self {
            Self::ThisBoot => time_of(boot::this()),
            Self::Safe => SAFE,
            Self::Unverified => super::MOTHER_TIME,
        }
    }

    /// Stamps a file, and sets its access time to the current time.
    ///
    /// # Errors
    /// The errno of `futimens`.
    pub fn set(self, file: impl AsFd) -> Result<(), Errno> {
        let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        let time = rustix::fs::Timespec { tv_sec: self.time(), tv_nsec: 0 };
        rustix::fs::futimens(file, &rustix::fs::Timestamps { last_access: now, last_modification: time })
    }

    /// The stamp that a modification time stands for, if it counts in this boot.
    #[must_use]
    pub fn read(seconds: i64, nanoseconds: i64) -> Option<Self> {
        let at = |stamp: &Self| (stamp.time(), 0) == (seconds, nanoseconds);
        [Self::ThisBoot, Self::Safe].into_iter().find(at)
    }

    /// Whether a modification time is a stamp of any boot. Then the file may be complete.
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
