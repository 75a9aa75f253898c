//! Hostile neighbours: what other users of the machine may put, link, exchange or mount where holofs works.
//!
//! rcc's shared directories have mode 0777, and `ROBOCORP_HOME` can lie anywhere. Each test plays one trick, and shows
//! that nothing of the victim's was changed, that commands end, and that a refusal is one clear line.

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

/// The space that is mounted, by its name.
const SPACE: &str = "s";

/// Longer than any command takes on a busy machine, shorter than one that waits for something.
const LIMIT: Duration = Duration::from_secs(20);

/// What somebody puts in place of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trap {
    /// A link to a file of the victim's.
    Link,
    /// A link to nothing yet.
    Dangling,
    /// A link to `/dev/zero`.
    Zero,
    /// A FIFO that nobody writes to.
    Fifo,
    /// 20 GB that take no space.
    Huge,
    /// A directory with something in it.
    Directory,
}

const TRAPS: [Trap; 6] = [Trap::Link, Trap::Dangling, Trap::Zero, Trap::Fifo, Trap::Huge, Trap::Directory];

const PRECIOUS: &[u8] = b"precious\n";

/// The victim's file, and the name at which none may appear.
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
        assert!(!self.missing.exists(), "a file was made through a link");
    }

    /// Puts a trap in place of whatever is at `path`.
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

/// Runs a command that has to end soon.
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

/// Asserts a refusal in one line, and perhaps one of what to do, that holds `word`.
#[track_caller]
fn assert_refused(done: &Done, word: &str) {
    assert_ne!(done.code, 0, "{done:?}");
    assert_eq!(done.stdout, "", "{done:?}");
    assert!(done.stderr.starts_with("holofs: ") && done.stderr.contains(word), "no {word:?}: {done:?}");
    assert!(done.stderr.lines().count() <= 2, "more than a line: {done:?}");
}
