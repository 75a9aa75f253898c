//! Creates and checks the directory on which a space is mounted.
//!
//! Invariants: a mount hides no file of the user. Directories that are created here are empty, so they may stay.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::Mode;
use rustix::io::Errno;

use crate::space::path::{SpacePath, resolved};
use crate::space::upper::entry;
use crate::space::{MountpointProblem, SpaceError, meta};
use crate::sys::guarded::{Dir, GuardedError, Problem, Trust};
use crate::sys::{mountinfo, plain};

/// The mode, before the umask, that rcc gives to the directories of spaces.
const DIR_MODE: u32 = 0o750;

/// A directory that can be mounted on.
#[derive(Debug)]
pub struct Mountpoint {
    /// The directory. The mount must use its descriptor, because another directory may get its name.
    pub dir: Dir,
    /// It was created just now.
    pub made: bool,
}

/// Creates the space's directory if necessary, and checks that it belongs to this user and is empty.
///
/// # Errors
/// [`SpaceError::Mountpoint`] if it cannot be mounted on.
pub fn prepare(base: &Dir, space: &SpacePath) -> Result<Mountpoint, SpaceError> {
    let path = &space.mountpoint;
    let name = space.dir_name();
    let problem = |problem| SpaceError::Mountpoint { path: path.clone(), problem };
    // An existing mount is found in mountinfo: to access the directory could block.
    if let Ok(Some(mount)) = mountinfo::mount_at(&resolved(path)) {
        return Err(problem(MountpointProblem::Mounted(mount.source)));
    }
    let made = match rustix::fs::mkdirat(base, name, Mode::from_bits_truncate(DIR_MODE)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => match base.stat(name) {
            // This user may not create it, but it exists.
            Ok(_) => false,
            Err(_) => return Err(problem(refused(&errno.into()))),
        },
    };
    let dir = base.open_dir(name, Trust::Owned).map_err(|error| problem(unfit(error)))?;
    if made {
        return Ok(Mountpoint { dir, made });
    }
    match entry::list(dir.as_fd()).and_then(|mut listed| listed.next().transpose()) {
        Ok(None) => Ok(Mountpoint { dir, made }),
        // Each environment has `identity.yaml`, the blueprint's text, in its root.
        Ok(Some(_)) if meta::recorded(path).is_some() && dir.stat(OsStr::new("identity.yaml")).is_ok() => {
            Err(problem(MountpointProblem::Restored))
        }
        Ok(Some(_)) => Err(problem(MountpointProblem::NotEmpty)),
        Err(error) => Err(problem(refused(&error.into()))),
    }
}

fn unfit(error: GuardedError) -> MountpointProblem {
    match error.problem {
        Problem::NotADirectory(_) => MountpointProblem::NotADirectory,
        Problem::Owner { owner, .. } => MountpointProblem::Owner(owner),
        Problem::Os(errno) => refused(&errno.into()),
        other => MountpointProblem::Refused(other.to_string()),
    }
}

/// Opens the holotree. On a machine where nothing was restored yet it creates this one directory, but not those above it.
/// It does not follow a symbolic link of another user.
///
/// # Errors
/// [`SpaceError::Mountpoint`] if the holotree can be neither opened nor created.
pub fn open_base(space: &SpacePath) -> Result<Dir, SpaceError> {
    let base = space.base();
    let problem = |problem| SpaceError::Mountpoint { path: space.mountpoint.clone(), problem };
    let (Some(above), Some(name)) = (base.parent(), base.file_name()) else {
        return Ok(Dir::open(base, Trust::Shared)?);
    };
    let above = Dir::open(above, Trust::Shared).map_err(|error| match error.is_not_found() {
        true => problem(MountpointProblem::NoParent(base.to_owned())),
        false => problem(unfit(error)),
    })?;
    above.open_or_make_at(name, DIR_MODE, false).map_err(|error| match error.problem {
        Problem::Owner { owner, .. } => {
            problem(MountpointProblem::Refused(format!("{} is a link of user {owner}", base.display())))
        }
        _ => problem(unfit(error)),
    })
}

fn refused(error: &io::Error) -> MountpointProblem {
    if error.kind() == io::ErrorKind::NotADirectory {
        return MountpointProblem::NotADirectory;
    }
    MountpointProblem::Refused(plain(error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;
    use crate::library::catalog::CatalogInfo;
    use crate::library::name::Identity;

    const NAME: &str = "ea7ce2c_5a1fac3_ca793c28";

    fn space(base: PathBuf) -> SpacePath {
        SpacePath {
            identity: Identity::parse(NAME).unwrap(),
            mountpoint: base.join(NAME),
            own: None,
            placed: false,
            label: "x".into(),
            controller: "rcc.user".into(),
        }
    }

    fn prepare(space: &SpacePath) -> Result<bool, SpaceError> {
        let base = Dir::open(space.base(), Trust::Shared)?;
        super::prepare(&base, space).map(|mountpoint| mountpoint.made)
    }

    fn problem(result: Result<bool, SpaceError>) -> MountpointProblem {
        match result {
            Err(SpaceError::Mountpoint { problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn missing_directory_and_its_holotree_are_created() {
        let dir = tempfile::tempdir().unwrap();
        let space = space(dir.path().join("holotree"));
        open_base(&space).unwrap();
        open_base(&space).unwrap();
        assert!(prepare(&space).unwrap());
        assert!(!prepare(&space).unwrap());
        let mode = std::fs::metadata(&space.mountpoint).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode & !0o750, 0);
    }

    #[test]
    fn missing_directory_above_the_holotree_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("no/holotree");
        let made = open_base(&space(base.clone())).map(|_| true);
        assert_eq!(problem(made), MountpointProblem::NoParent(base));
    }

    #[test]
    fn file_or_link_is_not_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let space = space(dir.path().to_owned());
        std::fs::write(&space.mountpoint, "").unwrap();
        assert_eq!(problem(prepare(&space)), MountpointProblem::NotADirectory);
        std::fs::remove_file(&space.mountpoint).unwrap();
        std::os::unix::fs::symlink("/tmp", &space.mountpoint).unwrap();
        assert_eq!(problem(prepare(&space)), MountpointProblem::NotADirectory);
        let under_a_file = SpacePath { mountpoint: PathBuf::from("/etc/passwd").join(NAME), ..space };
        assert!(open_base(&under_a_file).is_err());
    }

    #[test]
    fn directory_of_another_user_is_not_mounted_on() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let space = space(dir.path().to_owned());
        std::fs::create_dir(&space.mountpoint).unwrap();
        std::os::unix::fs::chown(&space.mountpoint, Some(65534), None).unwrap();
        assert_eq!(problem(prepare(&space)), MountpointProblem::Owner(65534));
    }

    #[test]
    fn directory_with_entries_is_not_a_restored_space() {
        let dir = tempfile::tempdir().unwrap();
        let space = space(dir.path().to_owned());
        std::fs::create_dir(&space.mountpoint).unwrap();
        std::fs::write(space.mountpoint.join("mine"), "").unwrap();
        assert_eq!(problem(prepare(&space)), MountpointProblem::NotEmpty);
        // The files beside the space can also be from a mount.
        let info = CatalogInfo { blueprint: "b".into(), platform: "p".into(), ..CatalogInfo::default() };
        let base = Dir::open(space.base(), Trust::Shared).unwrap();
        meta::write_stub(&base, &space, &info, 0).unwrap();
        assert_eq!(problem(prepare(&space)), MountpointProblem::NotEmpty);
        std::fs::write(space.mountpoint.join("identity.yaml"), "").unwrap();
        assert_eq!(problem(prepare(&space)), MountpointProblem::Restored);
    }
}
