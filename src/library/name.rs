//! The names that rcc gives to users, stages and spaces.
//!
//! All functions are pure. rcc uses two SipHash-2-4 keys, one for `$HOME` and one for everything else. They differ in
//! one digit of each half, and the wrong one gives names that look right. So each key is a constant of its own and has
//! test vectors of its own.
//!
//! Invariant: an [`Identity`] is a valid file name of exactly [`NAME_LEN`] bytes, because relocation writes it over
//! a name of that length in files.

use std::fmt;

use super::NAME_LEN;
use crate::blueprint::hash::sip;
pub use crate::blueprint::hash::sipit_hex;

/// The user part if `$HOME` is not set.
const NO_HOME: &str = "badcafe";
/// The user part of unmanaged spaces.
const UNMANAGED: &str = "UNMNGED";

const USER_KEYS: (u64, u64) = (9_007_799_254_740_993, 2_147_487_647);

/// The user part of a name, from the unchanged value of `$HOME`. As in rcc, the hash has no leading zeros before it is
/// cut.
#[must_use]
pub fn user7(home: Option<&[u8]>) -> String {
    match home {
        None => NO_HOME.to_owned(),
        Some(home) => first(&format!("{:02x}", sip(USER_KEYS, home)), 7),
    }
}

/// The controller as rcc hashes and records it: `rcc.` and the name, in lower case.
#[must_use]
pub fn controller_identity(controller: &str) -> String {
    format!("rcc.{controller}").to_lowercase()
}

/// The directory name of the space `space` of `controller`, which is a plain name such as `user`.
#[must_use]
pub fn identity(home: Option<&[u8]>, controller: &str, space: &str) -> Identity {
    space_name(&user7(home), controller, space)
}

/// The directory name of the unmanaged space `space` of `controller`. It is the same for all users.
#[must_use]
pub fn unmanaged_identity(controller: &str, space: &str) -> Identity {
    space_name(UNMANAGED, controller, space)
}

/// The name of the directory in which rcc builds environments for `platform`, written as `linux amd64`.
#[must_use]
pub fn stage_identity(home: Option<&[u8]>, platform: &str) -> Identity {
    let suffix = first(&sipit_hex(platform.as_bytes()), 14);
    Identity(format!("h{}_{suffix}t", user7(home)))
}

fn space_name(user: &str, controller: &str, space: &str) -> Identity {
    let controller = first(&sipit_hex(controller_identity(controller).as_bytes()), 7);
    let space = first(&sipit_hex(space.as_bytes()), 8);
    Identity(format!("{user}_{controller}_{space}"))
}

fn first(text: &str, n: usize) -> String {
    text.chars().take(n).collect()
}

/// The name of a space's directory.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Identity(String);

/// Why a name cannot be the name of a space's directory.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// An empty variable in a script, most often.
    #[error("the name is empty")]
    Empty,
    /// Relocation replaces [`NAME_LEN`] bytes by as many.
    #[error("the name is {0} bytes long, and must be {NAME_LEN}")]
    Length(usize),
    /// The name could not be written in mount options or in a line of output.
    #[error("the name contains {0:?}")]
    Character(char),
    /// A relative path without a directory that it is relative to.
    #[error("{0}")]
    NoDirectory(String),
    /// The name is written to `D.meta`, which is JSON.
    #[error("the name is not UTF-8")]
    NotUtf8,
}

impl Identity {
    /// Accepts any name that relocation can write over the stage's name, no matter who chose it.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn from_name(name: &[u8]) -> Result<Identity, NameError> {
        let text = std::str::from_utf8(name).map_err(|_| NameError::NotUtf8)?;
        if text.len() != NAME_LEN {
            return Err(NameError::Length(text.len()));
        }
        // Commas and backslashes have a meaning in mount options.
        match text.chars().find(|c| c.is_control() || matches!(c, '/' | ',' | '\\')) {
            Some(bad) => Err(NameError::Character(bad)),
            None => Ok(Identity(text.to_owned())),
        }
    }

    /// Accepts only the names that rcc makes: `USER7_CONTROLLER7_SPACE8`, or `UNMNGED_CONTROLLER7_SPACE8`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Identity> {
        let mut parts = text.split('_');
        let (user, controller, space) = (parts.next()?, parts.next()?, parts.next()?);
        let fits = parts.next().is_none()
            && (user == UNMANAGED || is_hex(user, 7))
            && is_hex(controller, 7)
            && is_hex(space, 8);
        fits.then(|| Identity(text.to_owned()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Vector {
        home: String,
        controller: Option<String>,
        space: Option<String>,
        identity: Option<String>,
        unmanaged: Option<String>,
        stage: Option<String>,
    }

    #[test]
    fn agrees_with_real_rcc_on_every_vector() {
        let text = include_str!("../../tests/vectors/spaces.json");
        let vectors: Vec<Vector> = serde_json::from_str(text).unwrap();
        assert!(vectors.len() > 10);
        for v in vectors {
            let home = Some(v.home.as_bytes());
            if let (Some(controller), Some(space)) = (&v.controller, &v.space) {
                let made = identity(home, controller, space);
                assert_eq!(Some(made.as_str()), v.identity.as_deref());
                assert_eq!(Identity::parse(made.as_str()).as_ref(), Some(&made));
                assert_eq!(Some(space_name(UNMANAGED, controller, space).as_str()), v.unmanaged.as_deref());
            }
            if let Some(stage) = &v.stage {
                assert_eq!(stage_identity(home, "linux amd64").as_str(), stage);
            }
        }
    }

    #[test]
    fn user_part_loses_leading_zeros() {
        for (home, want) in [
            ("/root", "720c7a8"),
            ("/home/user", "59acff1"),
            ("/home/user61", "9a1cc3f"),
            ("/home/user83", "298fa0d"),
            ("/tmp/rcchome/home", "ea7ce2c"),
        ] {
            assert_eq!(user7(Some(home.as_bytes())), want);
        }
        assert_eq!(user7(None), "badcafe");
    }

    #[test]
    fn other_parts_keep_leading_zeros() {
        let home = Some("/tmp/rcchome/home".as_bytes());
        assert_eq!(identity(home, "venv", "user").as_str(), "ea7ce2c_0722a93_9fcd2534");
        assert_eq!(identity(home, "user", "Ünï code").as_str(), "ea7ce2c_5a1fac3_c22141e3");
        assert_eq!(identity(home, "user", "").as_str(), "ea7ce2c_5a1fac3_b7b14173");
    }

    #[test]
    fn blueprint_hash_is_zero_padded() {
        assert_eq!(sipit_hex(b""), "b7b141734fbea364");
        assert_eq!(sipit_hex(b"a"), "87a6a950373852b6");
    }

    #[test]
    fn refuses_names_that_cannot_replace_a_stage_name() {
        assert_eq!(Identity::from_name(b"short"), Err(NameError::Length(5)));
        assert_eq!(Identity::from_name(&[0xff; 24]), Err(NameError::NotUtf8));
        assert_eq!(Identity::from_name(b"aaaaaaaaaaaaaaaaaaaaaaa,"), Err(NameError::Character(',')));
        assert_eq!(Identity::from_name(b"aaaaaaaaaaaaaaaaaaaaaaa\n"), Err(NameError::Character('\n')));
        assert!(Identity::from_name(b"a-name-of-24-bytes-here!").is_ok());
    }

    #[test]
    fn identity_pattern_is_exact() {
        assert!(Identity::parse("720c7a8_5a1fac3_9fcd2534").is_some());
        assert!(Identity::parse("UNMNGED_5a1fac3_9fcd2534").is_some());
        for no in ["720c7a8_5a1fac3_9fcd253", "720C7a8_5a1fac3_9fcd2534", "demo", "720c7a8_5a1fac3_9fcd2534_"]
        {
            assert!(Identity::parse(no).is_none(), "{no}");
        }
    }
}
