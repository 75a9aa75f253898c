//! A mount namespace of this process, in which a directory of others is covered by one of our own.
//!
//! root gets a mount namespace. An ordinary user also gets a user namespace, in which the user keeps its number and may
//! mount, where the system allows such namespaces. Programs that the process starts are in these namespaces too; in a user
//! namespace programs like sudo do not work.
#![allow(unsafe_code)]

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change};
use rustix::thread::{CapabilitySet, UnshareFlags, unshare_unsafe};

use super::errno_of;
use super::fd::proc_path;

/// Why a directory is not covered.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {call}: {source}")]
pub struct NotCovered {
    /// The file or directory.
    pub path: PathBuf,
    /// The system call.
    pub call: &'static str,
    /// What it answered.
    pub source: Errno,
}

/// Whether this process may mount.
#[must_use]
pub fn may_mount() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// Moves this process into its own mount namespace, and mounts an empty directory of this user over `dir`, which must exist.
/// `keep` is a directory below it that stays visible. No other thread may run.
///
/// # Errors
/// See [`NotCovered`]. Then the process may be in the namespace already.
pub fn cover(dir: &Path, keep: Option<&Path>) -> Result<(), NotCovered> {
    let failed = |path: &Path, call| {
        let path = path.to_owned();
        move |source| NotCovered { path, call, source }
    };
    enter()?;
    let root = Path::new("/");
    // What is mounted here stays here, and what is unmounted outside goes here too: otherwise the copies of other spaces'
    // mounts would keep their daemons alive for as long as this program runs.
    let inwards = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change(root, inwards).map_err(failed(root, "mount"))?;
    // Opened in the new namespace, and before the directory is covered.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let kept = match keep {
        Some(keep) => {
            let opened = rustix::fs::open(keep, flags, Mode::empty()).map_err(failed(keep, "open"))?;
            Some((keep, opened))
        }
        None => None,
    };
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("holofs", dir, "tmpfs", flags, Some(c"mode=0755")).map_err(failed(dir, "mount"))?;
    if let Some((keep, opened)) = kept {
        std::fs::create_dir_all(keep).map_err(|error| failed(keep, "mkdir")(errno_of(&error)))?;
        mount_bind_recursive(proc_path(opened.as_fd()), keep).map_err(failed(keep, "mount"))?;
    }
    Ok(())
}

fn enter() -> Result<(), NotCovered> {
    let mut flags = UnshareFlags::NEWNS;
    let is_privileged = may_mount();
    if !is_privileged {
        flags |= UnshareFlags::NEWUSER;
    }
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    // SAFETY: these flags do not include the table of descriptors, which is what makes the call unsafe.
    unsafe { unshare_unsafe(flags) }.map_err(|source| NotCovered {
        path: "/".into(),
        call: if is_privileged { "unshare" } else { "unshare, which needs user namespaces" },
        source,
    })?;
    if is_privileged {
        return Ok(());
    }
    for (file, text) in [
        // Required before a user may set the groups.
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("{uid} {uid} 1")),
        ("/proc/self/gid_map", format!("{gid} {gid} 1")),
    ] {
        std::fs::write(file, text).map_err(|error| NotCovered {
            path: file.into(),
            call: "write",
            source: errno_of(&error),
        })?;
    }
    Ok(())
}
