//! The bytes that are read are the bytes that were verified, whatever happens to the blobs of the library meanwhile,
//! and also if there is no space for a copy.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use crate::common::as_user::root_or_skip;
use crate::common::image::Image;
use crate::common::library::{STAGE, pattern as noise};
use crate::common::{Library, World, files_below};

const LARGE: usize = 3_000_000;

/// Bytes that look like a program, which in passthrough mode the kernel reads itself.
fn pattern(len: usize) -> Vec<u8> {
    let mut bytes = noise(len);
    bytes[..4].copy_from_slice(b"\x7fELF");
    bytes
}

/// Maps a whole file and reads the first byte of each page, in a process of its own, because SIGBUS would end it.
fn mapped(path: &Path) -> std::process::Output {
    let program = "import mmap,sys\nf=open(sys.argv[1],'rb')\nm=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ)\n\
        import hashlib\nprint(hashlib.sha256(m).hexdigest())";
    Command::new("python3").args(["-c", program]).arg(path).output().expect("python3")
}

#[track_caller]
fn assert_mapped(path: &Path, want: &[u8]) {
    let out = mapped(path);
    assert!(out.status.success(), "{}: {:?} {:?}", path.display(), out.status.signal(), out.stderr);
    let sum = crate::common::library::hex(&<sha2::Sha256 as sha2::Digest>::digest(want));
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), sum, "{}", path.display());
}

for_both_users! {
    /// First truncates and rewrites a blob in place, as `rcc holotree import` does. Then writes other bytes of the same
    /// length and restores the old times, as anybody who can write to the library could.
    fn raw_blob_overwritten_while_open() {
        let library = Library::new().raw().file("lib/big.so", &pattern(LARGE)).file("lib/small.py", b"small\n");
        let world = World::with(&library);
        let mounted = world.mount("s");
        let (big, small) = (mounted.at("lib/big.so"), mounted.at("lib/small.py"));
        let open = File::open(&big).unwrap();
        let mut byte = [0];
        open.read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(std::fs::read(&small).unwrap(), b"small\n");
        assert_mapped(&big, &pattern(LARGE));
        for forged in [vec![b'!'; LARGE], Vec::new()] {
            let blob = library.blob(&world.hololib(), "lib/big.so");
            let times = std::fs::metadata(&blob).unwrap().modified().unwrap();
            let mut file = File::options().write(true).truncate(true).open(&blob).unwrap();
            file.write_all(&forged).unwrap();
            file.set_modified(times).unwrap();
            std::fs::write(library.blob(&world.hololib(), "lib/small.py"), b"forge\n").unwrap();
            let mut bytes = vec![0; LARGE];
            open.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes == pattern(LARGE));
            assert_mapped(&big, &pattern(LARGE));
            assert_eq!(std::fs::read(&small).unwrap(), b"small\n");
            // A reader with an empty page cache and its own open.
            let other = world.mount("other");
            assert_mapped(&other.at("lib/big.so"), &pattern(LARGE));
            other.unmount();
        }
    }

    fn cache_smaller_than_what_is_read() {
        let library = (0..6).fold(Library::new(), |library, n| {
            library.file(&format!("lib/f{n}"), &pattern(LARGE + n))
        });
        let library = library.file("lib/huge", &pattern(12_000_000));
        let world = World::with(&library);
        let mounted = world.mount_with("s", &["--cache-size", "8M"]);
        let cache = world.state().join("cache/blobs");
        let kept = || -> u64 {
            let files = files_below(&cache).into_iter();
            files.map(|file| std::fs::metadata(cache.join(file)).map_or(0, |found| found.len())).sum()
        };
        for _ in 0..2 {
            for n in 0..6 {
                assert!(std::fs::read(mounted.at(format!("lib/f{n}"))).unwrap() == pattern(LARGE + n));
                assert!(kept() <= 8 << 20, "the cache holds {} bytes", kept());
            }
            let huge = File::open(mounted.at("lib/huge")).unwrap();
            let mut byte = [0];
            huge.read_exact_at(&mut byte, 0).unwrap();
            assert_mapped(&mounted.at("lib/huge"), &pattern(12_000_000));
            assert!(kept() <= 8 << 20, "the cache holds {} bytes", kept());
        }
    }
}

/// The disk is full, and files that were never read can still be read.
fn full_disk(raw: bool) {
    if !root_or_skip() {
        return;
    }
    let mut relocated = pattern(LARGE);
    relocated[5000..5000 + STAGE.len()].copy_from_slice(STAGE.as_bytes());
    let library = Library::sample().file("lib/big.so", &pattern(LARGE)).file("lib/relocated.so", &relocated);
    let library = library.file("lib/streamed.so", &pattern(9_000_000));
    let library = if raw { library.raw() } else { library };
    let image = Image::new("ext4", 80);
    let world = World::at(image.path());
    world.add(&library);
    let mounted = world.mount("s");
    relocated[5000..5000 + STAGE.len()].copy_from_slice(mounted.identity().as_bytes());
    let mut filler = File::create(image.path().join("filler")).unwrap();
    let chunk = vec![7; 4096];
    while filler.write_all(&chunk).is_ok() {}
    filler.sync_all().ok();
    for _ in 0..2 {
        assert_mapped(&mounted.at("lib/big.so"), &pattern(LARGE));
        assert_mapped(&mounted.at("lib/relocated.so"), &relocated);
        assert!(std::fs::read(mounted.at("lib/streamed.so")).unwrap() == pattern(9_000_000));
        assert_eq!(std::fs::read(mounted.at("readme.txt")).unwrap(), b"hello, space\n");
        let tool = Command::new(mounted.at("bin/tool")).output().expect("exec");
        assert!(tool.status.success());
    }
    // A bad blob is still an error.
    drop(filler);
    std::fs::remove_file(image.path().join("filler")).unwrap();
    std::fs::write(mounted.at("new"), b"there is space again").unwrap();
    assert_mapped(&mounted.at("lib/big.so"), &pattern(LARGE));
}

#[test]
fn full_disk_cached() {
    full_disk(false);
}

#[test]
fn full_disk_of_a_raw_library() {
    full_disk(true);
}

mod by_passthrough {
    use crate::common::as_user::{Who, again};

    #[test]
    fn full_disk() {
        again(concat!(module_path!(), "::full_disk"), Who::Us, true, || super::full_disk(false));
    }
}
