use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

fn opened(path: &Path) -> OwnedFd {
    entry::open(
        rustix::fs::CWD,
        &CString::new(path.as_os_str().as_bytes()).unwrap(),
        OFlags::PATH | OFlags::DIRECTORY,
    )
    .unwrap()
}

/// What is compared of a tree.
fn tree_of(root: &Path) -> Vec<String> {
    let mut out = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let stat = std::fs::symlink_metadata(&path).unwrap();
        let mut bytes = Vec::new();
        if stat.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if stat.is_file() {
            bytes = std::fs::read(&path).unwrap();
        } else if stat.is_symlink() {
            bytes = std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes();
        }
        let xattrs = if stat.is_symlink() {
            Vec::new()
        } else {
            read_xattrs(std::fs::File::open(&path).unwrap().as_fd()).unwrap()
        };
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let size = if stat.is_dir() { 0 } else { stat.len() };
        let links = if stat.is_dir() { 0 } else { stat.nlink() };
        out.push(format!(
            "{name} {:o} {size} {links} {}.{} {xattrs:?} {bytes:?}",
            stat.mode(),
            stat.mtime(),
            stat.mtime_nsec()
        ));
    }
    out.sort();
    out
}

fn no_edit(_: NodeId, _: &File) -> io::Result<()> {
    Ok(())
}

#[test]
fn later_passes_bring_a_copy_up_to_date() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::create_dir_all(from.join("a/b")).unwrap();
    std::fs::create_dir_all(from.join("gone/below")).unwrap();
    std::fs::create_dir(&to).unwrap();
    for (name, bytes) in
        [("f", "one"), ("a/g", "two"), ("a/b/h", "three"), ("gone/below/i", "x"), ("turns", "x")]
    {
        std::fs::write(from.join(name), bytes).unwrap();
    }
    symlink("somewhere", from.join("link")).unwrap();
    std::fs::hard_link(from.join("f"), from.join("a/f2")).unwrap();
    std::fs::set_permissions(from.join("a/g"), std::fs::Permissions::from_mode(0o4711)).unwrap();
    rustix::fs::setxattr(from.join("a"), "user.test", b"value", XattrFlags::empty()).unwrap();
    let root = opened(&from);
    let mut copy = Copy::new(root.as_fd(), opened(&to));
    assert!(copy.pass(false, &no_edit, &|| ()).unwrap() > 8);
    // Everything that a change can be.
    std::fs::remove_dir_all(from.join("gone")).unwrap();
    std::fs::write(from.join("gone"), "a file now").unwrap();
    std::fs::remove_file(from.join("turns")).unwrap();
    std::fs::create_dir(from.join("turns")).unwrap();
    std::fs::write(from.join("turns/new"), "n").unwrap();
    std::fs::write(from.join("f"), "changed through one of its names").unwrap();
    std::fs::rename(from.join("a/b"), from.join("c")).unwrap();
    std::thread::sleep(FINENESS * 2);
    assert!(copy.pass(true, &no_edit, &|| ()).unwrap() > 0);
    assert_eq!(copy.pass(true, &no_edit, &|| ()).unwrap(), 0);
    copy.finish().unwrap();
    assert_eq!(tree_of(&to), tree_of(&from));
    assert_eq!(
        std::fs::metadata(to.join("f")).unwrap().ino(),
        std::fs::metadata(to.join("a/f2")).unwrap().ino()
    );
}

#[test]
fn file_that_was_just_written_is_copied_again() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::create_dir(&from).unwrap();
    std::fs::create_dir(&to).unwrap();
    std::fs::write(from.join("f"), "1").unwrap();
    let root = opened(&from);
    let mut copy = Copy::new(root.as_fd(), opened(&to));
    copy.pass(false, &no_edit, &|| ()).unwrap();
    std::fs::write(from.join("f"), "2").unwrap();
    copy.pass(true, &no_edit, &|| ()).unwrap();
    copy.finish().unwrap();
    assert_eq!(std::fs::read(to.join("f")).unwrap(), b"2");
}
