//! What confines this process: a container, missing capabilities, limits of a cgroup. Reads files of `/proc` and
//! `/sys/fs/cgroup`, which do not block.

use std::path::{Path, PathBuf};

use rustix::process::Resource;
use rustix::thread::CapabilitySet;

/// The confinement of this process.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Confinement {
    /// What shows that this is a container: `docker`, `podman`, `kubepods`. None outside one, as far as can be seen.
    pub container: Option<String>,
    /// CAP_SYS_ADMIN is in force.
    pub sys_admin: bool,
    /// A seccomp filter is in force.
    pub seccomp: bool,
    /// setuid programs, such as fusermount3, get no privilege (`no_new_privs`).
    pub no_new_privs: bool,
    /// How many more processes and threads may be started.
    pub tasks_left: Option<u64>,
    /// How many more bytes of memory may be used.
    pub memory_left: Option<u64>,
    /// How many files may be open.
    pub open_files: Option<u64>,
}

impl Confinement {
    /// Reads the confinement of this process.
    #[must_use]
    pub fn read() -> Self {
        let status = text("/proc/self/status");
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let sets = rustix::thread::capabilities(None);
        let group = Group::of_this_process(&text("/proc/self/cgroup"));
        let files = rustix::process::getrlimit(Resource::Nofile);
        Self {
            container: container(),
            sys_admin: sets.is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN)),
            seccomp: field("Seccomp").is_some_and(|mode| mode != "0"),
            no_new_privs: field("NoNewPrivs") == Some("1"),
            tasks_left: group.left("pids", "pids.max", "pids.current", "pids.max", "pids.current"),
            memory_left: group.left(
                "memory",
                "memory.max",
                "memory.current",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            ),
            open_files: files.maximum,
        }
    }
}

/// The container runtime, by the marks that runtimes leave.
fn container() -> Option<String> {
    for (mark, name) in [("/.dockerenv", "docker"), ("/run/.containerenv", "podman")] {
        if Path::new(mark).exists() {
            return Some(name.to_owned());
        }
    }
    if Path::new("/var/run/secrets/kubernetes.io").exists() {
        return Some("kubernetes".to_owned());
    }
    // Only root can read the environment of process 1.
    let first = std::fs::read("/proc/1/environ").unwrap_or_default();
    let variable = first.split(|byte| *byte == 0).find_map(|one| one.strip_prefix(b"container="));
    let by_variable = variable.map(|name| String::from_utf8_lossy(name).into_owned());
    let groups = text("/proc/1/cgroup");
    let names = ["docker", "kubepods", "containerd", "libpod", "lxc"];
    by_variable.or_else(|| names.iter().find(|name| groups.contains(**name)).map(|name| (*name).to_owned()))
}

/// The control groups of a process.
struct Group {
    /// In the one hierarchy of version 2.
    unified: Option<PathBuf>,
    /// Of version 1, by controller.
    lines: Vec<(String, PathBuf)>,
}

impl Group {
    fn of_this_process(table: &str) -> Self {
        let mut found = Self { unified: None, lines: Vec::new() };
        for line in table.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            let path = PathBuf::from(path.trim_start_matches('/'));
            if controllers.is_empty() {
                found.unified = Some(path);
            } else {
                let names = controllers.split(',').map(|name| (name.to_owned(), path.clone()));
                found.lines.extend(names);
            }
        }
        found
    }

    /// The smallest rest of a limit, here and in the groups above.
    fn left(&self, controller: &str, max: &str, now: &str, max_v1: &str, now_v1: &str) -> Option<u64> {
        let number = |path: PathBuf| text(path).trim().parse::<u64>().ok();
        let root = Path::new("/sys/fs/cgroup");
        let v1 = self.lines.iter().find(|(name, _)| name == controller).map(|(_, path)| path);
        let (base, path, max, now) = match (v1, &self.unified) {
            (Some(path), _) => (root.join(controller), path, max_v1, now_v1),
            (None, Some(path)) => (root.to_owned(), path, max, now),
            (None, None) => return None,
        };
        path.ancestors()
            .filter_map(|group| {
                let dir = base.join(group);
                // `max` in words, or a number near the largest one, is no limit.
                let limit = number(dir.join(max)).filter(|limit| *limit < 1 << 60)?;
                Some(limit.saturating_sub(number(dir.join(now)).unwrap_or(0)))
            })
            .min()
    }
}

fn text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_both_versions_are_read() {
        let group = Group::of_this_process("12:cpu,memory:/a\n0::/user.slice/x\n");
        assert_eq!(group.unified.as_deref(), Some(Path::new("user.slice/x")));
        assert_eq!(group.lines.get(1), Some(&("memory".to_owned(), PathBuf::from("a"))));
    }

    #[test]
    fn this_process_may_open_files() {
        assert!(Confinement::read().open_files.is_none_or(|files| files > 0));
    }
}
