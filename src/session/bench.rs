//! `holofs bench`: times the ways to get an environment, as a user would run them: this program's commands, and rcc.
//!
//! Each run makes a new space in the directory that the catalog names, because the environment works nowhere else. The
//! spaces of one benchmark have names of their own, and a home of their own for holofs's files, so that the first run finds
//! empty caches. All are removed at the end and not in between, because ext4 does not use the inodes of removed files again
//! for some seconds, which would slow down the next run.
//!
//! Before each run the filesystem is synced: no run waits for the writes of another one. What a run writes is counted from
//! its report, and for rcc from the files that it made.

pub(super) mod made;

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;
use serde_json::Value;

use self::made::{Made, end_mount, in_home};
use super::environment::Environment;
use super::error::Error;
use super::request::MountPlan;
use crate::library::index::{Index, NodeId, NodeKind};
use crate::library::{LibraryError, name};
use crate::sys::guarded::Dir;
use crate::sys::plain;

/// What to time.
#[derive(Debug)]
pub struct Wishes<'a> {
    /// The number of runs of each way.
    pub runs: u32,
    /// The program to compare with: rcc.
    pub against: Option<OsString>,
    /// Ends the benchmark when it is set.
    pub cancel: &'a AtomicBool,
}

/// One way to get the environment.
#[derive(Debug, Serialize)]
pub struct Timed {
    /// Its name.
    pub how: String,
    pub median_ms: f64,
    pub slowest_ms: f64,
    /// In the order of the runs.
    pub runs_ms: Vec<f64>,
    /// What the last run wrote to files.
    pub bytes_written: u64,
}

/// The result of a benchmark. The keys of `holofs bench --json`.
#[derive(Debug, Serialize)]
pub struct Benched {
    pub library: PathBuf,
    pub blueprint: String,
    pub entries: u32,
    pub files: u64,
    pub bytes: u64,
    /// The filesystem of the spaces.
    pub filesystem: String,
    pub rows: Vec<Timed>,
    /// Why a way was left out.
    pub notes: Vec<String>,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The environment cannot be used.
    #[error(transparent)]
    Session(#[from] Error),
    /// A command could not be started.
    #[error("{program}: {}", plain(.source))]
    NotStarted {
        /// The program.
        program: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A command that must not fail has failed.
    #[error("{how}: {why}")]
    Failed {
        /// What was timed.
        how: String,
        /// The end of what the command said.
        why: String,
    },
    /// There is no room for all runs.
    #[error("{path}: {needed} MB are needed, and {free} MB are free")]
    NoRoom {
        /// The directory of the spaces.
        path: PathBuf,
        /// In megabytes.
        needed: u64,
        /// In megabytes.
        free: u64,
    },
    /// The user interrupted it.
    #[error("interrupted")]
    Interrupted,
}

/// A way to get the environment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Mount,
    Restore(&'static str),
    Rcc,
}

/// The environment to get, and what was made so far.
struct Bench<'a> {
    plan: &'a MountPlan,
    wishes: &'a Wishes<'a>,
    program: PathBuf,
    /// Its home has holofs's files, and `conda.yaml` for rcc.
    made: Made,
    base: Dir,
    /// How many spaces were begun.
    spaces: u32,
}

/// Times all ways. `step` is told how many runs there are, and then of each run.
///
/// # Errors
/// See [`BenchError`]. Nothing is left.
pub fn bench(
    plan: &MountPlan,
    wishes: &Wishes<'_>,
    step: &mut dyn FnMut(u64, &str),
) -> Result<Benched, BenchError> {
    let environment = Environment::open(&plan.location, &plan.catalog, &plan.env)?;
    let (files, bytes) = sizes(&environment.index).map_err(|error| Error::from(LibraryError::from(error)))?;
    let program = std::env::current_exe()
        .map_err(|source| BenchError::NotStarted { program: "holofs".to_owned(), source })?;
    let base = super::restore::base_of(plan)?;
    check_room(&base, bytes, wishes)?;
    let conda = environment.identity_text()?.unwrap_or_default();
    let made = Made::make(&plan.env)?;
    let mut bench = Bench { plan, wishes, program, made, base, spaces: 0 };
    let written = std::fs::write(bench.made.home.join("conda.yaml"), conda)
        .map_err(|source| BenchError::NotStarted { program: "conda.yaml".to_owned(), source });
    let timed = written.and_then(|()| bench.all(step));
    bench.made.remove(&bench.program, &plan.env);
    let (rows, notes) = timed?;
    Ok(Benched {
        library: plan.location.path.clone(),
        blueprint: plan.catalog.blueprint.clone(),
        entries: environment.index.len(),
        files,
        bytes,
        filesystem: crate::sys::filesystem::name(&bench.base),
        rows,
        notes,
    })
}

impl Bench<'_> {
    fn all(&mut self, step: &mut dyn FnMut(u64, &str)) -> Result<(Vec<Timed>, Vec<String>), BenchError> {
        let (mut rows, mut notes) = (Vec::new(), Vec::new());
        let runs = u64::from(self.wishes.runs);
        let mut ways = vec![
            ("mount", Way::Mount),
            ("restore by copy", Way::Restore("copy")),
            ("restore by reflink", Way::Restore("reflink")),
            ("restore by hardlink", Way::Restore("hardlink")),
        ];
        if self.wishes.against.is_some() {
            ways.insert(0, ("rcc", Way::Rcc));
        }
        step(runs * ways.len() as u64, "");
        for (how, way) in ways {
            // The first run of a way that fills a cache is another thing than those that use it. By reflink, the cache gets
            // the blocks of the last copy then.
            let has_first = !matches!(way, Way::Rcc | Way::Restore("copy"));
            let mut timed = Vec::new();
            for run in 0..runs + u64::from(has_first) {
                step(0, &format!("{how}, run {}", run + 1));
                match self.run(how, way) {
                    Ok(done) => timed.push(done),
                    // A filesystem without reflinks, or a machine without FUSE.
                    Err(BenchError::Failed { how, why }) if timed.is_empty() => {
                        notes.push(format!("no {how}: {why}"));
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
            if has_first && !timed.is_empty() {
                rows.extend(row(&format!("{how}, with empty caches"), vec![timed.remove(0)]));
            }
            rows.extend(row(how, timed));
        }
        Ok((rows, notes))
    }

    /// Makes the environment in a new space. Returns the milliseconds and the bytes that were written to files.
    fn run(&mut self, how: &str, way: Way) -> Result<(f64, u64), BenchError> {
        if self.wishes.cancel.load(Ordering::Relaxed) {
            return Err(BenchError::Interrupted);
        }
        let space = format!("bench-{}-{}", std::process::id(), self.spaces);
        let place = self.place(&space);
        let mut command = match way {
            Way::Mount => self.holofs("mount", &space),
            Way::Restore(strategy) => {
                let mut command = self.holofs("restore", &space);
                command.args(["--strategy", strategy]);
                command
            }
            Way::Rcc => self.rcc(&space),
        };
        self.spaces += 1;
        self.made
            .add(&place)
            .map_err(|source| BenchError::NotStarted { program: "places".to_owned(), source })?;
        if let Ok(fd) =
            rustix::fs::open(self.base.path(), rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())
            && let Err(errno) = rustix::fs::syncfs(fd)
        {
            tracing::debug!(%errno, "cannot sync the filesystem before a run");
        }
        let program = command.get_program().to_string_lossy().into_owned();
        let started = Instant::now();
        let done = self.made.lock.try_clone().and_then(|lock| command.stdin(lock).output());
        let done = done.map_err(|source| BenchError::NotStarted { program, source })?;
        let ms = started.elapsed().as_secs_f64() * 1e3;
        if self.wishes.cancel.load(Ordering::Relaxed) {
            return Err(BenchError::Interrupted);
        }
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            let why =
                said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it failed and said nothing");
            let why = why.trim_start_matches("holofs: ").to_owned();
            return Err(BenchError::Failed { how: how.to_owned(), why });
        }
        let written = match way {
            Way::Mount => {
                end_mount(&place, &self.program, &self.made.home, &self.made.lock, &self.plan.env);
                0
            }
            Way::Restore(_) => written(&serde_json::from_slice(&done.stdout).unwrap_or_default()),
            Way::Rcc => bytes_in(&place),
        };
        Ok((ms, written))
    }

    fn holofs(&self, verb: &str, space: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(verb).arg(&self.plan.location.path).arg(space);
        command.args(["--json", "--blueprint", &self.plan.catalog.blueprint]);
        in_home(&mut command, &self.made.home, &self.plan.env);
        command
    }

    /// rcc finds the environment by the text of its blueprint, and takes no robot.yaml from its own directory.
    fn rcc(&self, space: &str) -> Command {
        let mut command = Command::new(self.wishes.against.as_deref().unwrap_or(OsStr::new("rcc")));
        command.args(["holotree", "variables", "--no-build", "--space", space, "conda.yaml"]);
        command.env("ROBOCORP_HOME", &self.plan.env.robocorp_home).current_dir(&self.made.home);
        command
    }

    /// The commands are called without a controller, so they take the default.
    fn place(&self, space: &str) -> PathBuf {
        self.base.path().join(name::identity(self.plan.env.home_bytes(), "user", space).as_str())
    }
}

/// The number of files, and their bytes.
fn sizes(index: &Index) -> Result<(u64, u64), crate::library::index::IndexError> {
    let (mut files, mut bytes) = (0, 0);
    for node in (0..index.len()).map(NodeId) {
        if let NodeKind::File { size, .. } = index.node(node)?.kind {
            (files, bytes) = (files + 1, bytes + size);
        }
    }
    Ok((files, bytes))
}

/// Copies, the cache for reflinks and that for hard links, and rcc's copies need room.
fn check_room(base: &Dir, bytes: u64, wishes: &Wishes<'_>) -> Result<(), BenchError> {
    let runs = u64::from(wishes.runs);
    let copies = runs + 3 + if wishes.against.is_some() { runs } else { 0 };
    let Ok(found) = rustix::fs::fstatvfs(base) else { return Ok(()) };
    let (needed, free) = (copies * bytes * 11 / 10 / 1_000_000, found.f_bavail * found.f_frsize / 1_000_000);
    if needed <= free {
        Ok(())
    } else {
        Err(BenchError::NoRoom { path: base.path().to_owned(), needed, free })
    }
}

fn row(how: &str, timed: Vec<(f64, u64)>) -> Option<Timed> {
    let bytes_written = timed.last()?.1;
    let runs_ms: Vec<f64> = timed.into_iter().map(|(ms, _)| ms).collect();
    let mut sorted = runs_ms.clone();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let (below, above) = (sorted.get(middle.saturating_sub(1))?, sorted.get(middle)?);
    let median_ms = if sorted.len() % 2 == 1 { *above } else { f64::midpoint(*below, *above) };
    Some(Timed { how: how.to_owned(), median_ms, slowest_ms: *sorted.last()?, runs_ms, bytes_written })
}

/// What a restore wrote, from its report.
fn written(restored: &Value) -> u64 {
    let of = |way: &str| {
        restored.pointer(&format!("/report/{way}/bytes_written")).and_then(Value::as_u64).unwrap_or_default()
    };
    ["copy", "reflink", "hardlink", "cached"].iter().map(|way| of(way)).sum()
}

/// The bytes of all regular files below a directory.
fn bytes_in(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |path: PathBuf| match path.symlink_metadata() {
        Ok(found) if found.is_dir() => bytes_in(&path),
        Ok(found) if found.is_file() => found.size(),
        _ => 0,
    };
    entries.map(|entry| size(entry.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even_numbers_of_runs() {
        let timed = |runs: &[f64]| row("x", runs.iter().map(|ms| (*ms, 7)).collect()).unwrap();
        assert_eq!(timed(&[3.0, 1.0, 2.0]).median_ms, 2.0);
        assert_eq!(timed(&[4.0, 1.0]).median_ms, 2.5);
        let one = timed(&[4.0]);
        assert_eq!((one.median_ms, one.slowest_ms, one.bytes_written), (4.0, 4.0, 7));
        assert!(row("x", Vec::new()).is_none());
    }
}
