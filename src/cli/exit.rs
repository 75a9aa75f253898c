//! Failures as users see them: what failed and why, what to try, and the exit code.
//!
//! The errors of all layers are mapped here and nowhere else. The mapping is exhaustive: a new error does not compile
//! until it has an exit code and advice.

mod content;
#[cfg(feature = "remote")]
mod remote;

use std::fmt::Display;
use std::io;
use std::path::Path;

use rustix::io::Errno;

use crate::activate::env_file::EnvFileError;
use crate::blueprint::BlueprintError;
use crate::library::catalogs::CatalogName;
use crate::library::index::find::FindError;
use crate::library::name::NameError;
use crate::library::{LibraryError, RemoteTrouble};
use crate::namespace;
use crate::session;
use crate::session::Refused;
use crate::session::choice::Near;
use crate::session::run::RunError;
use crate::session::run::activation::ActivationError;
use crate::session::spaces::SpaceState;
use crate::settings::SettingsError;
use crate::space::reset::Refusal;
use crate::space::upper::UpperError;
use crate::space::{MountpointProblem, SpaceError};
use crate::sys::fuse_mount::MountError;
use crate::sys::guarded::{GuardedError, Problem};
use crate::sys::plain;

/// A failure in words, and its exit code. The daemon sends the same value through its pipe.
pub use crate::session::Failure;

/// Success.
pub const OK: u8 = 0;
/// Any other failure.
pub const FAILED: u8 = 1;
/// The arguments are wrong.
pub const USAGE: u8 = 2;
/// The library is missing, not readable, or not a library.
pub const LIBRARY: u8 = 3;
/// A setting is wrong.
pub const CONFIG: u8 = 4;
/// The environment cannot be recorded.
pub const ENVIRONMENT: u8 = 5;
/// There is no such blueprint or space.
pub const NOT_FOUND: u8 = 6;
/// The mountpoint cannot be used.
pub const MOUNTPOINT: u8 = 7;
/// FUSE is not available.
pub const FUSE: u8 = 8;
/// The strategy is not possible on these filesystems.
pub const STRATEGY: u8 = 9;
/// Data is damaged.
pub const INTEGRITY: u8 = 11;
/// In use, or locked for too long.
pub const BUSY: u8 = 12;
/// `run`: holofs failed, and the program was not run.
pub const RUN_FAILED: u8 = 125;
/// `run`: the program cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// `run`: there is no such program.
const NO_PROGRAM: u8 = 127;
/// `run --rcc-exit-codes`: the program failed.
pub(super) const RCC_TASK_FAILED: u8 = 10;
/// Interrupted by the user.
pub const INTERRUPTED: u8 = 130;

/// A failure that no error type stands for.
#[must_use]
pub fn failure(code: u8, what: impl Into<String>, fix: Option<&str>) -> Failure {
    Failure {
        what: plain(&what.into()),
        fix: fix.map(str::to_owned),
        choices: Vec::new(),
        code,
        restorable: false,
    }
}

/// A build without the feature `remote` was asked for an object store. The URL is not repeated: there may be a password in it.
#[cfg(not(feature = "remote"))]
pub(super) fn without_stores() -> Failure {
    let fix = "a holofs that was built with `--features remote`";
    failure(USAGE, "this holofs was built without support for object stores", Some(fix))
}

/// What the user is told about an error in addition to its text.
trait Advice: Display {
    /// The exit code, what to try, and the choices. The text of the error is left empty.
    fn advice(&self) -> Failure;
}

impl<E: Advice> Advice for &E {
    fn advice(&self) -> Failure {
        (**self).advice()
    }
}

impl<E: Advice> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { what: plain(&error), ..error.advice() }
    }
}

/// Converts an error of a session. The daemon calls this function.
#[must_use]
pub fn describe(error: &session::Error) -> Failure {
    error.into()
}

fn try_this(code: u8, fix: impl AsRef<str>) -> Failure {
    failure(code, "", Some(fix.as_ref()))
}

/// There is nothing to try.
fn only(code: u8) -> Failure {
    failure(code, "", None)
}

pub(super) const MORE_SPACE: &str = "free some space, or set HOLOFS_HOME to a directory with more";
const CERTIFICATE: &str =
    "check the address; add the certificate of the store's authority to ca-bundle.pem in ROBOCORP_HOME";
const CATALOG_AGAIN: &str =
    "record the environment again with --force, or import it; `holofs check` looks at the whole library";

impl Advice for SettingsError {
    fn advice(&self) -> Failure {
        match self {
            Self::NoHome => try_this(CONFIG, "set HOME, or give --home DIRECTORY"),
            Self::NoCurrentDir(_) => only(FAILED),
            Self::Variable { name, .. } => try_this(CONFIG, format!("another value, or unset {name}")),
            Self::File(_) => try_this(CONFIG, "correct this line; --no-config ignores the file"),
            Self::Unreadable(_) => try_this(CONFIG, "a regular file that you may read, or no file"),
            Self::Silent { .. } => try_this(CONFIG, "again when the disk answers, or another --home"),
            Self::NotAsked(_) => only(FAILED),
        }
    }
}

impl Advice for GuardedError {
    fn advice(&self) -> Failure {
        let path = self.path.display();
        match &self.problem {
            Problem::Os(errno) if is_about_writing(&(*errno).into()) => try_this(FAILED, MORE_SPACE),
            Problem::Os(Errno::ACCESS | Errno::PERM) => try_this(FAILED, "run as a user who may do that"),
            Problem::Os(_) => only(FAILED),
            Problem::NotAFile(_)
            | Problem::Linked(_)
            | Problem::TooLarge(_)
            | Problem::NotADirectory(_)
            | Problem::Exchanged => {
                try_this(FAILED, format!("find out who put it there, and remove it: {path}"))
            }
            Problem::Owner { .. } => {
                try_this(CONFIG, "set HOLOFS_HOME to a directory of your own, or run as that user")
            }
            Problem::Writable(_) => {
                try_this(CONFIG, format!("chmod go-w {path}, or set HOLOFS_HOME to a directory of your own"))
            }
        }
    }
}

/// Converts an error of a directory that settings name. A path that cannot be such a directory is a wrong setting.
pub(super) fn of_own_dirs(error: GuardedError) -> Failure {
    match error.problem {
        Problem::NotADirectory(_) | Problem::Os(Errno::ACCESS | Errno::PERM | Errno::NOTDIR) => {
            let fix = "a directory of your own: look at `--home`, `--cache-dir` and HOLOFS_HOME";
            failure(CONFIG, plain(&error), Some(fix))
        }
        _ => error.into(),
    }
}

impl Advice for LibraryError {
    fn advice(&self) -> Failure {
        match self {
            Self::NotALibrary { .. } => {
                try_this(LIBRARY, "a hololib, a hololib.zip, a ROBOCORP_HOME, a shared holotree, or `auto`")
            }
            Self::Archive { .. } => try_this(LIBRARY, "export the environment again: `rcc holotree export`"),
            Self::Catalog { .. } => try_this(LIBRARY, CATALOG_AGAIN),
            Self::Remote { kind, .. } => match kind {
                RemoteTrouble::Url => try_this(
                    USAGE,
                    "a library on this machine, or s3://BUCKET/..., gs://, az://, https:// or file:///DIRECTORY with a holofs that has the feature `remote`",
                ),
                RemoteTrouble::Missing => {
                    try_this(LIBRARY, "another URL or blueprint; `holofs push` puts environments there")
                }
                RemoteTrouble::Denied => try_this(
                    LIBRARY,
                    "the credentials of the store, in its usual variables and files: docs/REMOTE.md",
                ),
                RemoteTrouble::Silent => {
                    try_this(LIBRARY, "again later; --offline uses what is in the cache")
                }
                RemoteTrouble::Untrusted => try_this(LIBRARY, CERTIFICATE),
                RemoteTrouble::Refused => {
                    try_this(INTEGRITY, "push the environment again, after finding out who changed the store")
                }
                RemoteTrouble::Offline => try_this(LIBRARY, "without --offline, once"),
            },
            Self::Index(_) => try_this(FAILED, "remove the cache of holofs; nothing is lost"),
            // The library is only read, so it is the cache that cannot be written.
            Self::Io { source, .. } if is_about_writing(source) => try_this(FAILED, MORE_SPACE),
            Self::Io { .. } => {
                try_this(LIBRARY, "run as a user who may read it; if it is a file of holofs, set HOLOFS_HOME")
            }
            Self::Panicked(_) => only(FAILED),
        }
    }
}

fn is_about_writing(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem)
}

impl Advice for SpaceError {
    fn advice(&self) -> Failure {
        match self {
            Self::DamagedState { path, .. } => {
                let upper = path.with_file_name("upper");
                let upper = upper.display();
                try_this(
                    INTEGRITY,
                    format!("your changes are in {upper}; copy what you need, then mount with --fresh"),
                )
            }
            Self::UnknownFeature { may_read: true, .. } => {
                try_this(FAILED, "--read-only, or use the newer version of holofs that wrote it")
            }
            Self::UnknownFeature { .. } => try_this(FAILED, "use the newer version of holofs that wrote it"),
            Self::OtherContent { blueprint: Some(blueprint), .. } => {
                try_this(MOUNTPOINT, format!("--blueprint {blueprint} to keep them, or --fresh to drop them"))
            }
            Self::OtherContent { blueprint: None, .. } => try_this(MOUNTPOINT, "--fresh to drop them"),
            Self::Exists(path) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                try_this(MOUNTPOINT, format!("another name, or `holofs delete {name}`"))
            }
            Self::EphemeralOverChanges(_) => {
                try_this(USAGE, "another space name, or --fresh to drop the changes")
            }
            Self::KeptElsewhere { .. } => {
                try_this(MOUNTPOINT, "leave out --upper-dir, or delete the space first")
            }
            Self::StateInsideLibrary { .. } => {
                try_this(USAGE, "set HOLOFS_HOME to a directory outside the library")
            }
            Self::Busy { .. } => try_this(BUSY, "wait, or unmount it with `holofs unmount`"),
            Self::LockTimeout { .. } => {
                try_this(BUSY, "wait until rcc has finished, or give a longer --lock-timeout")
            }
            Self::Name {
                source: NameError::NotUtf8 | NameError::NoDirectory(_) | NameError::Empty, ..
            } => try_this(USAGE, "another name for the space"),
            Self::Name { .. } => try_this(
                MOUNTPOINT,
                "the name of a space, without a slash: holofs then chooses the directory",
            ),
            Self::BaseMismatch { base, .. } => {
                try_this(MOUNTPOINT, format!("a directory in {}, or the name of a space", base.display()))
            }
            Self::OtherLength { len, .. } => try_this(MOUNTPOINT, format!("a path of {len} bytes")),
            Self::Unusable { .. } => try_this(
                MOUNTPOINT,
                "another path, or the name of a space: holofs then chooses the directory",
            ),
            Self::Mountpoint { path, problem } => try_this(MOUNTPOINT, way_out(path, problem)),
            Self::NoCatalog { candidates, .. } if candidates.is_empty() => {
                try_this(NOT_FOUND, "add an environment to the library with `holofs record` or rcc")
            }
            Self::NoCatalog { candidates, .. } => {
                let choice = |(CatalogName { blueprint, platform }, about): &(_, String)| {
                    format!("{blueprint} {platform}  {about}").trim_end().to_owned()
                };
                let choices = candidates.iter().map(choice).collect();
                let fix = "--blueprint, or CATALOG, with the first digits of one of these:";
                Failure { choices, ..try_this(NOT_FOUND, fix) }
            }
            Self::Library(error) => error.advice(),
            Self::BadCatalog { .. } => try_this(LIBRARY, CATALOG_AGAIN),
            Self::Guarded(error) => error.advice(),
            Self::Io { source, .. } if is_about_writing(source) => try_this(FAILED, MORE_SPACE),
            Self::Io { .. } => only(FAILED),
        }
    }
}

/// What to do about a mountpoint that cannot be used.
fn way_out(path: &Path, problem: &MountpointProblem) -> String {
    match problem {
        MountpointProblem::NoParent(base) => format!("mkdir -p {}", base.display()),
        MountpointProblem::Restored => {
            let identity = path.file_name().unwrap_or_default().to_string_lossy();
            format!("another space name, or `holofs delete {identity}` and mount it again")
        }
        MountpointProblem::Mounted(_) => format!("umount {}", path.display()),
        MountpointProblem::Owner(_) => {
            "run as that user, use another space name, or remove the directory".to_owned()
        }
        MountpointProblem::NotADirectory | MountpointProblem::NotEmpty => {
            "another space name, or move the files away".to_owned()
        }
        MountpointProblem::Refused(_) => {
            "run as a user who may write there, make this directory yourself (empty, and yours), or `holofs run --private-ns`"
                .to_owned()
        }
    }
}

const NO_DEVICE: &str = "modprobe fuse; with docker: --device /dev/fuse --cap-add SYS_ADMIN; with Kubernetes: a device plugin for /dev/fuse, or a privileged pod; without FUSE: `holofs restore`, or --fallback restore";

impl Advice for MountError {
    fn advice(&self) -> Failure {
        match self {
            Self::Device(_) | Self::AnotherDevice => try_this(FUSE, NO_DEVICE),
            Self::NoFusermount => try_this(FUSE, "install the package fuse3, or use `holofs restore`"),
            Self::Fusermount(output) if output.contains("user_allow_other") => {
                try_this(FUSE, "put `user_allow_other` into /etc/fuse.conf, or leave out --allow-other")
            }
            Self::Exchanged => try_this(FUSE, "check who may write to the directories above it"),
            Self::Fusermount(_) | Self::Os { .. } | Self::Io(_) => only(FUSE),
        }
    }
}

impl Advice for BlueprintError {
    fn advice(&self) -> Failure {
        match self {
            Self::Unreadable(_) => try_this(ENVIRONMENT, "a regular file that you may read"),
            Self::Bad { .. } => try_this(ENVIRONMENT, "correct this line"),
            Self::Conflict { .. } => try_this(
                ENVIRONMENT,
                "name the version in one of the files only; without -r, ./robot.yaml counts too",
            ),
            Self::Devdeps { .. } => try_this(ENVIRONMENT, "leave out --devdeps, or use a package.yaml"),
            Self::IsRobot { .. } => {
                try_this(ENVIRONMENT, "the conda.yaml that it names, or -r with this file")
            }
            Self::NoFile => try_this(ENVIRONMENT, "a conda.yaml or package.yaml, or -r robot.yaml"),
            Self::NoRobot { .. } => try_this(ENVIRONMENT, "complete the robot.yaml"),
            Self::NoEnvironment { .. } => try_this(ENVIRONMENT, "add `condaConfigFile: conda.yaml`"),
            Self::NoTask { tasks, .. } => {
                Failure { choices: tasks.clone(), ..try_this(ENVIRONMENT, "--task with one of these:") }
            }
        }
    }
}

/// A near environment in one line: its hash, what it lacks and what it has in addition.
fn near(near: &Near) -> String {
    /// How many differences are named.
    const NAMED: usize = 6;
    let mut line = format!("{} {} ", near.catalog.blueprint, near.catalog.platform);
    for (what, parts) in
        [("lacks", &near.differences.missing), ("has in addition", &near.differences.additional)]
    {
        if !parts.is_empty() {
            let named: Vec<&str> = parts.iter().take(NAMED).map(String::as_str).collect();
            let rest = parts.len() - named.len();
            let more = if rest > 0 { format!(", and {rest} more") } else { String::new() };
            line.push_str(&format!(" {what}: {}{more};", named.join(", ")));
        }
    }
    line.trim_end_matches(';').to_owned()
}

impl Advice for session::Error {
    fn advice(&self) -> Failure {
        match self {
            Self::Library(error) => error.advice(),
            Self::Space(error) => error.advice(),
            Self::Blueprint(error) => error.advice(),
            Self::NoEnvironment { nearest, .. } => {
                let fix = match nearest.as_slice() {
                    [] => "--build, with which rcc builds it",
                    _ => "--build, with which rcc builds it, or --blueprint with one that is near:",
                };
                Failure { choices: nearest.iter().map(near).collect(), ..try_this(NOT_FOUND, fix) }
            }
            Self::NotRccs(_) => try_this(USAGE, "LIBRARY `auto`, or leave out --build"),
            Self::NoRcc(_) => try_this(NOT_FOUND, "install rcc, or put it on PATH"),
            Self::NotBuilt(_) => try_this(ENVIRONMENT, "read rcc's messages above"),
            Self::Settings(error) => error.advice(),
            Self::CannotGoOn(_) => only(FAILED),
            Self::NotOurs(_) => try_this(USAGE, "--verify once, which verifies each blob one time"),
            Self::Link { .. } => try_this(MOUNTPOINT, "another path for --link"),
            Self::UpperDir { .. } => try_this(USAGE, "--upper-dir with a directory that you may write to"),
            Self::NothingChosen => {
                try_this(USAGE, "LIBRARY and SPACE, for example `auto demo`, or -r robot.yaml")
            }
            Self::Mount { source, .. } => source.advice(),
            Self::OtherBlueprint { .. } => {
                try_this(MOUNTPOINT, "unmount it first, or use another space name")
            }
            Self::OtherOptions { .. } => try_this(MOUNTPOINT, "leave out these options, or unmount it first"),
            Self::Unsearched { source: FindError::Blob { others, .. }, .. } if !others.is_empty() => {
                let fix = "complete the library, see `holofs check`; what else cannot be read:";
                Failure { choices: others.clone(), ..try_this(LIBRARY, fix) }
            }
            Self::Unsearched { .. } => try_this(LIBRARY, "complete the library: see `holofs check`"),
            Self::Unpatchable { from, named, .. } => {
                let fix = format!(
                    "a path of at most {} bytes, or --foreign to leave these files as they are:",
                    from.len()
                );
                Failure { choices: named.clone(), ..try_this(MOUNTPOINT, fix) }
            }
            Self::NoReflink { .. } => {
                try_this(STRATEGY, "--strategy smart, or HOLOFS_HOME on the library's btrfs or xfs")
            }
            Self::BadPattern { .. } => try_this(CONFIG, "a pattern such as *.so or bin/*"),
            Self::MountedThere { space, .. } => try_this(BUSY, format!("`holofs unmount {space}` first")),
            Self::Restore { source, .. } => source.advice(),
            Self::NoPassthrough { .. } => {
                try_this(FUSE, "--io cached; passthrough needs Linux 6.9, and root or holofs-mount-helper")
            }
            Self::InUse { .. } => try_this(BUSY, "end the processes that use it, or unmount with --lazy"),
            Self::DeletedInUse { .. } => {
                try_this(BUSY, "end the processes that use it, or unmount with --lazy; then mount again")
            }
            Self::BeingRecorded { .. } => {
                try_this(BUSY, "wait until rcc has finished, or give a longer --lock-timeout")
            }
            Self::MountedElsewhere { .. } => {
                try_this(BUSY, "unmount these first, or all of them with --force")
            }
            Self::StillServed { .. } => try_this(
                BUSY,
                "end the processes that use it, or unmount with --force, which keeps the changes",
            ),
            Self::MountOption(_) => {
                try_this(USAGE, "one of ro, noexec, noatime, sync, dirsync, allow_other, auto_unmount")
            }
            Self::NoProfile { .. } => try_this(
                NOT_FOUND,
                "a profile of this environment, from profiles/ in holofs's cache; or --prefetch alone",
            ),
            Self::NeverRead { .. } => {
                try_this(NOT_FOUND, "mount the environment and use it once, or leave out --profile")
            }
            Self::Contradiction(_) => try_this(USAGE, "leave out one of them"),
            Self::NotProbed { .. } => try_this(LIBRARY, "an existing directory that you may write to"),
            Self::NoSpace { .. } => try_this(NOT_FOUND, "`holofs list`"),
            Self::NotMounted(_) => try_this(NOT_FOUND, "leave out --no-mount, or `holofs mount`"),
            Self::Converted { blueprint, .. } => {
                try_this(NOT_FOUND, format!("mount another space with --blueprint {blueprint}"))
            }
            Self::KeepsChanging(_) => try_this(BUSY, "end these programs, or unmount the space first"),
            Self::NoUpper { .. } => try_this(
                NOT_FOUND,
                "`holofs mount` under another space name: a mounted space knows its changes",
            ),
            Self::CatalogGone { .. } => try_this(LIBRARY, CATALOG_AGAIN),
            Self::OthersMount { .. } => try_this(MOUNTPOINT, "another space name"),
            Self::MountedByOther { .. } => try_this(MOUNTPOINT, "run as that user"),
            Self::OtherHome(_) => try_this(USAGE, "give its home with --home, or set HOLOFS_HOME"),
            Self::ChangesInUse(_) => try_this(BUSY, "a longer --timeout"),
            Self::NoControl(_) | Self::Refused(Refused::Version | Refused::NotUnderstood(_)) => {
                try_this(BUSY, "unmount the space and mount it again: its daemon is of another version")
            }
            Self::Refused(Refused::Peer) => try_this(FAILED, "run as the user who mounted it"),
            Self::Refused(Refused::Changing) => try_this(BUSY, "try again when the change has ended"),
            Self::Refused(Refused::Program(_)) => try_this(
                BUSY,
                "nothing: the mount goes on as before. To change its program, unmount and mount it",
            ),
            Self::Refused(Refused::Failed(_)) => only(FAILED),
            Self::Refused(Refused::Reset(refusal)) => match refusal {
                Refusal::NotThere(_) => try_this(NOT_FOUND, "`holofs diff` lists what was changed"),
                Refusal::Above { above, .. } => try_this(NOT_FOUND, format!("reset {above} as a whole")),
                Refusal::Linked { other, .. } => try_this(BUSY, format!("reset {other} as well")),
            },
            Self::MountedReadOnly(_) => try_this(BUSY, "unmount it first"),
            Self::NoAnswer { .. } => try_this(BUSY, "wait, or end that process and mount again"),
            Self::NoPython(_) => try_this(ENVIRONMENT, "leave out --pycache"),
            Self::Python { .. } => only(FAILED),
            Self::NotCommittable { state: SpaceState::Restored, .. } => {
                try_this(NOT_FOUND, "mount the space; what rcc restored has no changes to commit")
            }
            Self::NotCommittable { .. } => try_this(NOT_FOUND, "`holofs list`"),
            Self::OwnBlueprint { .. } => {
                try_this(ENVIRONMENT, "a FILE that also names what was installed in the space")
            }
            Self::ChangedMeanwhile { .. } => {
                try_this(BUSY, "wait until nothing writes to the space, or unmount it")
            }
            Self::Changes { source: UpperError::Damaged { path, .. }, .. } => {
                try_this(INTEGRITY, format!("remove the damaged entry {} in the space", path.display()))
            }
            Self::Changes { .. } => only(FAILED),
            Self::MissingBlobs { .. } => try_this(INTEGRITY, CATALOG_AGAIN),
            Self::Record(error) => error.advice(),
            Self::Limits(_) => try_this(FAILED, "raise this limit in your shell or container"),
            Self::Fuse(_) => only(FUSE),
            Self::Upper {
                source: namespace::types::Error::Upper { source: Errno::OPNOTSUPP, .. }, ..
            } => try_this(
                FAILED,
                "HOLOFS_HOME on a filesystem with user attributes, such as ext4, xfs or btrfs",
            ),
            Self::Upper { .. } | Self::Os { .. } | Self::DaemonDied(_) => only(FAILED),
            Self::Daemon(failure) => failure.clone(),
        }
    }
}

/// The exit code of a run that did not come to running the program. With `rcc`, the code that `rcc run` has.
pub(super) fn code_of_run(error: Option<&RunError>, rcc: bool) -> u8 {
    match (error, rcc) {
        (Some(RunError::NotFound(_)), false) => NO_PROGRAM,
        (Some(RunError::NotStarted { .. }), false) => NOT_EXECUTABLE,
        (_, false) => RUN_FAILED,
        (Some(RunError::Robot(BlueprintError::Unreadable(_) | BlueprintError::Bad(_))), _) => 1,
        (Some(RunError::Robot(BlueprintError::NoRobot { .. })), _) => 2,
        (Some(RunError::Robot(BlueprintError::NoTask { .. }) | RunError::NothingToRun), _) => 3,
        (Some(RunError::Activation(ActivationError::EnvFile(_))), _) => 5,
        (Some(RunError::NotFound(_)), _) => 6,
        (Some(RunError::NotStarted { .. }), _) => 7,
        (Some(RunError::Artifacts { .. } | RunError::Directory { .. }), _) => 9,
        (Some(RunError::PreRunScript(_)), _) => 11,
        (Some(RunError::PreRun { .. }), _) => 12,
        (
            None
            | Some(RunError::Activation(_) | RunError::Session(_) | RunError::Robot(_) | RunError::Wait(_)),
            _,
        ) => 4,
    }
}

impl Advice for ActivationError {
    fn advice(&self) -> Failure {
        match self {
            Self::Session(error) => error.advice(),
            Self::EnvFile(EnvFileError::Unreadable(_)) => {
                try_this(ENVIRONMENT, "a regular file that you may read")
            }
            Self::EnvFile(EnvFileError::Bad(_)) => {
                try_this(ENVIRONMENT, "a map of names to texts, for example {\"NAME\": \"value\"}")
            }
            Self::Settings(error) => error.advice(),
        }
    }
}

/// The exit codes are those of [`code_of_run`].
impl Advice for RunError {
    fn advice(&self) -> Failure {
        match self {
            Self::Activation(error) => error.advice(),
            Self::Session(error) => error.advice(),
            Self::Robot(error) | Self::PreRunScript(error) => error.advice(),
            Self::NothingToRun => try_this(USAGE, "`holofs run -- COMMAND`, or --robot FILE"),
            Self::Directory { .. } => try_this(USAGE, "another --cwd"),
            Self::Artifacts { .. } => try_this(FAILED, "check `artifactsDir` in robot.yaml"),
            Self::NotFound(_) => {
                try_this(NOT_FOUND, "the path of a program, or a name that PATH of the space has")
            }
            Self::NotStarted { .. } | Self::PreRun { .. } | Self::Wait(_) => only(FAILED),
        }
    }
}

#[cfg(test)]
mod tests;
