//! `holofs unmount`.

use std::ffi::OsString;
use std::time::Duration;

use super::exit::{Failure, NOT_FOUND, OK, failure};
use super::values::seconds;
use super::{Context, output};
use crate::session::{How, Unmounting};

#[derive(Debug, clap::Args)]
#[command(after_help = "`fusermount3 -u` and umount do the same.

Examples:
  holofs unmount demo
  holofs unmount ~/.robocorp/holotree/720c7a8_5a1fac3_700be151 --lazy
  holofs unmount demo --force
  holofs unmount --all")]
pub(super) struct Args {
    /// The spaces, by name, identity or path
    #[arg(value_name = "SPACE|PATH", required_unless_present = "all")]
    spaces: Vec<OsString>,
    /// Unmount all spaces of this home
    #[arg(long)]
    all: bool,
    /// Detach the mount now; it ends when no process uses it any more
    #[arg(short = 'z', long)]
    lazy: bool,
    /// Unmount even if processes use the mount, and end its daemon
    #[arg(short, long, conflicts_with = "lazy")]
    force: bool,
    /// Drop the changes of the spaces
    #[arg(long)]
    discard: bool,
    /// Seconds to wait for the daemon to end
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    timeout: Duration,
    /// Fail if a space is not mounted
    #[arg(long)]
    strict: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    let how = How { lazy: args.lazy, force: args.force, timeout: args.timeout };
    let unmounting = Unmounting::new(&context.env, &context.settings.controller.value, how, args.discard)?;
    let (mut ended, mut failed) = (Vec::new(), Vec::new());
    if args.all {
        for done in unmounting.all() {
            done.map_or_else(|error| failed.push(error.into()), |path| ended.push(path));
        }
    }
    for space in &args.spaces {
        let not_mounted = format!("{}: not mounted", space.to_string_lossy());
        match unmounting.one(space) {
            Ok(Some(path)) => ended.push(path),
            Ok(None) if args.strict => failed.push(failure(NOT_FOUND, not_mounted, Some("`holofs list`"))),
            Ok(None) => output::note(context.silent, &format!("holofs: {not_mounted}")),
            Err(error) => failed.push(error.into()),
        }
    }
    // One space that cannot be unmounted does not keep the others mounted. Those that have ended are named.
    let mut failed = failed.into_iter();
    let first = failed.next();
    if context.json && (first.is_none() || !ended.is_empty()) {
        output::print_json(&ended)?;
    } else {
        for path in &ended {
            output::print_path(path)?;
        }
    }
    let Some(first) = first else { return Ok(OK) };
    let code = output::fail(&first);
    failed.for_each(|failure| output::complain(&failure));
    Ok(code)
}
