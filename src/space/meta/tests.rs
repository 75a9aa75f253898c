use super::*;
use crate::library::name::Identity;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

fn unzipped(path: &Path) -> String {
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    text
}

fn space_in(base: &Path, name: &str, label: &str) -> SpacePath {
    SpacePath {
        identity: Identity::from_name(name.as_bytes()).unwrap(),
        mountpoint: base.join(name),
        own: None,
        placed: false,
        label: label.into(),
        controller: "rcc.user".into(),
    }
}

fn write(dir: &tempfile::TempDir, space: &SpacePath, catalog: &Path) -> Result<(), SpaceError> {
    let bytes = std::fs::read(catalog).unwrap();
    let sum = Hex(&Sha256::digest(&bytes)).to_string();
    write_meta(&base(dir), space, &bytes[..], &sum, 0o022)
}

fn base(dir: &tempfile::TempDir) -> Dir {
    Dir::open(dir.path(), Trust::Shared).unwrap()
}

#[test]
fn files_beside_the_space_are_what_real_rcc_leaves() {
    for (fixture, blueprint, name, label) in [
        ("basic-gz", "adb8c26db4d86a93", "ea7ce2c_5a1fac3_ca793c28", "golden-one"),
        ("basic-raw", "adb8c26db4d86a93", "ea7ce2c_5a1fac3_d7eb8c75", "golden-two"),
        ("two-catalogs", "4ef4502d7023d413", "ea7ce2c_5a1fac3_d7eb8c75", "golden-two"),
        ("two-catalogs", "adb8c26db4d86a93", "ea7ce2c_5a1fac3_85268366", "golden-conv"),
    ] {
        let fixture = Path::new(FIXTURES).join(fixture);
        let golden = fixture.join("golden/after-restores/holotree");
        let catalog = fixture.join(format!("home/hololib/catalog/{blueprint}v12.linux_amd64"));
        let dir = tempfile::tempdir().unwrap();
        let space = space_in(dir.path(), name, label);
        write(&dir, &space, &catalog).unwrap();

        // The expected file has the directory in which the fixture was made.
        let stage = header_of(&catalog).unwrap().path;
        let real_base = Path::new(&stage).parent().unwrap().to_str().unwrap().to_owned();
        let here = dir.path().to_str().unwrap().to_owned();
        let meta = beside(&space.mountpoint, ".meta");
        let ours = unzipped(&meta).replace(&here, &real_base);
        assert_eq!(ours, unzipped(&golden.join(format!("{name}.meta"))));
        let info = std::fs::read_to_string(beside(&space.mountpoint, ".meta.info")).unwrap();
        let golden_info = std::fs::read_to_string(golden.join(format!("{name}.meta.info"))).unwrap();
        assert_eq!(info.replace(&here, &real_base), golden_info);

        let start = std::fs::read(&meta).unwrap();
        assert_eq!(&start[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 255]);
        assert_eq!(recorded(&space.mountpoint).unwrap().space, label);
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }
}

#[test]
fn meta_without_info_and_info_without_meta() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path(), "ea7ce2c_5a1fac3_ca793c28", "golden-one");
    let catalog = Path::new(FIXTURES).join("basic-gz/home/hololib/catalog/adb8c26db4d86a93v12.linux_amd64");
    write(&dir, &space, &catalog).unwrap();
    std::fs::remove_file(beside(&space.mountpoint, ".meta.info")).unwrap();
    assert_eq!(recorded(&space.mountpoint).unwrap().blueprint, "adb8c26db4d86a93");
    write(&dir, &space, &catalog).unwrap();
    std::fs::remove_file(beside(&space.mountpoint, ".meta")).unwrap();
    assert!(recorded(&space.mountpoint).is_none());
}

#[test]
fn failed_write_leaves_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path(), "ea7ce2c_5a1fac3_ca793c28", "golden-one");
    let catalog = dir.path().join("catalog");
    let whole = Path::new(FIXTURES).join("basic-gz/home/hololib/catalog/adb8c26db4d86a93v12.linux_amd64");
    let bytes = std::fs::read(whole).unwrap();
    std::fs::write(&catalog, &bytes[..bytes.len() / 2]).unwrap();
    std::fs::write(beside(&space.mountpoint, ".meta"), "old").unwrap();
    assert!(write(&dir, &space, &catalog).is_err());
    assert_eq!(std::fs::read(beside(&space.mountpoint, ".meta")).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn whatever_is_not_the_catalog_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path(), "ea7ce2c_5a1fac3_ca793c28", "golden-one");
    let whole = Path::new(FIXTURES).join("basic-gz/home/hololib/catalog/adb8c26db4d86a93v12.linux_amd64");
    let bytes = std::fs::read(whole).unwrap();
    let sum = Hex(&Sha256::digest(&bytes)).to_string();
    let written = |bytes: &[u8]| write_meta(&base(&dir), &space, bytes, &sum, 0o022);
    for end in (0..bytes.len()).step_by(97) {
        written(&bytes[..end]).unwrap_err();
    }
    // Bytes after the document are not parsed, but belong to the file.
    let longer = [&bytes[..], b"\0"].concat();
    assert!(written(&longer).unwrap_err().to_string().contains("changed"));
    for at in (0..bytes.len()).step_by(211) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 4;
        written(&damaged).unwrap_err();
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    written(&bytes).unwrap();
}

#[test]
fn uses_are_counted_by_size() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path(), "ea7ce2c_5a1fac3_ca793c28", "x");
    assert!(usage(&space.mountpoint).is_none());
    append_use(&base(&dir), &space, 0o022).unwrap();
    append_use(&base(&dir), &space, 0o022).unwrap();
    assert_eq!(usage(&space.mountpoint).unwrap().0, 2);
}

#[test]
fn usage_mark_is_made_and_renewed() {
    let dir = tempfile::tempdir().unwrap();
    assert!(touch_used(dir.path(), "b", "u", 0o022).is_err());
    std::fs::create_dir(dir.path().join("used")).unwrap();
    touch_used(dir.path(), "b", "u", 0o022).unwrap();
    let mark = dir.path().join("used/b.u");
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    File::options().write(true).open(&mark).unwrap().set_modified(old).unwrap();
    touch_used(dir.path(), "b", "u", 0o022).unwrap();
    assert!(std::fs::metadata(&mark).unwrap().modified().unwrap() > old);
    assert_eq!(std::fs::metadata(&mark).unwrap().len(), 0);
}

#[test]
fn lock_times_out_with_its_holder_and_is_free_after_release() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path(), "ea7ce2c_5a1fac3_ca793c28", "x");
    let held = MetaLock::take(&base(&dir), &space, Duration::ZERO).unwrap();
    match MetaLock::take(&base(&dir), &space, Duration::from_millis(60)) {
        Err(SpaceError::LockTimeout { pid, .. }) => {
            // In some sandboxes the kernel lists no locks.
            assert!(pid.is_none_or(|pid| pid == std::process::id()));
        }
        other => panic!("{other:?}"),
    }
    held.release();
    MetaLock::take(&base(&dir), &space, Duration::ZERO).unwrap();
}

#[test]
fn links_in_place_of_our_files_are_neither_followed_nor_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path(), "ea7ce2c_5a1fac3_ca793c28", "x");
    let catalog = Path::new(FIXTURES).join("basic-gz/home/hololib/catalog/adb8c26db4d86a93v12.linux_amd64");
    let victim = dir.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    std::fs::create_dir(dir.path().join("used")).unwrap();
    for target in [victim.as_path(), &dir.path().join("missing")] {
        for ending in [".lck", ".use", ".meta", ".meta.info", ".meta.part#holofs"] {
            std::os::unix::fs::symlink(target, beside(&space.mountpoint, ending)).unwrap();
        }
        std::os::unix::fs::symlink(target, dir.path().join("used/b.u")).unwrap();
        let locked = MetaLock::take(&base(&dir), &space, Duration::from_secs(3600));
        assert!(locked.unwrap_err().to_string().ends_with(".lck: it is a link, not a regular file"));
        assert!(append_use(&base(&dir), &space, 0o022).is_err());
        assert!(touch_used(dir.path(), "b", "u", 0o022).is_err());
        assert!(recorded(&space.mountpoint).is_none() && usage(&space.mountpoint).is_none());
        assert!(matches!(beside_of(&space.mountpoint), Beside::Unreadable));
        // Files of this user are replaced.
        write(&dir, &space, &catalog).unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
        assert!(!dir.path().join("missing").exists());
        for ending in [".lck", ".use", ".meta", ".meta.info"] {
            std::fs::remove_file(beside(&space.mountpoint, ending)).unwrap();
        }
        std::fs::remove_file(dir.path().join("used/b.u")).unwrap();
    }
}

#[test]
fn lock_is_not_truncated() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path(), "ea7ce2c_5a1fac3_ca793c28", "x");
    std::fs::write(beside(&space.mountpoint, ".lck"), "kept").unwrap();
    drop(MetaLock::take(&base(&dir), &space, Duration::ZERO).unwrap());
    assert_eq!(std::fs::read(beside(&space.mountpoint, ".lck")).unwrap(), b"kept");
}
