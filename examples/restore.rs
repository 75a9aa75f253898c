//! Restores an environment as rcc does, for the benchmarks: `restore CATALOG DIRECTORY CACHE`. Relocation writes the
//! name of DIRECTORY into the files.
//!
//! Like rcc it uses two workers for each processor. A worker unpacks a blob into a new file, checks its digest, patches
//! it, sets its mode and time, and renames it into place.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use holofs::library::Library;
use holofs::library::catalogs::CatalogName;
use holofs::library::digest::Hasher;
use holofs::library::dir::DirLibrary;
use holofs::library::index::cache::open_or_compile;
use holofs::library::index::{Index, NodeId, NodeKind};
use holofs::materialize::relocate::{Names, patch_bytes};

fn main() {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [catalog, target, cache] = arguments.as_slice() else {
        eprintln!("usage: restore CATALOG DIRECTORY CACHE");
        std::process::exit(2);
    };
    let hololib = catalog.parent().and_then(Path::parent).expect("a catalog lies in hololib/catalog");
    let library = DirLibrary::new(hololib);
    let catalog = catalog.file_name().and_then(|name| CatalogName::parse(name.to_str()?));
    let catalog = catalog.expect("the name of a catalog");
    let index = open_or_compile(&library, &catalog, cache).expect("a catalog");
    let name = target.file_name().unwrap().to_str().unwrap();
    let bytes = |text: &str| text.as_bytes().try_into().expect("a name of 24 bytes");
    let names = Names { from: bytes(&index.info().identity), to: bytes(name) };
    let mother = UNIX_EPOCH + Duration::from_secs(1_610_000_000);

    let mut files: Vec<(NodeId, PathBuf)> = Vec::new();
    let mut dirs = Vec::new();
    let mut pending = vec![(NodeId(0), target.clone())];
    while let Some((id, path)) = pending.pop() {
        match index.node(id).unwrap().kind {
            NodeKind::Dir { children, .. } => {
                fs::create_dir_all(&path).unwrap();
                dirs.push(path.clone());
                pending.extend(children.map(|child| {
                    let child = NodeId(child);
                    (child, path.join(std::str::from_utf8(index.node(child).unwrap().name).unwrap()))
                }));
            }
            NodeKind::File { .. } => files.push((id, path)),
            NodeKind::Symlink { target } => symlink(std::str::from_utf8(target).unwrap(), &path).unwrap(),
        }
    }
    let next = AtomicUsize::new(0);
    let workers = 2 * std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((id, path)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    restore(&index, &library, &names, *id, path);
                }
            });
        }
    });
    for dir in dirs {
        File::open(dir).unwrap().set_modified(mother).unwrap();
    }
}

fn restore(index: &Index, library: &dyn Library, names: &Names, id: NodeId, path: &Path) {
    let NodeKind::File { size, perm, digest, relocations, .. } = index.node(id).unwrap().kind else { return };
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap());
    let mut stored = library.blob(&digest).unwrap();
    if digest.is_raw() {
        stored.read_to_end(&mut bytes).unwrap();
    } else {
        flate2::read::MultiGzDecoder::new(stored).read_to_end(&mut bytes).unwrap();
    }
    let mut hasher = Hasher::new(digest.kind());
    hasher.update(&bytes);
    assert_eq!(hasher.finish(), digest, "{}", path.display());
    patch_bytes(&mut bytes, relocations.iter().map(|at| at.get()), names).unwrap();
    let beside = path.with_file_name(format!("{}.part", path.file_name().unwrap().to_str().unwrap()));
    let mut file = File::create(&beside).unwrap();
    file.write_all(&bytes).unwrap();
    file.set_permissions(fs::Permissions::from_mode(perm)).unwrap();
    file.set_modified(UNIX_EPOCH + Duration::from_secs(1_610_000_000)).unwrap();
    drop(file);
    fs::rename(&beside, path).unwrap();
}
