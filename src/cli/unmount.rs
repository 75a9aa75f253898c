//! `holofs unmount`.

use std::ffi::OsString;
use std::time::Duration;

use super::exit::{Failure, NOT_FOUND, OK, failure};
use super::values::seconds;
use super::{Context, output};
use crate::session::How;
use crate::session::targets::Unmounting;

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

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    let how = How { lazy: args.lazy, force: args.force, timeout: args.timeout };
    let unmounting = Unmounting::new(&context.env, &context.settings.controller.value, how, args.discard)?;
    let mut ended = if args.all { unmounting.all()? } else { Vec::new() };
    for space in &args.spaces {
        let not_mounted = format!("{}: not mounted", space.to_string_lossy());
        match unmounting.one(space)? {
            Some(path) => ended.push(path),
            None if args.strict => return Err(failure(NOT_FOUND, not_mounted, Some("`holofs list`"))),
            None => output::note(context.silent, &format!("holofs: {not_mounted}")),
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
