//! Tests each refusal with the facts of an allowed request, of which one is changed.

use proptest::prelude::*;

use super::*;

const CALLER: u32 = 1000;
const OTHER: u32 = 1001;
const EXT4: u64 = 0xEF53;
const FUSE: u64 = 0x6573_5546;
const PROC: u64 = 0x9FA0;
const NFS: u64 = 0x6969;

const DEVICE: Option<(u32, u32)> = Some((10, 229));
const DIR: MountpointFacts = MountpointFacts {
    is_dir: true,
    owner: CALLER,
    mode: 0o750,
    resolved_without_symlinks: true,
    f_type: EXT4,
};
const OWN: BackingFacts = BackingFacts {
    is_regular: true,
    owner: CALLER,
    is_linked: true,
    is_immutable: false,
    access: Access::ReadWrite,
    f_type: EXT4,
};
const CONF: FuseConf = FuseConf { user_allow_other: false, mount_max: 1000 };

fn greeted() -> Session {
    let mut session = Session::new(CALLER, Ok(()));
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
    for f_type in FILESYSTEMS {
        assert_eq!(greeted().may_mount(plain, CONF, 0, DEVICE, &MountpointFacts { f_type, ..DIR }), Ok(()));
    }
    let flags = MountFlags { read_only: true, no_exec: true, allow_other: true, ..plain };
    let allowing = FuseConf { user_allow_other: true, ..CONF };
    assert_eq!(greeted().may_mount(flags, allowing, 999, DEVICE, &DIR), Ok(()));
    for mode in [0o700, 0o300, 0o777, 0o1777] {
        assert_eq!(greeted().may_mount(plain, CONF, 0, DEVICE, &MountpointFacts { mode, ..DIR }), Ok(()));
    }
}

#[test]
fn every_other_mount_is_refused() {
    let plain = MountFlags::default();
    let allow_other = MountFlags { allow_other: true, ..plain };
    for (flags, device, dir, reason) in [
        (allow_other, DEVICE, DIR, Deny::AllowOther),
        (plain, None, DIR, Deny::NotFuseDevice),
        (plain, Some((1, 3)), DIR, Deny::NotFuseDevice),
        (plain, Some((229, 10)), DIR, Deny::NotFuseDevice),
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
        assert_eq!(greeted().may_mount(flags, CONF, 999, device, &dir), Err(reason), "{device:?} {dir:?}");
    }
}

#[test]
fn root_is_no_exception() {
    let mut root = Session::new(0, Ok(()));
    root.hello(VERSION).unwrap();
    assert_eq!(root.may_mount(MountFlags::default(), CONF, 0, DEVICE, &DIR), Err(Deny::NotTheOwner));
    root.mounted();
    assert_eq!(root.may_open_backing(&OWN), Err(Deny::NotTheCallersFile));
}

#[test]
fn ones_own_files_are_allowed() {
    for f_type in FILESYSTEMS {
        for access in [Access::Read, Access::ReadWrite] {
            assert_eq!(mounted().may_open_backing(&BackingFacts { access, f_type, ..OWN }), Ok(()));
        }
    }
}

#[test]
fn every_other_file_is_refused() {
    for (file, reason) in [
        (BackingFacts { is_regular: false, ..OWN }, Deny::NotARegularFile),
        (BackingFacts { access: Access::Path, ..OWN }, Deny::NotReadable),
        (BackingFacts { access: Access::Write, ..OWN }, Deny::NotReadable),
        (BackingFacts { f_type: FUSE, ..OWN }, Deny::Filesystem),
        (BackingFacts { f_type: PROC, ..OWN }, Deny::Filesystem),
        (BackingFacts { owner: OTHER, ..OWN }, Deny::NotTheCallersFile),
        // An open descriptor is not enough, because another process may have passed it.
        (BackingFacts { owner: 0, access: Access::Read, ..OWN }, Deny::NotTheCallersFile),
        (BackingFacts { is_immutable: true, ..OWN }, Deny::Immutable),
        (BackingFacts { is_linked: false, ..OWN }, Deny::Unlinked),
    ] {
        assert_eq!(mounted().may_open_backing(&file), Err(reason), "{file:?}");
    }
}

#[test]
fn mounts_beyond_mount_max_are_refused() {
    let plain = MountFlags::default();
    let may =
        |mount_max, mounts| greeted().may_mount(plain, FuseConf { mount_max, ..CONF }, mounts, DEVICE, &DIR);
    assert_eq!(may(3, 2), Ok(()));
    for (most, mounts) in [(3, 3), (3, 4), (0, 0)] {
        assert_eq!(may(most, mounts), Err(Deny::TooManyMounts));
    }
    // Includes the new mount.
    let stays = |mount_max, mounts| greeted().may_stay(FuseConf { mount_max, ..CONF }, mounts);
    assert_eq!((stays(3, 3), stays(3, 4)), (Ok(()), Err(Deny::TooManyMounts)));
}

#[test]
fn a_program_without_privilege_refuses_every_session() {
    for reason in [Deny::NoPrivilege, Deny::UserNamespace] {
        let mut session = Session::new(CALLER, Err(reason));
        assert_eq!(session.hello(VERSION), Err(reason));
        assert_eq!(session.may_mount(MountFlags::default(), CONF, 0, DEVICE, &DIR), Err(Deny::NotGreeted));
        assert_eq!(session.may_open_backing(&OWN), Err(Deny::NotGreeted));
    }
}

#[test]
fn fuse_conf_is_read_as_fusermount_reads_it() {
    let read = |text| {
        let conf = FuseConf::parse(text);
        (conf.user_allow_other, conf.mount_max)
    };
    assert_eq!(read(""), (false, 1000));
    assert_eq!(read("#user_allow_other\nmount_max = 7 # few\n"), (false, 7));
    assert_eq!(read("  user_allow_other  # yes\n#mount_max = 7"), (true, 1000));
    assert_eq!(read("user_allow_other=1\nmount_max = many\nuser_allow_otherwise"), (false, 1000));
}

#[test]
fn fuse_mounts_are_counted_by_their_type() {
    let table = "/dev/vda / ext4 rw 0 0\nfuse /a\\040b ext4 rw 0 0\nx /m fuse.sshfs rw 0 0\ny /n fuse rw 0 0\n\
        /dev/sdb1 /o fuseblk rw 0 0\nfusectl /sys/fs/fuse/connections fusectl rw 0 0\n\ngarbage";
    assert_eq!(fuse_mounts(table), 3);
}

proptest! {
    #[test]
    fn any_text_can_be_read(text in "[a-z_=# \n0-9.]{0,80}|.{0,80}") {
        prop_assert!(text.contains("mount_max") || FuseConf::parse(&text).mount_max == 1000);
        prop_assert!(fuse_mounts(&text) <= text.lines().count());
    }
}

#[test]
fn requests_out_of_order_are_refused() {
    let plain = MountFlags::default();
    let mut session = Session::new(CALLER, Ok(()));
    assert_eq!(session.may_mount(plain, CONF, 0, DEVICE, &DIR), Err(Deny::NotGreeted));
    assert_eq!(session.may_open_backing(&OWN), Err(Deny::NotGreeted));
    assert_eq!(session.close_backing(id(1)), Err(Deny::NotGreeted));
    assert_eq!(session.hello(0), Err(Deny::Version));
    assert_eq!(session.hello(VERSION + 1), Ok(()));
    assert_eq!(session.hello(VERSION), Err(Deny::NotGreeted));
    assert_eq!(session.may_open_backing(&OWN), Err(Deny::NotMounted));
    assert_eq!(session.close_backing(id(1)), Err(Deny::NotMounted));
    session.mounted();
    assert_eq!(session.may_mount(plain, CONF, 0, DEVICE, &DIR), Err(Deny::AlreadyMounted));
}

#[test]
fn only_a_file_of_this_session_can_be_closed_and_only_once() {
    let mut session = mounted();
    session.backing_opened(id(5));
    assert_eq!(session.close_backing(id(6)), Err(Deny::UnknownBacking));
    assert_eq!(session.close_backing(id(5)), Ok(()));
    assert_eq!(session.close_backing(id(5)), Err(Deny::UnknownBacking));
}

#[test]
fn each_slot_holds_a_fixed_number_of_files() {
    let mut session = mounted();
    assert!(session.needs_slot(0));
    (1..=FILES_PER_SLOT as u32).for_each(|n| {
        assert!(!session.needs_slot(1));
        session.backing_opened(id(n));
    });
    assert!(session.needs_slot(1));
    session.close_backing(id(9)).unwrap();
    assert!(!session.needs_slot(1));
    session.backing_opened(id(9));
    assert!(!session.needs_slot(2));
}

#[test]
fn reasons_have_fixed_numbers_and_texts() {
    for (position, deny) in Deny::ALL.iter().copied().enumerate() {
        assert_eq!(deny as usize, position + 1);
        assert_eq!(Deny::of(deny as u32), Some(deny));
        assert!(!deny.to_string().is_empty());
    }
    assert_eq!((Deny::of(0), Deny::of(22)), (None, None));
}
