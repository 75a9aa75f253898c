//! Compiling a catalog of 100 000 files, against what it cannot do without: unpacking the text and passing over
//! its JSON. Prints medians and ratios; asserts nothing.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use holofs::library::index::NodeId;
use holofs::library::index::cache::open_or_compile;
use holofs::library::{catalog, index};

const ID: &str = "hea7ce2c_493f813dad24d3t";
const ROUNDS: usize = 9;

fn main() {
    let files: u64 = std::env::var("FILES").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000);
    let text = catalog_text(files);
    let mut stream = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    stream.write_all(text.as_bytes()).unwrap();
    let packed = stream.finish().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adb8c26db4d86a93v12.linux_amd64");
    fs::write(&path, &packed).unwrap();
    let (packed_kib, text_kib) = (packed.len() / 1024, text.len() / 1024);
    println!("{files} files: {text_kib} KiB of text, {packed_kib} KiB packed; medians of {ROUNDS}");

    let unpack = median(|| {
        let mut text = Vec::new();
        flate2::bufread::MultiGzDecoder::new(packed.as_slice()).read_to_end(&mut text).unwrap();
    });
    let ignored = median(|| {
        let _: serde::de::IgnoredAny = serde_json::from_str(&text).unwrap();
    });
    let bare = median(|| {
        let mut text = Vec::new();
        flate2::bufread::MultiGzDecoder::new(packed.as_slice()).read_to_end(&mut text).unwrap();
        let _: serde::de::IgnoredAny = serde_json::from_slice(&text).unwrap();
    });
    let parse = median(|| {
        catalog::parse_file(&packed).unwrap();
    });
    let tree = catalog::parse_file(&packed).unwrap();
    let compile = median(|| {
        index::compile::compile(&tree, [0; 32]).unwrap();
    });
    let mut round = 0;
    let cold = median(|| {
        round += 1;
        open_or_compile(&path, &dir.path().join(round.to_string())).unwrap();
    });
    let warm = median(|| {
        open_or_compile(&path, &dir.path().join("1")).unwrap();
    });
    for (what, time) in [
        ("unpack", unpack),
        ("JSON, ignored", ignored),
        ("bare: unpack, then JSON", bare),
        ("unpack and parse", parse),
        ("compile", compile),
        ("open a new catalog", cold),
        ("open a known catalog", warm),
    ] {
        let ratio = time.as_secs_f64() / bare.as_secs_f64();
        println!("{what:26} {:9.3} ms   {ratio:6.3} of bare", time.as_secs_f64() * 1000.0);
    }

    let index = open_or_compile(&path, &dir.path().join("1")).unwrap();
    let count = index.len();
    let walk = median(|| {
        for id in 0..count {
            std::hint::black_box(index.node(NodeId(id)).unwrap());
        }
    });
    let names: Vec<(NodeId, Vec<u8>)> = (1..count)
        .map(|id| index.node(NodeId(id)).unwrap())
        .map(|node| (node.parent, node.name.to_vec()))
        .collect();
    let lookup = median(|| {
        for (parent, name) in &names {
            std::hint::black_box(index.lookup(*parent, name).unwrap());
        }
    });
    println!("one node {:.0} ns, one lookup {:.0} ns", per(walk, count), per(lookup, count));
}

fn per(time: Duration, count: u32) -> f64 {
    time.as_secs_f64() * 1e9 / f64::from(count)
}

fn median(mut run: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}

/// A catalog as rcc writes it, indented: packages of 40 files, one file in 20 with relocations.
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
