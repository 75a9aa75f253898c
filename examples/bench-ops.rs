//! Times file operations for `scripts/bench.sh`, many of them in one process: `bench-ops OPERATION DIR|LIST|FILE [NUMBER]`.
//! Prints the nanoseconds of one operation as a line of JSON.
//!
//! A LIST is a file with one path in each line. Reading operations run once before they are timed, unless the name of
//! the operation ends in `-cold`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, unsafe_code)]

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let (operation, what) = (arguments[1].as_str(), Path::new(&arguments[2]));
    let number = arguments.get(3).map(|text| text.parse::<usize>().expect("a number"));
    let (operation, cold) = match operation.strip_suffix("-cold") {
        Some(operation) => (operation, true),
        None => (operation, false),
    };
    let mut results: Vec<(String, u128)> = Vec::new();
    let mut once = |name: &str, work: &mut dyn FnMut() -> usize| {
        let begin = Instant::now();
        let count = work().max(1);
        results.push((name.to_owned(), begin.elapsed().as_nanos() / count as u128));
    };
    match operation {
        "lstat" | "open-close" | "open-read-close" | "replay" => {
            let list: Vec<String> =
                std::fs::read_to_string(what).unwrap().lines().map(str::to_owned).collect();
            let mut buffer = vec![0; 1 << 20];
            let mut work = || {
                for line in &list {
                    match operation {
                        "lstat" => drop(black_box(std::fs::symlink_metadata(line))),
                        "open-close" => drop(black_box(File::open(line))),
                        "open-read-close" => read_all(Path::new(line), &mut buffer),
                        _ => replay(line, &mut buffer),
                    }
                }
                list.len()
            };
            if !cold {
                work();
            }
            once(operation, &mut work);
        }
        "parallel" => {
            let list: Vec<PathBuf> =
                std::fs::read_to_string(what).unwrap().lines().map(PathBuf::from).collect();
            let threads = number.unwrap_or(4);
            let mut work = || {
                std::thread::scope(|scope| {
                    for thread in 0..threads {
                        let list = &list;
                        scope.spawn(move || {
                            let mut buffer = vec![0; 1 << 20];
                            for at in 0..list.len() {
                                read_all(
                                    &list[(at + thread * list.len() / threads) % list.len()],
                                    &mut buffer,
                                );
                            }
                        });
                    }
                });
                list.len() * threads
            };
            work();
            once(operation, &mut work);
        }
        "walk" => {
            if !cold {
                walk(what);
            }
            once(operation, &mut || {
                black_box(walk(what));
                1
            });
        }
        "read-seq" | "read-random" | "read-mmap" => {
            let mut file = File::open(what).unwrap();
            let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
            let mut buffer = vec![0; 128 * 1024];
            let mut work = || match operation {
                "read-seq" => {
                    file.seek(SeekFrom::Start(0)).unwrap();
                    while file.read(&mut buffer).unwrap() > 0 {}
                    1
                }
                "read-random" => {
                    let pages = len / 4096;
                    let mut at = 12345_usize;
                    for _ in 0..50_000 {
                        at = at
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        file.read_exact_at(&mut buffer[..4096], ((at >> 33) % pages * 4096) as u64).unwrap();
                    }
                    50_000
                }
                _ => {
                    // SAFETY: nobody changes the file while it is mapped.
                    let map = unsafe { memmap2::Mmap::map(&file).unwrap() };
                    black_box(map.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>());
                    1
                }
            };
            if !cold {
                work();
                work();
            }
            once(operation, &mut work);
        }
        "write-seq" => {
            let size = number.unwrap_or(512) << 20;
            let buffer = vec![7; 1 << 20];
            let path = what.join("bench-write");
            let mut file = File::create(&path).unwrap();
            let mut work = || {
                file.seek(SeekFrom::Start(0)).unwrap();
                for _ in 0..size >> 20 {
                    file.write_all(&buffer).unwrap();
                }
                1
            };
            // The first pass allocates space on disk. The second one is timed.
            work();
            once(operation, &mut work);
            drop(file);
            std::fs::remove_file(path).unwrap();
        }
        "churn" => {
            let count = number.unwrap_or(2000);
            let dir = what.join("bench-churn");
            std::fs::create_dir(&dir).unwrap();
            let name = |kind: &str, n: usize| dir.join(format!("{kind}{n}"));
            once("create", &mut || {
                for n in 0..count {
                    OpenOptions::new().write(true).create_new(true).mode(0o644).open(name("a", n)).unwrap();
                }
                count
            });
            once("rename", &mut || {
                for n in 0..count {
                    std::fs::rename(name("a", n), name("b", n)).unwrap();
                }
                count
            });
            once("unlink", &mut || {
                for n in 0..count {
                    std::fs::remove_file(name("b", n)).unwrap();
                }
                count
            });
            std::fs::remove_dir(dir).unwrap();
        }
        "chmod" => {
            let list: Vec<String> =
                std::fs::read_to_string(what).unwrap().lines().map(str::to_owned).collect();
            once(operation, &mut || {
                for path in &list {
                    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
                }
                list.len()
            });
        }
        "copy-up" => once(operation, &mut || {
            let file = OpenOptions::new().read(true).write(true).open(what).unwrap();
            // Writes the same byte again, because the file is a library that other programs map.
            let mut first = [0];
            file.read_exact_at(&mut first, 0).unwrap();
            file.write_all_at(&first, 0).unwrap();
            1
        }),
        other => panic!("{other}: no such operation"),
    }
    let fields: Vec<String> = results.iter().map(|(name, ns)| format!("\"{name}\": {ns}")).collect();
    println!("{{{}}}", fields.join(", "));
}

fn read_all(path: &Path, buffer: &mut [u8]) {
    let Ok(mut file) = File::open(path) else { return };
    while file.read(buffer).unwrap_or(0) > 0 {}
}

/// One line of a recorded import: `s PATH` (stat), `o PATH` (open and close), `r PATH` (open, read all), `d PATH`
/// (list).
fn replay(line: &str, buffer: &mut [u8]) {
    let (kind, path) = line.split_at(1);
    let path = Path::new(path.trim_start());
    match kind {
        "s" => drop(black_box(std::fs::metadata(path))),
        "o" => drop(black_box(File::open(path))),
        "r" => read_all(path, buffer),
        _ => drop(black_box(std::fs::read_dir(path).map(Iterator::count))),
    }
}

fn walk(dir: &Path) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        // `DirEntry::metadata` is an lstat by path of the open directory.
        if entry.metadata().unwrap().is_dir() {
            count += walk(&entry.path());
        }
        count += 1;
    }
    count
}
