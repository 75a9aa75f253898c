//! Puts a library into a directory in the format of an object store, as `holofs push` does, but with small groups.

use std::path::{Path, PathBuf};

use holofs::library::catalogs::CatalogName;
use holofs::library::digest::Digest;
use holofs::library::remote::head::{self, Head, Object};
use holofs::library::remote::layout::Writer;
use sha2::{Digest as _, Sha256};

use super::files_below;
use super::fixture::gunzip;

/// Stored blobs that are larger are objects of their own.
const ALONE: usize = 64 << 10;
/// The number of blobs in a group.
const GROUP: usize = 4;

/// A store that is a directory.
#[derive(Debug)]
pub struct FileStore(pub PathBuf);

impl FileStore {
    /// Puts all catalogs of a hololib below `dir`.
    pub fn push(hololib: &Path, dir: &Path) -> Self {
        let store = Self(dir.to_owned());
        let library = hololib.join("library");
        let (mut writer, mut small) = (Writer::default(), Vec::new());
        for path in files_below(&library) {
            let digest = Digest::parse(path.file_name().unwrap().as_encoded_bytes()).unwrap();
            let stored = std::fs::read(library.join(path)).unwrap();
            let size = if digest.is_raw() { stored.len() } else { gunzip(&stored).len() } as u64;
            if stored.len() > ALONE {
                writer.alone(digest, size, stored.len() as u64);
                store.put(&head::blob(&digest), &stored);
            } else {
                small.push((digest, size, stored));
            }
        }
        let pack: Vec<u8> = small.iter().flat_map(|(_, _, stored)| stored).copied().collect();
        let sum = sha256(&pack);
        store.put(&head::pack(&sum), &pack);
        let mut offset = 0;
        for group in small.chunks(GROUP) {
            let blobs = group.iter().map(|(digest, size, stored)| (*digest, *size, stored.len() as u64));
            writer.group(sum, pack.len() as u64, offset, blobs);
            offset += group.iter().map(|(_, _, stored)| stored.len() as u64).sum::<u64>();
        }
        let layout = writer.finish();
        store.put(&head::layout(&sha256(&layout)), &layout);
        for entry in std::fs::read_dir(hololib.join("catalog")).unwrap().map(Result::unwrap) {
            let Some(name) = CatalogName::parse(entry.file_name().to_str().unwrap()) else { continue };
            let catalog = std::fs::read(entry.path()).unwrap();
            store.put(&head::catalog(&sha256(&catalog)), &catalog);
            let made = Head {
                version: head::VERSION,
                catalog: object(&catalog),
                layout: object(&layout),
                profile: None,
            };
            store.put(&head::head(&name), &made.to_bytes().unwrap());
        }
        store
    }

    pub fn url(&self) -> String {
        format!("file://{}", self.0.display())
    }

    pub fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// The only file in a directory of the store.
    pub fn only(&self, dir: &str) -> PathBuf {
        let files = files_below(&self.0.join(dir));
        assert_eq!(files.len(), 1, "{files:?}");
        self.0.join(dir).join(&files[0])
    }

    /// Takes the store away. Drop what is returned to bring it back.
    pub fn away(&self) -> Away<'_> {
        std::fs::rename(&self.0, self.hidden()).unwrap();
        Away(self)
    }

    fn hidden(&self) -> PathBuf {
        self.0.with_extension("away")
    }
}

/// A store that is not there.
#[derive(Debug)]
pub struct Away<'s>(&'s FileStore);

impl Drop for Away<'_> {
    fn drop(&mut self) {
        std::fs::rename(self.0.hidden(), &self.0.0).unwrap();
    }
}

fn object(bytes: &[u8]) -> Object {
    Object { sha256: sha256(bytes), bytes: bytes.len() as u64 }
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
