//! `holofs gc`.

use std::time::Duration;

use super::exit::{Failure, OK};
use super::values::{seconds, size};
use super::{Context, output};
use crate::session::gc::{Options, Plan};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Unmounts mounts whose daemons have died. Removes the state of spaces that rcc has deleted, what
interrupted processes have left, compiled indexes of catalogs that are gone, and the copies of
`restore --strategy hardlink` to which no space has a link. Keeps the cache of unpacked blobs
within its limit. Changes of a user are kept and listed, unless --unused
allows to remove those of deleted spaces. Prints each item with its bytes, and the sum.

Examples:
  holofs gc --dry-run
  holofs gc --unused 30 --cache-size 2G"
)]
pub(super) struct Args {
    /// Change nothing, and print what a run would print
    #[arg(long, visible_alias = "dryrun")]
    dry_run: bool,
    /// Also remove changes of deleted spaces that are at least so many days old
    #[arg(long, value_name = "DAYS")]
    unused: Option<u64>,
    /// Limit of the cache of unpacked blobs [default: as for mount]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(super) cache_size: Option<u64>,
    /// Seconds to wait for a daemon or a lock
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    timeout: Duration,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    let cache_size = context.settings.mount.as_ref()?.cache_size.value;
    let options = Options { unused: args.unused, cache_size, wait: args.timeout };
    let plan = Plan::make(&context.env, &options)?;
    let mut failed = Vec::new();
    if args.dry_run {
        output::note(context.silent, "holofs: dry run: nothing is changed");
    } else {
        let bar = output::counter(context, "cleaning up");
        let controller = &context.settings.controller.value;
        let done = plan.run(&context.env, controller, &options, &|| bar.inc(1));
        bar.finish_and_clear();
        failed = done?;
    }
    for kept in &plan.kept {
        let text = format!("holofs: kept changes: {} ({} bytes)", kept.path.display(), kept.bytes);
        output::note(context.silent, &text);
    }
    output::print_result(context, &plan, || {
        let mut lines: Vec<String> = Vec::new();
        for item in &plan.items {
            let what = serde_json::to_string(&item.what).unwrap_or_default();
            let path = item.path.display();
            lines.push(format!("{} {} {path}", item.bytes, what.trim_matches('"')));
        }
        lines.push(format!("{} bytes", plan.freed_bytes));
        lines
    })?;
    failed.into_iter().next().map_or(Ok(OK), |error| Err(error.into()))
}
