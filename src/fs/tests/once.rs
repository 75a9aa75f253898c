//! Requests that come again after the death of a worker.

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::world::{World, caller};
use crate::fs::Make;
use crate::fs::error::errno;
use crate::handoff::requests::RESENT;
use crate::namespace::rename::RenameMode::{Exchange, NoReplace, Replace};
use crate::namespace::types::{Attr, Ino, Result, SetAttr, SetTime, Time};

type Run = fn(&World) -> Result<Option<Attr>>;

/// A request: its name, what is done before, and itself. It finds its entries by path, as a new worker must.
struct Request {
    name: &'static str,
    prepare: fn(&World) -> Result<()>,
    run: Run,
    /// The errno when the request is done a second time as a new one. None if that does nothing.
    again: Option<Errno>,
}

const CREATE: u32 = 1;
const REPLACE: u32 = 2;

fn nothing(_: &World) -> Result<()> {
    Ok(())
}

fn place(world: &World, path: &str) -> Result<(Ino, String)> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    Ok((world.find(dir)?.ino, name.to_owned()))
}

fn make(world: &World, path: &str, what: Make<'_>) -> Result<Option<Attr>> {
    let (dir, name) = place(world, path)?;
    world.fs.namespace().make(dir, name.as_bytes(), what, caller()).map(Some)
}

fn unlink(world: &World, path: &str) -> Result<Option<Attr>> {
    let (dir, name) = place(world, path)?;
    world.fs.namespace().unlink(dir, name.as_bytes()).map(|()| None)
}

fn rmdir(world: &World, path: &str) -> Result<Option<Attr>> {
    let (dir, name) = place(world, path)?;
    world.fs.namespace().rmdir(dir, name.as_bytes()).map(|()| None)
}

fn rename(
    world: &World,
    from: &str,
    to: &str,
    mode: crate::namespace::rename::RenameMode,
) -> Result<Option<Attr>> {
    let ((dir, name), (new_dir, new_name)) = (place(world, from)?, place(world, to)?);
    let names = world.fs.namespace();
    names.rename(dir, name.as_bytes(), new_dir, new_name.as_bytes(), mode).map(|()| None)
}

fn link(world: &World, from: &str, to: &str) -> Result<Option<Attr>> {
    let (dir, name) = place(world, to)?;
    // The kernel names the file by its number, which does not change.
    let ino = world.find(from)?.ino;
    world.fs.namespace().link(ino, dir, name.as_bytes()).map(Some)
}

fn set_xattr(world: &World, path: &str, flags: u32) -> Result<Option<Attr>> {
    world.fs.set_xattr(world.find(path)?.ino, b"user.one", b"value", flags).map(|()| None)
}

fn remove_xattr(world: &World, path: &str) -> Result<Option<Attr>> {
    world.fs.remove_xattr(world.find(path)?.ino, b"user.one").map(|()| None)
}

fn set_attr(world: &World, path: &str, change: SetAttr) -> Result<Option<Attr>> {
    world.fs.namespace().setattr(world.find(path)?.ino, &change).map(Some)
}

fn done<T>(_: T) {}

fn requests() -> Vec<Request> {
    let mut out = Vec::new();
    let mut add = |name, prepare, run, again: Option<Errno>| out.push(Request { name, prepare, run, again });
    let exist = Some(Errno::EXIST);
    let noent = Some(Errno::NOENT);
    add("create", nothing, |w| make(w, "lib/new", Make::File(0o644)), exist);
    add("create with a mode that is set later", nothing, |w| make(w, "lib/new", Make::File(0o4444)), exist);
    add(
        "create over a removed name",
        |w| unlink(w, "lib/a.txt").map(done),
        |w| make(w, "lib/a.txt", Make::File(0o600)),
        exist,
    );
    add("mkdir", nothing, |w| make(w, "lib/sub/new", Make::Dir(0o750)), exist);
    add(
        "mkdir over a removed name",
        |w| rmdir(w, "empty").map(done),
        |w| make(w, "empty", Make::Dir(0o750)),
        exist,
    );
    add("symlink", nothing, |w| make(w, "new", Make::Symlink(c"lib")), exist);
    add("mknod", nothing, |w| make(w, "new", Make::Node(rustix::fs::FileType::Fifo, 0o640, 0)), exist);
    add("link", nothing, |w| link(w, "lib/a.txt", "empty/new"), exist);
    add(
        "link of a new file",
        |w| make(w, "new", Make::File(0o644)).map(done),
        |w| link(w, "new", "newer"),
        exist,
    );
    add(
        "link over a removed name",
        |w| unlink(w, "lib/b.txt").map(done),
        |w| link(w, "lib/a.txt", "lib/b.txt"),
        exist,
    );
    add("unlink", nothing, |w| unlink(w, "lib/a.txt"), noent);
    add(
        "unlink of a changed file",
        |w| w.fs.write(w.find("lib/a.txt")?.ino, 0, b"x").map(done),
        |w| unlink(w, "lib/a.txt"),
        noent,
    );
    add("unlink of a new file", |w| make(w, "new", Make::File(0o644)).map(done), |w| unlink(w, "new"), noent);
    add("unlink of one of two names", |w| link(w, "lib/a.txt", "new").map(done), |w| unlink(w, "new"), noent);
    add("rmdir", nothing, |w| rmdir(w, "empty"), noent);
    add(
        "rmdir of a new directory",
        |w| make(w, "new", Make::Dir(0o755)).map(done),
        |w| rmdir(w, "new"),
        noent,
    );
    add(
        "rmdir of an emptied directory",
        |w| unlink(w, "lib/sub/deep.txt").map(done),
        |w| rmdir(w, "lib/sub"),
        noent,
    );
    add("rename", nothing, |w| rename(w, "lib/a.txt", "empty/new", Replace), noent);
    add("rename without replacing", nothing, |w| rename(w, "lib/a.txt", "lib/new", NoReplace), noent);
    add("rename over a file", nothing, |w| rename(w, "lib/a.txt", "lib/b.txt", Replace), noent);
    add("rename a directory", nothing, |w| rename(w, "lib", "empty", Replace), noent);
    add(
        "rename a new directory over a removed one",
        |w| rmdir(w, "empty").and_then(|_| make(w, "new", Make::Dir(0o755))).map(done),
        |w| rename(w, "new", "empty", Replace),
        noent,
    );
    add(
        "rename over an emptied directory",
        |w| unlink(w, "lib/sub/deep.txt").map(done),
        |w| rename(w, "empty", "lib/sub", Replace),
        noent,
    );
    add("exchange", nothing, |w| rename(w, "lib/a.txt", "lib/b.txt", Exchange), None);
    add("exchange a file and a directory", nothing, |w| rename(w, "lib/a.txt", "bin", Exchange), None);
    add("set a new attribute", nothing, |w| set_xattr(w, "lib/a.txt", CREATE), exist);
    add("set a new attribute of a directory", nothing, |w| set_xattr(w, "lib", CREATE), exist);
    add("set an attribute", nothing, |w| set_xattr(w, "lib/a.txt", 0), None);
    add(
        "replace an attribute",
        |w| set_xattr(w, "lib/a.txt", 0).map(done),
        |w| set_xattr(w, "lib/a.txt", REPLACE),
        None,
    );
    add(
        "remove an attribute",
        |w| set_xattr(w, "lib/a.txt", 0).map(done),
        |w| remove_xattr(w, "lib/a.txt"),
        Some(Errno::NODATA),
    );
    let everything = SetAttr {
        mode: Some(0o640),
        uid: Some(caller().uid),
        gid: Some(caller().gid),
        size: Some(3),
        atime: Some(SetTime::At(Time { sec: 5, nsec: 6 })),
        mtime: Some(SetTime::At(Time { sec: 7, nsec: 8 })),
        drop_setid: false,
    };
    // A function pointer captures nothing.
    static EVERYTHING: std::sync::OnceLock<SetAttr> = std::sync::OnceLock::new();
    EVERYTHING.get_or_init(|| everything);
    add("setattr", nothing, |w| set_attr(w, "lib/a.txt", *EVERYTHING.get().unwrap()), None);
    out
}

/// What a program sees of a tree. Times of changes and numbers of new entries differ between two worlds.
fn see(world: &World) -> BTreeMap<String, String> {
    fn visit(world: &World, path: &str, out: &mut BTreeMap<String, String>) {
        for name in world.list(path) {
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            let attr = world.find(&path).unwrap();
            let xattrs = world.fs.list_xattrs(attr.ino).unwrap();
            out.insert(
                path.clone(),
                format!("{} {}", without_times(&attr), String::from_utf8_lossy(&xattrs)),
            );
            if attr.kind == crate::namespace::types::Kind::Dir {
                visit(world, &path, out);
            }
        }
    }
    let mut out = BTreeMap::new();
    visit(world, "", &mut out);
    out
}

fn without_times(attr: &Attr) -> String {
    let ino = attr.ino.lower();
    format!("{ino:?} {:?} {:o} {} {} {}", attr.kind, attr.mode, attr.nlink, attr.size, attr.uid)
}

fn begin(world: &World, unique: u64) {
    assert!(world.fs.namespace().handoff().requests().begin(unique));
}

fn answer(done: Result<Option<Attr>>) -> std::result::Result<Option<String>, Errno> {
    done.map(|attr| attr.as_ref().map(without_times)).map_err(|error| errno(&error))
}

fn worlds() -> [World; 2] {
    [World::usual(), World::marking()]
}

#[test]
fn a_request_that_was_done_answers_as_the_first_time() {
    for request in requests() {
        for world in worlds() {
            begin(&world, 2);
            (request.prepare)(&world).unwrap();
            begin(&world, 4);
            let first = answer((request.run)(&world));
            assert!(first.is_ok(), "{}: {first:?}", request.name);
            let after = see(&world);
            let mut world = world;
            // Also by a worker after the next: the first one died again before it could answer.
            for _ in 0..2 {
                world = world.takeover();
                begin(&world, 4 | RESENT);
                assert_eq!(answer((request.run)(&world)), first, "{}", request.name);
                assert_eq!(see(&world), after, "{}", request.name);
            }
            begin(&world, 6);
            let again = answer((request.run)(&world));
            match request.again {
                Some(errno) => assert_eq!(again, Err(errno), "{}: a new request", request.name),
                None => assert!(again.is_ok(), "{}: {again:?}", request.name),
            }
        }
    }
}

#[test]
fn a_request_that_was_noted_and_not_done_is_done() {
    for request in requests() {
        for world in worlds() {
            begin(&world, 2);
            (request.prepare)(&world).unwrap();
            begin(&world, 4);
            // Every witness that an operation can have noted.
            world.fs.namespace().handoff().requests().note(world.ino("lib/large.bin").0);
            let world = world.takeover();
            begin(&world, 4 | RESENT);
            let done = answer((request.run)(&world));
            let undisturbed = {
                let world = World::usual();
                (request.prepare)(&world).unwrap();
                let done = answer((request.run)(&world));
                (done, see(&world))
            };
            assert_eq!((done, see(&world)), undisturbed, "{}", request.name);
        }
    }
}

#[test]
fn a_request_that_was_refused_is_refused_again() {
    let refusals: &[Run] = &[
        |w| make(w, "lib/a.txt", Make::File(0o644)),
        |w| make(w, "lib", Make::Dir(0o755)),
        |w| link(w, "lib/a.txt", "lib/b.txt"),
        |w| unlink(w, "lib/none"),
        |w| unlink(w, "lib"),
        |w| rmdir(w, "none"),
        |w| rmdir(w, "lib"),
        |w| rename(w, "none", "lib/a.txt", Replace),
        |w| rename(w, "lib/a.txt", "lib/b.txt", NoReplace),
        |w| rename(w, "lib/a.txt", "none", Exchange),
        |w| set_xattr(w, "lib/a.txt", REPLACE),
        |w| remove_xattr(w, "lib/a.txt"),
        |w| set_xattr(w, "lib/b.txt", CREATE),
    ];
    for (n, refused) in refusals.iter().enumerate() {
        let world = World::usual();
        begin(&world, 2);
        set_xattr(&world, "lib/b.txt", 0).unwrap();
        begin(&world, 4);
        let first = answer(refused(&world));
        assert!(first.is_err(), "{n}");
        let world = world.takeover();
        begin(&world, 4 | RESENT);
        assert_eq!(answer(refused(&world)), first, "{n}");
    }
}

#[test]
fn a_rename_between_two_names_of_one_file_does_nothing_twice() {
    let world = World::usual();
    link(&world, "lib/a.txt", "lib/new").unwrap();
    begin(&world, 4);
    rename(&world, "lib/a.txt", "lib/new", Replace).unwrap();
    let before = see(&world);
    let world = world.takeover();
    begin(&world, 4 | RESENT);
    rename(&world, "lib/a.txt", "lib/new", Replace).unwrap();
    assert_eq!(see(&world), before);
}

#[test]
fn a_directory_that_was_changed_shows_the_change_in_its_ctime() {
    let world = World::usual();
    // A copy-up makes the directory keep its ctime.
    world.fs.write(world.ino("lib/a.txt"), 0, b"x").unwrap();
    let kept = world.find("lib").unwrap().ctime;
    let (upper, mode) = (world.upper("lib"), std::os::unix::fs::PermissionsExt::from_mode(0o700));
    begin(&world, 4);
    // The worker dies after chmod(2).
    std::fs::set_permissions(upper, mode).unwrap();
    let world = world.takeover();
    assert_eq!(world.find("lib").unwrap().ctime, kept);
    begin(&world, 4 | RESENT);
    set_attr(&world, "lib", SetAttr { mode: Some(0o700), ..SetAttr::default() }).unwrap();
    assert_ne!(world.find("lib").unwrap().ctime, kept);
}
