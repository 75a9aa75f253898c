//! `holofs unmount`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::exit::{FAILED, Failure, NOT_FOUND, OK, USAGE, failure};
use super::{Context, output};
use crate::session;
use crate::space::name::{self, Identity};
use crate::space::state::{StateDir, is_locked};
use crate::sys::mountinfo::{self, MountEntry};

#[derive(Debug, clap::Args)]
#[command(after_help = "fusermount3 -u and umount end a mount just as well.

Examples:
  holofs unmount demo
  holofs unmount ~/.robocorp/holotree/720c7a8_5a1fac3_700be151 --lazy
  holofs unmount --all")]
pub(super) struct Args {
    /// Spaces by name, identity or path
    #[arg(value_name = "SPACE|PATH", required_unless_present = "all")]
    spaces: Vec<String>,
    /// Every mount of this user
    #[arg(long)]
    all: bool,
    /// Detach now, end when the last user lets go
    #[arg(short = 'z', long)]
    lazy: bool,
    /// Drop the space's changes
    #[arg(long)]
    discard: bool,
    /// How long to wait for the daemon to end, in seconds
    #[arg(long, value_name = "S", default_value_t = 10)]
    timeout: u64,
    /// Fail when it is not mounted
    #[arg(long)]
    strict: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    let live = mounts(context)?;
    let mut ended = Vec::new();
    if args.all {
        for mount in &live {
            ended.push(end(mount, args, context)?);
        }
    }
    for given in &args.spaces {
        if let Some(mount) = live.iter().rfind(|mount| means(given, mount, context)) {
            ended.push(end(mount, args, context)?);
            continue;
        }
        match of_another_home(given)? {
            Some(mount) => {
                if args.discard {
                    let what = format!("{given}: its changes are not in this home");
                    return Err(failure(USAGE, what, Some("give its --home, or set HOLOFS_HOME")));
                }
                // Its record cannot be read from here, so there is nothing to wait for.
                ended.push(
                    session::unmount(&mount, Path::new("/dev/null"), args.lazy, Duration::ZERO)?.mountpoint,
                );
            }
            None if args.strict => {
                return Err(failure(NOT_FOUND, format!("{given}: not mounted"), Some("`holofs list`")));
            }
            None => {
                if args.discard {
                    discard(&identity_of(given, context), context)?;
                }
                output::note(context.silent, &format!("holofs: {given}: not mounted"));
            }
        }
    }
    if context.json {
        output::print_json(&ended)?;
    } else {
        for path in &ended {
            output::print(&format!("{}\n", path.display()))?;
        }
    }
    Ok(OK)
}

/// Our mounts, as the kernel tells them.
pub(super) fn mounts(context: &Context) -> Result<Vec<MountEntry>, Failure> {
    mountinfo::holofs_mounts_of(&context.env.spaces_dir())
        .map_err(|error| failure(FAILED, format!("/proc/self/mountinfo: {error}"), None))
}

/// A mount that is named by its path, and whose state is in another home than this one.
fn of_another_home(given: &str) -> Result<Option<MountEntry>, Failure> {
    let Ok(path) = crate::space::home::absolute(given.as_ref()) else { return Ok(None) };
    let mounts = mountinfo::holofs_mounts()
        .map_err(|error| failure(FAILED, format!("/proc/self/mountinfo: {error}"), None))?;
    Ok(mounts.into_iter().rfind(|mount| given.contains('/') && mount.mountpoint == path))
}

/// Whether what was typed is this mount: its path, its identity, or the name of the space.
pub(super) fn means(given: &str, mount: &MountEntry, context: &Context) -> bool {
    if given.contains('/') {
        return crate::space::home::absolute(given.as_ref()).is_ok_and(|path| path == mount.mountpoint);
    }
    mount.identity() == Some(identity_of(given, context).as_str())
}

/// The identity that a name stands for.
pub(super) fn identity_of(given: &str, context: &Context) -> Identity {
    Identity::parse(given)
        .or_else(|| {
            let last = given.rsplit('/').next().filter(|_| given.contains('/'))?;
            Identity::from_name(last.as_bytes()).ok()
        })
        .unwrap_or_else(|| name::identity(context.env.home_bytes(), &context.controller, given))
}

fn end(mount: &MountEntry, args: &Args, context: &Context) -> Result<PathBuf, Failure> {
    let identity = Identity::from_name(mount.identity().unwrap_or_default().as_bytes())
        .map_err(|error| failure(USAGE, format!("{}: {error}", mount.source), None))?;
    let state_dir = context.env.state_dir(&identity);
    let ended = session::unmount(mount, &state_dir, args.lazy, Duration::from_secs(args.timeout))?;
    if args.discard {
        discard(&identity, context)?;
    }
    Ok(ended.mountpoint)
}

fn discard(identity: &Identity, context: &Context) -> Result<(), Failure> {
    let state_dir = context.env.state_dir(identity);
    if !state_dir.exists() {
        return Ok(());
    }
    if is_locked(&state_dir) {
        let what = format!("{identity}: its daemon has not ended yet, the changes stay");
        return Err(failure(super::exit::BUSY, what, Some("a longer --timeout")));
    }
    StateDir::open_locked(&state_dir)?.discard_changes()?;
    Ok(())
}
