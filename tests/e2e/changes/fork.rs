//! `holofs fork`: a further space as of one instant.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::model::{change, tree};
use super::{diff, library};
use crate::common::random::Random;
use crate::common::world::wait;
use crate::common::{Library, World};

/// Forks, which must succeed. Returns what was said beside the result.
#[track_caller]
fn fork(world: &World, space: &str, new: &str) -> String {
    let done = world.run(["fork", space, new]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(done.stdout.lines().count(), 1, "{done:?}");
    done.stderr
}

/// Counts in two pages of a map, and says how far it is for each byte that it reads.
const COUNT: &str = "import mmap, os, select, sys
f = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(f, 3 * 4096)
m = memoryview(mmap.mmap(f, 0)).cast('Q')
n = 0
while True:
    n += 1
    m[0] = n
    m[1024] = n
    if n % 100 == 0 and select.select([0], [], [], 0)[0]:
        os.read(0, 1)
        print(n, flush=True)
";

/// The names of the unfinished spaces.
fn unfinished(world: &World) -> Vec<String> {
    let names = std::fs::read_dir(world.state().join("spaces")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("fork.")).collect()
}

for_both_users! {
    fn has_the_changes_mounted_or_not() {
        let world = World::with(&library());
        // A fork chooses its environment by itself.
        let hash = library().hash();
        world.add(&Library::sample().named("another"));
        let mounted = world.mount_with("s", &["--blueprint", &hash]);
        let mut random = Random::new(11);
        for _ in 0..40 {
            change(mounted.path(), &mut random);
        }
        let (lines, before) = (diff(&world, "s"), tree(mounted.path()));
        fork(&world, "s", "live");
        assert_eq!(tree(mounted.path()), before);
        mounted.unmount();
        fork(&world, "s", "dead");
        for new in ["live", "dead"] {
            assert_eq!(diff(&world, new), lines);
            let mounted = world.mount(new);
            assert_eq!(mounted.output["blueprint"], hash);
            let (ours, theirs) = (tree(mounted.path()), before.clone());
            assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
            for (path, entry) in ours {
                // The relocated files name their own space.
                if !["bin/tool", "etc/prefix.conf", "large.conf"].iter().any(|relocated| path.ends_with(relocated.rsplit('/').next().unwrap())) {
                    assert!(entry == theirs[&path], "{path}");
                }
            }
            // It is a space of its own.
            std::fs::write(mounted.at("only-here"), "x").unwrap();
            mounted.unmount();
        }
        assert_eq!(diff(&world, "s"), lines);
        assert!(unfinished(&world).is_empty());
    }

    fn names_its_own_directory() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        let old = mounted.identity().to_owned();
        for relocated in ["etc/prefix.conf", "large.conf"] {
            let mut file = std::fs::OpenOptions::new().append(true).open(mounted.at(relocated)).unwrap();
            file.write_all(b"more\n").unwrap();
        }
        assert_eq!(fork(&world, "s", "quiet"), "");
        std::fs::write(mounted.at("script"), format!("#!{}/bin/python\n", mounted.path().display())).unwrap();
        std::os::unix::fs::symlink(mounted.at("bin/tool"), mounted.at("absolute")).unwrap();
        let said = fork(&world, "s", "new");
        assert!(said.contains("2 changed files name the other space") && said.contains("script"), "{said}");
        let fork = world.mount("new");
        let text = std::fs::read_to_string(fork.at("etc/prefix.conf")).unwrap();
        assert_eq!(text, format!("prefix=/x/{}/lib\nmore\n", fork.identity()));
        let bytes = std::fs::read(fork.at("large.conf")).unwrap();
        let count = |name: &str| bytes.windows(24).filter(|window| *window == name.as_bytes()).count();
        assert_eq!((count(fork.identity()), count(&old)), (4, 0));
        assert!(std::fs::read_to_string(fork.at("script")).unwrap().contains(&old));
    }

    /// Two counters in a shared map, counted in turn while the space is copied: a store that was made before the fork began
    /// is in it, and of later ones those that the kernel had written back.
    fn has_the_stores_to_a_map_that_were_made_before() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        let path = mounted.at("counters");
        let mut child = world.command("python3");
        child.arg("-c").arg(COUNT).arg(&path).stdout(Stdio::piped()).stdin(Stdio::piped());
        let mut child = child.spawn().unwrap();
        let mut said = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut number = || {
            child.stdin.as_ref().unwrap().write_all(b"?").unwrap();
            let mut line = String::new();
            std::io::BufRead::read_line(&mut said, &mut line).unwrap();
            line.trim().parse::<u64>().unwrap()
        };
        for round in 0..3 {
            let new = format!("f{round}");
            let before = number();
            let done = world.run(["fork", "s", &new]);
            let after = number();
            // In passthrough mode nothing holds back a program that never rests.
            if done.code == 12 {
                assert!(crate::common::passthrough() && done.stderr.contains("keep writing"), "{done:?}");
                continue;
            }
            assert_eq!(done.code, 0, "{done:?}");
            let bytes = std::fs::read(world.mount(&new).at("counters")).unwrap();
            for counter in [&bytes[..8], &bytes[8192..8200]] {
                let counter = u64::from_ne_bytes(counter.try_into().unwrap());
                assert!((before..=after + 1).contains(&counter), "{before} {counter} {after}");
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Files that are written one after the other, and two logs that are written in turn.
    fn is_of_one_instant() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
        let line = |n: u64| format!("{n:06} a line of this log\n");
        std::thread::scope(|scope| {
            let root = mounted.path();
            scope.spawn(|| {
                let open = |name: &str| std::fs::File::options().create(true).append(true).open(root.join(name)).unwrap();
                let (mut first, mut second) = (open("first.log"), open("second.log"));
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    first.write_all(line(n).as_bytes()).unwrap();
                    second.write_all(line(n).as_bytes()).unwrap();
                    n += 1;
                    // A program that never rests leaves no instant in passthrough mode.
                    if n % 50 == 0 {
                        std::thread::sleep(Duration::from_millis(60));
                    }
                }
            });
            scope.spawn(|| {
                std::fs::create_dir(root.join("set")).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let n = written.load(Ordering::SeqCst);
                    let temporary = root.join("set/temporary");
                    std::fs::write(&temporary, line(n).repeat(200)).unwrap();
                    std::fs::rename(&temporary, root.join(format!("set/{n}"))).unwrap();
                    written.store(n + 1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
            while written.load(Ordering::SeqCst) < 5 {
                std::thread::sleep(Duration::from_millis(5));
            }
            let result = std::panic::catch_unwind(|| {
                for round in 0..3 {
                    let at_least = written.load(Ordering::SeqCst);
                    fork(&world, "s", &format!("f{round}"));
                    check_instant(world.mount(&format!("f{round}")).path(), at_least, &line);
                }
            });
            stop.store(true, Ordering::Relaxed);
            result.unwrap();
        });
    }

    fn killed_leaves_no_half_space() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        for n in 0..300 {
            std::fs::write(mounted.at(format!("f{n}")), vec![b'x'; 20_000]).unwrap();
        }
        let before = tree(mounted.path());
        for round in 0..3_u64 {
            let new = format!("k{round}");
            let mut command = world.holofs();
            let mut child = command.args(["fork", "s", &new]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(4 + 20 * round));
            drop(child.kill());
            wait(&mut child, "fork");
            // Programs go on at once.
            std::fs::write(mounted.at("alive"), "x").unwrap();
            std::fs::remove_file(mounted.at("alive")).unwrap();
            let done = world.run(["fork", "s", &new]);
            assert!(done.code == 0 || done.stderr.contains("such a space already"), "{done:?}");
            assert!(unfinished(&world).is_empty());
            assert!(tree(world.mount(&new).path()).keys().eq(before.keys()));
        }
    }

    fn bad_input() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        std::fs::write(mounted.at("new"), "x").unwrap();
        let other = world.mount("other");
        let refused = |args: [&str; 3], code: i32, words: &str| {
            let done = world.run(args);
            assert!(done.code == code && done.stdout.is_empty() && done.stderr.contains(words), "{done:?}");
            assert!(done.stderr.contains("\n  try: "), "{done:?}");
            assert!(unfinished(&world).is_empty());
        };
        refused(["fork", "nowhere", "x"], 6, "no such space");
        refused(["fork", "s", "other"], 7, "such a space already");
        refused(["fork", "s", "s"], 7, "such a space already");
        refused(["fork", "s", "/elsewhere/ea7ce2c_5a1fac3_9fcd2534"], 7, "can only be used in");
        refused(["fork", "s", "/elsewhere/short"], 7, "24");
        assert_eq!(world.run(["fork", "s"]).code, 2);
        // A daemon that is stopped.
        mounted.stop();
        refused(["fork", "s", "x"], 12, "stopped");
        mounted.signal(rustix::process::Signal::CONT);
        other.unmount();
        refused(["fork", "s", "other"], 7, "such a space already");
        mounted.unmount();
        std::fs::remove_dir_all(world.hololib()).unwrap();
        std::fs::remove_dir_all(world.state().join("cache")).unwrap();
        refused(["fork", "s", "x"], 3, "blueprint");
    }
}

/// Checks a fork: each file is whole, files are there in the order in which they were written.
fn check_instant(root: &Path, at_least: u64, line: &dyn Fn(u64) -> String) {
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let (first, second) = (read("first.log"), read("second.log"));
    for log in [&first, &second] {
        for (n, text) in log.split_inclusive('\n').enumerate() {
            assert_eq!(text, line(n as u64));
        }
    }
    let ahead = first.lines().count() - second.lines().count();
    assert!(ahead <= 1, "{ahead} lines ahead");
    let mut numbers: Vec<u64> = std::fs::read_dir(root.join("set"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().unwrap().parse().ok())
        .collect();
    numbers.sort();
    assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "not a prefix: {numbers:?}");
    assert!(numbers.len() as u64 >= at_least, "{} of {at_least}", numbers.len());
    for n in numbers {
        assert_eq!(read(&format!("set/{n}")), line(n).repeat(200));
    }
}
