use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

struct World {
    _keep: tempfile::TempDir,
    path: PathBuf,
    dir: Dir,
}

fn world() -> World {
    let keep = tempfile::tempdir().unwrap();
    let path = keep.path().canonicalize().unwrap();
    let dir = Dir::open(&path, Trust::Shared).unwrap();
    World { _keep: keep, path, dir }
}

fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

fn problem<T: std::fmt::Debug>(result: Result<T, GuardedError>) -> Problem {
    result.unwrap_err().problem
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// One file of each kind that is not regular, and its name in messages.
fn odd_files(world: &World) -> Vec<(&'static str, &'static str)> {
    std::fs::write(world.path.join("victim"), "precious").unwrap();
    symlink("victim", world.path.join("link")).unwrap();
    symlink("missing", world.path.join("dangling")).unwrap();
    std::fs::create_dir(world.path.join("dir")).unwrap();
    rustix::fs::mknodat(&world.dir, "fifo", FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    rustix::fs::mknodat(&world.dir, "socket", FileType::Socket, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let zero = rustix::fs::makedev(1, 5);
    let mut odd = vec![
        ("link", "a link"),
        ("dangling", "a link"),
        ("dir", "a directory"),
        ("fifo", "a FIFO"),
        ("socket", "a socket"),
    ];
    if rustix::fs::mknodat(&world.dir, "zero", FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, zero)
        .is_ok()
    {
        odd.push(("zero", "a device"));
    }
    odd
}

#[test]
fn irregular_files_are_neither_read_nor_written_and_do_not_block() {
    let world = world();
    for (file, kind) in odd_files(&world) {
        for access in [Access::Read, Access::Write, Access::Append] {
            assert_eq!(problem(world.dir.open_file(name(file), access)), Problem::NotAFile(kind), "{file}");
            let either = world.dir.open_or_create(name(file), access, 0o600);
            assert_eq!(problem(either), Problem::NotAFile(kind), "{file}");
        }
        assert_eq!(problem(world.dir.read(name(file), 10)), Problem::NotAFile(kind), "{file}");
        assert_eq!(problem(read(&world.path.join(file), 10)), Problem::NotAFile(kind), "{file}");
    }
    assert_eq!(std::fs::read(world.path.join("victim")).unwrap(), b"precious");
    assert!(!world.path.join("missing").exists());
}

#[test]
fn file_with_two_names_is_read_and_not_written() {
    let world = world();
    std::fs::write(world.path.join("victim"), "precious").unwrap();
    std::fs::hard_link(world.path.join("victim"), world.path.join("other")).unwrap();
    assert_eq!(world.dir.read(name("other"), 8).unwrap(), b"precious");
    assert_eq!(problem(world.dir.open_file(name("other"), Access::Append)), Problem::Linked(2));
    assert_eq!(problem(world.dir.open_or_create(name("other"), Access::Write, 0o600)), Problem::Linked(2));
}

#[test]
fn file_is_made_once_then_found_and_never_truncated() {
    let world = world();
    let (mut file, made) = world.dir.open_or_create(name("f"), Access::Write, 0o640).unwrap();
    assert!(made);
    file.write_all(b"kept").unwrap();
    let (_, made) = world.dir.open_or_create(name("f"), Access::Write, 0o640).unwrap();
    assert!(!made);
    assert_eq!(world.dir.read(name("f"), 4).unwrap(), b"kept");
    assert_eq!(problem(world.dir.create_new(name("f"), Access::Write, 0o600)), Problem::Os(Errno::EXIST));
    symlink("missing", world.path.join("dangling")).unwrap();
    let made = world.dir.create_new(name("dangling"), Access::Write, 0o600);
    assert_eq!(problem(made), Problem::Os(Errno::EXIST));
    assert!(problem(world.dir.open_file(name("none"), Access::Read)) == Problem::Os(Errno::NOENT));
}

#[test]
fn huge_file_is_refused_by_its_size() {
    let world = world();
    File::create(world.path.join("huge")).unwrap().set_len(20 << 30).unwrap();
    assert_eq!(problem(world.dir.read(name("huge"), 1 << 20)), Problem::TooLarge(1 << 20));
    let error = world.dir.read(name("huge"), 4096).unwrap_err();
    assert_eq!(error.to_string(), format!("{}/huge: it is larger than 4096 bytes", world.path.display()));
    std::fs::write(world.path.join("fits"), "1234").unwrap();
    assert_eq!(world.dir.read(name("fits"), 4).unwrap(), b"1234");
    assert_eq!(problem(world.dir.read(name("fits"), 3)), Problem::TooLarge(3));
    // A file in /proc has size 0.
    assert!(matches!(problem(read(Path::new("/proc/self/smaps"), 10)), Problem::TooLarge(10)));
}

#[test]
fn private_directory_is_not_writable_for_others() {
    let world = world();
    let deep = world.path.join("a/b");
    Dir::make_ours(&deep).unwrap();
    assert_eq!(std::fs::metadata(&deep).unwrap().permissions().mode() & 0o7777 & !0o700, 0);
    for mode in [0o720, 0o702, 0o777, 0o1777] {
        chmod(&deep, mode);
        assert_eq!(problem(Dir::open(&deep, Trust::Private)), Problem::Writable(mode));
        assert_eq!(problem(Dir::make_ours(&deep)), Problem::Writable(mode));
        let above = Dir::open(&world.path.join("a"), Trust::Private).unwrap();
        assert_eq!(problem(above.make_dir(name("b"), Trust::Private)), Problem::Writable(mode));
        Dir::open(&deep, Trust::Owned).unwrap();
    }
    chmod(&deep, 0o755);
    Dir::open(&deep, Trust::Private).unwrap();
}

#[test]
fn directory_below_a_world_writable_one_is_not_private() {
    let world = world();
    let (open, deep) = (world.path.join("open"), world.path.join("open/deep"));
    Dir::make_ours(&deep).unwrap();
    chmod(&open, 0o777);
    let error = Dir::open(&deep, Trust::Private).unwrap_err();
    assert_eq!((error.path, error.problem), (open.clone(), Problem::Writable(0o777)));
    assert_eq!(problem(Dir::make_ours(&open.join("new"))), Problem::Writable(0o777));
    assert!(!open.join("new").exists());
    // With the sticky bit, other users cannot replace our entries.
    chmod(&open, 0o1777);
    Dir::open(&deep, Trust::Private).unwrap();
}

#[test]
fn own_links_above_a_directory_are_followed() {
    let world = world();
    Dir::make_ours(&world.path.join("real/deep")).unwrap();
    symlink("real/../real", world.path.join("alias")).unwrap();
    symlink(world.path.join("alias"), world.path.join("absolute")).unwrap();
    Dir::open(&world.path.join("absolute/deep"), Trust::Private).unwrap();
    symlink("round", world.path.join("round")).unwrap();
    assert_eq!(problem(Dir::open(&world.path.join("round"), Trust::Private)), Problem::Os(Errno::LOOP));
    std::fs::write(world.path.join("file"), "").unwrap();
    let error = Dir::open(&world.path.join("file/x"), Trust::Private).unwrap_err();
    assert!(matches!(error.problem, Problem::NotADirectory(_)), "{error}");
}

#[test]
fn directory_of_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let world = world();
    let theirs = world.path.join("theirs");
    Dir::make_ours(&theirs.join("deep")).unwrap();
    std::os::unix::fs::chown(&theirs, Some(65534), None).unwrap();
    let refused = Problem::Owner { owner: 65534, wanted: 0 };
    assert_eq!(problem(Dir::open(&theirs, Trust::Private)), refused);
    assert_eq!(problem(Dir::open(&theirs.join("deep"), Trust::Private)), refused);
    assert_eq!(problem(world.dir.make_dir(name("theirs"), Trust::Owned)), refused);
    symlink("theirs", world.path.join("alias")).unwrap();
    std::os::unix::fs::lchown(world.path.join("alias"), Some(65534), None).unwrap();
    assert_eq!(problem(Dir::open(&world.path.join("alias"), Trust::Private)), refused);
}

#[test]
fn link_in_place_of_a_directory_is_not_followed() {
    let world = world();
    std::fs::create_dir(world.path.join("real")).unwrap();
    symlink("real", world.path.join("alias")).unwrap();
    let refused = problem(world.dir.open_dir(name("alias"), Trust::Shared));
    assert_eq!(refused, Problem::NotADirectory("a link"));
    assert_eq!(problem(world.dir.make_dir(name("alias"), Trust::Shared)), Problem::NotADirectory("a link"));
}

#[test]
fn directory_stays_the_same_when_its_path_leads_elsewhere() {
    let world = world();
    let (dir, moved) = (world.path.join("d"), world.path.join("moved"));
    std::fs::create_dir(&dir).unwrap();
    let opened = Dir::open(&dir, Trust::Shared).unwrap();
    std::fs::rename(&dir, &moved).unwrap();
    symlink("/", &dir).unwrap();
    opened.create_new(name("f"), Access::Write, 0o600).unwrap();
    assert!(moved.join("f").exists());
    opened.rename(name("f"), name("g")).unwrap();
    opened.sync().unwrap();
    assert!(opened.stat(name("g")).is_ok());
    opened.remove_file(name("g")).unwrap();
    opened.remove_file(name("g")).unwrap();
    assert!(!moved.join("g").exists());
}
