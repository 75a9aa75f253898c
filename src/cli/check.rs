//! `holofs check`: the integrity of a library.

use std::ffi::OsString;

use super::exit::{Failure, INTEGRITY, NOT_FOUND, OK, failure};
use super::mount::RemoteArgs;
use super::values::threads;
use super::{Context, cancel_on_signals, output};
use crate::library::check::{CheckReport, Corrupt, check};
use crate::library::digest::Digest;
use crate::library::locate::locate;
use crate::record::Target;
use crate::record::repair::set_aside;
use crate::settings::Flags;
use crate::sys::process;

#[derive(Debug, clap::Args)]
#[command(after_help = "Reads every blob and compares it with its digest. Changes nothing, except
that --repair gives corrupt blobs the ending .corrupt. Deletes nothing.

Examples:
  holofs check auto
  holofs check ~/.robocorp --blueprint adb8 --json
  holofs check auto --repair; holofs import auto hololib.zip")]
pub(super) struct Args {
    /// The library, as for mount
    #[arg(default_value = "auto")]
    library: OsString,
    /// Check only environments whose blueprint's hash begins with these digits
    #[arg(long, visible_alias = "catalog", value_name = "HASH", default_value = "")]
    blueprint: String,
    /// Check only whether each blob exists and has the right size
    #[arg(long)]
    fast: bool,
    /// Rename corrupt blobs aside, so that `record` and `import` store them anew
    #[arg(long)]
    repair: bool,
    /// Number of threads [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = threads)]
    jobs: Option<usize>,
    #[command(flatten)]
    remote: RemoteArgs,
}

impl Args {
    /// Adds these arguments to the flags.
    pub(super) fn set(&self, flags: &mut Flags) {
        self.remote.set(flags);
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    let library = locate(&args.library, &context.env.hololib(), &context.env.access())?;
    let jobs = args.jobs.unwrap_or_else(process::processors);
    let bar = |total| output::progress_bar("checking", context.silent, total);
    let mut report = check(&*library.library, &args.blueprint, args.fast, jobs, bar)?;
    if report.catalogs == 0 && !args.blueprint.is_empty() {
        let what = format!("no catalog of blueprint {}", args.blueprint);
        return Err(failure(NOT_FOUND, what, Some("`holofs catalogs`")));
    }
    if args.repair && !report.corrupt.is_empty() {
        let target = Target {
            library: args.library.clone(),
            default_hololib: context.env.hololib(),
            robocorp_home: None,
            compress: None,
            lock_timeout: context.settings.lock_timeout.value,
            progress: |total| output::progress_bar("repairing", true, total),
            cancel: cancel_on_signals()?,
        };
        let digests = report.corrupt.iter().filter_map(|bad| Digest::parse(bad.digest.as_bytes()).ok());
        report.set_aside = set_aside(&target, &digests.collect::<Vec<_>>())?;
    }
    output::print_result(context, &report, || text(&report))?;
    if !report.set_aside.is_empty() {
        output::note(
            context.silent,
            "holofs: record the environment again with --force, or import it: that stores these blobs anew",
        );
    }
    Ok(if report.is_clean() { OK } else { INTEGRITY })
}

fn text(report: &CheckReport) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, why) in &report.bad_catalogs {
        lines.push(format!("bad catalog {name}: {why}"));
    }
    for digest in &report.missing {
        lines.push(format!("missing blob {digest}"));
    }
    for Corrupt { digest, why } in &report.corrupt {
        lines.push(format!("corrupt blob {digest}: {why}"));
    }
    for (blueprint, paths) in &report.affected {
        for path in paths {
            lines.push(format!("affected {blueprint} {path}"));
        }
    }
    lines.extend(report.set_aside.iter().map(|path| format!("set aside {}", path.display())));
    let state = if report.is_clean() { "clean" } else { "NOT clean" };
    lines.push(format!(
        "{state}: {} catalogs, {} blobs, {} in blobs that no catalog names",
        report.catalogs,
        report.blobs,
        output::human_bytes(report.unreferenced_bytes)
    ));
    lines
}
