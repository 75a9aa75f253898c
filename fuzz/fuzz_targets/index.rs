//! Opens a compiled index from arbitrary bytes. The checksum of the header is corrected, so that mutations get past it.
#![no_main]

use std::io::Write;

use holofs::library::index::{Index, NodeId, NodeKind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    let head = holofs::library::index::format::HEADER_SIZE;
    if bytes.len() >= head {
        let crc = crc32fast::hash(&bytes[..head - 4]);
        bytes[head - 4..head].copy_from_slice(&crc.to_le_bytes());
    }
    let Ok(mut file) = tempfile::NamedTempFile::new() else { return };
    if file.write_all(&bytes).is_err() {
        return;
    }
    let Ok(index) = Index::open(file.path()) else { return };
    let _ = index.verify();
    for id in (0..index.len().min(1000)).map(NodeId) {
        let _ = index.path_of(id);
        let _ = index.lookup(id, b"name");
        if let Ok(node) = index.node(id)
            && let NodeKind::File { relocations, .. } = node.kind
        {
            let _ = relocations.iter().take(1000).count();
        }
    }
});
