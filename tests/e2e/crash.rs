//! The daemon is killed. Everything that it reported as done is there at the next mount.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Signal;

use crate::common::library::pattern;
use crate::common::manifest::read_tree;
use crate::common::random::Random;
use crate::common::{Library, World, passthrough, setting, wait_until};

/// Appends numbered lines until an error occurs. Returns the number of acknowledged lines.
fn append_until_it_breaks(path: &Path) -> u64 {
    use std::io::Write;
    let open = || std::fs::OpenOptions::new().append(true).create(true).open(path);
    let Ok(mut file) = open() else { return 0 };
    let mut append = |number: u64| {
        // A file that is open by passthrough can be written to without the daemon, for ever.
        if passthrough() {
            file = open()?;
        }
        // One write for each line, so a line is acknowledged as a whole. A line of 8 bytes never crosses a page, where
        // the write of a process that is killed can be cut, as on every filesystem.
        file.write_all(format!("{number:07}\n").as_bytes())
    };
    (0..).find(|number| append(*number).is_err()).unwrap_or(0)
}

for_both_users! {
    fn acknowledged_writes_survive_the_daemon() {
        let world = World::sample();
        let mut mounted = world.mount("s");
        for round in 0..4_u64 {
            let acknowledged: Vec<u64> = std::thread::scope(|scope| {
                let writers: Vec<_> = (0..4)
                    .map(|writer| {
                        let path = mounted.at(format!("log-{round}-{writer}"));
                        scope.spawn(move || append_until_it_breaks(&path))
                    })
                    .collect();
                std::thread::sleep(Duration::from_millis(30 + 40 * round));
                mounted.signal(Signal::KILL);
                writers.into_iter().map(|writer| writer.join().unwrap()).collect()
            });
            mounted.kill();
            mounted = world.mount("s");
            for (writer, count) in acknowledged.into_iter().enumerate() {
                let text = std::fs::read_to_string(mounted.at(format!("log-{round}-{writer}"))).unwrap_or_default();
                let whole: Vec<&str> = text.lines().filter(|line| line.len() == 7).collect();
                assert!(whole.len() as u64 >= count, "{} of {count} lines are there", whole.len());
                // One more line may have been written without an answer. No line is incomplete or out of order.
                assert!(whole.len() as u64 <= count + 1 && text.len().is_multiple_of(8), "{} lines", whole.len());
                assert!(whole.iter().enumerate().all(|(at, line)| line.parse() == Ok(at)));
            }
        }
    }

    /// Makes every kind of change, each on entries of its own, until the daemon dies. Then each change is complete or
    /// absent.
    fn every_change_is_whole_or_absent() {
        let world = World::with(&sets(400));
        let mut random = Random::new(7);
        for round in 0..3 {
            let space = format!("s{round}");
            let mounted = world.mount(&space);
            let done = AtomicU64::new(0);
            std::thread::scope(|scope| {
                let worker = scope.spawn(|| {
                    for n in 0..400 {
                        if change(mounted.path(), n).is_err() {
                            return;
                        }
                        done.store(n + 1, Ordering::SeqCst);
                    }
                });
                std::thread::sleep(Duration::from_millis(5 + random.below(150)));
                mounted.signal(Signal::KILL);
                worker.join().unwrap();
            });
            mounted.kill();
            let mounted = world.mount(&space);
            let done = done.load(Ordering::SeqCst);
            for n in 0..400 {
                check(mounted.path(), n, n < done);
            }
            // The surviving entries are usable and survive a remount.
            let before = read_tree(mounted.path());
            assert_eq!(read_tree(mounted.remount().path()), before);
        }
    }

    /// `HOLOFS_SOAK_KILLS` sets the number of kills, `HOLOFS_SOAK_SEED` their delays.
    fn killed_at_random_under_load() {
        const SETS: u64 = 400;
        let (wanted, seed) = (setting("HOLOFS_SOAK_KILLS").unwrap_or(6), setting("HOLOFS_SOAK_SEED").unwrap_or(1));
        let world = World::with(&sets(SETS));
        let mut random = Random::new(seed);
        let (mut kills, mut spaces, mut operations) = (0, 0, 0);
        while kills < wanted {
            let space = format!("s{spaces}");
            let mut mounted = world.mount(&space);
            let (next, acknowledged) = (AtomicU64::new(0), [const { AtomicBool::new(false) }; SETS as usize]);
            while kills < wanted && next.load(Ordering::SeqCst) < SETS {
                std::thread::scope(|scope| {
                    for _ in 0..3 {
                        scope.spawn(|| {
                            loop {
                                let n = next.fetch_add(1, Ordering::SeqCst);
                                if n >= SETS || change(mounted.path(), n).is_err() {
                                    return;
                                }
                                acknowledged[usize::try_from(n).unwrap()].store(true, Ordering::SeqCst);
                            }
                        });
                    }
                    std::thread::sleep(Duration::from_micros(random.below(60_000)));
                    mounted.signal(Signal::KILL);
                });
                mounted.kill();
                kills += 1;
                mounted = world.mount(&space);
                // Checks everything that was reported as done in this space, not only the latest round.
                for n in 0..next.load(Ordering::SeqCst).min(SETS) {
                    check(mounted.path(), n, acknowledged[usize::try_from(n).unwrap()].load(Ordering::SeqCst));
                }
            }
            spaces += 1;
            let whole = acknowledged.iter().filter(|set| set.load(Ordering::SeqCst)).count() as u64;
            operations += whole * CHANGES;
        }
        println!("random kills: seed {seed}: {kills} kills, {operations} acknowledged operations, 0 wrong");
    }

    fn dead_mount_is_recognised_and_healed() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("new"), b"kept").unwrap();
        let path = mounted.path().to_owned();
        mounted.kill();
        let answer = std::fs::read_dir(&path).map(|_| ()).unwrap_err().raw_os_error();
        let dead = [Errno::NOTCONN, Errno::CONNABORTED].map(|errno| Some(errno.raw_os_error()));
        assert!(dead.contains(&answer), "{answer:?}");
        let status = world.json(["status", "s"]);
        assert_eq!(status["state"], "stale", "{status}");
        let mounted = world.mount("s");
        assert_eq!(std::fs::read(mounted.at("new")).unwrap(), b"kept");
        assert_eq!(mounted.output["reused"], false);
        assert_eq!(world.mounts(), [path]);
    }

    fn dead_mount_can_be_unmounted() {
        let world = World::sample();
        world.mount("s").kill();
        let done = world.run(["unmount", "s"]);
        assert_eq!(done.code, 0, "{done:?}");
        assert!(world.mounts().is_empty());
    }

    /// Processes in a dead mount do not prevent the next mount.
    fn dead_mount_is_healed_while_a_process_uses_it() {
        let world = World::sample();
        let mounted = world.mount("s");
        let open = std::fs::File::open(mounted.at("lib/data.bin")).unwrap();
        let mut child =
            world.command("sleep").arg("60").current_dir(mounted.at("lib")).spawn().unwrap();
        mounted.kill();
        {
            let mounted = world.mount("s");
            assert_eq!(std::fs::read(mounted.at("readme.txt")).unwrap(), b"hello, space\n");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        drop(open);
    }

    /// Leftovers of an interrupted copy are removed at the next mount.
    fn interrupted_copies_are_swept() {
        let library = (0..20).fold(Library::new(), |library, n| {
            library.file(&format!("big/{n}"), &pattern(2_000_000 + n))
        });
        let world = World::with(&library);
        let mut mounted = world.mount("s");
        for round in 0..4 {
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for n in 0..20 {
                        let open = std::fs::OpenOptions::new().append(true).open(mounted.at(format!("big/{n}")));
                        let written = open.and_then(|mut file| std::io::Write::write_all(&mut file, b"x"));
                        if written.is_err() || stop.load(Ordering::SeqCst) {
                            return;
                        }
                    }
                });
                std::thread::sleep(Duration::from_millis(3 + 7 * round));
                mounted.signal(Signal::KILL);
                stop.store(true, Ordering::SeqCst);
            });
            mounted.kill();
            mounted = world.mount("s");
            for n in 0..20 {
                let len = std::fs::metadata(mounted.at(format!("big/{n}"))).unwrap().len();
                let bytes = std::fs::read(mounted.at(format!("big/{n}"))).unwrap();
                let lower = 2_000_000 + n;
                assert_eq!(bytes.len() as u64, len);
                assert!(bytes[..lower] == pattern(lower)[..], "big/{n} is damaged");
                assert!(bytes[lower..].iter().all(|byte| *byte == b'x'));
            }
        }
        let work = mounted.state().join("work");
        wait_until("the removal of leftovers", || std::fs::read_dir(&work).map_or(0, Iterator::count) == 0);
    }
}

/// The number of operations in [`change`].
const CHANGES: u64 = 10;

/// A library with the entries that `count` rounds of [`change`] need.
pub fn sets(count: u64) -> Library {
    (0..count).fold(Library::new(), |library, n| {
        let n_bytes = usize::try_from(n).unwrap();
        library
            .file(&format!("rename/{n}"), &pattern(5000 + n_bytes))
            .file(&format!("dirs/{n}/inside"), b"inside")
            .file(&format!("write/{n}"), &pattern(9000 + n_bytes))
            .file(&format!("unlink/{n}"), b"to go")
            .file(&format!("save/{n}"), b"old version")
            .file(&format!("chmod/{n}"), b"mode")
            .file(&format!("link/{n}"), b"link")
    })
}

/// Makes every change of round `n`.
pub fn change(root: &Path, n: u64) -> std::io::Result<()> {
    use std::os::unix::fs::{FileExt, PermissionsExt};
    let at = |dir: &str| root.join(dir).join(n.to_string());
    std::fs::rename(at("rename"), root.join(format!("rename/moved-{n}")))?;
    std::fs::rename(at("dirs"), root.join(format!("dirs/moved-{n}")))?;
    std::fs::OpenOptions::new().write(true).open(at("write"))?.write_all_at(b"WRITTEN", 100)?;
    std::fs::remove_file(at("unlink"))?;
    let temporary = root.join(format!("save/.{n}.tmp"));
    std::fs::write(&temporary, b"new version, longer than the old")?;
    std::fs::rename(&temporary, at("save"))?;
    std::fs::set_permissions(at("chmod"), std::fs::Permissions::from_mode(0o600))?;
    std::fs::hard_link(at("link"), root.join(format!("link/second-{n}")))?;
    std::fs::create_dir(root.join(format!("made-{n}")))?;
    Ok(())
}

/// Checks round `n`: all of it if it was acknowledged, else each change is complete or absent.
pub fn check(root: &Path, n: u64, acknowledged: bool) {
    let at = |dir: &str| root.join(dir).join(n.to_string());
    let either = |new: &Path, old: &Path| {
        let (new, old) = (new.exists(), old.exists());
        assert!(new != old, "{n}: a renamed entry has {} names", u8::from(new) + u8::from(old));
        assert!(new || !acknowledged, "{n}: an acknowledged rename is undone");
    };
    let moved = root.join(format!("rename/moved-{n}"));
    either(&moved, &at("rename"));
    let place = if moved.exists() { moved } else { at("rename") };
    assert!(std::fs::read(place).unwrap() == pattern(5000 + usize::try_from(n).unwrap()), "rename/{n}");

    let moved = root.join(format!("dirs/moved-{n}"));
    either(&moved, &at("dirs"));
    let place = if moved.exists() { moved } else { at("dirs") };
    assert_eq!(std::fs::read(place.join("inside")).unwrap(), b"inside");

    let len = 9000 + usize::try_from(n).unwrap();
    let (bytes, old) = (std::fs::read(at("write")).unwrap(), pattern(len));
    let mut new = old.clone();
    new[100..107].copy_from_slice(b"WRITTEN");
    assert!(bytes == new || (bytes == old && !acknowledged), "write/{n}");

    assert!(!acknowledged || !at("unlink").exists(), "unlink/{n}");

    let saved = std::fs::read(at("save")).unwrap();
    let new = saved == b"new version, longer than the old";
    assert!(new || (saved == b"old version" && !acknowledged), "save/{n}: {saved:?}");

    let stat = std::fs::metadata(at("chmod")).unwrap();
    assert!(stat.mode() & 0o777 == 0o600 || (stat.mode() & 0o777 == 0o644 && !acknowledged), "chmod/{n}");
    assert_eq!(std::fs::read(at("chmod")).unwrap(), b"mode");

    let second = root.join(format!("link/second-{n}"));
    let stat = std::fs::metadata(at("link")).unwrap();
    if second.exists() {
        assert_eq!((stat.nlink(), std::fs::metadata(second).unwrap().ino()), (2, stat.ino()), "link/{n}");
    } else {
        assert!(!acknowledged, "link/{n}");
        assert_eq!(stat.nlink(), 1, "link/{n}");
    }
    assert!(!acknowledged || root.join(format!("made-{n}")).is_dir(), "made-{n}");
}
