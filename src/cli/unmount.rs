//! `holofs unmount`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::exit::{FAILED, Failure, MOUNTPOINT, NOT_FOUND, OK, USAGE, failure};
use super::values::seconds;
use super::{Context, output};
use crate::library::name::Identity;
use crate::session::registry::Registry;
use crate::session::{self, How};
use crate::space::path::resolved;
use crate::space::run::read_run;
use crate::space::select::SpaceArg;
use crate::space::state::{StateDir, is_locked};
use crate::sys::mountinfo::{self, MountEntry};

#[derive(Debug, clap::Args)]
#[command(after_help = "fusermount3 -u and umount end a mount just as well.

Examples:
  holofs unmount demo
  holofs unmount ~/.robocorp/holotree/720c7a8_5a1fac3_700be151 --lazy
  holofs unmount demo --force
  holofs unmount --all")]
pub(super) struct Args {
    /// Spaces by name, identity or path
    #[arg(value_name = "SPACE|PATH", required_unless_present = "all")]
    spaces: Vec<OsString>,
    /// Every mount of this home's spaces
    #[arg(long)]
    all: bool,
    /// Detach now, end when the last user lets go
    #[arg(short = 'z', long)]
    lazy: bool,
    /// End it whoever uses it, and its daemon; the changes stay
    #[arg(short, long, conflicts_with = "lazy")]
    force: bool,
    /// Drop the space's changes
    #[arg(long)]
    discard: bool,
    /// How long to wait for the daemon to end, in seconds
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    timeout: Duration,
    /// Fail when it is not mounted
    #[arg(long)]
    strict: bool,
}

impl Args {
    fn how(&self) -> How {
        How { lazy: self.lazy, force: self.force, timeout: self.timeout }
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    let live = mounts(context)?;
    let mut ended = Vec::new();
    if args.all {
        for mount in &live {
            ended.push(end(mount, args, context)?);
        }
    }
    for typed in &args.spaces {
        let given = SpaceArg::parse(typed)?;
        let identity = match (given.identity(&context.env, &context.settings.controller.value), &given) {
            // A path that cannot be a space's is one where nothing is mounted.
            (Err(_), SpaceArg::Path(_)) => None,
            (identity, _) => Some(identity?),
        };
        let shown = typed.to_string_lossy();
        if let Some(mount) = find(&live, &given, identity.as_ref()) {
            ended.push(end(mount, args, context)?);
            continue;
        }
        match of_another_home(&given)? {
            Some(_) if args.discard => {
                let what = format!("{shown}: its changes are not in this home");
                return Err(failure(USAGE, what, Some("give its --home, or set HOLOFS_HOME")));
            }
            // Its record cannot be read from here, so there is nothing to wait for.
            Some(mount) => {
                let how = How { timeout: Duration::ZERO, ..args.how() };
                ended.push(session::unmount(&mount, None, how)?.mountpoint);
            }
            None => ended.extend(end_unseen(&shown, identity.as_ref(), args, context)?),
        }
    }
    if context.json {
        output::print_json(&ended)?;
    } else {
        for path in &ended {
            output::print_path(path)?;
        }
    }
    Ok(OK)
}

/// The mounts of this home's spaces, one of each space.
fn mounts(context: &Context) -> Result<Vec<MountEntry>, Failure> {
    let spaces = context.env.spaces_dir();
    let registry = Registry::read(&spaces)?;
    let found = registry.identities().into_iter().filter_map(|identity| {
        let state_dir = spaces.join(identity);
        registry.find(&state_dir, read_run(&state_dir).as_ref()).cloned()
    });
    Ok(found.collect())
}

/// What is not mounted here may have a daemon all the same: mounted in another mount namespace, or detached.
fn end_unseen(
    shown: &str,
    identity: Option<&Identity>,
    args: &Args,
    context: &Context,
) -> Result<Option<PathBuf>, Failure> {
    let ended = match identity {
        Some(identity) => session::end_unseen(&context.env.state_dir(identity), args.how())?,
        None => None,
    };
    if let Some(identity) = identity.filter(|_| args.discard) {
        discard(identity, context)?;
    }
    if ended.is_none() && args.strict {
        return Err(failure(NOT_FOUND, format!("{shown}: not mounted"), Some("`holofs list`")));
    }
    if ended.is_none() {
        output::note(context.silent, &format!("holofs: {shown}: not mounted"));
    }
    Ok(ended)
}

fn no_mountinfo(error: std::io::Error) -> Failure {
    failure(FAILED, format!("/proc/self/mountinfo: {error}"), None)
}

/// The mount that is meant: at the very path that was typed, else the space's, which may have moved.
fn find<'m>(live: &'m [MountEntry], given: &SpaceArg, identity: Option<&Identity>) -> Option<&'m MountEntry> {
    if let SpaceArg::Path(path) = given {
        let path = resolved(path);
        if let Some(found) = live.iter().rfind(|mount| mount.mountpoint == path) {
            return Some(found);
        }
    }
    let identity = identity?.as_str();
    live.iter().rfind(|mount| mount.identity() == Some(identity))
}

/// A mount that is named by its path, and whose state is in another home than this one; root may end another user's.
fn of_another_home(given: &SpaceArg) -> Result<Option<MountEntry>, Failure> {
    let SpaceArg::Path(path) = given else { return Ok(None) };
    let path = resolved(path);
    let mounts = mountinfo::holofs_mounts().map_err(no_mountinfo)?;
    let Some(found) = mounts.into_iter().rfind(|mount| mount.mountpoint == path) else { return Ok(None) };
    match found.user_id {
        Some(user) if !found.is_ours() && !rustix::process::geteuid().is_root() => {
            let what = format!("{}: mounted by user {user}", path.display());
            Err(failure(MOUNTPOINT, what, Some("as that user")))
        }
        _ => Ok(Some(found)),
    }
}

fn end(mount: &MountEntry, args: &Args, context: &Context) -> Result<PathBuf, Failure> {
    let identity = Identity::from_name(mount.identity().unwrap_or_default().as_bytes())
        .map_err(|error| failure(USAGE, format!("{}: {error}", mount.source), None))?;
    let state_dir = context.env.state_dir(&identity);
    let ended = session::unmount(mount, Some(&state_dir), args.how())?;
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
