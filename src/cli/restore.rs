//! `holofs restore`.

use std::ffi::OsString;
use std::time::Duration;

use clap::ValueEnum;
use indicatif::ProgressBar;

use super::exit::{Failure, OK};
use super::mount::RemoteArgs;
use super::values::{seconds, threads};
use super::{Context, cancel_on_signals, output};
use crate::restore::Progress;
use crate::restore::report::{Report, Row};
use crate::session::choice::Choice;
use crate::session::request::{MountPlan, MountRequest};
use crate::session::restore::{Restored, Wishes, restore};
use crate::settings::{Flags, RestoreStrategy};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "For machines without FUSE. The command makes the tree of plain files that rcc makes, in
the same directory or at any path, and prints that directory. In an existing tree it does what rcc does: it
removes what does not belong to the environment, and makes what is missing or has another
size or mode. After an interruption, the next restore completes the tree.

Strategies:
  smart     reflinks of large files where the filesystem can (btrfs, xfs), else copies
  reflink   reflinks of all files that are larger than a block, or an error if the filesystem
            cannot. A file is unpacked nevertheless if its reflink would wait for the disk: so
            the first restore of an environment takes as long as copies, and later ones share
            its blocks. --report tells
  hardlink  links to read-only copies that spaces share; root can still write to them. Relocated
            files and those that match hardlink-excludes in settings.yaml are copied
  copy      copies

Examples:
  holofs restore auto demo
  holofs restore auto demo -r robot.yaml --strategy reflink --report"
)]
pub(super) struct Args {
    /// A hololib, a hololib.zip, a ROBOCORP_HOME, a shared holotree, or `auto` for rcc's own [default: auto]
    #[arg(requires = "space")]
    library: Option<OsString>,
    /// The space: a name, an identity, or the path of its directory [default: user]
    space: Option<OsString>,
    #[command(flatten)]
    choice: Choice,
    /// How files get their bytes [default: smart]
    #[arg(long, visible_alias = "holotree-strategy", value_name = "smart|reflink|hardlink|copy", value_parser = strategy)]
    strategy: Option<RestoreStrategy>,
    /// Number of threads [default: 8 for each processor, at most 32]
    #[arg(long, value_name = "N", value_parser = threads)]
    jobs: Option<usize>,
    /// Print how many files got their bytes in which way
    #[arg(long)]
    report: bool,
    /// Seconds to wait for rcc's locks [default: 30]
    #[arg(long, value_name = "S", value_parser = seconds)]
    lock_timeout: Option<Duration>,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// A strategy of restores, in upper or lower case.
fn strategy(text: &str) -> Result<RestoreStrategy, String> {
    RestoreStrategy::from_str(text, true)
        .map_err(|_| "possible values: smart, reflink, hardlink, copy".to_owned())
}

impl Args {
    /// Adds these arguments to the flags.
    pub(super) fn set(&self, flags: &mut Flags) {
        flags.lock_timeout = self.lock_timeout;
        flags.restore_strategy = self.strategy;
        self.remote.set(flags);
    }
}

/// Shows the progress on a terminal.
struct Bar(ProgressBar);

impl Progress for Bar {
    fn total(&self, _files: u64, bytes: u64) {
        self.0.set_length(bytes);
    }

    fn made(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

pub(super) fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let request = MountRequest {
        library: args.library,
        space: args.space,
        choice: args.choice,
        ..MountRequest::default()
    };
    let plan = request.plan(&context.settings, context.settings.mount.as_ref()?, &context.env)?;
    for note in plan.composed.iter().flat_map(|composed| &composed.notes) {
        output::note(context.silent, &format!("holofs: {note}"));
    }
    let restored = restore_with_bar(&plan, args.jobs, context)?;
    notes(&restored, context);
    if context.json {
        output::print_json(&restored)?;
        return Ok(OK);
    }
    output::print_path(&restored.path)?;
    if args.report {
        output::print_lines(&table(&restored.report, restored.restored_ms))?;
    }
    Ok(OK)
}

/// Restores, with a progress bar on a terminal.
pub(super) fn restore_with_bar(
    plan: &MountPlan,
    jobs: Option<usize>,
    context: &Context,
) -> Result<Restored, Failure> {
    let cancel = cancel_on_signals()?;
    let bar = Bar(output::progress_bar("restoring", context.silent, 0));
    let wishes = Wishes { jobs, cancel: &cancel };
    let restored = restore(plan, &wishes, &bar);
    bar.0.finish_and_clear();
    Ok(restored?)
}

/// Tells what the user may not expect.
pub(super) fn notes(restored: &Restored, context: &Context) {
    let note = |text: String| output::note(context.silent, &format!("holofs: {text}"));
    if let Some(why) = restored.no_reflink.as_ref().filter(|_| restored.report.made().files > 0) {
        note(format!("no reflink here ({why}), so files were copied"));
    }
    if restored.report.resumed {
        note("an earlier restore of this space was interrupted; it is complete now".to_owned());
    }
    if let Some(changes) = &restored.changes {
        let changes = changes.display();
        note(format!(
            "the space also has changes of earlier mounts, which the restored tree does not show: {changes}"
        ));
    }
}

/// The report as a table.
fn table(report: &Report, ms: u64) -> Vec<String> {
    let megabytes = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
    let row = |name: &str, row: &Row, seconds: f64| {
        [
            name.to_owned(),
            row.files.to_string(),
            megabytes(row.bytes),
            megabytes(row.bytes_written),
            format!("{seconds:.2}"),
        ]
    };
    let mut rows = Vec::new();
    for (name, part) in [
        ("reflink", &report.reflink),
        ("hardlink", &report.hardlink),
        ("copy", &report.copy),
        ("into the cache", &report.cached),
    ] {
        if part.files > 0 {
            rows.push(row(name, part, part.seconds));
        }
    }
    let mut all = report.made();
    all.bytes_written += report.cached.bytes_written;
    rows.push(row("all", &all, ms as f64 / 1e3));
    let columns: [output::Column<[String; 5]>; 5] = [
        ("Strategy", |row| row[0].clone()),
        ("Files", |row| row[1].clone()),
        ("MB", |row| row[2].clone()),
        ("MB written", |row| row[3].clone()),
        ("Seconds", |row| row[4].clone()),
    ];
    let mut lines = output::table(&columns, rows.iter());
    let Report { kept, removed, directories, links, relocated, .. } = report;
    lines.push(format!(
        "{kept} kept, {removed} removed, {directories} directories and {links} links made, {relocated} files relocated"
    ));
    lines
}
