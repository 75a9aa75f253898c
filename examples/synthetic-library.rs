//! Makes a library with one environment of FILES files, for the benchmarks: `synthetic-library HOME FILES`.
//!
//! Its catalog has the size of a real one with as many files. There are only a thousand different contents, because
//! mounting reads none of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, unreachable_pub)]

#[path = "../tests/e2e/common/library.rs"]
#[allow(dead_code)]
mod library;

use std::path::Path;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, home, files] = arguments.as_slice() else {
        eprintln!("usage: synthetic-library HOME FILES");
        std::process::exit(2);
    };
    let files: usize = files.parse().expect("a number of files");
    let home = Path::new(home);
    let mut library = library::Library::new();
    for n in 0..files {
        // As in site-packages: 25 files in a directory, a few levels deep.
        let path = format!("lib/python3/site-packages/package{}/module{}/file{n}.py", n / 500, n / 25 % 20);
        let mut text = format!("# one of {} contents\n", n % 1000);
        if n % 50 == 0 {
            text.push_str(&format!("prefix = '/somewhere/{}/lib'\n", library::STAGE));
        }
        library = library.file(&path, text.as_bytes());
    }
    library.write(&home.join("hololib"), &std::path::absolute(home.join("holotree")).expect("a path"));
}
