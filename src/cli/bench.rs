//! `holofs bench`.

use std::ffi::OsString;

use indicatif::{ProgressBar, ProgressStyle};

use super::exit::{Failure, OK};
use super::{Context, cancel_on_signals, output};
use crate::session::bench::{Benched, Timed, Wishes, bench};
use crate::session::choice::Choice;
use crate::session::request::MountRequest;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Makes the environment in new spaces, by a mount and by each strategy of a restore, and
prints the medians. With --against rcc, rcc restores it too: the library must be rcc's own.
Everything that was made is removed at the end. The disk needs room for all runs.

Examples:
  holofs bench auto
  holofs bench auto -r robot.yaml --runs 5 --against rcc --json"
)]
pub(super) struct Args {
    /// A hololib, a hololib.zip, a ROBOCORP_HOME, a shared holotree, or `auto` for rcc's own
    library: OsString,
    #[command(flatten)]
    choice: Choice,
    /// Number of runs of each way [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: Option<u32>,
    /// Compare with the restore of this program: `rcc`, or its path
    #[arg(long, value_name = "rcc")]
    against: Option<OsString>,
}

pub(super) fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let request = MountRequest {
        library: Some(args.library),
        space: Some("bench".into()),
        choice: args.choice,
        ..MountRequest::default()
    };
    let plan = request.plan(&context.settings, context.settings.mount.as_ref()?, &context.env)?;
    let cancel = cancel_on_signals()?;
    let bar = output::progress_bar("bench", context.silent, 0);
    let style = ProgressStyle::with_template("bench {wide_bar} {pos}/{len} {msg}");
    let bar = style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style));
    let mut step = |total: u64, what: &str| tell(&bar, total, what);
    let wishes = Wishes { runs: args.runs.unwrap_or(3), against: args.against, cancel: &cancel };
    let benched = bench(&plan, &wishes, &mut step);
    bar.finish_and_clear();
    let benched = benched?;
    for note in &benched.notes {
        output::note(context.silent, &format!("holofs: {note}"));
    }
    output::print_result(context, &benched, || table(&benched))?;
    Ok(OK)
}

fn tell(bar: &ProgressBar, total: u64, what: &str) {
    if total > 0 {
        bar.set_length(total);
    } else {
        bar.inc(1);
        bar.set_message(what.to_owned());
    }
}

fn table(benched: &Benched) -> Vec<String> {
    let slowest = benched.rows.iter().find(|row| row.how == "rcc" || row.how == "restore by copy");
    let baseline = slowest.map_or(0.0, |row| row.median_ms);
    let name = slowest.map_or("", |row| row.how.as_str());
    let rows: Vec<(&Timed, String)> =
        benched.rows.iter().map(|row| (row, format!("{:.1}", baseline / row.median_ms.max(0.001)))).collect();
    let columns: [output::Column<(&Timed, String)>; 5] = [
        ("Way", |(row, _)| row.how.clone()),
        ("Median s", |(row, _)| format!("{:.3}", row.median_ms / 1e3)),
        ("Slowest s", |(row, _)| format!("{:.3}", row.slowest_ms / 1e3)),
        ("Times faster", |(_, factor)| factor.clone()),
        ("MB written", |(row, _)| format!("{:.1}", row.bytes_written as f64 / 1e6)),
    ];
    let mut lines = output::table(&columns, rows.iter());
    lines.push(format!(
        "{} entries, {} files, {:.1} MB, on {}; times faster than {name}",
        benched.entries,
        benched.files,
        benched.bytes as f64 / 1e6,
        benched.filesystem
    ));
    lines
}
