//! Settings, limits of the process and of its container, and rcc.

use std::fs::DirBuilder;
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::report::Report;
use crate::session::run::activation;
use crate::settings::{Settings, SettingsError};
use crate::sys::confinement::Confinement;
use crate::sys::{plain, process, tree};

/// How long rcc may take to print its version. It takes 50 ms.
const RCC_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn settings(report: &mut Report, settings: &Settings) {
    match &settings.mount {
        Ok(mount) => match &mount.warning {
            None => report.ok("settings", "all values are valid"),
            Some(warning) => report.warn("settings", warning.clone(), "`holofs config`"),
        },
        Err(error @ SettingsError::Silent { .. }) => {
            report.fail("settings", plain(error), "again when the disk answers, or another --home")
        }
        Err(error) => report.fail("settings", plain(error), "correct this value"),
    }
}

/// What a mount needs of the limits of this process and its container.
pub(super) fn container(report: &mut Report, found: &Confinement) {
    /// A loop allocates 18 MB, and the rest of the daemon 64 MB.
    const MEMORY: u64 = (64 + 3 * 18) << 20;
    let kind = "container";
    report.detail("container", found.container.as_deref().unwrap_or("none"));
    report.detail("cap-sys-admin", found.sys_admin);
    report.detail("seccomp", found.seccomp);
    report.detail("no-new-privs", found.no_new_privs);
    let number = |n: Option<u64>| n.map_or("unlimited".to_owned(), |n| n.to_string());
    report.detail("limit-tasks-left", number(found.tasks_left));
    report.detail("limit-memory-left", number(found.memory_left));
    report.detail("limit-open-files", number(found.open_files));
    let place = found
        .container
        .as_deref()
        .map_or("no container".to_owned(), |name| format!("in a container ({name})"));
    report.ok(kind, place);
    let kind = "limits";
    let before = report.checks.len();
    if let Some(left) = found.tasks_left.filter(|left| *left < 32) {
        let message = format!("{left} more processes and threads may be started, and a mount needs about 10");
        let fix = "a larger --pids-limit";
        if left < 4 { report.fail(kind, message, fix) } else { report.warn(kind, message, fix) }
    }
    if let Some(left) = found.memory_left.filter(|left| *left < 2 * MEMORY) {
        let message = format!("{} MiB of memory are left, and a mount may use {}", left >> 20, MEMORY >> 20);
        report.warn(kind, message, "a larger limit of memory");
    }
    if let Some(files) = found.open_files.filter(|files| *files < 1024) {
        let message = format!("{files} files may be open, so few are kept open for further reads");
        report.warn(kind, message, "a larger `ulimit -n`");
    }
    if report.checks.len() == before {
        report.ok(kind, "processes, memory and open files suffice");
    }
}

/// Looks for rcc, which only some commands need.
pub(super) fn rcc(report: &mut Report, settings: &Settings) {
    let kind = "rcc";
    let here = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let Some(rcc) = activation::rcc(settings, &here) else {
        report.ok(kind, "not on PATH; only `--build` and the robot's own rcc need it");
        return;
    };
    report.detail("rcc.bin", rcc.display());
    match version(&rcc) {
        Ok(version) => {
            report.ok(kind, format!("{} {version}", rcc.display()));
            report.detail("rcc", version);
        }
        Err(why) => {
            report.warn(kind, format!("{}: {why}", rcc.display()), "install rcc again, or set HOLOFS_RCC")
        }
    }
}

/// Asks rcc for its version. rcc makes the directories of its home whatever it is asked, so it gets a temporary one; and it
/// gets no network.
fn version(rcc: &Path) -> Result<String, String> {
    let home = Temporary::new().map_err(|error| plain(&error))?;
    let mut command = Command::new(rcc);
    command.arg("version").env_clear().current_dir("/");
    for variable in ["HOME", "ROBOCORP_HOME", "TMPDIR"] {
        command.env(variable, &home.0);
    }
    for variable in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
        command.env(variable, "http://127.0.0.1:9");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| plain(&error))?;
    let deadline = Instant::now() + RCC_TIMEOUT;
    let said = match child.stdout.take() {
        Some(stdout) => process::read_until(stdout.into(), deadline).map_err(|error| plain(&error))?,
        None => None,
    };
    if said.is_none()
        && let Err(error) = child.kill()
    {
        tracing::debug!(%error, "cannot end rcc");
    }
    let ended = child.wait().map_err(|error| plain(&error))?;
    let text = said.ok_or_else(|| format!("no answer within {} s", RCC_TIMEOUT.as_secs()))?;
    let mut line = String::new();
    text.take(200).read_to_string(&mut line).map_err(|error| plain(&error))?;
    let line = line.lines().next().unwrap_or_default().trim().to_owned();
    if ended.success() && !line.is_empty() { Ok(line) } else { Err(format!("it has no version ({ended})")) }
}

/// A directory that is removed when this value is dropped.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> std::io::Result<Self> {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let number = since.map_or(0, |since| since.subsec_nanos());
        let path = PathBuf::from(format!("/tmp/holofs-doctor.{}.{number}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(errno) = tree::remove(rustix::fs::CWD, self.0.as_path()) {
            tracing::warn!(path = %self.0.display(), %errno, "cannot remove a temporary directory");
        }
    }
}
