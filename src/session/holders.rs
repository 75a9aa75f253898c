//! Finds who keeps a mount alive: processes that use it, and other mount namespaces that contain it.
//!
//! Invariant: only `/proc` is read, never the mount, and for at most [`SCAN_TIMEOUT`]. The result may be outdated when it is
//! shown. Processes that this user may not inspect are not found.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::sys::guarded::read_at_most;
use crate::sys::mountinfo;

/// On a machine with many thousands of processes the search stops after this time.
const SCAN_TIMEOUT: Duration = Duration::from_secs(1);

/// How many processes are reported.
const MOST: usize = 5;

/// How much of a process's mountinfo is read.
const MAX_TABLE: u64 = 8 << 20;

/// A process whose mount namespace contains the mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// Its name, as in `/proc/PID/comm`.
    pub command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.pid, self.command)
    }
}

/// The processes whose mount namespaces contain the filesystem with this device number and source. The number alone is
/// not enough, because the kernel reuses it for the next filesystem.
pub(super) fn that_see(dev: &str, source: &str) -> Vec<Holder> {
    let sees = |pid: &u32| {
        let table = std::fs::File::open(format!("/proc/{pid}/mountinfo")).ok();
        let table = table.and_then(|file| read_at_most(&file, MAX_TABLE).ok()).unwrap_or_default();
        mountinfo::parse(&table).iter().any(|mount| mount.dev == dev && mount.source == source)
    };
    let named = |pid| Holder {
        pid,
        command: std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned(),
    };
    processes().filter(sees).take(MOST).map(named).collect()
}

/// The processes that have their directory, their program or an open file below a path.
pub(super) fn that_use(mountpoint: &Path) -> Vec<u32> {
    processes().filter(|pid| uses(*pid, mountpoint)).collect()
}

fn processes() -> impl Iterator<Item = u32> {
    let deadline = Instant::now() + SCAN_TIMEOUT;
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .take_while(move |_| Instant::now() < deadline)
}

fn uses(pid: u32, mountpoint: &Path) -> bool {
    let base = PathBuf::from(format!("/proc/{pid}"));
    let below = |link: &Path| std::fs::read_link(link).is_ok_and(|target| target.starts_with(mountpoint));
    if ["cwd", "root", "exe"].iter().any(|name| below(&base.join(name))) {
        return true;
    }
    std::fs::read_dir(base.join("fd")).is_ok_and(|fds| fds.flatten().any(|fd| below(&fd.path())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_sees_what_it_has_mounted() {
        let proc =
            mountinfo::mounts().unwrap().into_iter().find(|m| m.mountpoint == Path::new("/proc")).unwrap();
        let found = that_see(&proc.dev, &proc.source);
        assert!(!found.is_empty() && found.len() <= MOST);
        assert!(found.iter().all(|holder| !holder.command.is_empty()), "{found:?}");
        assert_eq!(that_see(&proc.dev, "another"), []);
        assert_eq!(that_see("0:1048575", &proc.source), []);
    }
}
