//! `holofs reset`: paths show what the environment has, also while programs use them.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::model::{Tree, change, tree};
use super::{diff, library};
use crate::common::library::pattern;
use crate::common::random::Random;
use crate::common::world::wait;
use crate::common::{Mounted, World};

/// Resets paths, and returns those that were reset. `--dry-run` must say the same before.
#[track_caller]
fn reset(world: &World, space: &str, paths: &[&str]) -> Vec<String> {
    let run = |more: &[&str]| {
        let done = world.run(["reset", space].iter().chain(paths).chain(more));
        assert_eq!(done.code, 0, "{done:?}");
        done.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let would = run(&["--dry-run"]);
    let done = run(&[]);
    assert_eq!(done, would);
    done
}

/// Compares two trees without what a restored link cannot have.
#[track_caller]
fn assert_same(ours: &Tree, theirs: &Tree, which: impl Fn(&str) -> bool) {
    for path in ours.keys().chain(theirs.keys()).filter(|path| which(path)) {
        assert!(
            ours.get(path) == theirs.get(path),
            "{path}: {:?} {:?}",
            ours.contains_key(path),
            theirs.contains_key(path)
        );
    }
}

fn is_below(path: &str, above: &str) -> bool {
    path == above || path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
}

for_both_users! {
    fn whole_space() {
        let world = World::with(&library());
        let space = "s";
        let mounted = world.mount(space);
        let before = tree(mounted.path());
        let mut random = Random::new(21);
        for _ in 0..30 {
            change(mounted.path(), &mut random);
        }
        let changed = tree(mounted.path());
        reset(&world, space, &[]);
        assert_same(&tree(mounted.path()), &before, |_| true);
        assert_eq!(diff(&world, space), [""; 0]);
        // The space can be changed again, and the changes stay.
        for _ in 0..30 {
            change(mounted.path(), &mut random);
        }
        let (lines, again) = (diff(&world, space), tree(mounted.path()));
        assert!(again != changed);
        let mounted = mounted.remount();
        assert_same(&tree(mounted.path()), &again, |_| true);
        assert_eq!(diff(&world, space), lines);
        mounted.unmount();
        reset(&world, space, &[]);
        assert_eq!(diff(&world, space), [""; 0]);
        assert_same(&tree(world.mount(space).path()), &before, |_| true);
    }

    fn single_paths() {
        let world = World::with(&library());
        let mut live = Some(world.mount("s"));
        let at = live.as_ref().unwrap().path().to_owned();
        let pristine = tree(&at);
        let mut random = Random::new(31);
        for round in 0..10 {
            for _ in 0..6 {
                change(&at, &mut random);
            }
            let lines = world.json(["diff", "s"]);
            let rows = lines.as_array().unwrap();
            if rows.is_empty() {
                continue;
            }
            let row = &rows[usize::try_from(random.below(rows.len() as u64)).unwrap()];
            let path = row["path"].as_str().unwrap().to_owned();
            let before = tree(&at);
            let offline = round % 5 == 4;
            if offline {
                live.take().unwrap().unmount();
            }
            let done = world.run(["reset", "s", &path, "--dry-run"]);
            let can = done.code == 0;
            if can {
                let listed = reset(&world, "s", &[&path]);
                if offline {
                    live = Some(world.mount("s"));
                }
                let after = tree(&at);
                let is_listed = |path: &str| listed.iter().any(|listed| is_below(path, listed));
                // A listed directory gets its own attributes back.
                assert_same(&after, &pristine, |at| is_below(at, &path));
                assert_same(&after, &before, |at| !is_listed(at));
            } else {
                assert!([6, 12].contains(&done.code) && done.stderr.contains("\n  try: reset "), "{row} {done:?}");
                let refused = world.run(["reset", "s", &path]);
                assert_eq!((refused.code, refused.stderr), (done.code, done.stderr));
                if offline {
                    live = Some(world.mount("s"));
                }
                assert_same(&tree(&at), &before, |_| true);
            }
            if round % 10 == 9 {
                let now = tree(&at);
                live = live.map(Mounted::remount);
                assert_same(&tree(&at), &now, |_| true);
            }
        }
    }

    /// A reader sees the changed file or the pristine one. Other names are not disturbed.
    fn readers_see_old_or_new() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        let (old, new) = (pattern(700_000), vec![b'n'; 400_000]);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for name in ["large.bin", "gone.bin"] {
                let (at, stop, old, new) = (mounted.at("large.bin"), &stop, &old, &new);
                let other = mounted.at("readme.txt");
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let bytes = std::fs::read(&at).unwrap();
                        assert!(bytes == *old || bytes == *new, "{name}: {} bytes", bytes.len());
                        assert_eq!(std::fs::read(&other).unwrap(), b"hello, space\n");
                    }
                });
            }
            let result = std::panic::catch_unwind(|| {
                for _ in 0..5 {
                    let temporary = mounted.at("temporary");
                    std::fs::write(&temporary, &new).unwrap();
                    std::fs::rename(&temporary, mounted.at("large.bin")).unwrap();
                    assert_eq!(std::fs::read(mounted.at("large.bin")).unwrap(), new);
                    assert_eq!(reset(&world, "s", &["large.bin"]), ["large.bin"]);
                    assert!(std::fs::read(mounted.at("large.bin")).unwrap() == old);
                }
            });
            stop.store(true, Ordering::Relaxed);
            result.unwrap();
        });
    }

    fn open_files_stay_as_they_are() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        std::fs::write(mounted.at("readme.txt"), "changed\n").unwrap();
        std::fs::create_dir(mounted.at("added")).unwrap();
        std::fs::write(mounted.at("added/file"), "added\n").unwrap();
        let mut reader = std::fs::File::open(mounted.at("readme.txt")).unwrap();
        let mut writer = std::fs::OpenOptions::new().append(true).open(mounted.at("readme.txt")).unwrap();
        let mut added = std::fs::OpenOptions::new().read(true).write(true).open(mounted.at("added/file")).unwrap();
        // A file that was removed while it is open, and the directory that it was in.
        let mut removed = std::fs::File::open(mounted.at("pkg/two/sub/d.py")).unwrap();
        let mut shell = world.command("sleep").arg("60").current_dir(mounted.at("pkg/two")).spawn().unwrap();
        std::fs::remove_dir_all(mounted.at("pkg/two")).unwrap();
        reset(&world, "s", &[]);
        assert_eq!(std::fs::read(mounted.at("readme.txt")).unwrap(), b"hello, space\n");
        assert!(!mounted.at("added").exists());
        assert_eq!(std::fs::read(mounted.at("pkg/two/sub/d.py")).unwrap(), b"d = 4\n");
        writer.write_all(b"more\n").unwrap();
        added.write_all(b"ADDED").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "changed\nmore\n");
        text.clear();
        removed.read_to_string(&mut text).unwrap();
        assert_eq!(text, "d = 4\n");
        assert_eq!(std::fs::read(mounted.at("readme.txt")).unwrap(), b"hello, space\n");
        // The entries that came back can be changed, renamed and removed.
        std::fs::write(mounted.at("pkg/two/sub/d.py"), "d = 5\n").unwrap();
        std::fs::rename(mounted.at("pkg/two/c.py"), mounted.at("pkg/two/e.py")).unwrap();
        std::fs::rename(mounted.at("readme.txt"), mounted.at("README")).unwrap();
        let lines = ["R pkg/two/c.py -> pkg/two/e.py", "M pkg/two/sub/d.py", "R readme.txt -> README"];
        let mut shown = diff(&world, "s");
        shown.sort_by_key(|line| line.split(' ').nth(1).map(str::to_owned));
        assert_eq!(shown, lines);
        shell.kill().unwrap();
        shell.wait().unwrap();
        drop((reader, writer, added, removed));
        let mounted = mounted.remount();
        assert_eq!(std::fs::read(mounted.at("pkg/two/sub/d.py")).unwrap(), b"d = 5\n");
        assert_eq!(std::fs::read(mounted.at("README")).unwrap(), b"hello, space\n");
    }

    fn killed_daemon_leaves_each_path_before_or_after() {
        let world = World::with(&library());
        for round in 0..3_u64 {
            let space = format!("s{round}");
            let mounted = world.mount(&space);
            let pristine = tree(mounted.path());
            for n in 0..100 {
                std::fs::write(mounted.at(format!("added{n}")), "x").unwrap();
            }
            for path in ["readme.txt", "many/a", "pkg/one/a.py", "large.bin"] {
                std::fs::write(mounted.at(path), "changed").unwrap();
            }
            std::fs::remove_dir_all(mounted.at("lib")).unwrap();
            std::fs::rename(mounted.at("many/b"), mounted.at("many/z")).unwrap();
            std::fs::set_permissions(mounted.at("secret"), std::fs::Permissions::from_mode(0o640)).unwrap();
            let changed = tree(mounted.path());
            let mut command = world.holofs();
            let mut child = command.args(["reset", &space]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(6 + 9 * round));
            mounted.kill();
            wait(&mut child, "reset");
            let mounted = world.mount(&space);
            let now = tree(mounted.path());
            for path in pristine.keys().chain(changed.keys()) {
                let is = now.get(path);
                // The mode of a directory, and not its time, is compared here.
                assert!(is == pristine.get(path) || is == changed.get(path), "{path}: {is:?}");
            }
            reset(&world, &space, &[]);
            assert_same(&tree(mounted.path()), &pristine, |_| true);
        }
    }

    fn bad_input() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        std::fs::rename(mounted.at("pkg"), mounted.at("package")).unwrap();
        std::fs::hard_link(mounted.at("readme.txt"), mounted.at("link")).unwrap();
        let before = tree(mounted.path());
        let refused = |args: &[&str], code: i32, words: &str| {
            let done = world.run(args);
            assert!(done.code == code && done.stdout.is_empty() && done.stderr.contains(words), "{done:?}");
            assert!(done.stderr.contains("\n  try: "), "{done:?}");
        };
        let all = |mounted: &Mounted<'_>| {
            refused(&["reset", "nowhere"], 6, "no such space");
            refused(&["reset", "s", "no/such"], 6, "no such path");
            refused(&["reset", "s", "../x"], 6, "no such path");
            refused(&["reset", "s", "/etc/passwd"], 6, "no such path");
            refused(&["reset", "s", "pkg/one/a.py"], 6, "reset pkg as a whole");
            refused(&["reset", "s", "readme.txt"], 12, "reset link as well");
            assert_same(&tree(mounted.path()), &before, |_| true);
        };
        all(&mounted);
        mounted.stop();
        refused(&["reset", "s", "readme.txt"], 12, "stopped");
        mounted.signal(rustix::process::Signal::CONT);
        mounted.unmount();
        let mounted = world.mount_with("s", &["--read-only"]);
        refused(&["reset", "s"], 12, "read-only");
        // A path can be named below the directory of the space.
        let path = mounted.at("link");
        mounted.unmount();
        assert_eq!(reset(&world, "s", &["readme.txt", path.to_str().unwrap()]).len(), 2);
        assert_eq!(reset(&world, "s", &["package"]).len(), 2);
        assert_eq!(diff(&world, "s"), [""; 0]);
    }
}
