//! Hostile neighbours: other users of the machine put, link, swap or mount things where holofs works.
//!
//! rcc's shared directories have mode 0777, and `ROBOCORP_HOME` can lie anywhere. Each test makes one attack and checks
//! that no file of the victim changes, that commands end, and that a refusal is one clear line.

mod beside;
mod mounts;
mod namespaces;
mod state;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode};

use crate::common::World;
use crate::common::world::Done;

/// The name of the space that is mounted.
const SPACE: &str = "s";

/// Longer than any command takes on a busy machine, and shorter than a command that blocks.
const LIMIT: Duration = Duration::from_secs(20);

/// What an attacker puts in the place of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trap {
    /// A link to a file of the victim.
    Link,
    /// A link to a name that does not exist.
    Dangling,
    /// A link to `/dev/zero`.
    Zero,
    /// A FIFO without a writer.
    Fifo,
    /// A sparse file of 20 GB.
    Huge,
    /// A non-empty directory.
    Directory,
}

const TRAPS: [Trap; 6] = [Trap::Link, Trap::Dangling, Trap::Zero, Trap::Fifo, Trap::Huge, Trap::Directory];

const PRECIOUS: &[u8] = b"precious\n";

/// The victim's file, and a name where no file may appear.
struct Victim {
    file: PathBuf,
    missing: PathBuf,
}

impl Victim {
    fn in_world(world: &World) -> Self {
        let (file, missing) = (world.path().join("victim"), world.path().join("missing"));
        std::fs::write(&file, PRECIOUS).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        Self { file, missing }
    }

    #[track_caller]
    fn is_untouched(&self) {
        assert_eq!(std::fs::read(&self.file).unwrap(), PRECIOUS);
        assert_eq!(std::fs::metadata(&self.file).unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(!self.missing.exists(), "a file was created through a link");
    }

    /// Replaces whatever is at `path` by a trap.
    fn set(&self, trap: Trap, path: &Path) {
        clear(path);
        match trap {
            Trap::Link => symlink(&self.file, path).unwrap(),
            Trap::Dangling => symlink(&self.missing, path).unwrap(),
            Trap::Zero => symlink("/dev/zero", path).unwrap(),
            Trap::Fifo => {
                let mode = Mode::from_bits_truncate(0o666);
                rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0).unwrap();
            }
            Trap::Huge => std::fs::File::create(path).unwrap().set_len(20 << 30).unwrap(),
            Trap::Directory => {
                std::fs::create_dir(path).unwrap();
                std::fs::write(path.join("in it"), "").unwrap();
            }
        }
    }
}

fn clear(path: &Path) {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path).unwrap(),
        Ok(_) => std::fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// Runs a command that must end soon.
#[track_caller]
fn soon(world: &World, args: &[&str]) -> Done {
    let start = Instant::now();
    let done = world.run(args);
    assert!(start.elapsed() < LIMIT, "{args:?} took {:?}: {done:?}", start.elapsed());
    assert!(!done.stderr.contains("panicked"), "{args:?}: {done:?}");
    done
}

#[track_caller]
fn mount(world: &World) -> Done {
    soon(world, &["mount", world.home().to_str().unwrap(), SPACE, "--lock-timeout", "1"])
}

/// Asserts that a command failed with one line that contains `word`, and possibly one line of advice.
#[track_caller]
fn assert_refused(done: &Done, word: &str) {
    assert_ne!(done.code, 0, "{done:?}");
    assert_eq!(done.stdout, "", "{done:?}");
    assert!(
        done.stderr.starts_with("holofs: ") && done.stderr.contains(word),
        "{word:?} is missing: {done:?}"
    );
    assert!(done.stderr.lines().count() <= 2, "more than one line: {done:?}");
}
