//! `holofs doctor`.

use std::path::PathBuf;

use super::exit::{FAILED, FUSE, Failure, OK};
use super::{Context, output};
use crate::session::doctor::{self, Report, Status, Subject};
use crate::settings::absolute;

#[derive(Debug, clap::Args)]
#[command(after_help = "Each line is `ok`, a `warning` (holofs works, slower or with less) or `fail` (spaces
cannot be mounted), with what to do. Reflinks, a mount and passthrough are tried, not
guessed. Nothing is left on the disk.

Exit codes: 0 ok, 1 warnings, 3 PATH is missing or not writable, 8 cannot mount

Examples:
  holofs doctor
  holofs doctor /srv/spaces --json
  holofs doctor -r robot.yaml")]
pub(super) struct Args {
    /// A directory whose filesystem is examined too
    path: Option<PathBuf>,
    /// A robot whose environment is looked for in the library
    #[arg(short, long, value_name = "FILE")]
    robot: Option<PathBuf>,
}

pub(super) fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    // The probes run in another directory.
    let robot = args.robot.map(|file| absolute(&file)).transpose()?;
    let subject = Subject { path: args.path, robot };
    let report = doctor::examine(&subject, &context.settings, &context.env)?;
    output::print_result(context, &report, || text(&report, context.silent))?;
    Ok(match report.status() {
        Status::Ok => OK,
        Status::Warning => FAILED,
        Status::Fail => FUSE,
    })
}

/// The lines of text. With `silent`, only what is wrong.
fn text(report: &Report, silent: bool) -> Vec<String> {
    let mut lines = Vec::new();
    for check in report.checks.iter().filter(|check| !silent || check.status > Status::Ok) {
        lines.push(format!("{:<8} {:<18} {}", check.status.to_string(), check.kind, check.message));
        lines.extend(check.fix.iter().map(|fix| format!("{:<8} {:<18}   try: {fix}", "", "")));
    }
    if silent {
        return lines;
    }
    if let Some(path) = &report.path {
        let yes = |is: bool| if is { "yes" } else { "no" };
        lines.push(String::new());
        lines.push(format!("{}: {} ({})", path.path, path.fs, path.magic));
        lines.push(format!("  reflink: {} ({})", yes(path.reflink), path.probe));
        lines.push(format!("  same filesystem as the library: {}", yes(path.same_fs_as_library)));
    }
    lines.push(String::new());
    lines.push("Fallbacks of this setup:".to_owned());
    let fallback =
        |fallback: &doctor::Fallback| format!("  {} -> {}: {}", fallback.from, fallback.to, fallback.because);
    lines.extend(report.fallbacks.iter().map(fallback));
    if report.fallbacks.is_empty() {
        lines.push("  none".to_owned());
    }
    for answer in &report.answers {
        lines.push(String::new());
        lines.push(answer.question.to_owned());
        lines.extend(answer.answer.iter().map(|line| format!("  {line}")));
    }
    lines
}
