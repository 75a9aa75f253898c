//! `run.json`: which daemon serves a space, and with which options.
//!
//! The file is true only while its daemon runs, so nothing on disk depends on it. Daemons of other versions of holofs may
//! have written it: a word that this version does not know is logged, and read as None.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::value::Error as WordError;
use serde::de::{DeserializeOwned, IntoDeserializer};
use serde::{Deserialize, Deserializer, Serialize};

use crate::materialize::ReflinkProbe;
use crate::settings::{IoMode, Prefetch, Strategy, Verify};
use crate::sys::guarded;
use crate::sys::process;

/// The file's name in the space's state directory.
pub(crate) const FILE: &str = "run.json";

/// Longer than any `run.json` that holofs writes.
const MAX_LEN: u64 = 1 << 20;

/// The daemon that serves a space.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(Default))]
pub struct RunInfo {
    /// The process that keeps the mount: the keeper.
    pub pid: u32,
    /// When that process started, in clock ticks since boot. A later process may have the same number.
    pub start_time: u64,
    /// The process that answers the kernel, a child of the keeper. None in the record of an older version, in which the two
    /// are one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<Process>,
    /// The version of the program that answers. None in the record of an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How often that process was replaced.
    #[serde(default)]
    pub restarts: u64,
    /// How the last one died.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_death: Option<Death>,
    /// Where it was mounted. The mount moves when a directory above it is renamed.
    pub mountpoint: PathBuf,
    /// The mount's device number as `major:minor`, by which mountinfo shows the mount wherever it moves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dev: Option<String>,
    /// The strategy in force.
    #[serde(default, deserialize_with = "known")]
    pub strategy: Option<Strategy>,
    /// The I/O mode in force.
    #[serde(default, deserialize_with = "known")]
    pub io: Option<IoMode>,
    /// Whether the space can share extents with its library.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reflink: Option<ReflinkProbe>,
    /// When it was mounted, in seconds since the epoch. None while the clock shows a time before the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<u64>,
    /// Every change is refused.
    #[serde(default)]
    pub read_only: bool,
    /// The changes are dropped at unmount.
    #[serde(default)]
    pub ephemeral: bool,
    /// Further options in force. None in the record of an older version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extra: Option<Extra>,
}

/// A process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
}

impl Process {
    /// Whether it still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        i32::try_from(self.pid).is_ok_and(|pid| process::start_time(pid) == Some(self.start_time))
    }
}

/// The death of a worker.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Death {
    /// The name of the signal, or the exit code in words.
    pub cause: String,
    /// When, in seconds since the epoch.
    pub at: u64,
}

/// The options of a mount that `run.json` keeps under `extra`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Extra {
    /// Other users may use the mount.
    pub allow_other: bool,
    /// Mount options by name.
    pub options: Vec<String>,
    /// What is unpacked in the background.
    pub prefetch: Option<Prefetch>,
    /// A process unmounts the space when the daemon was killed.
    #[serde(skip_serializing_if = "is_false")]
    pub auto_unmount: bool,
    /// Bytecode was asked for.
    #[serde(skip_serializing_if = "is_false")]
    pub pycache: bool,
    /// Bytecode is shown.
    #[serde(skip_serializing_if = "is_false")]
    pub bytecode: bool,
    /// How many bytes of unpacked blobs the cache may keep.
    pub cache_size: u64,
    /// When blobs are verified. None in the record of an older version.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "known")]
    pub verify: Option<Verify>,
    /// The directory of the cache. None in the record of an older version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<PathBuf>,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl RunInfo {
    /// Whether the daemon still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.processes().any(|process| process.is_running())
    }

    /// The process that should answer the kernel: the worker, or the keeper, which starts one.
    #[must_use]
    pub fn server(&self) -> u32 {
        self.worker.filter(Process::is_running).map_or(self.pid, |worker| worker.pid)
    }

    /// Whether the keeper runs. Without it, nothing replaces the worker.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        Process { pid: self.pid, start_time: self.start_time }.is_running()
    }

    /// The keeper, and the worker.
    pub fn processes(&self) -> impl Iterator<Item = Process> {
        [Process { pid: self.pid, start_time: self.start_time }].into_iter().chain(self.worker)
    }
}

/// Reads `run.json`. None if the file does not exist or cannot be read.
#[must_use]
pub fn read_run(dir: &Path) -> Option<RunInfo> {
    let path = dir.join(FILE);
    let read = match guarded::read(&path, MAX_LEN) {
        Err(error) if error.is_not_found() => return None,
        read => read.map_err(io::Error::from),
    };
    read.and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
        .inspect_err(
            |error| tracing::debug!(path = %path.display(), %error, "the record of the daemon is ignored"),
        )
        .ok()
}

fn known<'de, D: Deserializer<'de>, T: DeserializeOwned>(value: D) -> Result<Option<T>, D::Error> {
    let word = Option::<String>::deserialize(value)?;
    let known = word.map(|word| T::deserialize(word.into_deserializer())).transpose();
    Ok(known.unwrap_or_else(|error: WordError| {
        tracing::debug!(%error, "run.json was written by another version of holofs");
        None
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_other_versions_are_not_taken_for_known_ones() {
        let dir = tempfile::tempdir().unwrap();
        let read = |words: &str| {
            let text = format!(r#"{{"pid": 1, "start_time": 2, "mountpoint": "/m"{words}}}"#);
            std::fs::write(dir.path().join(FILE), text).unwrap();
            let run = read_run(dir.path()).unwrap();
            (run.strategy, run.io)
        };
        assert_eq!(read(r#", "strategy": "sparse", "io": "cached""#), (None, Some(IoMode::Cached)));
        assert_eq!(read(r#", "strategy": "copy", "io": """#), (Some(Strategy::Copy), None));
        // The daemon of an older version.
        assert_eq!(read(r#", "materialized": {"copy": 1}"#), (None, None));
    }

    #[test]
    fn prefetch_is_a_word_or_a_path() {
        for (text, prefetch) in [
            ("null", None),
            (r#""own""#, Some(Prefetch::Own)),
            (r#""/a/profile""#, Some(Prefetch::From("/a/profile".into()))),
        ] {
            let text = format!(r#"{{"allow_other":false,"options":[],"prefetch":{text},"cache_size":0}}"#);
            let extra: Extra = serde_json::from_str(&text).unwrap();
            assert_eq!(extra.prefetch, prefetch);
            assert_eq!(serde_json::to_string(&extra).unwrap(), text);
        }
    }

    #[test]
    fn record_that_is_not_whole_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_run(dir.path()), None);
        std::fs::write(dir.path().join(FILE), r#"{"pid": 1"#).unwrap();
        assert_eq!(read_run(dir.path()), None);
    }

    #[test]
    fn process_with_the_same_number_is_another() {
        let mut run = RunInfo { pid: std::process::id(), ..RunInfo::default() };
        assert!(!run.is_running());
        run.start_time = process::start_time(i32::try_from(run.pid).unwrap()).unwrap();
        assert!(run.is_running());
    }
}
