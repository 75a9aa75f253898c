//! Parses a catalog, as given and as the content of a gzip file, so that mutations reach the JSON parser too.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = holofs::library::catalog::parse_file(data);
    let _ = holofs::library::catalog::parse_file(&stored(data));
});

/// A gzip file with one block that is not compressed, and a correct checksum.
fn stored(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let data = &data[..data.len().min(0xffff)];
    let size = data.len() as u16;
    out.push(1);
    out.extend(size.to_le_bytes());
    out.extend((!size).to_le_bytes());
    out.extend(data);
    let mut crc = !0u32;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    out.extend((!crc).to_le_bytes());
    out.extend((data.len() as u32).to_le_bytes());
    out
}
