//! Every refusal as a row: the facts that are allowed, with one thing changed.

use super::*;

const CALLER: u32 = 1000;
const OTHER: u32 = 1001;
const EXT4: u64 = 0xEF53;
const FUSE: u64 = 0x6573_5546;
const PROC: u64 = 0x9FA0;
const NFS: u64 = 0x6969;

const DEVICE: DeviceFacts = DeviceFacts { is_char_device: true, rdev: (10, 229) };
const DIR: MountpointFacts = MountpointFacts {
    is_dir: true,
    owner: CALLER,
    mode: 0o750,
    resolved_without_symlinks: true,
    f_type: EXT4,
};
const OWN: BackingFacts =
    BackingFacts { is_regular: true, owner: CALLER, mode: 0o600, access: Access::ReadWrite, f_type: EXT4 };
const BLOB: BackingFacts =
    BackingFacts { is_regular: true, owner: 0, mode: 0o644, access: Access::Read, f_type: EXT4 };

fn greeted() -> Session {
    let mut session = Session::new(CALLER);
    session.hello(VERSION).unwrap();
    session
}

fn mounted() -> Session {
    let mut session = greeted();
    session.mounted();
    session
}

fn id(n: u32) -> BackingId {
    BackingId::new(n).unwrap()
}

#[test]
fn a_mount_on_ones_own_directory_is_allowed() {
    let plain = MountFlags::default();
    for (f_type, _) in FILESYSTEMS {
        assert_eq!(greeted().may_mount(plain, false, &DEVICE, &MountpointFacts { f_type, ..DIR }), Ok(()));
    }
    let flags = MountFlags { read_only: true, no_exec: true, allow_other: true };
    assert_eq!(greeted().may_mount(flags, true, &DEVICE, &DIR), Ok(()));
    for mode in [0o700, 0o300, 0o777, 0o1777] {
        assert_eq!(greeted().may_mount(plain, false, &DEVICE, &MountpointFacts { mode, ..DIR }), Ok(()));
    }
}

#[test]
fn every_other_mount_is_refused() {
    let plain = MountFlags::default();
    let allow_other = MountFlags { allow_other: true, ..plain };
    for (flags, device, dir, reason) in [
        (allow_other, DEVICE, DIR, Deny::AllowOther),
        (plain, DeviceFacts { is_char_device: false, ..DEVICE }, DIR, Deny::NotFuseDevice),
        (plain, DeviceFacts { rdev: (1, 3), ..DEVICE }, DIR, Deny::NotFuseDevice),
        (plain, DeviceFacts { rdev: (229, 10), ..DEVICE }, DIR, Deny::NotFuseDevice),
        (plain, DEVICE, MountpointFacts { is_dir: false, ..DIR }, Deny::NotADirectory),
        (plain, DEVICE, MountpointFacts { resolved_without_symlinks: false, ..DIR }, Deny::NotWhereItSays),
        (plain, DEVICE, MountpointFacts { f_type: FUSE, ..DIR }, Deny::Filesystem),
        (plain, DEVICE, MountpointFacts { f_type: PROC, ..DIR }, Deny::Filesystem),
        (plain, DEVICE, MountpointFacts { f_type: NFS, ..DIR }, Deny::Filesystem),
        (plain, DEVICE, MountpointFacts { f_type: 0, ..DIR }, Deny::Filesystem),
        (plain, DEVICE, MountpointFacts { owner: OTHER, ..DIR }, Deny::NotTheOwner),
        (plain, DEVICE, MountpointFacts { owner: 0, mode: 0o777, ..DIR }, Deny::NotTheOwner),
        (plain, DEVICE, MountpointFacts { mode: 0o555, ..DIR }, Deny::NotWritable),
        (plain, DEVICE, MountpointFacts { mode: 0o677, ..DIR }, Deny::NotWritable),
    ] {
        assert_eq!(greeted().may_mount(flags, false, &device, &dir), Err(reason), "{device:?} {dir:?}");
    }
}

#[test]
fn root_is_no_exception() {
    let mut root = Session::new(0);
    root.hello(VERSION).unwrap();
    assert_eq!(root.may_mount(MountFlags::default(), false, &DEVICE, &DIR), Err(Deny::NotTheOwner));
    root.mounted();
    assert_eq!(root.may_open_backing(&OWN), Err(Deny::NotTheCallersFile));
}

#[test]
fn ones_own_files_and_what_everybody_may_read_are_allowed() {
    let own_read = BackingFacts { access: Access::Read, mode: 0o400, ..OWN };
    for file in [OWN, own_read, BLOB, BackingFacts { mode: 0o004, ..BLOB }] {
        assert_eq!(mounted().may_open_backing(&file), Ok(()), "{file:?}");
    }
}

#[test]
fn every_other_file_is_refused() {
    for (file, reason) in [
        (BackingFacts { is_regular: false, ..OWN }, Deny::NotARegularFile),
        (BackingFacts { access: Access::Path, ..OWN }, Deny::NotReadable),
        (BackingFacts { access: Access::Write, ..OWN }, Deny::NotReadable),
        (BackingFacts { f_type: FUSE, ..OWN }, Deny::Filesystem),
        (BackingFacts { f_type: PROC, ..BLOB }, Deny::Filesystem),
        (BackingFacts { mode: 0o640, ..BLOB }, Deny::NotTheCallersFile),
        (BackingFacts { mode: 0o600, ..BLOB }, Deny::NotTheCallersFile),
        (BackingFacts { access: Access::ReadWrite, mode: 0o666, ..BLOB }, Deny::NotTheCallersFile),
        (BackingFacts { owner: OTHER, ..OWN }, Deny::NotTheCallersFile),
    ] {
        assert_eq!(mounted().may_open_backing(&file), Err(reason), "{file:?}");
    }
}

#[test]
fn everything_has_its_turn() {
    let plain = MountFlags::default();
    let mut session = Session::new(CALLER);
    assert_eq!(session.may_mount(plain, false, &DEVICE, &DIR), Err(Deny::NotGreeted));
    assert_eq!(session.may_open_backing(&OWN), Err(Deny::NotGreeted));
    assert_eq!(session.close_backing(id(1)), Err(Deny::NotGreeted));
    assert_eq!(session.hello(0), Err(Deny::Version));
    assert_eq!(session.hello(VERSION + 1), Ok(()));
    assert_eq!(session.hello(VERSION), Err(Deny::NotGreeted));
    assert_eq!(session.may_open_backing(&OWN), Err(Deny::NotMounted));
    assert_eq!(session.close_backing(id(1)), Err(Deny::NotMounted));
    session.mounted();
    assert_eq!(session.may_mount(plain, false, &DEVICE, &DIR), Err(Deny::AlreadyMounted));
}

#[test]
fn only_what_was_registered_here_can_be_forgotten_and_once() {
    let mut session = mounted();
    session.backing_opened(id(5));
    assert_eq!(session.close_backing(id(6)), Err(Deny::UnknownBacking));
    assert_eq!(session.close_backing(id(5)), Ok(()));
    assert_eq!(session.close_backing(id(5)), Err(Deny::UnknownBacking));
}

#[test]
fn registered_files_are_limited() {
    let mut session = mounted();
    (1..=MAX_BACKINGS as u32).for_each(|n| session.backing_opened(id(n)));
    assert_eq!(session.may_open_backing(&OWN), Err(Deny::TooMany));
    session.close_backing(id(9)).unwrap();
    assert_eq!(session.may_open_backing(&OWN), Ok(()));
}

#[test]
fn reasons_have_their_numbers_and_words() {
    for (position, deny) in Deny::ALL.into_iter().enumerate() {
        assert_eq!(deny as usize, position + 1);
        assert_eq!(Deny::of(deny as u32), Some(deny));
        assert!(!deny.to_string().is_empty());
    }
    assert_eq!((Deny::of(0), Deny::of(17)), (None, None));
}
