//! A zip archive: whatever file a user mounts. Everything that opens is read.
#![no_main]

use std::io::{Read, Write};

use holofs::library::Library;
use holofs::library::zip::ZipLibrary;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(mut file) = tempfile::NamedTempFile::new() else { return };
    if file.write_all(data).is_err() {
        return;
    }
    let Ok(library) = ZipLibrary::open(file.path()) else { return };
    for (digest, _) in library.blobs().unwrap_or_default().blobs {
        if let Ok(stored) = library.blob(&digest) {
            let _ = std::io::copy(&mut stored.take(1 << 20), &mut std::io::sink());
        }
    }
    for entry in library.catalogs().unwrap_or_default().entries {
        let _ = library.catalog(&entry.name);
    }
});
