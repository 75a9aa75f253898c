//! A small library and a space of it, without FUSE.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::fs::Fs;
use crate::fs::error::errno;
use crate::handoff::Handoff;
use crate::library::blob::Blobs;
use crate::library::cache::BlobCache;
use crate::library::catalogs::{CatalogName, CatalogStamp, Catalogs};
use crate::library::digest::{Digest, DigestKind, Hasher};
use crate::library::dir::DirLibrary;
use crate::library::index::cache::open_or_compile;
use crate::library::stored::{StoredBlob, StoredBlobs};
use crate::library::{Latency, Library, LibraryError};
use crate::materialize::Materializer;
use crate::materialize::relocate::Names;
use crate::materialize::source::Source;
use crate::materialize::staging::Staging;
use crate::namespace::types::{Attr, Caller, Ino, Result};
use crate::namespace::{Namespace, Owner};
use crate::settings::Strategy;

pub(crate) const STAGE: &str = "h720c7a8_493f813dad24d3t";
pub(crate) const SPACE: &str = "720c7a8_5a1fac3_9fcd2534";

/// An entry of a library: a file's content, a link's target, or an empty directory.
#[derive(Clone)]
pub(crate) enum Item {
    File(Vec<u8>),
    Link(&'static str),
    Dir,
}

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) fs: Fs,
    catalog: PathBuf,
    /// Simulates a filesystem without device whiteouts.
    marking: bool,
}

/// The library that most tests use.
pub(crate) fn usual() -> Vec<(&'static str, Item)> {
    let large: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    let script = format!("#!/base/{STAGE}/bin/python\nprint()\n");
    let mut large_script = large.clone();
    large_script[1000..1024].copy_from_slice(STAGE.as_bytes());
    vec![
        ("bin/tool", Item::File(script.into_bytes())),
        ("bin/large-tool", Item::File(large_script)),
        ("lib/a.txt", Item::File(b"hello\n".to_vec())),
        ("lib/b.txt", Item::File(b"world\n".to_vec())),
        ("lib/large.bin", Item::File(large)),
        ("lib/sub/deep.txt", Item::File(b"deep".to_vec())),
        ("lib/link", Item::Link("a.txt")),
        ("empty", Item::Dir),
        ("identity.yaml", Item::File(b"channels: []".to_vec())),
    ]
}

impl World {
    pub(crate) fn new(items: &[(&str, Item)], raw: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let catalog = write_library(&dir.path().join("hololib"), items, raw);
        let fs = open(dir.path(), &catalog, false, Handoff::create().unwrap());
        Self { dir, fs, catalog, marking: false }
    }

    pub(crate) fn usual() -> Self {
        Self::new(&usual(), false)
    }

    /// The usual world on a filesystem without device whiteouts.
    pub(crate) fn marking() -> Self {
        let mut world = Self::usual();
        world.marking = true;
        world.remount()
    }

    /// Simulates the death of the daemon and a new mount.
    pub(crate) fn remount(mut self) -> Self {
        self.fs = open(self.dir.path(), &self.catalog, self.marking, Handoff::create().unwrap());
        self
    }

    /// Simulates the death of a worker and a new one that takes its place. Open descriptors are not closed, as the
    /// table of descriptors stays.
    pub(crate) fn takeover(mut self) -> Self {
        self.fs.namespace().close_kept();
        let memory = self.fs.namespace().handoff().fd().unwrap().try_clone_to_owned().unwrap();
        let next = open(self.dir.path(), &self.catalog, self.marking, Handoff::of(memory).unwrap());
        std::mem::forget(std::mem::replace(&mut self.fs, next));
        self
    }

    pub(crate) fn upper(&self, path: &str) -> PathBuf {
        self.dir.path().join("state/upper").join(path)
    }

    pub(crate) fn blobs(&self) -> Vec<PathBuf> {
        files_below(&self.dir.path().join("hololib/library"))
    }

    /// The same library, as slow as a network.
    pub(crate) fn far(mut self) -> Self {
        let library = Arc::new(Far(DirLibrary::new(&self.dir.path().join("hololib"))));
        let handoff = Handoff::create().unwrap();
        self.fs = open_library(self.dir.path(), library, &self.catalog, self.marking, handoff);
        self
    }

    /// Looks up a path, component by component.
    pub(crate) fn find(&self, path: &str) -> Result<Attr> {
        let mut attr = self.fs.namespace().attr(Ino::ROOT)?;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            attr = self.fs.namespace().lookup(attr.ino, part.as_bytes())?;
        }
        Ok(attr)
    }

    pub(crate) fn ino(&self, path: &str) -> Ino {
        self.find(path).unwrap().ino
    }

    pub(crate) fn read_start(&self, ino: Ino, buffer: &mut [u8]) -> Result<usize> {
        self.fs.read_data(&self.fs.data(ino)?, 0, buffer)
    }

    pub(crate) fn read(&self, path: &str) -> Vec<u8> {
        let attr = self.find(path).unwrap();
        let mut bytes = vec![0; usize::try_from(attr.size).unwrap() + 1];
        let n = self.read_start(attr.ino, &mut bytes).unwrap();
        bytes.truncate(n);
        bytes
    }

    pub(crate) fn list(&self, path: &str) -> Vec<String> {
        let mut names = Vec::new();
        let ino = self.ino(path);
        self.fs
            .namespace()
            .readdir(ino, 0, true, &mut |entry| {
                names.push(String::from_utf8_lossy(entry.name).into_owned());
                crate::namespace::read::Taken::Yes
            })
            .unwrap();
        names.retain(|name| name != "." && name != "..");
        names.sort();
        names
    }

    /// All files of the upper, including whiteouts.
    pub(crate) fn upper_files(&self) -> Vec<PathBuf> {
        files_below(&self.upper(""))
    }
}

/// A library in a directory that claims to be as slow as a network.
#[derive(Debug)]
struct Far(DirLibrary);

impl Library for Far {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn catalogs(&self) -> std::result::Result<Catalogs, LibraryError> {
        self.0.catalogs()
    }

    fn catalog_stamp(&self, name: &CatalogName) -> std::io::Result<CatalogStamp> {
        self.0.catalog_stamp(name)
    }

    fn open_catalog(&self, name: &CatalogName) -> std::io::Result<StoredBlob> {
        self.0.open_catalog(name)
    }

    fn catalog(&self, name: &CatalogName) -> std::result::Result<(CatalogStamp, Vec<u8>), LibraryError> {
        self.0.catalog(name)
    }

    fn blob(&self, digest: &Digest) -> std::io::Result<StoredBlob> {
        self.0.blob(digest)
    }

    fn has_blob(&self, digest: &Digest) -> std::io::Result<bool> {
        self.0.has_blob(digest)
    }

    fn blobs(&self) -> std::result::Result<StoredBlobs, LibraryError> {
        self.0.blobs()
    }

    fn latency(&self) -> Latency {
        Latency::Network
    }
}

pub(crate) fn caller() -> Caller {
    Caller { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
}

/// The errno of an operation that must fail.
pub(crate) fn refused<T: std::fmt::Debug>(done: Result<T>) -> rustix::io::Errno {
    errno(&done.unwrap_err())
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else { return out };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            out.extend(files_below(&path));
        } else {
            out.push(path);
        }
    }
    out
}

fn open(dir: &Path, catalog: &Path, marking: bool, handoff: Handoff) -> Fs {
    open_library(dir, Arc::new(DirLibrary::new(&dir.join("hololib"))), catalog, marking, handoff)
}

fn open_library(
    dir: &Path,
    library: Arc<dyn Library>,
    catalog: &Path,
    marking: bool,
    handoff: Handoff,
) -> Fs {
    handoff.begin();
    let state = dir.join("state");
    for name in ["upper", "work", "reloc"] {
        std::fs::create_dir_all(state.join(name)).unwrap();
    }
    let fd = |name: &str| std::os::fd::OwnedFd::from(File::open(state.join(name)).unwrap());
    let name = CatalogName::parse(catalog.file_name().unwrap().to_str().unwrap()).unwrap();
    let index = Arc::new(open_or_compile(&*library, &name, &dir.join("cache/index")).unwrap());
    let staging = Arc::new(Staging::new(fd("work")));
    staging.sweep().unwrap();
    let blobs = Arc::new(Blobs::new(library, BlobCache::open(&dir.join("cache/blobs")).unwrap()));
    let names =
        Names { from: STAGE.as_bytes().try_into().unwrap(), to: SPACE.as_bytes().try_into().unwrap() };
    let source = Source::new(Arc::clone(&index), blobs, names, Strategy::Smart);
    let materializer = Arc::new(Materializer::new(source, Arc::clone(&staging), fd("reloc"), Arc::default()));
    let owner = Owner { uid: caller().uid, gid: caller().gid, dir_mode: 0o750 };
    let (source, handoff) = (Arc::clone(&materializer), Arc::new(handoff));
    let names = Namespace::open(index, source, staging, fd("upper"), owner, false, handoff).unwrap();
    let names = if marking { names.marking_whiteouts() } else { names };
    Fs::new(names, materializer, fd("."))
}

/// Writes a hololib with one catalog in rcc's format. Returns the path of the catalog.
pub(crate) fn write_library(hololib: &Path, items: &[(&str, Item)], raw: bool) -> PathBuf {
    let kind = if raw { DigestKind::Sip128 } else { DigestKind::Sha256 };
    let mut root = Tree::default();
    for (path, item) in items {
        root.put(path, item);
    }
    let mut json = format!(
        r#"{{"rcc":"v18.18.1","identity":"{STAGE}","path":"/base/{STAGE}","controller":"","space":"",
        "platform":"linux_amd64","blueprint":"adb8c26db4d86a93","lifted":true,"tree":"#
    );
    root.json("", &mut json, &mut |content| {
        let digest = Hasher::digest(kind, content);
        let blob = hololib.join("library").join(digest.fan_out());
        std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
        std::fs::write(&blob, if raw { content.to_vec() } else { gzip(content) }).unwrap();
        digest.to_string()
    });
    json.push('}');
    let catalog = hololib.join("catalog/adb8c26db4d86a93v12.linux_amd64");
    std::fs::create_dir_all(catalog.parent().unwrap()).unwrap();
    std::fs::create_dir_all(hololib.join("library")).unwrap();
    std::fs::write(&catalog, gzip(json.as_bytes())).unwrap();
    catalog
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[derive(Default)]
struct Tree {
    dirs: BTreeMap<String, Tree>,
    files: BTreeMap<String, Item>,
}

impl Tree {
    fn put(&mut self, path: &str, item: &Item) {
        match path.split_once('/') {
            Some((dir, rest)) => self.dirs.entry(dir.into()).or_default().put(rest, item),
            None if matches!(item, Item::Dir) => {
                self.dirs.entry(path.into()).or_default();
            }
            None => {
                self.files.insert(path.into(), item.clone());
            }
        }
    }

    fn json(&self, name: &str, out: &mut String, store: &mut dyn FnMut(&[u8]) -> String) {
        write!(out, r#"{{"name":"{name}","mode":2147484141,"subdirs":{{"#).unwrap();
        for (n, (name, dir)) in self.dirs.iter().enumerate() {
            write!(out, r#"{}"{name}":"#, if n > 0 { "," } else { "" }).unwrap();
            dir.json(name, out, store);
        }
        out.push_str(r#"},"files":{"#);
        for (n, (name, item)) in self.files.iter().enumerate() {
            write!(out, r#"{}"{name}":{{"name":"{name}","#, if n > 0 { "," } else { "" }).unwrap();
            match item {
                Item::File(content) => {
                    let offsets: Vec<usize> = content
                        .windows(STAGE.len())
                        .enumerate()
                        .filter(|(_, w)| *w == STAGE.as_bytes())
                        .map(|(at, _)| at)
                        .collect();
                    let (size, digest) = (content.len(), store(content));
                    write!(out, r#""size":{size},"mode":420,"digest":"{digest}","rewrite":{offsets:?}}}"#)
                        .unwrap();
                }
                Item::Link(text) => {
                    write!(out, r#""symlink":"{text}","size":0,"mode":420,"digest":"N/A","rewrite":[]}}"#)
                        .unwrap();
                }
                Item::Dir => unreachable!("directories have their own map"),
            }
        }
        out.push_str("}}");
    }
}
