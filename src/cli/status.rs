//! `holofs status` and `holofs path`.

use std::ffi::OsString;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::exit::{Failure, OK};
use super::list::Row;
use super::{Context, output};
use crate::materialize::ReflinkProbe;
use crate::metrics::{COUNTERS, Counter, Counts, SILENT_SINCE, Snapshot};
use crate::session::spaces::{Detail, Survey};

#[derive(Debug, clap::Args)]
#[command(after_help = "States:
  mounted
  unmounted
  stale         the daemon has died; mount the space again
  moved         mounted, but a directory above the mountpoint was renamed
  degraded      mounted, and files cannot be read: blobs are missing or corrupt, see
                `holofs stats`
  catalog-gone  the library no longer has the environment
  damaged       the record of the space cannot be read
  deleted       rcc deleted the space; the next mount makes a new one
  restored      rcc restored the space

Examples:
  holofs status demo
  holofs status demo --json")]
pub(super) struct Args {
    /// The space, by name, identity or path
    #[arg(value_name = "SPACE|PATH")]
    space: OsString,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ls $(holofs path demo)
  fusermount3 -u $(holofs path demo)")]
pub(super) struct PathArgs {
    /// The space, by name or identity
    space: OsString,
}

/// One space: the keys of `list`, and what only its mount knows.
#[derive(Debug, Serialize)]
struct Status {
    #[serde(flatten)]
    row: Row,
    #[serde(flatten)]
    detail: Detail,
    /// Private copies made since the mount, by method.
    copy_up: Option<Counts>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    let (space, detail) =
        Survey::new(&context.env)?.detail(&args.space, &context.settings.controller.value)?;
    let copy_up = detail.metrics.as_ref().and_then(Counts::of);
    let row = Row::from(space);
    let status = Status { row, detail, copy_up };
    output::print_result(context, &status, || text(&status))
}

pub(super) fn run_path(args: &PathArgs, context: &Context) -> Result<u8, Failure> {
    let path = Survey::new(&context.env)?.path(&args.space, &context.settings.controller.value)?;
    if context.json {
        output::print_json(&serde_json::json!({ "path": path }))?;
    } else {
        output::print_path(&path)?;
    }
    Ok(OK)
}

/// The lines of text. A value that is not known has no line.
fn text(status: &Status) -> Vec<String> {
    let (row, detail) = (&status.row, &status.detail);
    let space = &row.space;
    let yes = |flag: Option<bool>| flag.filter(|flag| *flag).map(|_| "yes".to_owned());
    let lines = [
        ("Space", Some(space.label.clone())),
        ("State", Some(space.state.to_string())),
        ("Path", Some(space.path.display().to_string())),
        ("Identity", Some(space.identity.clone())),
        ("Controller", Some(space.controller.clone())),
        ("Blueprint", Some(space.blueprint.clone())),
        ("Library", detail.library.clone()),
        ("Read-only", yes(row.read_only)),
        ("Ephemeral", yes(row.ephemeral)),
        ("Strategy", row.strategy.map(|strategy| strategy.to_string())),
        ("I/O", row.io.map(|io| io.to_string())),
        ("Reflink", detail.reflink.as_ref().map(reflink)),
        ("Changed", Some(row.changed())),
        ("Copied", status.copy_up.as_ref().map(copied)),
        ("Daemon", row.pid.map(|pid| format!("process {pid}, for {}", since(row.started)))),
        (
            "Kept by",
            row.kept
                .filter(|kept| !kept)
                .map(|_| "nobody: that process was killed, and nothing replaces the next".to_owned()),
        ),
        ("Served by", row.worker.filter(|_| row.worker != row.pid).map(|pid| format!("process {pid}"))),
        ("Store", detail.metrics.as_ref().and_then(store)),
        ("Version", row.version.clone()),
        (
            "Restarts",
            row.last_death.as_ref().map(|death| {
                let count = row.restarts.unwrap_or_default();
                format!("{count}, the last {} ago, after {}", since(Some(death.at)), death.cause)
            }),
        ),
        (
            "Given up",
            space.given_up.as_ref().map(|ended| {
                let cause = ended.cause.as_ref().map(|cause| format!(" ({cause})")).unwrap_or_default();
                format!("{} ago: {}{cause}", since(Some(ended.at)), ended.why)
            }),
        ),
        (
            "Used",
            Some(format!("{}, last {}", row.use_count, row.last_used)).filter(|_| row.use_count != "N/A"),
        ),
        ("Log", Some(detail.log.display().to_string())),
    ];
    let aside = detail.set_aside.iter().map(|path| ("Set aside", Some(path.display().to_string())));
    let shown = lines
        .into_iter()
        .chain(aside)
        .filter_map(|(name, value)| Some((name, value.filter(|v| !v.is_empty())?)));
    shown.map(|(name, value)| format!("{name:<11} {value}")).collect()
}

fn reflink(probe: &ReflinkProbe) -> String {
    format!("{}: {}", if probe.supported { "yes" } else { "no" }, probe.reason)
}

/// How it goes with the object store of the library. None if there is none.
fn store(metrics: &Snapshot) -> Option<String> {
    let get = |counter: Counter| metrics.get(COUNTERS.get(counter as usize)?.name).copied();
    let (requests, bytes) = (get(Counter::RemoteRequests)?, get(Counter::RemoteBytes)?);
    if requests == 0 && bytes == 0 {
        return None;
    }
    let bytes = output::human_bytes(bytes);
    let state = match metrics.get(SILENT_SINCE) {
        Some(at) => format!("does not answer, for {}", since(Some(*at))),
        None => "answers".to_owned(),
    };
    let (retries, failures) = (get(Counter::RemoteRetries)?, get(Counter::RemoteFailures)?);
    Some(format!("{state}; {requests} requests, {bytes}, {retries} sent again, {failures} given up"))
}

fn copied(counts: &Counts) -> String {
    format!(
        "{} files by reflink, {} by copy, {} relocated; {}, of which {} shared with the library",
        counts.reflink,
        counts.copy_file_range + counts.copy,
        counts.relocated,
        output::human_bytes(counts.bytes),
        output::human_bytes(counts.bytes_shared)
    )
}

/// The time since a mount started, for people.
fn since(started: Option<u64>) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seconds = now.saturating_sub(started.unwrap_or(now));
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
