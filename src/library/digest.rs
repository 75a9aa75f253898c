//! Digests of file contents, and the place of a blob in the library.
//!
//! A library has one of two kinds, and the length of a digest tells which: 64 hexadecimal digits are SHA-256, and the
//! blob is a gzip stream. 32 digits are SipHash-2-4-128, and the blob is stored as it is. Both are digests of the
//! uncompressed content.

use std::fmt;
use std::hash::Hasher as _;
use std::path::PathBuf;

use sha2::Digest as _;
use siphasher::sip128::{Hasher128, SipHasher24};

/// rcc's key for the SipHash of contents.
const SIP_KEY: &[u8; 16] = b"Very_Random-Seed";

/// The digest of a file's content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// SHA-256. The blob is a gzip stream.
    Sha256([u8; 32]),
    /// SipHash-2-4 with 128 bits. The blob is the content itself.
    Sip128([u8; 16]),
}

/// The hash function of a digest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DigestKind {
    Sha256,
    /// SipHash-2-4 with 128 bits.
    Sip128,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a digest: 64 or 32 lower-case hexadecimal digits")]
pub struct NotADigest;

impl Digest {
    /// Parses 64 or 32 lower-case hexadecimal digits.
    ///
    /// # Errors
    /// When `text` is anything else.
    pub fn parse(text: &[u8]) -> Result<Self, NotADigest> {
        match text.len() {
            64 => parse_hex(text).map(Self::Sha256),
            32 => parse_hex(text).map(Self::Sip128),
            _ => Err(NotADigest),
        }
    }

    #[must_use]
    pub fn kind(&self) -> DigestKind {
        match self {
            Self::Sha256(_) => DigestKind::Sha256,
            Self::Sip128(_) => DigestKind::Sip128,
        }
    }

    /// Whether the blob is stored without compression.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        matches!(self, Self::Sip128(_))
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sip128(bytes) => bytes,
        }
    }

    /// The path of the blob below the library: `aa/bb/cc/<digest>`.
    #[must_use]
    pub fn fan_out(&self) -> PathBuf {
        let [first, second, third] = self.fan_out_dirs();
        [first, second, third, self.to_string()].iter().collect()
    }

    /// The names of the three directories on that path.
    #[must_use]
    pub fn fan_out_dirs(&self) -> [String; 3] {
        let (Self::Sha256([a, b, c, ..]) | Self::Sip128([a, b, c, ..])) = self;
        [a, b, c].map(|byte| format!("{byte:02x}"))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(self.bytes()).fmt(f)
    }
}

/// Bytes, shown as lower-case hex digits.
#[derive(Clone, Copy, Debug)]
pub struct Hex<'b>(pub &'b [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The value of a lower-case hexadecimal digit, or 255 for any other byte.
fn nibble(digit: u8) -> u8 {
    let (decimal, letter) = (digit.wrapping_sub(b'0'), digit.wrapping_sub(b'a'));
    if decimal < 10 {
        decimal
    } else if letter < 6 {
        letter + 10
    } else {
        0xff
    }
}

fn parse_hex<const N: usize>(text: &[u8]) -> Result<[u8; N], NotADigest> {
    let mut out = [0u8; N];
    let mut wrong = 0;
    // The loop has no branch: a catalog holds millions of digits.
    for (byte, [high, low]) in out.iter_mut().zip(text.as_chunks::<2>().0) {
        let (high, low) = (nibble(*high), nibble(*low));
        wrong |= (high | low) & 0xf0;
        *byte = high << 4 | low & 0xf;
    }
    if wrong == 0 { Ok(out) } else { Err(NotADigest) }
}

/// Computes a digest of bytes that arrive in pieces.
#[derive(Debug)]
pub enum Hasher {
    Sha256(Box<sha2::Sha256>),
    Sip128(SipHasher24),
}

impl Hasher {
    #[must_use]
    pub fn new(kind: DigestKind) -> Self {
        match kind {
            DigestKind::Sha256 => Self::Sha256(Box::default()),
            DigestKind::Sip128 => Self::Sip128(SipHasher24::new_with_key(SIP_KEY)),
        }
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sip128(hasher) => hasher.write(bytes),
        }
    }

    /// Returns the digest of all bytes.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Self::Sip128(hasher) => Digest::Sip128(hasher.finish128().as_bytes()),
        }
    }

    /// The digest of `bytes`.
    #[must_use]
    pub fn digest(kind: DigestKind, bytes: &[u8]) -> Digest {
        let mut hasher = Self::new(kind);
        hasher.update(bytes);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn vectors_of_the_real_program() {
        let vectors = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/rcc.jsonl");
        let mut checked = 0;
        for line in std::fs::read_to_string(vectors).unwrap().lines() {
            let vector: Value = serde_json::from_str(line).unwrap();
            if vector["op"] != "digests" {
                continue;
            }
            let text = vector.get("text").and_then(Value::as_str).unwrap_or_default().as_bytes().to_vec();
            // The vector without a text is too long to write down. Its content is every byte value in order, 40 times.
            let content = match vector["len"].as_u64().unwrap() {
                10_240 => (0u8..=255).cycle().take(10_240).collect(),
                _ => text,
            };
            assert_eq!(Hasher::digest(DigestKind::Sha256, &content).to_string(), vector["sha256"]);
            assert_eq!(Hasher::digest(DigestKind::Sip128, &content).to_string(), vector["siphash128"]);
            checked += 1;
        }
        assert!(checked >= 5, "{checked}");
    }

    #[test]
    fn pieces_make_no_difference() {
        let content: Vec<u8> = (0u8..=255).cycle().take(1000).collect();
        for kind in [DigestKind::Sha256, DigestKind::Sip128] {
            for size in [1, 7, 8, 64, 999] {
                let mut hasher = Hasher::new(kind);
                content.chunks(size).for_each(|piece| hasher.update(piece));
                assert_eq!(hasher.finish(), Hasher::digest(kind, &content), "{size}");
            }
        }
    }

    #[test]
    fn every_digit_is_read() {
        let digest =
            Digest::Sip128([0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0, 9, 0xaf, 0xfa, 1, 2, 3, 0xff]);
        assert_eq!(digest.to_string(), "0123456789abcdef0009affa010203ff");
        assert_eq!(Digest::parse(digest.to_string().as_bytes()), Ok(digest));
        for byte in (0u8..=255).filter(|byte| !matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            for place in [0, 31] {
                let mut text = [b'0'; 32];
                text[place] = byte;
                assert_eq!(Digest::parse(&text), Err(NotADigest), "{byte}");
            }
        }
    }

    #[test]
    fn only_lower_case_hex_of_the_two_lengths() {
        for bad in ["", "N/A", &"a".repeat(63), &"A".repeat(64), &"g".repeat(32), &"é".repeat(16)] {
            assert_eq!(Digest::parse(bad.as_bytes()), Err(NotADigest), "{bad}");
        }
        let digest = Digest::parse(b"457d3202e0db95686547f60ad99125ac").unwrap();
        assert_eq!(digest.fan_out(), PathBuf::from("45/7d/32/457d3202e0db95686547f60ad99125ac"));
    }
}
