//! `holofs stats`: what the mounts of spaces have done.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::exit::{Failure, OK};
use super::output::{self, Column};
use super::values::interval;
use super::{Context, cancel_on_signals};
use crate::metrics::is_alarming;
use crate::metrics::prometheus::{self, Labelled};
use crate::metrics::totals::{CorruptFile, Totals};
use crate::session::spaces::{Space, SpaceState, Survey};
use crate::session::statistics;
use crate::settings::{IoMode, Strategy};

#[derive(Debug, clap::Args)]
#[command(after_help = "The counters are those of all mounts of a space, since the first one or the last
`--reset`. `opened` is known only with `--io passthrough`: in cached mode the kernel opens
files by itself. Nothing is sent over a network.

Examples:
  holofs stats demo
  holofs stats --all --json
  holofs stats demo --watch
  holofs stats --prometheus > /var/lib/node_exporter/holofs.prom")]
pub(super) struct Args {
    /// The space, by name, identity or path [default: all spaces]
    #[arg(value_name = "SPACE|PATH", conflicts_with = "all")]
    space: Option<OsString>,
    /// Show all spaces
    #[arg(long)]
    all: bool,
    /// Print Prometheus's text format
    #[arg(long, conflicts_with_all = ["reset", "watch"])]
    prometheus: bool,
    /// Print again every S seconds, until interrupted [default: 2]
    #[arg(long, value_name = "S", num_args = 0..=1, require_equals = true, default_missing_value = "2", value_parser = interval)]
    watch: Option<Duration>,
    /// Start the counters anew
    #[arg(long, conflicts_with = "watch")]
    reset: bool,
}

/// A space and its totals.
type Counted = (Space, Totals);

/// The JSON of one space.
#[derive(Debug, Serialize)]
struct Row<'a> {
    id: &'a str,
    space: &'a str,
    state: SpaceState,
    strategy: Option<Strategy>,
    io: Option<IoMode>,
    mounts: u64,
    since: u64,
    files: Files,
    bytes: Bytes,
    copy_up: CopyUp,
    relocated: Relocated,
    opens: Opens,
    blobs: Blobs,
    errors: BTreeMap<&'a str, u64>,
    corrupt: &'a [CorruptFile],
}

#[derive(Debug, Serialize)]
struct Files {
    /// None if the environment is not known.
    total: Option<u64>,
    touched: u64,
    /// None if no open has reached a daemon.
    opened: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Bytes {
    served: u64,
    from_cache: u64,
    decompressed: u64,
}

#[derive(Debug, Serialize)]
struct CopyUp {
    reflink: u64,
    copy_file_range: u64,
    copy: u64,
    relocated: u64,
    bytes: u64,
    bytes_shared: u64,
}

#[derive(Debug, Serialize)]
struct Relocated {
    files: u64,
    percent: f64,
}

#[derive(Debug, Serialize)]
struct Opens {
    passthrough: u64,
    cached: u64,
}

#[derive(Debug, Serialize)]
struct Blobs {
    cache_hits: u64,
    fetched: u64,
    refused: u64,
}

impl<'a> From<&'a Counted> for Row<'a> {
    fn from((space, totals): &'a Counted) -> Self {
        let get = |name| totals.get(name);
        let (passthrough, cached) = (get("opens_passthrough"), get("opens_cached"));
        let run = space.run.as_ref();
        Self {
            id: &space.identity,
            space: &space.label,
            state: space.state,
            strategy: run.and_then(|run| run.strategy),
            io: run.and_then(|run| run.io),
            mounts: totals.mounts,
            since: totals.since,
            files: Files {
                total: Some(totals.files).filter(|files| *files > 0),
                touched: totals.touched,
                opened: Some(passthrough + cached).filter(|opens| *opens > 0),
            },
            bytes: Bytes {
                served: get("bytes_served"),
                from_cache: get("cache_hit_bytes"),
                decompressed: get("blob_bytes_fetched"),
            },
            copy_up: CopyUp {
                reflink: get("reflink"),
                copy_file_range: get("copy_file_range"),
                copy: get("copy"),
                relocated: get("relocated"),
                bytes: get("bytes"),
                bytes_shared: get("bytes_shared"),
            },
            relocated: Relocated {
                files: totals.relocated,
                percent: percent(totals.relocated, totals.files),
            },
            opens: Opens { passthrough, cached },
            blobs: Blobs {
                cache_hits: get("cache_hits"),
                fetched: get("blobs_fetched"),
                refused: get("blobs_refused"),
            },
            errors: totals.errors().collect(),
            corrupt: &totals.corrupt,
        }
    }
}

/// With one digit after the point.
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (part as f64 * 1000.0 / whole as f64).round() / 10.0 }
}

/// A number with commas between thousands.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    if args.reset {
        for (space, _) in counted(args, context, false)? {
            statistics::reset(&space, &context.env)?;
            output::note(context.silent, &format!("{}: the counters start anew", space.identity));
        }
        return Ok(OK);
    }
    if args.prometheus {
        return print_prometheus(&counted(args, context, true)?);
    }
    let Some(period) = args.watch else { return print(args, context, &counted(args, context, true)?) };
    let cancel = cancel_on_signals()?;
    loop {
        if output::is_terminal() {
            output::clear()?;
        }
        print(args, context, &counted(args, context, true)?)?;
        let next = Instant::now() + period;
        while Instant::now() < next {
            if cancel.load(Ordering::Relaxed) || output::is_closed() {
                return Ok(OK);
            }
            std::thread::sleep(Duration::from_millis(20).min(period));
        }
        if cancel.load(Ordering::Relaxed) || output::is_closed() {
            return Ok(OK);
        }
    }
}

/// The spaces that were asked for, with their totals if `totals` is set.
fn counted(args: &Args, context: &Context, totals: bool) -> Result<Vec<Counted>, Failure> {
    let survey = Survey::new(&context.env)?;
    let spaces = match &args.space {
        Some(space) => vec![survey.find(space, &context.settings.controller.value, 0)?],
        None => {
            let mut all = survey.all(0)?;
            // rcc restored the others.
            all.retain(|space| context.env.spaces_dir().join(&space.identity).is_dir());
            all
        }
    };
    let of = |space: Space| {
        let counted = if totals { statistics::of(&space, &context.env)? } else { Totals::default() };
        Ok((space, counted))
    };
    spaces.into_iter().map(of).collect()
}

fn print(args: &Args, context: &Context, all: &[Counted]) -> Result<u8, Failure> {
    let rows: Vec<Row<'_>> = all.iter().map(Row::from).collect();
    match (&args.space, rows.as_slice()) {
        (Some(_), [row]) => output::print_result(context, row, || text(row)),
        _ => {
            let by_id: BTreeMap<_, _> = rows.iter().map(|row| (row.id, row)).collect();
            output::print_result(context, &by_id, || output::table(&columns(), rows.iter()))
        }
    }
}

fn print_prometheus(all: &[Counted]) -> Result<u8, Failure> {
    let spaces: Vec<Labelled<'_>> = all
        .iter()
        .map(|(space, totals)| Labelled {
            labels: [
                ("space", &space.label),
                ("controller", &space.controller),
                ("identity", &space.identity),
            ],
            is_mounted: space.is_mounted,
            totals,
        })
        .collect();
    output::print_for_program(prometheus::text(&spaces).as_bytes())?;
    Ok(OK)
}

/// The lines for one space: a name, a blank, a value.
fn text(row: &Row<'_>) -> Vec<String> {
    let (files, copy_up) = (&row.files, &row.copy_up);
    let size = output::human_bytes;
    let mut lines =
        vec![format!("space {} ({})", if row.space.is_empty() { row.id } else { row.space }, row.state)];
    lines.extend(row.strategy.map(|strategy| format!("strategy {strategy}")));
    lines.extend(row.io.map(|io| format!("io {io}")));
    lines.push(format!("mounts {}", grouped(row.mounts)));
    let total = files.total.map_or("an unknown number".to_owned(), grouped);
    let touched = percent(files.touched, files.total.unwrap_or(0));
    lines.push(format!("touched {} of {total} ({touched}%)", grouped(files.touched)));
    lines.push(match files.opened {
        Some(_) => format!(
            "opened {} by passthrough, {} by the page cache",
            grouped(row.opens.passthrough),
            grouped(row.opens.cached)
        ),
        None => "opened not known: the kernel opens files by itself".to_owned(),
    });
    lines.push(format!("relocated {} of {total} ({}%)", grouped(row.relocated.files), row.relocated.percent));
    lines.push(format!("reflinked {}", grouped(copy_up.reflink)));
    lines.push(format!(
        "copied {} in the kernel, {} by the daemon",
        grouped(copy_up.copy_file_range),
        grouped(copy_up.copy)
    ));
    lines.push(format!("of these {} relocated files that were only read", grouped(copy_up.relocated)));
    lines.push(format!(
        "private {}, {} shared with the library",
        size(copy_up.bytes),
        size(copy_up.bytes_shared)
    ));
    lines.push(format!(
        "served {}, {} from the cache, {} decompressed",
        size(row.bytes.served),
        size(row.bytes.from_cache),
        size(row.bytes.decompressed)
    ));
    lines.push(format!(
        "blobs {} found in the cache, {} fetched, {} refused",
        grouped(row.blobs.cache_hits),
        grouped(row.blobs.fetched),
        grouped(row.blobs.refused)
    ));
    let counted = |wanted: fn(&str) -> bool| -> String {
        let some = row.errors.iter().filter(|(errno, _)| wanted(errno));
        some.map(|(errno, n)| format!("{errno} {}", grouped(*n))).collect::<Vec<_>>().join(", ")
    };
    let (errors, ordinary) = (counted(is_alarming), counted(|errno| !is_alarming(errno)));
    lines.push(format!("errors {}", if errors.is_empty() { "none" } else { &errors }));
    if !ordinary.is_empty() {
        lines.push(format!("ordinary answers {ordinary} (no such attribute, not a terminal)"));
    }
    lines.extend(row.corrupt.iter().map(|file| format!("corrupt: {} {}", file.path, file.digest)));
    lines
}

fn columns<'a>() -> [Column<Row<'a>>; 11] {
    [
        ("Space", |row| if row.space.is_empty() { row.id.to_owned() } else { row.space.to_owned() }),
        ("State", |row| row.state.to_string()),
        ("Mounts", |row| grouped(row.mounts)),
        ("Touched", |row| {
            format!("{} of {}", grouped(row.files.touched), row.files.total.map_or("?".to_owned(), grouped))
        }),
        ("Relocated", |row| format!("{} ({}%)", grouped(row.relocated.files), row.relocated.percent)),
        ("Reflinked", |row| grouped(row.copy_up.reflink)),
        ("Copied", |row| grouped(row.copy_up.copy_file_range + row.copy_up.copy)),
        ("Served", |row| output::human_bytes(row.bytes.served)),
        ("Cache hits", |row| grouped(row.blobs.cache_hits)),
        ("Errors", |row| {
            grouped(row.errors.iter().filter(|(errno, _)| is_alarming(errno)).map(|(_, n)| n).sum())
        }),
        ("Corrupt", |row| row.corrupt.len().to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(
            (grouped(0), grouped(999), grouped(1878), grouped(1_234_567)),
            ("0".into(), "999".into(), "1,878".into(), "1,234,567".into())
        );
        assert_eq!((percent(16, 1878), percent(1, 0)), (0.9, 0.0));
    }

    /// The keys that programs read.
    #[test]
    fn keys_are_those_that_were_promised() {
        let counted = (Space::default(), Totals { files: 1878, relocated: 16, ..Totals::default() });
        let row = Row::from(&counted);
        let json = serde_json::to_value(&row).unwrap();
        for (part, keys) in [
            ("files", &["total", "touched", "opened"][..]),
            ("bytes", &["served", "from_cache", "decompressed"]),
            ("copy_up", &["reflink", "copy", "relocated", "bytes", "bytes_shared"]),
            ("relocated", &["files", "percent"]),
        ] {
            assert!(keys.iter().all(|key| json[part].as_object().unwrap().contains_key(*key)), "{json}");
        }
        assert!(json["corrupt"].is_array() && json["files"]["opened"].is_null());
        assert!(text(&row).contains(&"relocated 16 of 1,878 (0.9%)".to_owned()));
    }

    #[test]
    fn ordinary_answers_are_not_shown_as_errors() {
        let counters = [("errors.EIO", 2), ("errors.ENODATA", 70), ("errors.ENOTTY", 5)];
        let counters = counters.map(|(name, n)| (name.to_owned(), n)).into();
        let counted = (Space::default(), Totals { counters, ..Totals::default() });
        let row = Row::from(&counted);
        let lines = text(&row);
        let has = |wanted: &str| lines.iter().any(|line| line == wanted);
        assert!(has("errors EIO 2"), "{lines:?}");
        assert!(
            has("ordinary answers ENODATA 70, ENOTTY 5 (no such attribute, not a terminal)"),
            "{lines:?}"
        );
        let table = output::table(&columns(), [&row].into_iter());
        let cells: Vec<&str> = table.last().unwrap().split_whitespace().rev().take(2).collect();
        assert_eq!(cells, ["0", "2"], "{table:?}");
        assert_eq!(serde_json::to_value(&row).unwrap()["errors"]["ENODATA"], 70);
    }
}
