//! Replaces each file that holofs keeps, or shares with rcc, by a FIFO, a link or a directory, while nothing is mounted
//! and under a live mount. Every command ends within its time limit, the target of a link is not touched, and `holofs
//! check` reports library files that are not regular files.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode};

use super::{assert_sound, copy_back, try_mount, used_world};
use crate::common::world::finish;
use crate::common::{Library, World, files_below, sh};

/// What replaces a file.
#[derive(Clone, Copy, Debug)]
enum Instead {
    Fifo,
    /// A link to a file that holofs did not make.
    Link,
    /// A link to nothing, through which a file could be created.
    Dangling,
    Directory,
}

const ALL: [Instead; 4] = [Instead::Fifo, Instead::Link, Instead::Dangling, Instead::Directory];

/// A FIFO for each file, and one of the others in turn.
fn kinds(index: usize) -> [Instead; 2] {
    [Instead::Fifo, ALL[1 + index % (ALL.len() - 1)]]
}

/// The content of the link's target: nothing that could be mistaken for a record or a lock.
const INNOCENT: &[u8] = b"a file of somebody else\n";

/// A command that takes longer hangs. No command waits this long for a lock.
const LONGEST: Duration = Duration::from_secs(20);

/// The targets of the links, beside the world.
struct Victim {
    file: PathBuf,
    missing: PathBuf,
}

impl Victim {
    fn new(world: &World) -> Self {
        let victim = Self { file: world.path().join("victim"), missing: world.path().join("not-there") };
        std::fs::write(&victim.file, INNOCENT).unwrap();
        victim
    }

    fn replace(&self, path: &Path, how: Instead) {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                panic!("{}: {error}", path.display())
            }
            _ => {}
        }
        match how {
            Instead::Fifo => {
                rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
            }
            Instead::Link => std::os::unix::fs::symlink(&self.file, path).unwrap(),
            Instead::Dangling => std::os::unix::fs::symlink(&self.missing, path).unwrap(),
            Instead::Directory => std::fs::create_dir(path).unwrap(),
        }
    }

    #[track_caller]
    fn assert_untouched(&self, what: &str) {
        assert_eq!(std::fs::read(&self.file).unwrap(), INNOCENT, "{what}: written through a link");
        assert!(!self.missing.exists(), "{what}: created through a link");
    }
}

/// Runs a command that may fail with one clear line, but may not hang.
#[track_caller]
fn assert_ends(world: &World, args: &[&str], what: &str) -> i32 {
    let begin = Instant::now();
    let done = finish(world.holofs().args(args));
    assert!(begin.elapsed() < LONGEST, "{what}: {args:?} took {:?}", begin.elapsed());
    assert!(done.code < 100 && !done.stderr.contains("panicked"), "{what}: {args:?}: {done:?}");
    if done.code != 0 {
        // Warnings may precede this line, and advice may follow it.
        let line = done.stderr.lines().any(|line| line.starts_with("holofs: "));
        assert!(line, "{what}: {args:?}: {done:?}");
    }
    done.code
}

/// The files beside the spaces, which holofs shares with rcc.
fn beside(world: &World) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for dir in [world.base(), world.hololib().join("used")] {
        out.extend(files_below(&dir).into_iter().map(|file| dir.join(file)));
    }
    out
}

for_both_users! {
    fn replaced_while_nothing_is_mounted() {
        let (world, want) = used_world();
        let victim = Victim::new(&world);
        let kept = world.path().join("kept");
        sh(std::process::Command::new("cp").arg("-a").arg(world.state()).arg(&kept));
        for (index, file) in files_below(&world.state()).into_iter().enumerate() {
            for how in kinds(index) {
                let what = format!("{how:?} for {}", file.display());
                println!("{what}");
                victim.replace(&world.state().join(&file), how);
                let begin = Instant::now();
                if let Some(mounted) = try_mount(&world, &what) {
                    assert!(begin.elapsed() < LONGEST, "{what}");
                    assert_sound(&mounted, &want, &file, &what);
                    mounted.unmount();
                }
                for args in [["list"].as_slice(), &["status", "s"], &["path", "s"]] {
                    assert_ends(&world, args, &what);
                }
                victim.assert_untouched(&what);
                copy_back(&kept, &world.state());
            }
        }
        for path in beside(&world) {
            for how in ALL {
                let what = format!("{how:?} for {}", path.display());
                println!("{what}");
                let saved = std::fs::read(&path).unwrap();
                victim.replace(&path, how);
                if let Some(mounted) = try_mount(&world, &what) {
                    assert_sound(&mounted, &want, Path::new("beside"), &what);
                    mounted.unmount();
                }
                assert_ends(&world, &["list"], &what);
                victim.assert_untouched(&what);
                sh(std::process::Command::new("rm").arg("-rf").arg(&path));
                std::fs::write(&path, saved).unwrap();
            }
        }
        world.mount("s").unmount();
    }

    fn replaced_under_a_live_mount() {
        let (world, want) = used_world();
        let victim = Victim::new(&world);
        let kept = world.path().join("kept");
        sh(std::process::Command::new("cp").arg("-a").arg(world.state()).arg(&kept));
        // Without the upper: under a live mount it belongs to the daemon alone.
        let is_upper = |file: &Path| file.components().any(|part| part.as_os_str() == "upper");
        let files = files_below(&world.state()).into_iter().filter(|file| !is_upper(file));
        for (index, file) in files.enumerate() {
            for how in kinds(index) {
                let what = format!("{how:?} for {}", file.display());
                println!("{what}");
                let mounted = world.mount("s");
                victim.replace(&world.state().join(&file), how);
                for args in [["list"].as_slice(), &["status", "s"], &["path", "s"]] {
                    assert_ends(&world, args, &what);
                }
                assert_sound(&mounted, &want, &file, &what);
                // If the record of a space cannot be synced, the space may refuse changes, but it may not hang.
                if let Err(error) = std::fs::write(mounted.at("lib/new"), b"works") {
                    assert!(file.ends_with("state.json"), "{what}: {error}");
                }
                // Unmounts without holofs if holofs cannot recognise its mount any more.
                if assert_ends(&world, &["unmount", "s"], &what) == 0 {
                    mounted.has_ended();
                } else {
                    sh(world.command("fusermount3").arg("-u").arg(mounted.path()));
                    mounted.has_ended();
                }
                if let Some(mounted) = try_mount(&world, &what) {
                    mounted.unmount();
                }
                victim.assert_untouched(&what);
                copy_back(&kept, &world.state());
            }
        }
    }

    fn check_reports_library_files_that_are_not_regular() {
        let library = Library::sample();
        for how in ALL {
            for blob in [true, false] {
                let world = World::with(&library);
                let victim = Victim::new(&world);
                let path = if blob {
                    library.blob(&world.hololib(), "lib/data.bin")
                } else {
                    library.catalog(&world.hololib())
                };
                victim.replace(&path, how);
                let what = format!("{how:?} for {}", path.display());
                println!("{what}");
                let begin = Instant::now();
                let done = finish(world.holofs().arg("check").arg(world.home()));
                assert!(begin.elapsed() < LONGEST, "{what}");
                let name = path.file_name().unwrap().to_str().unwrap();
                let output = format!("{}{}", done.stdout, done.stderr);
                assert!(done.code != 0 && output.contains(name), "{what}: {done:?}");
                assert!(!output.contains("panicked"), "{what}: {done:?}");
                assert_ends(&world, &["list"], &what);
                assert_ends(&world, &["catalogs", world.home().to_str().unwrap()], &what);
                if let Some(mounted) = try_mount(&world, &what) {
                    // EIO for this file only.
                    assert!(std::fs::read(mounted.at("lib/data.bin")).is_err(), "{what}");
                    assert_eq!(std::fs::read(mounted.at("readme.txt")).unwrap(), b"hello, space\n", "{what}");
                    mounted.unmount();
                }
                victim.assert_untouched(&what);
            }
        }
    }
}
