//! The operations into which failures are injected. For a program, each is one change.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Result;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags,
};

use crate::common::Library;
use crate::common::library::{STAGE, pattern};

/// One operation on the entries of one fixture.
#[derive(Debug)]
pub struct Op {
    pub name: &'static str,
    /// Prepares the fixture, undisturbed. The returned files stay open.
    pub prepare: fn(&Path) -> Result<Vec<File>>,
    pub run: fn(&Path) -> Result<()>,
}

/// The first bytes of each file of fixture `number`, so that no two fixtures share a blob.
pub fn mark(number: usize) -> String {
    format!("{number:08}")
}

/// Adds fixture `number` below `dir`.
pub fn fixture(library: Library, dir: &str, number: usize) -> Library {
    let file = |rest: &[u8]| [mark(number).as_bytes(), rest].concat();
    let mut big = pattern(5000);
    big.resize(400_000, 7);
    let conf = format!(" prefix=/x/{STAGE}/lib\n");
    let at = |name: &str| format!("{dir}/{name}");
    library
        .file(&at("small"), &file(b" of no great length\n"))
        .file(&at("other"), &file(b" another\n"))
        .file(&at("medium"), &file(&pattern(40_000)))
        .file(&at("big"), &file(&big))
        .file(&at("conf"), &file(conf.as_bytes()))
        .file_mode(&at("tool"), 0o755, &file(conf.as_bytes()))
        .file(&at("dir/inside"), &file(b" inside\n"))
        .file(&at("dir/sub/leaf"), &file(b" leaf\n"))
        .file(&at("second/inside"), &file(b" second\n"))
        .dir(&at("empty"))
        .link(&at("link"), "small")
}

fn nothing(_: &Path) -> Result<Vec<File>> {
    Ok(Vec::new())
}

fn ready<T>(_: T) -> Result<Vec<File>> {
    Ok(Vec::new())
}

fn write_at(path: &Path, at: u64) -> Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all_at(b"WRITTEN", at)
}

fn set_len(path: &Path, len: u64) -> Result<()> {
    OpenOptions::new().write(true).open(path)?.set_len(len)
}

fn chmod(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

fn set_time(path: &Path) -> Result<()> {
    let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Changes the owner if permitted, else to the current owner.
fn chown(path: &Path) -> Result<()> {
    let to = if rustix::process::geteuid().is_root() { 12_345 } else { rustix::process::geteuid().as_raw() };
    std::os::unix::fs::lchown(path, Some(to), None)
}

fn set_xattr(path: &Path) -> Result<()> {
    Ok(rustix::fs::lsetxattr(path, "user.one", b"value", XattrFlags::empty())?)
}

fn exchange(from: &Path, to: &Path) -> Result<()> {
    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE)?)
}

fn fifo(path: &Path) -> Result<()> {
    Ok(rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o644), 0)?)
}

fn empty_dir(dir: &Path) -> Result<()> {
    std::fs::remove_file(dir.join("inside"))?;
    std::fs::remove_file(dir.join("sub/leaf"))?;
    std::fs::remove_dir(dir.join("sub"))
}

fn make_file(path: &Path) -> Result<()> {
    std::fs::write(path, b"new file\n")
}

fn make_dir(path: &Path) -> Result<()> {
    std::fs::create_dir(path)?;
    make_file(&path.join("inside"))
}

fn append(path: &Path) -> Result<()> {
    std::io::Write::write_all(&mut OpenOptions::new().append(true).open(path)?, b"appended\n")
}

/// Reads a whole file and checks its bytes.
fn read(path: &Path, len: usize) -> Result<()> {
    let bytes = std::fs::read(path)?;
    assert_eq!(bytes.len(), len, "{}: wrong length", path.display());
    assert!(
        !bytes.windows(STAGE.len()).any(|window| window == STAGE.as_bytes()),
        "unpatched: {}",
        path.display()
    );
    assert!(bytes[bytes.len() - 8..] != [0; 8], "zeroed: {}", path.display());
    Ok(())
}

macro_rules! ops {
    ($($name:literal: $prepare:expr => $run:expr;)+) => {
        &[$(Op { name: $name, prepare: $prepare, run: $run }),+]
    };
}

use std::fs as f;

/// Every operation, on every kind of entry that takes another path through the code.
pub const OPS: &[Op] = ops! {
    "create": nothing => |d| File::create_new(d.join("new")).map(drop);
    "create below a lower directory": nothing => |d| File::create_new(d.join("dir/sub/new")).map(drop);
    "create over a removed name": |d| f::remove_file(d.join("small")).and_then(ready)
        => |d| File::create_new(d.join("small")).map(drop);
    "create over a removed directory": |d| f::remove_dir(d.join("empty")).and_then(ready)
        => |d| File::create_new(d.join("empty")).map(drop);
    "first write to a small file": nothing => |d| write_at(&d.join("small"), 12);
    "first write to a medium file": nothing => |d| write_at(&d.join("medium"), 12);
    "first write to a large file": nothing => |d| write_at(&d.join("big"), 300_000);
    "first write to a relocated file": nothing => |d| write_at(&d.join("conf"), 9);
    "first write to a relocated file that was read": |d| f::read(d.join("conf")).and_then(ready)
        => |d| write_at(&d.join("conf"), 9);
    "first write below a lower directory": nothing => |d| write_at(&d.join("dir/sub/leaf"), 9);
    "write while somebody reads": |d| Ok(vec![File::open(d.join("medium"))?])
        => |d| write_at(&d.join("medium"), 12);
    "write to a relocated file while somebody reads": |d| {
        let file = File::open(d.join("tool"))?;
        f::read(d.join("tool"))?;
        Ok(vec![file])
    } => |d| write_at(&d.join("tool"), 9);
    "write after chmod": |d| chmod(&d.join("medium"), 0o600).and_then(ready) => |d| write_at(&d.join("medium"), 12);
    "write after rename": |d| f::rename(d.join("medium"), d.join("moved")).and_then(ready)
        => |d| write_at(&d.join("moved"), 12);
    "second write": |d| write_at(&d.join("small"), 12).and_then(ready) => |d| write_at(&d.join("small"), 9);
    "append": nothing => |d| append(&d.join("small"));
    "open with truncation": nothing
        => |d| OpenOptions::new().write(true).truncate(true).open(d.join("small")).map(drop);
    "truncate a small file": nothing => |d| set_len(&d.join("small"), 10);
    "truncate a large file": nothing => |d| set_len(&d.join("big"), 1000);
    "truncate a large file to 0": nothing => |d| set_len(&d.join("big"), 0);
    "extend a file": nothing => |d| set_len(&d.join("medium"), 100_000);
    "truncate a relocated file": nothing => |d| set_len(&d.join("conf"), 20);
    "truncate a changed file": |d| append(&d.join("small")).and_then(ready) => |d| set_len(&d.join("small"), 10);
    "fallocate": nothing => |d| {
        let file = OpenOptions::new().write(true).open(d.join("small"))?;
        Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 5000)?)
    };
    "copy_file_range": nothing => |d| {
        let (from, to) = (File::open(d.join("medium"))?, OpenOptions::new().write(true).open(d.join("small"))?);
        rustix::fs::copy_file_range(&from, Some(&mut 100), &to, Some(&mut 9), 200).map(drop)?;
        Ok(())
    };
    "fsync": |d| append(&d.join("small")).and_then(ready) => |d| File::open(d.join("small"))?.sync_all();
    "fsync of a directory": |d| make_file(&d.join("new")).and_then(ready) => |d| File::open(d)?.sync_all();
    "read a relocated file": nothing => |d| read(&d.join("conf"), 8 + " prefix=/x//lib\n".len() + STAGE.len());
    "read a large file": nothing => |d| read(&d.join("big"), 400_008);
    "chmod of a file": nothing => |d| chmod(&d.join("small"), 0o600);
    "chmod of a relocated file": nothing => |d| chmod(&d.join("conf"), 0o600);
    "chmod of a lower directory": nothing => |d| chmod(&d.join("dir"), 0o700);
    "chmod of a changed file": |d| append(&d.join("small")).and_then(ready) => |d| chmod(&d.join("small"), 0o600);
    "chmod of a new directory": |d| make_dir(&d.join("new")).and_then(ready) => |d| chmod(&d.join("new"), 0o700);
    "chmod for the second time": |d| chmod(&d.join("small"), 0o640).and_then(ready)
        => |d| chmod(&d.join("small"), 0o600);
    "chown of a file": nothing => |d| chown(&d.join("small"));
    "chown of a set-id file": |d| chmod(&d.join("small"), 0o4755).and_then(ready) => |d| chown(&d.join("small"));
    "chown of a link": nothing => |d| chown(&d.join("link"));
    "chown of a directory": nothing => |d| chown(&d.join("dir"));
    "chown of a changed file": |d| append(&d.join("small")).and_then(ready) => |d| chown(&d.join("small"));
    "utimes of a file": nothing => |d| set_time(&d.join("small"));
    "utimes of a link": nothing => |d| set_time(&d.join("link"));
    "utimes of a directory": nothing => |d| set_time(&d.join("dir"));
    "utimes of a changed file": |d| append(&d.join("small")).and_then(ready) => |d| set_time(&d.join("small"));
    "setxattr of a file": nothing => |d| set_xattr(&d.join("small"));
    "setxattr that must be new": nothing
        => |d| Ok(rustix::fs::lsetxattr(d.join("small"), "user.one", b"value", XattrFlags::CREATE)?);
    "setxattr of a large file": nothing => |d| set_xattr(&d.join("big"));
    "setxattr of a directory": nothing => |d| set_xattr(&d.join("dir"));
    "setxattr of a changed file": |d| append(&d.join("small")).and_then(ready) => |d| set_xattr(&d.join("small"));
    "removexattr": |d| set_xattr(&d.join("small")).and_then(ready)
        => |d| Ok(rustix::fs::lremovexattr(d.join("small"), "user.one")?);
    "mkdir": nothing => |d| f::create_dir(d.join("new"));
    "mkdir below a lower directory": nothing => |d| f::create_dir(d.join("dir/sub/new"));
    "mkdir over a removed directory": |d| f::remove_dir(d.join("empty")).and_then(ready)
        => |d| f::create_dir(d.join("empty"));
    "mkdir over a removed file": |d| f::remove_file(d.join("small")).and_then(ready)
        => |d| f::create_dir(d.join("small"));
    "mkdir over a removed full directory": |d| f::remove_dir_all(d.join("dir")).and_then(ready)
        => |d| f::create_dir(d.join("dir"));
    "rmdir": nothing => |d| f::remove_dir(d.join("empty"));
    "rmdir of a new directory": |d| f::create_dir(d.join("new")).and_then(ready) => |d| f::remove_dir(d.join("new"));
    "rmdir of an emptied directory": |d| empty_dir(&d.join("dir")).and_then(ready)
        => |d| f::remove_dir(d.join("dir"));
    "unlink": nothing => |d| f::remove_file(d.join("small"));
    "unlink below a lower directory": nothing => |d| f::remove_file(d.join("dir/sub/leaf"));
    "unlink of a link": nothing => |d| f::remove_file(d.join("link"));
    "unlink of a changed file": |d| append(&d.join("small")).and_then(ready) => |d| f::remove_file(d.join("small"));
    "unlink of a new file": |d| make_file(&d.join("new")).and_then(ready) => |d| f::remove_file(d.join("new"));
    "unlink of an open file": |d| Ok(vec![File::open(d.join("medium"))?]) => |d| f::remove_file(d.join("medium"));
    "unlink one of two hard links": |d| f::hard_link(d.join("small"), d.join("new")).and_then(ready)
        => |d| f::remove_file(d.join("small"));
    "rename a file": nothing => |d| f::rename(d.join("small"), d.join("new"));
    "rename a relocated file": nothing => |d| f::rename(d.join("conf"), d.join("new"));
    "rename a link": nothing => |d| f::rename(d.join("link"), d.join("new"));
    "rename a file to another directory": nothing => |d| f::rename(d.join("dir/inside"), d.join("second/moved"));
    "rename a file over a file": nothing => |d| f::rename(d.join("small"), d.join("other"));
    "rename a file over a changed file": |d| append(&d.join("other")).and_then(ready)
        => |d| f::rename(d.join("small"), d.join("other"));
    "rename a changed file": |d| append(&d.join("small")).and_then(ready)
        => |d| f::rename(d.join("small"), d.join("new"));
    "rename a changed file over a file": |d| append(&d.join("small")).and_then(ready)
        => |d| f::rename(d.join("small"), d.join("other"));
    "rename a new file": |d| make_file(&d.join("new")).and_then(ready) => |d| f::rename(d.join("new"), d.join("newer"));
    "rename a new file over a file": |d| make_file(&d.join("new")).and_then(ready)
        => |d| f::rename(d.join("new"), d.join("small"));
    "rename a file over an open file": |d| Ok(vec![File::open(d.join("medium"))?])
        => |d| f::rename(d.join("small"), d.join("medium"));
    "rename a file to a removed name": |d| f::remove_file(d.join("other")).and_then(ready)
        => |d| f::rename(d.join("small"), d.join("other"));
    "rename a new file to a removed name": |d| f::remove_file(d.join("small")).and_then(|()| make_file(&d.join("new"))).and_then(ready)
        => |d| f::rename(d.join("new"), d.join("small"));
    "rename a file back": |d| f::rename(d.join("small"), d.join("new")).and_then(ready)
        => |d| f::rename(d.join("new"), d.join("small"));
    "rename a directory": nothing => |d| f::rename(d.join("dir"), d.join("new"));
    "rename a directory to another": nothing => |d| f::rename(d.join("dir/sub"), d.join("second/sub"));
    "rename a directory over an empty one": nothing => |d| f::rename(d.join("dir"), d.join("empty"));
    "rename a directory over an emptied one": |d| empty_dir(&d.join("dir")).and_then(ready)
        => |d| f::rename(d.join("second"), d.join("dir"));
    "rename a directory to a removed name": |d| f::remove_dir_all(d.join("second")).and_then(ready)
        => |d| f::rename(d.join("dir"), d.join("second"));
    "rename a new directory": |d| make_dir(&d.join("new")).and_then(ready)
        => |d| f::rename(d.join("new"), d.join("newer"));
    "rename a new directory over an empty one": |d| make_dir(&d.join("new")).and_then(ready)
        => |d| f::rename(d.join("new"), d.join("empty"));
    "rename a new directory over an emptied one": |d| empty_dir(&d.join("dir")).and_then(|()| make_dir(&d.join("new"))).and_then(ready)
        => |d| f::rename(d.join("new"), d.join("dir"));
    "rename a new directory to a removed name": |d| f::remove_dir(d.join("empty")).and_then(|()| make_dir(&d.join("new"))).and_then(ready)
        => |d| f::rename(d.join("new"), d.join("empty"));
    "rename a changed directory": |d| append(&d.join("dir/inside")).and_then(ready)
        => |d| f::rename(d.join("dir"), d.join("new"));
    "exchange two files": nothing => |d| exchange(&d.join("small"), &d.join("other"));
    "exchange a file and a changed one": |d| append(&d.join("other")).and_then(ready)
        => |d| exchange(&d.join("small"), &d.join("other"));
    "exchange a file and a new one": |d| make_file(&d.join("new")).and_then(ready)
        => |d| exchange(&d.join("small"), &d.join("new"));
    "exchange two directories": nothing => |d| exchange(&d.join("dir"), &d.join("second"));
    "exchange a file and a directory": nothing => |d| exchange(&d.join("small"), &d.join("dir"));
    "exchange a directory and a new one": |d| make_dir(&d.join("new")).and_then(ready)
        => |d| exchange(&d.join("dir"), &d.join("new"));
    "link": nothing => |d| f::hard_link(d.join("small"), d.join("new"));
    "link to a relocated file": nothing => |d| f::hard_link(d.join("conf"), d.join("new"));
    "link to a changed file": |d| append(&d.join("small")).and_then(ready)
        => |d| f::hard_link(d.join("small"), d.join("new"));
    "link to a removed name": |d| f::remove_file(d.join("other")).and_then(ready)
        => |d| f::hard_link(d.join("small"), d.join("other"));
    "symlink": nothing => |d| symlink("small", d.join("new"));
    "symlink to a removed name": |d| f::remove_file(d.join("small")).and_then(ready)
        => |d| symlink("other", d.join("small"));
    "mknod": nothing => |d| fifo(&d.join("new"));
    "mknod over a removed name": |d| f::remove_file(d.join("small")).and_then(ready) => |d| fifo(&d.join("small"));
};
