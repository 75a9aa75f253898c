//! Libraries in object stores when things go wrong: time limits, full disks, and the ends of processes.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use holofs::library::digest::{Digest, Hasher};

use crate::common::as_user::{holofs_binary, root_or_skip};
use crate::common::image::Image;
use crate::common::library::pattern;
use crate::common::push::WebServer;
use crate::common::{Mounted, World, assert_errno, files_below, wait_until};
use crate::remote::{many, mount_from, pushed};
use crate::upgrade::{copy, upgrade};

for_both_users! {
    fn a_read_waits_no_longer_than_the_time_limit() {
        const LIMIT: u64 = 4;
        let library = many().file("large/a", &pattern(600_000)).file("large/b", &pattern(500_000));
        let world = World::with(&library);
        let store = pushed(&world);
        let server = WebServer::of(&store);
        let (url, hash, limit) = (server.url(), library.hash(), LIMIT.to_string());
        let args = ["mount", &url, "s", "--blueprint", &hash, "--json", "--remote-timeout", &limit];
        let mounted = Mounted::by(&world, "s", world.holofs().args(args));
        server.be_silent(true);
        // Several of one group, several of one file, files that are streamed, and some that begin later. A write waits, too.
        let paths = ["site/000.py", "site/000.py", "site/000.py", "site/001.py", "site/002.py", "site/100.py"];
        let paths = paths.into_iter().chain(["large/a", "large/a", "large/b", "lib/large.so", "etc/prefix.conf"]);
        let reads: Vec<_> = paths
            .enumerate()
            .map(|(n, path)| {
                let (path, append) = (mounted.at(path), n == 5);
                let wait = Duration::from_millis(n as u64 % 3 * 700);
                std::thread::spawn(move || {
                    std::thread::sleep(wait);
                    let begun = Instant::now();
                    let done = match append {
                        true => append_to(&path),
                        false => std::fs::read(&path).map(drop),
                    };
                    (path, done, begun.elapsed())
                })
            })
            .collect();
        for read in reads {
            let (path, done, waited) = read.join().unwrap();
            assert_errno(done, Errno::IO);
            assert!(waited.as_secs_f32() < LIMIT as f32 + 3.0, "{}: {waited:?}", path.display());
        }
    }

    fn an_upgrade_waits_for_no_store() {
        let world = World::with(&many());
        let store = pushed(&world);
        let server = WebServer::of(&store);
        let mounted = mount_from(&world, &server, "s", &[]);
        let (_dir, next) = copy();
        let read = |n: usize| std::fs::read_to_string(mounted.at(format!("site/{n:03}.py")));
        let right = |n: usize| format!("VALUE = {n}\n").repeat(20);
        assert_eq!(read(0).unwrap(), right(0));
        upgrade(&world, &next);
        assert_eq!((read(0).unwrap(), read(100).unwrap()), (right(0), right(100)));
        std::thread::scope(|scope| {
            server.be_silent_from("packs/");
            let reader = scope.spawn(|| read(50));
            wait_until("the read waits", || server.is_silent());
            let begun = Instant::now();
            upgrade(&world, &holofs_binary());
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
            assert_eq!(read(100).unwrap(), right(100));
            assert!(!reader.is_finished());
            server.be_silent_from("nothing");
            server.be_silent(false);
            assert_eq!(reader.join().unwrap().unwrap(), right(50));
        });
        for n in 0..240 {
            assert_eq!(read(n).unwrap(), right(n));
        }
    }
}

fn append_to(path: &Path) -> std::io::Result<()> {
    std::fs::File::options().append(true).open(path)?.write_all(b"more")
}

/// The disk of cache and spaces is full: files that were never read can be read, from memory. What is there is right, and with
/// room again everything works.
fn full_disk() {
    if !root_or_skip() {
        return;
    }
    let mut library = many();
    for n in 0..8 {
        library = library.file(&format!("data/{n}"), &pattern(150_000 + n));
    }
    let image = Image::new("ext4", 24);
    let elsewhere = World::new();
    elsewhere.add(&library);
    let store = pushed(&elsewhere);
    let server = WebServer::of(&store);
    let world = World::at(image.path());
    std::fs::create_dir_all(world.home()).unwrap();
    let (url, hash) = (server.url(), library.hash());
    let args = ["mount", &url, "s", "--blueprint", &hash, "--json"];
    let mount = || Mounted::by(&world, "s", world.holofs().args(args));
    let mounted = mount();
    std::fs::read(mounted.at("site/000.py")).unwrap();
    let ballast = image.path().join("ballast");
    let mut full = std::fs::File::create(&ballast).unwrap();
    while full.write_all(&[7; 4096]).is_ok() {}
    while full.write_all(&[7; 1]).is_ok() {}
    server.asked();
    let read_all = || {
        for n in 0..240 {
            let right = format!("VALUE = {n}\n").repeat(20);
            assert_eq!(std::fs::read_to_string(mounted.at(format!("site/{n:03}.py"))).unwrap(), right);
        }
        for n in 0..8 {
            assert!(std::fs::read(mounted.at(format!("data/{n}"))).unwrap() == pattern(150_000 + n));
        }
        assert!(std::fs::read(mounted.at("lib/large.so")).unwrap() == pattern(700_000));
        assert!(Command::new(mounted.at("bin/tool")).output().expect("exec").status.success());
    };
    read_all();
    let asked = server.asked();
    // Groups of four, and files that are fetched alone. The groups stay in memory.
    let alone: Vec<_> = asked.iter().filter(|name| name.starts_with("blobs/")).collect();
    assert_eq!(alone.iter().collect::<HashSet<_>>().len(), alone.len(), "{alone:?}");
    assert!(alone.len() >= 9 && asked.len() - alone.len() <= 64, "{} of {}", alone.len(), asked.len());
    read_all();
    assert_eq!(server.asked(), [""; 0]);
    assert_errno(std::fs::write(mounted.at("new"), [3; 9000]), Errno::NOSPC);
    assert_errno(append_to(&mounted.at("site/100.py")), Errno::NOSPC);
    assert_eq!(std::fs::read_to_string(mounted.at("site/100.py")).unwrap(), "VALUE = 100\n".repeat(20));
    // Nothing has a name that is not whole.
    drop(full);
    let blobs = world.state().join("cache/blobs");
    for path in files_below(&blobs) {
        let Ok(digest) = Digest::parse(path.file_name().unwrap().as_encoded_bytes()) else { continue };
        let bytes = std::fs::read(blobs.join(&path)).unwrap();
        assert_eq!(Hasher::digest(digest.kind(), &bytes).bytes(), digest.bytes(), "{}", path.display());
    }
    std::fs::remove_file(&ballast).unwrap();
    rustix::fs::syncfs(std::fs::File::open(image.path()).unwrap()).unwrap();
    append_to(&mounted.at("site/100.py")).unwrap();
    std::fs::remove_file(mounted.at("new")).unwrap_or_default();
    mounted.unmount();
    let mounted = mount();
    server.asked();
    for n in 0..240 {
        std::fs::read(mounted.at(format!("site/{n:03}.py"))).unwrap();
    }
    let asked = server.asked();
    assert!(!asked.is_empty(), "{}", asked.len());
    mounted.unmount();
}

#[test]
fn full_disk_cached() {
    full_disk();
}

mod by_passthrough {
    use crate::common::as_user::{Who, again};

    #[test]
    fn full_disk() {
        again(concat!(module_path!(), "::full_disk"), Who::Us, true, super::full_disk);
    }
}
