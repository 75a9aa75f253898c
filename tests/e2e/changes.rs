//! `diff`, `reset` and `fork`: what was changed in a space, undone, and copied.

mod diff;
mod fork;
mod model;
mod reset;

use crate::common::{Library, World};

/// A library with enough of each kind to change.
fn library() -> Library {
    Library::sample()
        .file("pkg/one/a.py", b"a = 1\n")
        .file("pkg/one/b.py", b"b = 2\n")
        .file("pkg/two/c.py", b"c = 3\n")
        .file("pkg/two/sub/d.py", b"d = 4\n")
        .file("large.bin", &crate::common::library::pattern(700_000))
        .file("large.conf", &relocated())
}

/// A large file with relocations at the ends of pieces.
fn relocated() -> Vec<u8> {
    let mut bytes = crate::common::library::pattern(600_000);
    for at in [10, 262_130, 524_288 - 12, 599_900] {
        let stage = crate::common::library::STAGE.as_bytes();
        bytes[at..at + stage.len()].copy_from_slice(stage);
    }
    bytes
}

/// The lines of `holofs diff`.
#[track_caller]
fn diff(world: &World, space: &str) -> Vec<String> {
    let done = world.run(["diff", space]);
    assert_eq!(done.code, 0, "{done:?}");
    done.stdout.lines().map(str::to_owned).collect()
}
