//! `holofs delete`.

use std::ffi::OsString;
use std::time::Duration;

use indicatif::ProgressBar;

use super::exit::{FAILED, Failure, OK, failure};
use super::values::seconds;
use super::{Context, output};
use crate::session::delete::{Deleted, Meant, delete};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Unmounts each space, and removes its directory, rcc's files beside it, and all of its changes.
A part of an identity of at least four characters means all spaces that contain it, as in rcc.

Examples:
  holofs delete demo
  holofs delete 5a1fac3 --dryrun
  holofs delete --unused 30"
)]
pub(super) struct Args {
    /// The spaces, by name, identity, path, or a part of an identity
    #[arg(value_name = "SPACE")]
    given: Vec<OsString>,
    /// A space by its name
    #[arg(short, long, value_name = "NAME")]
    space: Vec<OsString>,
    /// Print what would be deleted
    #[arg(short, long, visible_alias = "dry-run")]
    dryrun: bool,
    /// Only spaces that are not mounted and were not used for so many days
    #[arg(long, value_name = "DAYS")]
    unused: Option<u64>,
    /// Seconds to wait for a daemon to end, and for rcc's lock
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    timeout: Duration,
}

pub(super) fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let meant = Meant { given: args.given, names: args.space, unused: args.unused };
    if meant.given.is_empty() && meant.names.is_empty() && meant.unused.is_none() {
        let fix = "a SPACE from `holofs list`, or --unused DAYS";
        return Err(failure(FAILED, "no space was named", Some(fix)));
    }
    let controller = &context.settings.controller.value;
    let mut done: Vec<Deleted> = Vec::new();
    let mut stopped = None;
    let spaces = meant.find(&context.env, controller)?;
    let bar = (!args.dryrun).then(|| output::counter(context, "deleting"));
    let count = || bar.iter().for_each(|bar| bar.inc(1));
    for space in spaces {
        if args.dryrun {
            done.push(Deleted { id: space.identity, path: space.path, removed: false });
            continue;
        }
        match delete(&space, &context.env, controller, args.timeout, &count) {
            Ok(deleted) => done.push(deleted),
            Err(error) => {
                stopped = Some(Failure::from(error));
                break;
            }
        }
    }
    bar.iter().for_each(ProgressBar::finish_and_clear);
    for left in done.iter().filter(|deleted| !deleted.removed && !args.dryrun) {
        let text = format!("holofs: {} stays: it holds files that are not a space's", left.path.display());
        output::note(context.silent, &text);
    }
    if stopped.is_none() || !done.is_empty() {
        let prefix = if args.dryrun { "[dry run] " } else { "" };
        output::print_result(context, &done, || {
            done.iter().map(|deleted| format!("{prefix}Removing {}", deleted.id)).collect()
        })?;
    }
    stopped.map_or(Ok(OK), Err)
}
