use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;

use super::*;
use crate::library::catalog::CatalogError;
use crate::record::RecordError;
use crate::sys::thread::Panicked;

fn enoent() -> io::Error {
    io::Error::from_raw_os_error(Errno::NOENT.raw_os_error())
}

fn full() -> io::Error {
    io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error())
}

fn path() -> PathBuf {
    "/some/where".into()
}

fn mountpoint(problem: MountpointProblem) -> SpaceError {
    SpaceError::Mountpoint { path: path(), problem }
}

fn candidate() -> CatalogName {
    CatalogName { blueprint: "adb8c26db4d86a93".into(), platform: "linux_amd64".into() }
}

/// One of each, with its exit code, which scripts rely on, and a word of the advice.
#[test]
fn every_error_of_a_space_has_its_code() {
    let identity = || "720c7a8_5a1fac3_700be151".to_owned();
    let name = |source| SpaceError::Name { given: "x".into(), source };
    let other = |blueprint: Option<&str>| SpaceError::OtherContent {
        identity: identity(),
        kept: "blueprint a".into(),
        wanted: "b".into(),
        blueprint: blueprint.map(str::to_owned),
    };
    let table = [
        (SpaceError::DamagedState { path: path(), why: "cut".into() }, INTEGRITY, "--fresh"),
        (SpaceError::UnknownFeature { path: path(), feature: "x".into(), may_read: false }, FAILED, "newer"),
        (
            SpaceError::UnknownFeature { path: path(), feature: "x".into(), may_read: true },
            FAILED,
            "--read-only",
        ),
        (other(Some("a")), MOUNTPOINT, "--blueprint a"),
        (other(None), MOUNTPOINT, "--fresh"),
        (SpaceError::EphemeralOverChanges(identity()), USAGE, "--fresh"),
        (SpaceError::StateInsideLibrary { state: path(), library: path() }, USAGE, "HOLOFS_HOME"),
        (SpaceError::Busy { identity: identity(), pid: Some(1) }, BUSY, "unmount"),
        (SpaceError::LockTimeout { path: path(), pid: None, waited: Duration::ZERO }, BUSY, "--lock-timeout"),
        (name(NameError::Length(3)), MOUNTPOINT, "name of a space"),
        (name(NameError::Character(',')), MOUNTPOINT, "name of a space"),
        (name(NameError::NotUtf8), USAGE, "another name"),
        (name(NameError::Empty), USAGE, "another name"),
        (name(NameError::NoDirectory("gone".into())), USAGE, "another name"),
        (SpaceError::BaseMismatch { given: path(), base: "/base".into() }, MOUNTPOINT, "/base"),
        (SpaceError::Unusable { path: path(), why: "a space" }, MOUNTPOINT, "name of a space"),
        (mountpoint(MountpointProblem::NoParent("/base".into())), MOUNTPOINT, "mkdir -p /base"),
        (mountpoint(MountpointProblem::NotADirectory), MOUNTPOINT, "move the files away"),
        (mountpoint(MountpointProblem::Restored), MOUNTPOINT, "holofs delete where"),
        (mountpoint(MountpointProblem::Mounted("tmpfs".into())), MOUNTPOINT, "umount /some/where"),
        (mountpoint(MountpointProblem::NotEmpty), MOUNTPOINT, "move the files away"),
        (mountpoint(MountpointProblem::Refused("no".into())), MOUNTPOINT, "as a user"),
        (SpaceError::NoCatalog { why: "none".into(), candidates: Vec::new() }, NOT_FOUND, "record"),
        (
            SpaceError::NoCatalog { why: "many".into(), candidates: vec![(candidate(), String::new())] },
            NOT_FOUND,
            "adb8c26d",
        ),
        (SpaceError::Library(LibraryError::Io { path: path(), source: enoent() }), LIBRARY, "as a user"),
        (SpaceError::BadCatalog { path: path(), why: "cut".into() }, LIBRARY, "check"),
        (SpaceError::Io { path: path(), source: enoent() }, FAILED, ""),
        (SpaceError::Io { path: path(), source: full() }, FAILED, "free some space"),
    ];
    for (error, code, fix) in table {
        let shown = format!("{error:?}");
        assert_advice(&Failure::from(error), code, fix, &shown);
    }
}

#[test]
fn every_error_of_a_library_has_its_code() {
    let catalog = || crate::library::catalog::parse_file(b"garbage").unwrap_err();
    let _: CatalogError = catalog();
    let table = [
        (LibraryError::NotALibrary { path: path(), why: "nothing there" }, LIBRARY, "ROBOCORP_HOME"),
        (LibraryError::Catalog { place: "x".into(), source: catalog() }, LIBRARY, "check"),
        (LibraryError::Io { path: path(), source: enoent() }, LIBRARY, "as a user"),
        (LibraryError::Io { path: path(), source: full() }, FAILED, "free some space"),
    ];
    for (error, code, fix) in table {
        let shown = format!("{error:?}");
        assert_advice(&Failure::from(error), code, fix, &shown);
    }
}

#[test]
fn every_error_of_a_session_has_its_code() {
    let mount = |source| session::Error::Mount { path: path(), source };
    let report = Failure {
        what: "said by the daemon".into(),
        fix: None,
        choices: Vec::new(),
        code: 9,
        restorable: false,
    };
    let table = [
        (session::Error::Library(LibraryError::Io { path: path(), source: enoent() }), LIBRARY, ""),
        (session::Error::Space(mountpoint(MountpointProblem::NotEmpty)), MOUNTPOINT, "move"),
        (mount(MountError::Device(Errno::NOENT)), FUSE, "--device /dev/fuse"),
        (mount(MountError::AnotherDevice), FUSE, "--device /dev/fuse"),
        (mount(MountError::NoFusermount), FUSE, "fuse3"),
        (mount(MountError::Fusermount("needs user_allow_other in".into())), FUSE, "fuse.conf"),
        (mount(MountError::Os { call: "mount", source: Errno::PERM }), FUSE, ""),
        (mount(MountError::Io(enoent())), FUSE, ""),
        (
            session::Error::OtherBlueprint { path: path(), mounted: "a".into(), wanted: "b".into() },
            MOUNTPOINT,
            "unmount",
        ),
        (
            session::Error::NoReflink { path: path(), filesystem: "ext4".into(), reason: "FICLONE".into() },
            STRATEGY,
            "smart",
        ),
        (
            session::Error::MountedThere { path: path(), space: "demo".into(), pid: None },
            BUSY,
            "holofs unmount demo",
        ),
        (session::Error::InUse { path: path(), pids: vec![1, 2] }, BUSY, "--lazy"),
        (session::Error::MountedElsewhere { path: path(), places: vec![path()] }, BUSY, "--force"),
        (session::Error::StillServed { path: path(), daemon: 1, holders: Vec::new() }, BUSY, "--force"),
        (session::Error::Os { path: path(), call: "open", source: Errno::IO }, FAILED, ""),
        (session::Error::Fuse(enoent()), FUSE, ""),
        (SpaceError::NoCatalog { why: "none".into(), candidates: Vec::new() }.into(), NOT_FOUND, "record"),
        (session::Error::MountOption("x".into()), USAGE, "noexec"),
        (session::Error::NoProfile { path: path(), source: enoent() }, NOT_FOUND, "--prefetch"),
        (session::Error::NoSpace { given: "x".into(), identity: Some("y".into()) }, NOT_FOUND, "list"),
        (session::Error::OthersMount { path: path(), user: 1 }, MOUNTPOINT, "another space name"),
        (session::Error::MountedByOther { path: path(), user: 1 }, MOUNTPOINT, "that user"),
        (session::Error::OtherHome("x".into()), USAGE, "--home"),
        (session::Error::ChangesInUse("x".into()), BUSY, "--timeout"),
        (session::Error::DaemonDied(path()), FAILED, ""),
        (session::Error::NoControl(path()), BUSY, "mount it again"),
        (Refused::Version.into(), BUSY, "mount it again"),
        (Refused::NotUnderstood("x".into()).into(), BUSY, "mount it again"),
        (Refused::Peer.into(), FAILED, "the user who mounted it"),
        (Refused::Changing.into(), BUSY, "again"),
        (Refused::Failed("x".into()).into(), FAILED, ""),
        (session::Error::NoUpper { given: "x".into(), why: "restored" }, NOT_FOUND, "another space name"),
        (session::Error::MountedReadOnly(path()), BUSY, "unmount"),
        (Refused::Reset(Refusal::NotThere("x".into())).into(), NOT_FOUND, "diff"),
        (
            Refused::Reset(Refusal::Above { path: "a/x".into(), above: "a".into() }).into(),
            NOT_FOUND,
            "reset a as a whole",
        ),
        (Refused::Reset(Refusal::Linked { path: "x".into(), other: "y".into() }).into(), BUSY, "reset y"),
        (session::Error::KeepsChanging(path()), BUSY, "unmount"),
        (
            session::Error::Converted { identity: "x".into(), blueprint: "y".into() },
            NOT_FOUND,
            "--blueprint y",
        ),
        (SpaceError::Exists(path()).into(), MOUNTPOINT, "holofs delete where"),
        (session::Error::CatalogGone { library: "x".into(), blueprint: "y".into() }, LIBRARY, "record"),
        (session::Error::Daemon(report), STRATEGY, ""),
    ];
    for (error, code, fix) in table {
        assert_advice(&describe(&error), code, fix, &format!("{error:?}"));
    }
}

#[test]
fn every_error_of_a_recording_has_its_code() {
    let table = [
        (RecordError::Library(LibraryError::Io { path: path(), source: enoent() }), LIBRARY, ""),
        (RecordError::Kind { hololib: path(), is: "raw", asked: "compressed" }, USAGE, "another library"),
        (RecordError::NoBlueprint, ENVIRONMENT, "file"),
        (RecordError::NoCommand, USAGE, "--help"),
        (RecordError::Busy { path: path(), seconds: 3, pid: Some(7) }, BUSY, "wait"),
        (RecordError::StageInUse { path: path() }, BUSY, ""),
        (RecordError::Interrupted, INTERRUPTED, ""),
        (RecordError::NoRoom { path: path(), needed: 2, free: 1 }, FAILED, "space"),
        (RecordError::CommandStart { program: "x".into(), source: enoent() }, ENVIRONMENT, ""),
        (RecordError::Special { path: path(), what: "a pipe" }, ENVIRONMENT, ""),
        (RecordError::NameNotUtf8 { path: path() }, ENVIRONMENT, ""),
        (RecordError::Special { path: path(), what: "a link whose text is not UTF-8" }, ENVIRONMENT, ""),
        (RecordError::TooDeep { path: path() }, ENVIRONMENT, ""),
        (RecordError::Changed { path: path() }, ENVIRONMENT, ""),
        (RecordError::Io { path: path(), source: enoent() }, FAILED, ""),
        (RecordError::Panicked(Panicked), FAILED, ""),
        (RecordError::Library(Panicked.into()), FAILED, ""),
    ];
    for (error, code, fix) in table {
        let shown = format!("{error:?}");
        assert_advice(&Failure::from(error), code, fix, &shown);
    }
    assert_advice(&Failure::from(SettingsError::NoHome), CONFIG, "HOME", "NoHome");
    assert_advice(&Failure::from(SettingsError::NoCurrentDir(enoent())), FAILED, "", "NoCurrentDir");
}

#[track_caller]
fn assert_advice(failure: &Failure, code: u8, fix: &str, error: &str) {
    assert_eq!(failure.code, code, "{error}: {failure:?}");
    let told = format!("{} {}", failure.fix.as_deref().unwrap_or_default(), failure.choices.join(" "));
    assert!(told.contains(fix), "{error}: {failure:?}");
    assert!(!failure.what.is_empty() && !failure.what.contains('\n'), "{error}: {failure:?}");
    assert!(!failure.what.contains("os error"), "{error}: {failure:?}");
}

#[test]
fn candidates_are_listed_below_what_to_try() {
    let candidates = vec![(candidate(), "name: another".into()), (candidate(), String::new())];
    let failure = describe(&SpaceError::NoCatalog { why: "several".into(), candidates }.into());
    assert!(failure.fix.unwrap().starts_with("--blueprint"));
    let choices = ["adb8c26db4d86a93 linux_amd64  name: another", "adb8c26db4d86a93 linux_amd64"];
    assert_eq!(failure.choices, choices);
}
