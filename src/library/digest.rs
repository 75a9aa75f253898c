//! Digests: which function, which text form, which place in the library.
//!
//! The kind follows from the length, never from the content: 64 hex digits are SHA-256 of a blob stored as gzip,
//! 32 are SipHash-2-4-128 of a blob stored as it is. The digest is of the file's original bytes in both cases.

use std::fmt;
use std::hash::Hasher as _;
use std::path::PathBuf;
use std::str::FromStr;

use sha2::Digest as _;
use siphasher::sip128::{Hasher128, SipHasher24};

/// The key of rcc's content SipHash.
const SIP_KEY: &[u8; 16] = b"Very_Random-Seed";

/// The digest of a content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// SHA-256; the blob is a gzip stream.
    Sha256([u8; 32]),
    /// SipHash-2-4 with 128 bits; the blob is the bytes themselves.
    Sip128([u8; 16]),
}

/// Which function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DigestKind {
    /// SHA-256.
    Sha256,
    /// SipHash-2-4-128.
    Sip128,
}

/// A text that is no digest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a digest: 64 or 32 lower-case hexadecimal digits")]
pub struct NotADigest;

impl Digest {
    /// The function it was made with.
    #[must_use]
    pub fn kind(&self) -> DigestKind {
        match self {
            Self::Sha256(_) => DigestKind::Sha256,
            Self::Sip128(_) => DigestKind::Sip128,
        }
    }

    /// Whether the blob is the bytes themselves.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        matches!(self, Self::Sip128(_))
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sip128(bytes) => bytes,
        }
    }

    /// The blob's place below the library: `aa/bb/cc/<digest>`.
    #[must_use]
    pub fn fan_out(&self) -> PathBuf {
        let text = self.to_string();
        let part = |from: usize| text.get(from..from + 2).unwrap_or_default();
        [part(0), part(2), part(4), &text].iter().collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        match text.len() {
            64 => hex(text).map(Self::Sha256),
            32 => hex(text).map(Self::Sip128),
            _ => Err(NotADigest),
        }
    }
}

fn hex<const N: usize>(text: &str) -> Result<[u8; N], NotADigest> {
    let mut out = [0u8; N];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = match pair {
            [high, low] => nibble(*high)? << 4 | nibble(*low)?,
            _ => return Err(NotADigest),
        };
    }
    Ok(out)
}

fn nibble(digit: u8) -> Result<u8, NotADigest> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(NotADigest),
    }
}

/// Computes a digest as the bytes come.
pub enum Hasher {
    /// SHA-256.
    Sha256(Box<sha2::Sha256>),
    /// SipHash-2-4-128.
    Sip128(SipHasher24),
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

impl Hasher {
    /// A hasher of a kind.
    #[must_use]
    pub fn new(kind: DigestKind) -> Self {
        match kind {
            DigestKind::Sha256 => Self::Sha256(Box::default()),
            DigestKind::Sip128 => Self::Sip128(SipHasher24::new_with_key(SIP_KEY)),
        }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sip128(hasher) => hasher.write(bytes),
        }
    }

    /// The digest of all bytes taken.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Self::Sip128(hasher) => Digest::Sip128(hasher.finish128().as_bytes()),
        }
    }

    /// The digest of some bytes.
    #[must_use]
    pub fn digest(kind: DigestKind, bytes: &[u8]) -> Digest {
        let mut hasher = Self::new(kind);
        hasher.update(bytes);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_the_real_program() {
        let cases: [(&[u8], &str, &str); 3] = [
            (
                b"",
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                "457d3202e0db95686547f60ad99125ac",
            ),
            (
                b"hello\n",
                "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
                "79385034bd2529e675348170617088f5",
            ),
            (
                b"xxxxxxxxxxxxxxxx",
                "9c5729595fb287cc2a2256280448bbe706c0a866f0372515c7483de2af4e6532",
                "dfcde0f0bd653b9171669ab435eef92c",
            ),
        ];
        for (content, sha, sip) in cases {
            assert_eq!(Hasher::digest(DigestKind::Sha256, content).to_string(), sha);
            assert_eq!(Hasher::digest(DigestKind::Sip128, content).to_string(), sip);
        }
    }

    #[test]
    fn only_lower_case_hex_of_the_two_lengths() {
        for bad in ["", "N/A", &"a".repeat(63), &"A".repeat(64), &"g".repeat(32), &"é".repeat(16)] {
            assert_eq!(bad.parse::<Digest>(), Err(NotADigest), "{bad}");
        }
        let digest: Digest = "457d3202e0db95686547f60ad99125ac".parse().unwrap();
        assert_eq!(digest.fan_out(), PathBuf::from("45/7d/32/457d3202e0db95686547f60ad99125ac"));
    }
}
