//! What is known of a mount without touching it: asking a mountpoint whose daemon is dead is an error, and one whose
//! daemon hangs does not answer.

use std::path::{Path, PathBuf};

use crate::space::run::RunInfo;
use crate::space::state::read_state;
use crate::sys::process;

/// Whether the daemon that wrote `run.json` is still there.
#[must_use]
pub fn is_running(run: &RunInfo) -> bool {
    i32::try_from(run.pid).is_ok_and(|pid| process::start_time(pid) == Some(run.start_time))
}

/// Where a space is mounted as long as nobody renames a directory above it.
#[must_use]
pub fn recorded_place(state_dir: &Path, run: Option<&RunInfo>) -> Option<PathBuf> {
    match read_state(state_dir) {
        Ok(Some(state)) => Some(Path::new(&state.content.base).join(state.content.identity)),
        _ => run.map(|run| run.mountpoint.clone()),
    }
}

/// A mountpoint as the kernel shows it: links above it are followed, and it is not touched itself.
#[must_use]
pub fn resolved(mountpoint: &Path) -> PathBuf {
    match (mountpoint.parent().map(Path::canonicalize), mountpoint.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => mountpoint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_above_a_mountpoint_are_followed_and_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("base")).unwrap();
        std::os::unix::fs::symlink(real.join("base"), real.join("alias")).unwrap();
        std::os::unix::fs::symlink("/nowhere", real.join("base/space")).unwrap();
        assert_eq!(resolved(&real.join("alias/space")), real.join("base/space"));
        assert_eq!(resolved(Path::new("/no/such")), Path::new("/no/such"));
    }

    #[test]
    fn process_with_the_same_number_is_another() {
        let mut run = RunInfo { pid: std::process::id(), ..RunInfo::default() };
        assert!(!is_running(&run));
        run.start_time = process::start_time(i32::try_from(run.pid).unwrap()).unwrap();
        assert!(is_running(&run));
    }
}
