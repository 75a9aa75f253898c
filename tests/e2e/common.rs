//! What the tests share: a world to test in, libraries to put there, and mounts that clean up after themselves.

#[macro_use]
pub mod as_user;
pub mod fixture;
pub mod image;
pub mod library;
pub mod manifest;
pub mod mount;
pub mod power;
#[cfg(feature = "remote")]
pub mod push;
pub mod random;
pub mod rcc;
pub mod see;
#[cfg(feature = "remote")]
pub mod store;
pub mod world;
pub mod zip;

use std::path::Path;
use std::time::{Duration, Instant};

pub use as_user::passthrough;
pub use library::Library;
pub use mount::Mounted;
pub use world::{World, apart};

/// The mtime of everything that rcc restores, in seconds since the epoch.
pub const MOTHER_TIME: i64 = 1_610_000_000;

/// A number from an environment variable; `None` if the variable is not set.
pub fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// Asserts that a call failed with this errno.
#[track_caller]
pub fn assert_errno<T: std::fmt::Debug>(done: std::io::Result<T>, errno: rustix::io::Errno) {
    match done {
        Err(error) if error.raw_os_error() == Some(errno.raw_os_error()) => {}
        other => panic!("expected {errno}, got {other:?}"),
    }
}

/// Waits until `done` returns true; fails after ten seconds and names `what`.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "timed out after ten seconds waiting for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// All regular files below a directory, sorted, with paths relative to it.
pub fn files_below(root: &Path) -> Vec<std::path::PathBuf> {
    fn walk(dir: &Path, root: &Path, out: &mut Vec<std::path::PathBuf>) {
        let Ok(entries) = std::fs::read_dir(dir) else { return };
        for entry in entries.map(Result::unwrap) {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                walk(&entry.path(), root, out);
            } else if kind.is_file() {
                out.push(entry.path().strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    let mut out = Vec::new();
    walk(root, root, &mut out);
    out.sort();
    out
}

/// Runs a program to its end and returns its standard output. A failure fails the test and prints the program's output.
#[track_caller]
pub fn sh(command: &mut std::process::Command) -> String {
    let out = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(
        out.status.success(),
        "{command:?}: {}\n{}{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Runs a Python program, which can use maps, on a file; a failure fails the test.
#[track_caller]
pub fn python(program: &str, path: &Path) {
    sh(std::process::Command::new("python3").args(["-c", program]).arg(path));
}
