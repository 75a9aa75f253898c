//! The names of the objects of a remote library, and its only mutable object: the head of a catalog.
//!
//! A head says which catalog and which layout belong to a name. `push` writes it last, so a head never names an object that is
//! not there. Of two pushes at once, the later head counts; each is whole.

use serde::{Deserialize, Serialize};

use super::layout::{Blob, Packing};
use crate::library::catalogs::CatalogName;
use crate::library::digest::{Digest, Hex};

/// Raised with every change after which an old head could be misread.
pub const VERSION: u32 = 1;
/// The directory of the heads, below the URL.
pub const HEADS: &str = "heads";
/// The directory of packed blobs that are objects of their own.
pub const ZSTD: &str = "zstd";
/// The largest head in bytes.
pub const MAX_HEAD: u64 = 64 << 10;

/// An object that is named by the SHA-256 of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Object {
    /// 64 hexadecimal digits.
    #[serde(with = "hex")]
    pub sha256: [u8; 32],
    /// The size in bytes.
    pub bytes: u64,
}

/// What belongs to the name of a catalog.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Head {
    pub version: u32,
    /// The catalog, as the library stores it.
    pub catalog: Object,
    /// The layout of its blobs.
    pub layout: Object,
    /// The files that mounts read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Object>,
    /// Where its files name the path in which it was built ([`crate::library::index::find`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finds: Option<Object>,
    /// Compiled Python, as it travels ([`crate::library::bytecode::travel`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytecode: Option<Object>,
}

/// Why a head is refused.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    #[error("it is not the head of a catalog: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("it has version {0}, and this holofs reads version {VERSION}")]
    Version(u32),
}

impl Head {
    /// Reads a head.
    ///
    /// # Errors
    /// See [`HeadError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, HeadError> {
        /// A later version may have other fields.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(bytes)?;
        if version != VERSION {
            return Err(HeadError::Version(version));
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    /// The bytes of the head.
    ///
    /// # Errors
    /// None is known: a head has no maps and no floating-point numbers.
    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }
}

/// The name of the head of a catalog.
#[must_use]
pub fn head(catalog: &CatalogName) -> String {
    format!("{HEADS}/{catalog}")
}

/// The name of a catalog's object.
#[must_use]
pub fn catalog(sha256: &[u8; 32]) -> String {
    format!("catalogs/{}", Hex(sha256))
}

/// The name of a layout.
#[must_use]
pub fn layout(sha256: &[u8; 32]) -> String {
    format!("layouts/{}", Hex(sha256))
}

/// The name of a profile.
#[must_use]
pub fn profile(sha256: &[u8; 32]) -> String {
    format!("profiles/{}", Hex(sha256))
}

/// The name of what a search has found.
#[must_use]
pub fn finds(sha256: &[u8; 32]) -> String {
    format!("finds/{}", Hex(sha256))
}

/// The name of the bytecode of a catalog.
#[must_use]
pub fn bytecode(sha256: &[u8; 32]) -> String {
    format!("bytecode/{}", Hex(sha256))
}

/// The name of a pack.
#[must_use]
pub fn pack(sha256: &[u8; 32]) -> String {
    format!("packs/{}", Hex(sha256))
}

/// The name of a blob that is an object of its own. Other programs pack the same content otherwise, so the name of a packed
/// one tells its size too: a layout never finds an object of another size in its place.
#[must_use]
pub fn blob(blob: &Blob) -> String {
    let Blob { digest, stored, .. } = blob;
    match blob.packing {
        Packing::AsInLibrary => format!("blobs/{digest}"),
        Packing::Zstd => format!("{ZSTD}/{digest}-{stored}"),
    }
}

/// The blob of an object in the directory [`ZSTD`]. The size of its content is not known.
#[must_use]
pub fn packed_blob(name: &str, bytes: u64) -> Option<Blob> {
    let (digest, stored) = name.split_once('-')?;
    let digest = Digest::parse(digest.as_bytes()).ok()?;
    let blob = Blob { digest, size: 0, stored: stored.parse().ok()?, packing: Packing::Zstd };
    (blob.stored == bytes).then_some(blob)
}

mod hex {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::library::digest::{Digest, Hex};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Hex(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        match Digest::parse(text.as_bytes()) {
            Ok(Digest::Sha256(bytes)) => Ok(bytes),
            Ok(Digest::Sip128(_)) | Err(_) => Err(D::Error::custom("not a SHA-256: 64 hexadecimal digits")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_back() {
        let object = |n| Object { sha256: [n; 32], bytes: u64::from(n) };
        let mut head = Head {
            version: VERSION,
            catalog: object(1),
            layout: object(2),
            profile: None,
            finds: None,
            bytecode: None,
        };
        assert_eq!(Head::parse(&head.to_bytes().unwrap()).unwrap(), head);
        (head.profile, head.finds, head.bytecode) = (Some(object(3)), Some(object(4)), Some(object(5)));
        assert_eq!(Head::parse(&head.to_bytes().unwrap()).unwrap(), head);
    }

    #[test]
    fn a_packed_blob_has_its_size_in_its_name() {
        let digest = Digest::Sha256([7; 32]);
        let blob = Blob { digest, size: 0, stored: 12, packing: Packing::Zstd };
        let name = super::blob(&blob);
        let name = name.strip_prefix("zstd/").unwrap();
        assert_eq!(packed_blob(name, 12), Some(blob));
        assert_eq!(packed_blob(name, 13), None);
        assert_eq!(packed_blob(&digest.to_string(), 12), None);
    }

    #[test]
    fn other_versions_and_other_texts_are_refused() {
        assert!(matches!(Head::parse(br#"{"version":2,"new":[]}"#), Err(HeadError::Version(2))));
        for bad in [&b""[..], b"{}", b"[]", br#"{"version":1}"#, b"\xff"] {
            assert!(matches!(Head::parse(bad), Err(HeadError::Malformed(_))), "{bad:?}");
        }
        let digits = "0".repeat(63);
        let text = format!(
            r#"{{"version":1,"catalog":{{"sha256":"{digits}","bytes":1}},"layout":{{"sha256":"","bytes":1}}}}"#
        );
        assert!(matches!(Head::parse(text.as_bytes()), Err(HeadError::Malformed(_))));
    }
}
