//! Runs a program in a space: mounts it, starts the program with the variables of the space, and unmounts at the end.
//!
//! What can fail without the mount is checked before it: the robot, its task, the file of variables, the directory. A space
//! that was mounted before stays mounted, and so does one that another run still uses (`session::users`).
//!
//! Invariant: from the first step to the last no signal ends this process, so a mount that was made here is ended here.

pub mod activation;
mod child;
pub mod variables;

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::end::{How, unmount};
use super::request::{MountPlan, MountRequest};
use super::users::User;
use super::{Describe, Error, Mounted, registry};
use crate::activate::Variable;
use crate::activate::program::{Found, find};
use crate::activate::temp::Temp;
use crate::blueprint::BlueprintError;
use crate::blueprint::robot::Robot;
use crate::settings::{MountSettings, Settings};
use crate::space::home::Env;
use crate::space::record::SpaceRecord;
use crate::space::state::StateDir;
use crate::space::{MountpointProblem, SpaceError};
use crate::sys::signals::Signals;
use crate::sys::{plain, private_ns};
use activation::{Activated, Activation, ActivationError, ActivationFlags};
use child::Ended;

/// How long the daemon may take to end.
const ENDING: Duration = Duration::from_secs(10);

/// What to run in a space.
#[derive(Clone, Debug)]
pub enum Job {
    /// A program with arguments.
    Command(Vec<OsString>),
    /// A task of the robot.
    Task {
        /// Its name. None for the only one.
        name: Option<String>,
        /// A developer task.
        dev: bool,
        /// Further arguments.
        args: Vec<OsString>,
    },
    /// The user's shell.
    Shell,
}

/// A program to run in a space.
#[derive(Clone, Debug)]
pub struct RunRequest {
    /// The space.
    pub mount: MountRequest,
    /// The variables.
    pub activation: ActivationFlags,
    /// The program.
    pub job: Job,
    /// The directory to run it in. None for the current one, or that of the robot for a task.
    pub cwd: Option<PathBuf>,
    /// Leave the space mounted.
    pub keep: bool,
    /// Mount the space where only this run sees it, over a directory in which the user may not make one.
    pub private_ns: bool,
}

/// Why a program was not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The space cannot be mounted.
    #[error(transparent)]
    Session(#[from] Error),
    /// The robot cannot be used.
    #[error(transparent)]
    Robot(#[from] BlueprintError),
    /// There are no variables of the space.
    #[error(transparent)]
    Activation(#[from] ActivationError),
    /// There is neither a command nor a robot.
    #[error("no command, and no robot.yaml in this directory")]
    NothingToRun,
    /// The directory to run in cannot be used.
    #[error("{}: {}", path.display(), plain(.source))]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The directory for results cannot be made.
    #[error("{}: {}", path.display(), plain(.source))]
    Artifacts {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// There is no such program.
    #[error("{0}: there is no such program")]
    NotFound(String),
    /// The program cannot be started.
    #[error("{}: {}", path.display(), plain(.why))]
    NotStarted {
        /// The program.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// A script that is to run before the task has failed.
    #[error("preRunScripts: {script:?} ended with exit code {code}")]
    PreRun {
        /// The script.
        script: String,
        /// Its exit code.
        code: u8,
    },
    /// A script that is to run before the task is no command line.
    #[error(transparent)]
    PreRunScript(BlueprintError),
    /// Waiting for signals or processes failed.
    #[error("wait: {0}")]
    Wait(rustix::io::Errno),
}

/// A run that came to its end.
#[derive(Debug)]
pub struct Finished {
    /// How the program ended.
    pub ended: Ended,
    /// Why the space is still mounted, if it should not be.
    pub left: Option<Error>,
}

/// The words of a command, and the directory to run it in.
struct Program {
    words: Vec<OsString>,
    before: Vec<Vec<String>>,
    dir: PathBuf,
    /// The directory for results of a task.
    artifacts: Option<PathBuf>,
    /// The robot, if it has no environment. Its tasks need no space.
    without_space: Option<Robot>,
}

/// Runs a program in a space. `note` tells the user what was not typed and counts.
///
/// # Errors
/// When it was not started. How it ended is no error.
pub fn run(
    request: &RunRequest,
    settings: &Settings,
    mount: &MountSettings,
    env: &Env,
    describe: Describe,
    note: &mut dyn FnMut(&str),
) -> Result<Finished, RunError> {
    let signals = child::block_signals();
    let mut wanted = MountRequest { private_ns: request.private_ns, ..request.mount.clone() };
    let is_task = matches!(request.job, Job::Task { .. });
    if is_task || wanted.is_unspecific() {
        wanted.choice = wanted.choice.or_robot_here();
    }
    let program = program(request, &wanted, settings)?;
    let activation = Activation::new(&request.activation, settings, mount, env)?;
    let dir = activation.cwd().join(&program.dir);
    std::fs::read_dir(&dir).map_err(|source| RunError::Directory { path: dir.clone(), source })?;
    if let Some(path) = &program.artifacts {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o750).create(path);
        made.map_err(|source| RunError::Artifacts { path: path.clone(), source })?;
    }
    if let Some(robot) = &program.without_space {
        let ended = run_in(&program, &dir, &activation.plain(robot), true, &signals)?;
        return Ok(Finished { ended, left: None });
    }
    let plan = wanted.plan(settings, mount, env)?;
    for text in plan.notes() {
        note(&format!("holofs: {text}"));
    }
    if request.private_ns {
        cover_base(&plan)?;
    }
    let (mounted, user) = join(&plan, request.keep, describe)?;
    for text in mounted.notes(&plan) {
        note(&format!("holofs: {text}"));
    }
    let ran = activation.of(&mounted, plan.robot()).map_err(RunError::from).and_then(|activated| {
        let ran = run_in(&program, &dir, &activated, plan.robot().is_some(), &signals);
        activated.temp.into_iter().for_each(Temp::remove);
        ran
    });
    child::end_others(mounted.pid, &signals);
    let left = user.and_then(|user| leave(&plan, &user).err());
    match ran {
        Ok(ended) => Ok(Finished { ended, left }),
        Err(error) => {
            if let Some(left) = left {
                tracing::warn!(error = %left, "the space is still mounted");
            }
            Err(error)
        }
    }
}

fn program(request: &RunRequest, wanted: &MountRequest, settings: &Settings) -> Result<Program, RunError> {
    let dir = request.cwd.clone();
    let command = |words| {
        let dir = dir.clone().unwrap_or_default();
        Program { words, before: Vec::new(), dir, artifacts: None, without_space: None }
    };
    match &request.job {
        Job::Command(words) => Ok(command(words.clone())),
        Job::Shell => Ok(command(shell(settings))),
        Job::Task { name, dev, args } => {
            let file = wanted.choice.robot.as_deref().ok_or(RunError::NothingToRun)?;
            let robot = Robot::read(file)?;
            robot.check()?;
            let task = robot.task(name.as_deref(), *dev)?;
            let words = robot.command_line(task)?.into_iter().map(OsString::from);
            let words = words.chain(args.iter().cloned()).collect();
            let before = if *dev { Ok(Vec::new()) } else { robot.pre_run_commands() };
            let before = before.map_err(RunError::PreRunScript)?;
            let dir = dir.clone().unwrap_or_else(|| robot.root().to_owned());
            let artifacts = Some(robot.artifacts());
            let without_space =
                Some(robot).filter(|robot| wanted.is_unspecific() && !robot.has_environment());
            Ok(Program { words, before, dir, artifacts, without_space })
        }
    }
}

/// The user's shell, without its start-up files, because those often set `PATH` anew.
fn shell(settings: &Settings) -> Vec<OsString> {
    let shell = settings.caller.shell.clone().unwrap_or_else(|| "/bin/sh".into());
    let name = Path::new(&shell).file_name().and_then(OsStr::to_str).unwrap_or_default();
    let flags: &[&str] = match name {
        "bash" => &["--noprofile", "--norc", "-i"],
        "zsh" => &["-f", "-i"],
        "fish" => &["--no-config", "-i"],
        _ => &["-i"],
    };
    std::iter::once(shell.clone()).chain(flags.iter().map(OsString::from)).collect()
}

/// Mounts the space, or joins its mount.
fn join(plan: &MountPlan, keep: bool, describe: Describe) -> Result<(Mounted, Option<User>), Error> {
    let state_dir = plan.state_dir();
    let deadline = Instant::now() + plan.lock_timeout;
    loop {
        let mounted = super::start::start(plan, describe)?;
        // A restored space stays.
        if mounted.restored.is_some() {
            return Ok((mounted, None));
        }
        match User::join(&state_dir, mounted.pid, plan.lock_timeout)? {
            Some(user) => {
                if keep {
                    user.keep(&state_dir)?;
                } else if !mounted.reused {
                    user.end_with_runs(&state_dir)?;
                }
                return Ok((mounted, Some(user)));
            }
            // The last run of the space has unmounted it meanwhile.
            None if Instant::now() < deadline => {}
            None => return Err(Error::no_answer(mounted.path, Some(mounted.pid))),
        }
    }
}

/// Covers the directory of all spaces by an empty one that only this process and its children see. The library stays visible
/// if it lies there, as in a shared holotree.
fn cover_base(plan: &MountPlan) -> Result<(), Error> {
    if registry::find(&plan.state_dir())?.is_some() {
        // It is mounted for all to see, which is good enough.
        return Ok(());
    }
    let state_dir = plan.state_dir();
    if let Some(mut record) = SpaceRecord::read(&state_dir)? {
        // What an earlier mount wrote beside the space is hidden, which must not mean that rcc has deleted the space.
        StateDir::open_locked(&state_dir)?.note_unpublished(&mut record)?;
    }
    let base = plan.space.base();
    let library = Some(&*plan.location.path).filter(|path| path.starts_with(base) && *path != base);
    private_ns::cover(base, library).map_err(|error| {
        let problem = MountpointProblem::Refused(plain(&error));
        SpaceError::Mountpoint { path: plan.space.mountpoint.clone(), problem }.into()
    })
}

/// Unmounts the space if this was the last run that used it, and a run mounted it.
fn leave(plan: &MountPlan, user: &User) -> Result<(), Error> {
    let state_dir = plan.state_dir();
    if !user.is_last(&state_dir)? {
        return Ok(());
    }
    let Some(live) = registry::find(&state_dir)? else { return Ok(()) };
    unmount(&live, Some(&state_dir), How { lazy: false, force: false, timeout: ENDING }).map(drop)
}

fn run_in(
    program: &Program,
    dir: &Path,
    activated: &Activated,
    is_robot: bool,
    signals: &Signals,
) -> Result<Ended, RunError> {
    let mut variables = activated.variables.clone();
    if !is_robot {
        // The last `PATH` so far is the one with which the environment was built, on another machine perhaps.
        variables.push(Variable { name: "PATH".to_owned(), value: activated.path.clone() });
    }
    let start = |words: &[OsString]| {
        if let Some(ended) = child::asked_to_end(signals).map_err(RunError::Wait)? {
            return Ok(ended);
        }
        let path = locate(words, &activated.path, dir, program.artifacts.is_some())?;
        child::run(&path, words, &variables, dir, signals)
            .map_err(|error| RunError::NotStarted { path, why: error.to_string() })
    };
    for script in &program.before {
        let words: Vec<OsString> = script.iter().map(OsString::from).collect();
        match start(&words)? {
            Ended::Exit(0) => {}
            ended => return Err(RunError::PreRun { script: script.join(" "), code: ended.code() }),
        }
    }
    start(&program.words)
}

/// The program of a command. As in rcc, the program of a task with a slash in its name may be below any directory of `PATH`.
fn locate(words: &[OsString], path: &OsStr, dir: &Path, is_task: bool) -> Result<PathBuf, RunError> {
    let name = words.first().map(OsString::as_os_str).unwrap_or_default();
    let mut found = find(name, path, dir);
    if found == Found::Nothing && is_task {
        let places = std::env::split_paths(path).map(|entry| find(entry.join(name).as_os_str(), path, dir));
        found = places.into_iter().find(|found| *found != Found::Nothing).unwrap_or(Found::Nothing);
    }
    match found {
        Found::At(program) => Ok(program),
        Found::NoProgram(path) => {
            let why = if path.is_dir() { "it is a directory" } else { "it may not be executed" };
            Err(RunError::NotStarted { path, why: why.to_owned() })
        }
        Found::Nothing => Err(RunError::NotFound(name.to_string_lossy().into_owned())),
    }
}
