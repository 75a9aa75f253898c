//! Writes zip archives byte by byte, so that a test can make broken ones.

use std::io::{Read, Write};

/// An entry, with the values of its headers.
#[derive(Clone, Debug)]
pub struct ZipEntry {
    pub name: String,
    /// 0 for stored bytes, 8 for deflated ones.
    pub method: u16,
    pub flags: u16,
    pub crc: u32,
    /// The packed bytes.
    pub packed: Vec<u8>,
    /// The packed size that the central directory declares.
    pub packed_size: u32,
    /// The unpacked size that it declares.
    pub size: u32,
    /// The offset that the central directory declares, if it is not the real one.
    pub offset: Option<u32>,
}

impl ZipEntry {
    pub fn stored(name: &str, content: &[u8]) -> Self {
        Self::new(name, 0, content.to_vec(), content)
    }

    pub fn deflated(name: &str, content: &[u8]) -> Self {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).expect("deflate");
        Self::new(name, 8, encoder.finish().expect("deflate"), content)
    }

    fn new(name: &str, method: u16, packed: Vec<u8>, content: &[u8]) -> Self {
        let mut crc = flate2::Crc::new();
        crc.update(content);
        let (packed_size, size) = (packed.len() as u32, content.len() as u32);
        Self { name: name.into(), method, flags: 0, crc: crc.sum(), packed, packed_size, size, offset: None }
    }

    /// The content, unpacked.
    pub fn content(&self) -> Vec<u8> {
        if self.method == 0 {
            return self.packed.clone();
        }
        let mut content = Vec::new();
        flate2::read::DeflateDecoder::new(&*self.packed).read_to_end(&mut content).expect("inflate");
        content
    }

    fn header(&self, signature: &[u8; 4], offset: Option<u32>) -> Vec<u8> {
        let mut out = signature.to_vec();
        if offset.is_some() {
            out.extend(20u16.to_le_bytes());
        }
        out.extend([20, self.flags, self.method, 0, 0].map(u16::to_le_bytes).concat());
        out.extend([self.crc, self.packed_size, self.size].map(u32::to_le_bytes).concat());
        out.extend([self.name.len() as u16, 0].map(u16::to_le_bytes).concat());
        if let Some(offset) = offset {
            out.extend([0u8; 10]);
            out.extend(offset.to_le_bytes());
        }
        out.extend(self.name.as_bytes());
        out
    }
}

/// An archive after `prefix`. Its offsets count from the start of the archive, as in a zip archive that was appended to a
/// script.
pub fn zip(prefix: &[u8], entries: &[ZipEntry]) -> Vec<u8> {
    let (mut out, mut directory) = (prefix.to_vec(), Vec::new());
    for entry in entries {
        let offset = entry.offset.unwrap_or((out.len() - prefix.len()) as u32);
        directory.extend(entry.header(b"PK\x01\x02", Some(offset)));
        out.extend(entry.header(b"PK\x03\x04", None));
        out.extend(&entry.packed);
    }
    let offset = (out.len() - prefix.len()) as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([entries.len() as u16; 2].map(u16::to_le_bytes).concat());
    out.extend([directory.len() as u32, offset].map(u32::to_le_bytes).concat());
    out.extend([0, 0]);
    out
}

/// The entries of a valid archive.
pub fn entries(archive: &[u8]) -> Vec<ZipEntry> {
    let at = |from: usize, len: usize| &archive[from..from + len];
    let number =
        |from: usize, len: usize| at(from, len).iter().rev().fold(0, |n, byte| n << 8 | usize::from(*byte));
    let end = archive.len() - 22;
    assert_eq!(at(end, 4), b"PK\x05\x06");
    let (count, mut from) = (number(end + 10, 2), number(end + 16, 4));
    let mut out = Vec::new();
    for _ in 0..count {
        let (name, packed, local) = (number(from + 28, 2), number(from + 20, 4), number(from + 42, 4));
        let data = local + 30 + number(local + 26, 2) + number(local + 28, 2);
        out.push(ZipEntry {
            name: String::from_utf8(at(from + 46, name).to_vec()).expect("a name"),
            method: number(from + 10, 2) as u16,
            flags: 0,
            crc: number(from + 16, 4) as u32,
            packed: at(data, packed).to_vec(),
            packed_size: packed as u32,
            size: number(from + 24, 4) as u32,
            offset: None,
        });
        from += 46 + name + number(from + 30, 2) + number(from + 32, 2);
    }
    out
}
