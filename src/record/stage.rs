//! The stage is the directory in which the environment is built. The recorder searches files for its name afterwards.
//!
//! Other users may be able to write to the holotree. So the stage is made, filled and removed by descriptor.
//!
//! Invariant: dropping a stage removes it, unless it is to be kept.

use std::ffi::{OsStr, OsString};
use std::fs::Permissions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::AtFlags;

use super::error::RecordError;
use super::store::replace;
use crate::sys::guarded::{Dir, Problem, Trust};
use crate::sys::tree;

/// The variable that holds the path of the stage for the command.
const VARIABLE: &str = "HOLOFS_STAGE";
/// The name of the blueprint's file in the environment.
const BLUEPRINT: &str = "identity.yaml";
/// How long a cancelled command may take to end before it is killed.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Stage<'h> {
    holotree: &'h Dir,
    name: OsString,
    dir: Dir,
    keep: bool,
}

impl<'h> Stage<'h> {
    /// Makes the stage with mode 0755, whatever the umask is. An existing directory is used if it is empty and nobody
    /// else may write to it.
    ///
    /// # Errors
    /// When the stage is not empty: an interrupted recording left it, or rcc is at work.
    pub(super) fn make(holotree: &'h Dir, name: &OsStr, keep: bool) -> Result<Self, RecordError> {
        let in_use = || RecordError::StageInUse { path: holotree.path().join(name) };
        let dir = match holotree.make_dir_with(name, 0o755, true) {
            Ok((dir, true)) => dir,
            Ok((dir, false)) if !dir.is_empty()? => return Err(in_use()),
            Ok((_, false)) => holotree.open_dir(name, Trust::Private)?,
            Err(error) if matches!(error.problem, Problem::NotADirectory(_)) => return Err(in_use()),
            Err(error) => return Err(error.into()),
        };
        Ok(Self { holotree, name: name.to_owned(), dir, keep })
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Runs the command in the stage. Its standard output goes to standard error, because standard output is for our
    /// own result.
    ///
    /// # Errors
    /// When the command cannot be started, fails, or is cancelled.
    pub(super) fn run(&self, command: &[OsString], cancel: &AtomicBool) -> Result<(), RecordError> {
        let (program, args) = command.split_first().ok_or(RecordError::NoCommand)?;
        let start = |source| RecordError::CommandStart { program: program.clone(), source };
        let stderr = io::stderr().as_fd().try_clone_to_owned().map_err(start)?;
        let mut child = Command::new(program)
            .args(args)
            .current_dir(self.path())
            .env(VARIABLE, self.path())
            .stdout(Stdio::from(stderr))
            .spawn()
            .map_err(start)?;
        let status = wait(&mut child, cancel).map_err(start)?;
        if cancel.load(Ordering::Relaxed) {
            return Err(RecordError::Interrupted);
        }
        if !status.success() {
            return Err(RecordError::CommandFailed { program: program.clone(), status });
        }
        Ok(())
    }

    /// Writes the blueprint into the environment. This replaces what the command put there; a link is replaced and not
    /// followed.
    pub(super) fn put_blueprint(&self, blueprint: &str) -> Result<(), RecordError> {
        use std::io::Write;
        replace(&self.dir, BLUEPRINT.as_ref(), false, |file| {
            file.set_permissions(Permissions::from_mode(0o644))?;
            file.write_all(blueprint.as_bytes())
        })
        .map_err(RecordError::io(self.path().join(BLUEPRINT)))
    }

    /// Removes the stage, unless it is to be kept.
    pub(super) fn finish(mut self) -> Result<(), RecordError> {
        // Dropping the stage must not remove it a second time.
        let keep = std::mem::replace(&mut self.keep, true);
        if keep { Ok(()) } else { self.remove().map_err(RecordError::io(self.path())) }
    }

    /// Removes the tree, with directories that their owner may not write to.
    fn remove(&self) -> io::Result<()> {
        if !self.holotree.still_has(&self.name, &self.dir) {
            return match std::fs::symlink_metadata(self.path()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                _ => Err(io::Error::other(
                    "another file or directory is in the place of the stage, and is not removed",
                )),
            };
        }
        tree::clear(self.dir.as_fd().try_clone_to_owned()?, &|| ())?;
        Ok(rustix::fs::unlinkat(self.holotree, &self.name, AtFlags::REMOVEDIR)?)
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = self.remove()
        {
            tracing::warn!(stage = %self.path().display(), %error, "cannot remove the stage");
        }
    }
}

/// Waits for the command. If `cancel` is set, the command gets SIGTERM, and SIGKILL when it has not ended after
/// [`GRACE`].
fn wait(child: &mut Child, cancel: &AtomicBool) -> io::Result<ExitStatus> {
    let mut pause = Duration::from_millis(1);
    let mut told: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        match told {
            None if cancel.load(Ordering::Relaxed) => {
                let pid = rustix::process::Pid::from_child(child);
                rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
                told = Some(Instant::now());
            }
            Some(since) if since.elapsed() > GRACE => child.kill()?,
            _ => {}
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Vec<OsString> {
        ["sh", "-c", script].map(OsString::from).to_vec()
    }

    /// A holotree in a directory.
    fn holotree(dir: &tempfile::TempDir) -> Dir {
        Dir::open(dir.path(), Trust::Shared).unwrap()
    }

    fn stage(holotree: &Dir) -> Stage<'_> {
        Stage::make(holotree, OsStr::new("stage"), false).unwrap()
    }

    static NEVER: AtomicBool = AtomicBool::new(false);

    #[test]
    fn command_runs_in_the_stage_and_gets_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let holotree = holotree(&dir);
        let stage = stage(&holotree);
        stage.run(&sh(r#"test "$PWD" = "$HOLOFS_STAGE" && echo hello > file"#), &NEVER).unwrap();
        assert_eq!(std::fs::read(stage.path().join("file")).unwrap(), b"hello\n");
        let mode = std::fs::metadata(stage.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        stage.finish().unwrap();
        assert!(!dir.path().join("stage").exists());
    }

    #[test]
    fn failed_command_returns_its_status_and_leaves_no_stage() {
        let dir = tempfile::tempdir().unwrap();
        let holotree = holotree(&dir);
        let stage = stage(&holotree);
        let error = stage.run(&sh("mkdir -p a/b && chmod 0555 a && exit 7"), &NEVER).unwrap_err();
        assert_eq!(error.command_status(), Some(7));
        let error = stage.run(&sh("kill -9 $$"), &NEVER).unwrap_err();
        assert_eq!(error.command_status(), Some(128 + 9));
        let error = stage.run(&["/no/such/program".into()], &NEVER).unwrap_err();
        assert_eq!(error.command_status(), Some(127));
        assert!(error.to_string().contains("/no/such/program"), "{error}");
        drop(stage);
        assert!(!dir.path().join("stage").exists());
    }

    #[test]
    fn stage_that_is_not_empty_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stage");
        let holotree = holotree(&dir);
        std::fs::create_dir(&path).unwrap();
        drop(Stage::make(&holotree, OsStr::new("stage"), true).unwrap());
        std::fs::write(path.join("work"), "x").unwrap();
        let error = Stage::make(&holotree, OsStr::new("stage"), false).unwrap_err();
        assert!(matches!(error, RecordError::StageInUse { .. }), "{error}");
        assert!(path.join("work").exists());
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        assert!(Stage::make(&holotree, OsStr::new("link"), false).is_err());
    }

    #[test]
    fn an_empty_stage_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stage");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
        let holotree = holotree(&dir);
        let error = Stage::make(&holotree, OsStr::new("stage"), false).unwrap_err();
        assert!(error.to_string().contains("other users may write"), "{error}");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o777);
    }

    #[test]
    fn replaced_stage_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let holotree = holotree(&dir);
        let stage = stage(&holotree);
        std::fs::rename(stage.path(), dir.path().join("away")).unwrap();
        std::fs::create_dir(stage.path()).unwrap();
        std::fs::write(stage.path().join("precious"), "x").unwrap();
        let path = stage.path().to_owned();
        let error = stage.finish().unwrap_err();
        assert!(error.to_string().contains("another file or directory"), "{error}");
        assert!(path.join("precious").exists());
    }

    #[test]
    fn cancelled_command_is_terminated() {
        let dir = tempfile::tempdir().unwrap();
        let holotree = holotree(&dir);
        let stage = stage(&holotree);
        let begun = Instant::now();
        let error = stage.run(&sh("exec sleep 60"), &AtomicBool::new(true)).unwrap_err();
        assert!(matches!(error, RecordError::Interrupted), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn the_blueprint_replaces_a_link_and_does_not_follow_it() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::write(&outside, "precious").unwrap();
        let holotree = holotree(&dir);
        let stage = stage(&holotree);
        let place = stage.path().join(BLUEPRINT);
        std::os::unix::fs::symlink(&outside, &place).unwrap();
        stage.put_blueprint("a: b").unwrap();
        assert_eq!(std::fs::read(&outside).unwrap(), b"precious");
        assert_eq!(std::fs::read(&place).unwrap(), b"a: b");
        let metadata = std::fs::symlink_metadata(&place).unwrap();
        assert!(metadata.is_file() && metadata.permissions().mode() & 0o7777 == 0o644);
    }
}
