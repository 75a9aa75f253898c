//! Failures as the user meets them: one line of what and why, one of what to try, and the exit code.
//!
//! The mapping from each layer's errors is here and nowhere else, and exhaustive: a new error does not compile until
//! somebody has decided what it tells the user.

use std::io;
use std::path::Path;

use crate::library::LibraryError;
use crate::library::catalogs::CatalogName;
use crate::library::name::NameError;
use crate::record::RecordError;
use crate::session;
use crate::settings::SettingsError;
use crate::space::{MountpointProblem, SpaceError};
use crate::sys::fuse_mount::MountError;
use crate::sys::guarded::{GuardedError, Problem};
use crate::sys::plain;

/// A failure in words, and its exit code. The same value passes through the daemon's pipe.
pub use crate::session::Failure;

/// Everything went well.
pub const OK: u8 = 0;
/// A failure of no other kind.
pub const FAILED: u8 = 1;
/// What was typed makes no sense.
pub const USAGE: u8 = 2;
/// The library is missing, unreadable, or something else.
pub const LIBRARY: u8 = 3;
/// Bad configuration.
pub const CONFIG: u8 = 4;
/// The environment cannot be built or described.
pub const ENVIRONMENT: u8 = 5;
/// No such blueprint or space.
pub const NOT_FOUND: u8 = 6;
/// The mountpoint will not do.
pub const MOUNTPOINT: u8 = 7;
/// FUSE is not available.
pub const FUSE: u8 = 8;
/// The strategy is impossible here.
pub const STRATEGY: u8 = 9;
/// Something does not match its digest or form.
pub const INTEGRITY: u8 = 11;
/// In use, or still locked.
pub const BUSY: u8 = 12;
/// Interrupted by the user.
pub const INTERRUPTED: u8 = 130;

/// Makes a failure.
#[must_use]
pub fn failure(code: u8, what: impl Into<String>, fix: Option<&str>) -> Failure {
    Failure { what: plain(&what.into()), fix: fix.map(str::to_owned), choices: Vec::new(), code }
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Failure::from(&error)
    }
}

impl From<&SettingsError> for Failure {
    fn from(error: &SettingsError) -> Self {
        let what = error.to_string();
        match error {
            SettingsError::NoHome => failure(CONFIG, what, Some("set HOME, or give --home DIRECTORY")),
            SettingsError::NoCurrentDir(_) => failure(FAILED, what, None),
            SettingsError::Variable { .. } | SettingsError::File { .. } => failure(CONFIG, what, None),
            SettingsError::Unreadable(_) => {
                failure(CONFIG, what, Some("a regular file that you may read, or none"))
            }
        }
    }
}

impl From<&GuardedError> for Failure {
    fn from(error: &GuardedError) -> Self {
        let (what, path) = (error.to_string(), error.path.display());
        match &error.problem {
            Problem::Os(errno) if is_about_writing(&(*errno).into()) => {
                failure(FAILED, what, Some("free some space, or set HOLOFS_HOME to a directory with more"))
            }
            Problem::Os(_) => failure(FAILED, what, None),
            Problem::NotAFile(_)
            | Problem::Linked(_)
            | Problem::TooLarge(_)
            | Problem::NotADirectory(_)
            | Problem::Exchanged => {
                failure(FAILED, what, Some(&format!("see who put it there, and remove it: {path}")))
            }
            Problem::Owner { .. } => {
                failure(CONFIG, what, Some("set HOLOFS_HOME to a directory of your own, or run as that user"))
            }
            Problem::Writable(_) => {
                let fix = format!("chmod go-w {path}, or set HOLOFS_HOME to a directory of your own");
                failure(CONFIG, what, Some(&fix))
            }
        }
    }
}

impl From<LibraryError> for Failure {
    fn from(error: LibraryError) -> Self {
        of_library(&error)
    }
}

fn of_library(error: &LibraryError) -> Failure {
    let what = error.to_string();
    match error {
        LibraryError::NotALibrary { .. } => {
            failure(LIBRARY, what, Some("a hololib, a ROBOCORP_HOME, a shared holotree, or `auto`"))
        }
        LibraryError::Catalog { .. } | LibraryError::Compile { .. } => failure(
            LIBRARY,
            what,
            Some("record or import the environment again; `holofs check` looks at the whole library"),
        ),
        LibraryError::Index(_) => failure(FAILED, what, Some("remove holofs's cache, which loses nothing")),
        // The library is only read: what cannot be written is the cache.
        LibraryError::Io { source, .. } if is_about_writing(source) => {
            failure(FAILED, what, Some("free some space, or set HOLOFS_HOME to a directory with more"))
        }
        LibraryError::Io { .. } => {
            let fix = "as a user who may use it; holofs's own files can be elsewhere: set HOLOFS_HOME";
            failure(LIBRARY, what, Some(fix))
        }
    }
}

fn is_about_writing(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem)
}

impl From<SpaceError> for Failure {
    fn from(error: SpaceError) -> Self {
        of_space(&error)
    }
}

fn of_space(error: &SpaceError) -> Failure {
    let why = error.to_string();
    match error {
        SpaceError::DamagedState { path, .. } => failure(
            INTEGRITY,
            why,
            Some(&format!(
                "your changes are in {}; copy what you need, then mount with --fresh",
                path.with_file_name("upper").display()
            )),
        ),
        SpaceError::UnknownFeature { .. } => failure(FAILED, why, Some("use the newer holofs that wrote it")),
        SpaceError::ReadOnlyFeature { .. } => {
            failure(FAILED, why, Some("--read-only, or use the newer holofs that wrote it"))
        }
        SpaceError::OtherContent { identity, blueprint, .. } => {
            let keep = match blueprint {
                Some(blueprint) => format!("--blueprint {blueprint} to keep them, or --fresh to drop them"),
                None => "--fresh to drop them".to_owned(),
            };
            failure(MOUNTPOINT, format!("{identity}: {why}"), Some(&keep))
        }
        SpaceError::EphemeralOverChanges { identity } => {
            let fix = "another space name, or --fresh to drop the changes";
            failure(USAGE, format!("{identity}: {why}"), Some(fix))
        }
        SpaceError::StateInsideLibrary { .. } => {
            failure(USAGE, why, Some("set HOLOFS_HOME to a directory outside of the library"))
        }
        SpaceError::Busy { identity, .. } => {
            let fix = "wait for it, or end it with `holofs unmount`";
            failure(BUSY, format!("{identity}: {why}"), Some(fix))
        }
        SpaceError::LockTimeout { path, .. } => {
            let fix = "wait until rcc has finished, or give a longer --lock-timeout";
            failure(BUSY, format!("{}: {why}", path.display()), Some(fix))
        }
        SpaceError::Name { given, source: NameError::NotUtf8 | NameError::NoDirectory(_) } => {
            failure(USAGE, format!("{given}: {why}"), Some("another name for the space"))
        }
        SpaceError::Name { given, .. } => {
            let fix = "a space name without a slash: holofs then finds the directory itself";
            failure(MOUNTPOINT, format!("{given}: {why}"), Some(fix))
        }
        SpaceError::BaseMismatch { given, base } => {
            let fix = format!("a directory in {}, or a space name", base.display());
            failure(MOUNTPOINT, format!("{}: {why}", given.display()), Some(&fix))
        }
        SpaceError::ForeignBase { catalog, base } => {
            let fix = format!(
                "if you trust it, the path of a directory with a name of 24 bytes in {}",
                base.display()
            );
            failure(MOUNTPOINT, format!("catalog {}: {why}", catalog.display()), Some(&fix))
        }
        SpaceError::Mountpoint { path, problem } => {
            failure(MOUNTPOINT, format!("{}: {why}", path.display()), Some(&way_out(path, problem)))
        }
        SpaceError::NoCatalog { candidates, .. } => {
            no_catalog(&why, candidates.iter().map(|catalog| (catalog, "")))
        }
        SpaceError::BadCatalog { .. } => {
            let fix = "record or import the environment again; `holofs check` looks at the whole library";
            failure(LIBRARY, format!("catalog {why}"), Some(fix))
        }
        SpaceError::Guarded(error) => error.into(),
        SpaceError::Io { source, .. } if is_about_writing(source) => {
            failure(FAILED, why, Some("free some space, or set HOLOFS_HOME to a directory with more"))
        }
        SpaceError::Io { .. } => failure(FAILED, why, None),
    }
}

/// A choice that was not made, with what there is to choose from and by what one may know it.
fn no_catalog<'a>(why: &str, candidates: impl Iterator<Item = (&'a CatalogName, &'a str)>) -> Failure {
    let choices = candidates.map(|(catalog, about)| {
        format!("{} {}  {about}", catalog.blueprint, catalog.platform).trim_end().to_owned()
    });
    let choices: Vec<String> = choices.collect();
    let fix = if choices.is_empty() {
        "`holofs record` or rcc to put an environment into the library"
    } else {
        "--blueprint with the beginning of one of these:"
    };
    Failure { choices, ..failure(NOT_FOUND, why, Some(fix)) }
}

/// What to do about a mountpoint.
fn way_out(path: &Path, problem: &MountpointProblem) -> String {
    match problem {
        MountpointProblem::NoParent(base) => format!("mkdir -p {}", base.display()),
        MountpointProblem::Restored => {
            let identity = path.file_name().unwrap_or_default().to_string_lossy();
            format!("another space name, or `rcc holotree delete {identity}` to have holofs present it")
        }
        MountpointProblem::Mounted(_) => format!("umount {}", path.display()),
        MountpointProblem::Owner(_) => "as that user, another space name, or remove the directory".to_owned(),
        MountpointProblem::NotADirectory | MountpointProblem::NotEmpty => {
            "another space name, or move away what is there".to_owned()
        }
        MountpointProblem::Refused(_) => "as a user who may write there, or another space".to_owned(),
    }
}

/// Puts a session's error into words; the daemon is given this function.
#[must_use]
pub fn describe(error: &session::Error) -> Failure {
    let what = error.to_string();
    match error {
        session::Error::Library(error) => of_library(error),
        session::Error::Space(error) => of_space(error),
        session::Error::Mount { source, .. } => {
            let fix = match source {
                MountError::Device(_) => {
                    Some("modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN")
                }
                MountError::NoFusermount => Some("install the package fuse3"),
                MountError::Fusermount(said) if said.contains("user_allow_other") => {
                    Some("put `user_allow_other` into /etc/fuse.conf, or leave out --allow-other")
                }
                MountError::Exchanged => Some("see who may write to the directories above it"),
                MountError::Fusermount(_) | MountError::Os { .. } | MountError::Io(_) => None,
            };
            failure(FUSE, what, fix)
        }
        session::Error::OtherBlueprint { .. } => {
            failure(MOUNTPOINT, what, Some("unmount it first, or use another space name"))
        }
        session::Error::OtherOptions { .. } => {
            failure(MOUNTPOINT, what, Some("ask for what is in force, or unmount it first"))
        }
        session::Error::NoReflink { .. } => {
            failure(STRATEGY, what, Some("--strategy smart, or HOLOFS_HOME on the library's btrfs or xfs"))
        }
        session::Error::NoPassthrough { .. } => failure(
            FUSE,
            what,
            Some("--io cached, or install holofs-mount-helper; Linux 6.9 has passthrough"),
        ),
        session::Error::InUse { .. } => failure(BUSY, what, Some("end what uses it, or unmount with --lazy")),
        session::Error::DeletedInUse { .. } => {
            failure(BUSY, what, Some("end what uses it, or unmount with --lazy; then mount again"))
        }
        session::Error::BeingRecorded { .. } => {
            failure(BUSY, what, Some("wait until rcc has finished, or give a longer --lock-timeout"))
        }
        session::Error::MountedElsewhere { .. } => {
            failure(BUSY, what, Some("unmount those first, or all at once with --force"))
        }
        session::Error::StillServed { .. } => failure(
            BUSY,
            what,
            Some("end what uses it; or --force, which ends the daemon and keeps the changes"),
        ),
        session::Error::NoCatalog { why, candidates } => {
            no_catalog(why, candidates.iter().map(|(catalog, about)| (catalog, about.as_str())))
        }
        session::Error::MountOption(_) => {
            failure(USAGE, what, Some("ro, noexec, noatime, sync, dirsync, allow_other"))
        }
        session::Error::NoProfile { .. } => failure(
            NOT_FOUND,
            what,
            Some("a profile of this environment, from profiles/ in holofs's cache; or --prefetch alone"),
        ),
        session::Error::NoSpace { .. } => failure(NOT_FOUND, what, Some("`holofs list`")),
        session::Error::OthersMount { .. } => failure(MOUNTPOINT, what, Some("another space name")),
        session::Error::NotMounted(_) => failure(NOT_FOUND, what, None),
        session::Error::Upper { .. } | session::Error::Os { .. } => failure(FAILED, what, None),
        session::Error::NoAnswer { .. } => {
            failure(BUSY, what, Some("wait for it, or end that process and mount again"))
        }
        session::Error::Limits(_) => {
            failure(FAILED, what, Some("raise that limit in the shell that mounts, or in the container"))
        }
        session::Error::Fuse(_) => failure(FUSE, what, None),
        session::Error::DaemonDied(_) => failure(FAILED, what, None),
        session::Error::Daemon(failure) => failure.clone(),
    }
}

impl From<session::Error> for Failure {
    fn from(error: session::Error) -> Self {
        describe(&error)
    }
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Self {
        let what = error.to_string();
        match &error {
            RecordError::Library(error) => of_library(error),
            RecordError::Kind { .. } => {
                failure(USAGE, what, Some("leave out the flag, or name another directory for the other kind"))
            }
            RecordError::NoBlueprint => failure(ENVIRONMENT, what, Some("a file with a few lines about it")),
            RecordError::NoCommand => failure(USAGE, what, Some("`holofs record --help`")),
            RecordError::Busy { .. } => failure(BUSY, what, Some("wait until it has finished")),
            RecordError::StageInUse { .. } => failure(BUSY, what, None),
            RecordError::Guarded(GuardedError {
                path,
                problem: Problem::Owner { .. } | Problem::Writable(_),
            }) => {
                let fix = format!("see who put it there, and remove it: {}", path.display());
                failure(FAILED, what, Some(&fix))
            }
            RecordError::Guarded(error) => error.into(),
            RecordError::NotWhole { .. } => {
                failure(INTEGRITY, what, Some("record it again when nothing else works on the library"))
            }
            RecordError::Interrupted => failure(INTERRUPTED, what, None),
            // The environment is at fault, or the command that was to make it.
            RecordError::CommandStart { .. }
            | RecordError::CommandFailed { .. }
            | RecordError::Special { .. }
            | RecordError::NameNotUtf8 { .. }
            | RecordError::LinkNotUtf8 { .. }
            | RecordError::TooDeep { .. }
            | RecordError::Changed { .. } => failure(ENVIRONMENT, what, None),
            RecordError::Io { .. } | RecordError::Panicked => failure(FAILED, what, None),
        }
    }
}

#[cfg(test)]
mod tests;
