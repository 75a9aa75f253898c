//! Benchmarks of the parts of a mount and of a first read: `cargo bench --bench pieces`. Compiling a catalog is shown
//! beside its lower bounds, which are unpacking the text and skipping over its JSON. Asserts nothing.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use holofs::library::blob::Blobs;
use holofs::library::catalogs::CatalogName;
use holofs::library::digest::{Digest, DigestKind, Hasher};
use holofs::library::dir::DirLibrary;
use holofs::library::index::cache::open_or_compile;
use holofs::library::index::{Index, NodeId, NodeKind};
use holofs::library::{catalog, index};
use holofs::materialize::relocate::{Names, patch_bytes};
use holofs::session::compose;

const ID: &str = "hea7ce2c_493f813dad24d3t";
const FILES: u64 = 100_000;

fn main() {
    divan::main();
}

/// A catalog of [`FILES`] files: as text, compressed as rcc does it, on disk, and compiled.
struct Sample {
    _dir: tempfile::TempDir,
    text: String,
    packed: Vec<u8>,
    library: DirLibrary,
    name: CatalogName,
    cache: PathBuf,
    index: Index,
    /// Every name, with the node of its directory.
    names: Vec<(NodeId, Vec<u8>)>,
}

static SAMPLE: LazyLock<Sample> = LazyLock::new(|| {
    let text = catalog_text(FILES);
    let packed = gzip(text.as_bytes());
    let dir = tempfile::tempdir().unwrap();
    let name = CatalogName::parse("adb8c26db4d86a93v12.linux_amd64").unwrap();
    let (library, cache) = (DirLibrary::new(dir.path()), dir.path().join("cache"));
    fs::create_dir(dir.path().join("catalog")).unwrap();
    fs::write(dir.path().join("catalog").join(name.to_string()), &packed).unwrap();
    let index = open_or_compile(&library, &name, &cache).unwrap();
    let names = (1..index.len())
        .map(|id| index.node(NodeId(id)).unwrap())
        .map(|node| (node.parent, node.name.to_vec()))
        .collect();
    Sample { _dir: dir, text, packed, library, name, cache, index, names }
});

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut stream = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    stream.write_all(bytes).unwrap();
    stream.finish().unwrap()
}

fn unpack(packed: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    flate2::bufread::MultiGzDecoder::new(packed).read_to_end(&mut text).unwrap();
    text
}

mod compile {
    use super::*;

    /// The lower bound of the others.
    #[divan::bench(sample_count = 9)]
    fn bare_unpack_then_json() {
        let _: serde::de::IgnoredAny = serde_json::from_slice(&unpack(&SAMPLE.packed)).unwrap();
    }

    #[divan::bench(sample_count = 9)]
    fn json_alone() {
        let _: serde::de::IgnoredAny = serde_json::from_str(&SAMPLE.text).unwrap();
    }

    #[divan::bench(sample_count = 9)]
    fn unpack_and_parse() {
        black_box(catalog::parse_file(&SAMPLE.packed).unwrap());
    }

    #[divan::bench(sample_count = 9)]
    fn tree_to_index(bencher: Bencher) {
        let tree = catalog::parse_file(&SAMPLE.packed).unwrap();
        bencher.bench_local(|| index::compile::compile(&tree, [0; 32]).unwrap());
    }

    #[divan::bench(sample_count = 9)]
    fn open_a_new_catalog(bencher: Bencher) {
        bencher.with_inputs(|| tempfile::tempdir().unwrap()).bench_local_values(|dir| {
            (open_or_compile(&SAMPLE.library, &SAMPLE.name, dir.path()).unwrap(), dir)
        });
    }

    #[divan::bench]
    fn open_a_known_catalog() -> Index {
        open_or_compile(&SAMPLE.library, &SAMPLE.name, &SAMPLE.cache).unwrap()
    }
}

mod hot_path {
    use super::*;

    #[divan::bench]
    fn lookup(bencher: Bencher) {
        let sample = &*SAMPLE;
        bencher.counter(ItemsCount::new(sample.names.len())).bench_local(|| {
            for (parent, name) in &sample.names {
                black_box(sample.index.lookup(*parent, name).unwrap());
            }
        });
    }

    #[divan::bench]
    fn lookup_of_a_missing_name(bencher: Bencher) {
        let sample = &*SAMPLE;
        bencher.counter(ItemsCount::new(sample.names.len())).bench_local(|| {
            for (parent, _) in &sample.names {
                black_box(sample.index.lookup(*parent, b"absent.py").unwrap());
            }
        });
    }

    /// Reads every directory, with the attributes of its children.
    #[divan::bench]
    fn readdir(bencher: Bencher) {
        let index = &SAMPLE.index;
        bencher.counter(ItemsCount::new(index.len())).bench_local(|| {
            for id in 0..index.len() {
                if let NodeKind::Dir { children, .. } = index.node(NodeId(id)).unwrap().kind {
                    for child in children {
                        black_box(index.node(NodeId(child)).unwrap());
                    }
                }
            }
        });
    }
}

mod first_read {
    use super::*;

    /// Text that compresses about as well as Python source.
    fn content(len: usize) -> Vec<u8> {
        let mut seed = 7_u32;
        let mut out = Vec::with_capacity(len + 80);
        while out.len() < len {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            writeln!(out, "    self.value_{} = compute({seed:08x})", seed >> 28).unwrap();
        }
        out.truncate(len);
        out
    }

    fn library(len: usize) -> (tempfile::TempDir, Blobs, Digest) {
        let dir = tempfile::tempdir().unwrap();
        let bytes = content(len);
        let digest = Hasher::digest(DigestKind::Sha256, &bytes);
        let path = dir.path().join("library").join(digest.fan_out());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, gzip(&bytes)).unwrap();
        let blobs = Blobs::new(
            Arc::new(DirLibrary::new(dir.path())),
            compose::blob_cache(&dir.path().join("cache")).unwrap(),
        );
        (dir, blobs, digest)
    }

    /// Unpacks and verifies in memory, as for small files.
    #[divan::bench(args = [2_000, 20_000, 128_000])]
    fn blob_to_memory(bencher: Bencher, len: usize) {
        let (_dir, blobs, digest) = library(len);
        bencher.counter(BytesCount::new(len)).bench_local(|| blobs.read_all(&digest, len as u64).unwrap());
    }

    /// Unpacks and verifies into the cache, as for the first read of a large file.
    #[divan::bench(args = [1_000_000, 30_000_000], sample_count = 20)]
    fn blob_to_cache(bencher: Bencher, len: usize) {
        let (dir, blobs, digest) = library(len);
        let cached = dir.path().join("cache/blobs").join(digest.fan_out());
        bencher
            .counter(BytesCount::new(len))
            .with_inputs(|| drop(fs::remove_file(&cached)))
            .bench_local_values(|()| blobs.open_raw(&digest, len as u64).unwrap());
    }

    /// Only unpacks: the lower bound of the others.
    #[divan::bench(args = [2_000, 128_000, 30_000_000], sample_count = 20)]
    fn unpack_alone(bencher: Bencher, len: usize) {
        let packed = gzip(&content(len));
        bencher.counter(BytesCount::new(len)).bench_local(|| unpack(&packed));
    }

    /// Writes a name over another one in a hundred places of a file.
    #[divan::bench]
    fn relocation(bencher: Bencher) {
        let from: [u8; 24] = ID.as_bytes().try_into().unwrap();
        let names = Names { from, to: *b"720c7a8_5a1fac3_700be151" };
        let mut file = content(100_000);
        for at in (0..100_000).step_by(1_000) {
            file[at..at + 24].copy_from_slice(&from);
        }
        bencher
            .with_inputs(|| file.clone())
            .bench_local_refs(|file| patch_bytes(file, (0..100_000).step_by(1_000), &names).unwrap());
    }
}

/// A catalog with rcc's indentation: packages of 40 files, one file in 20 with relocations.
fn catalog_text(files: u64) -> String {
    let mut out = format!(
        "{{\n  \"rcc\": \"v18.18.1\",\n  \"identity\": \"{ID}\",\n  \"path\": \"/home/x/holotree/{ID}\",\n  \
         \"controller\": \"\",\n  \"space\": \"\",\n  \"platform\": \"linux_amd64\",\n  \
         \"blueprint\": \"adb8c26db4d86a93\",\n  \"lifted\": true,\n  \"tree\": {{\n    \"name\": \"\",\n    \
         \"mode\": 2147484141,\n    \"subdirs\": {{"
    );
    let mut seed = 1u64;
    for package in 0..files.div_ceil(40) {
        let comma = if package > 0 { "," } else { "" };
        write!(
            out,
            "{comma}\n      \"package{package:05}\": {{\n        \"name\": \"package{package:05}\",\n        \
             \"mode\": 2147484141,\n        \"subdirs\": {{}},\n        \"files\": {{"
        )
        .unwrap();
        for file in 0..40.min(files - package * 40) {
            let comma = if file > 0 { "," } else { "" };
            let mut digest = String::new();
            for _ in 0..4 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                write!(digest, "{:016x}", seed ^ (seed >> 31)).unwrap();
            }
            let size = seed >> 46;
            let rewrite = if file % 20 == 0 && size > 200 {
                "[\n              2,\n              100\n            ]".to_owned()
            } else {
                "[]".to_owned()
            };
            write!(
                out,
                "{comma}\n          \"module_{file:02}.py\": {{\n            \"name\": \"module_{file:02}.py\",\n            \
                 \"size\": {size},\n            \"mode\": 420,\n            \"digest\": \"{digest}\",\n            \
                 \"rewrite\": {rewrite}\n          }}"
            )
            .unwrap();
        }
        out.push_str("\n        }\n      }");
    }
    out.push_str("\n    },\n    \"files\": {}\n  }\n}");
    out
}
