//! `holofs check`: the integrity of a library.

use std::ffi::OsString;

use super::exit::{Failure, INTEGRITY, OK};
use super::{Context, output};
use crate::library::check::{CheckReport, Corrupt, check};
use crate::library::locate::locate;
use crate::sys::process;

#[derive(Debug, clap::Args)]
#[command(after_help = "Reads every blob and compares it with its digest. Nothing is changed or deleted.

Examples:
  holofs check auto
  holofs check ~/.robocorp --blueprint adb8 --json")]
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
    /// Number of threads [default: one for each processor]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    let library = locate(&args.library, &context.env.hololib())?;
    let jobs = args.jobs.unwrap_or_else(process::processors);
    let report = check(&*library.library, &args.blueprint, args.fast, jobs)?;
    output::print_result(context, &report, || text(&report))?;
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
    let state = if report.is_clean() { "clean" } else { "NOT clean" };
    lines.push(format!(
        "{state}: {} catalogs, {} blobs, {} in blobs that no catalog names",
        report.catalogs,
        report.blobs,
        output::human_bytes(report.unreferenced_bytes)
    ));
    lines
}
