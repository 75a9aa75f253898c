//! `holofs status` and `holofs path`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::exit::{Failure, MOUNTPOINT, NOT_FOUND, OK, failure};
use super::list::{Row, one};
use super::{Context, output};
use crate::fs::STATUS_XATTR;
use crate::materialize::{Counts, ReflinkProbe};
use crate::space::run::{Extra, read_run};
use crate::space::select::SpaceArg;
use crate::space::state::read_state;
use crate::space::{aside, live};
use crate::sys::{mountinfo, probe, process};

/// At most so many of a space's changes are looked at.
const LOOKED_AT: usize = 200_000;

/// How long a mount may take to tell about itself.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
#[command(after_help = "States:
  mounted
  unmounted
  stale         its daemon is gone: mount it again
  moved         a directory above the mount was renamed
  catalog-gone  the library has lost the environment
  damaged       the space's record cannot be read
  deleted       by rcc: the next mount begins anew
  restored      by rcc

Examples:
  holofs status demo
  holofs status demo --json")]
pub(super) struct Args {
    /// The space by name, identity or path
    #[arg(value_name = "SPACE|PATH")]
    space: OsString,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ls $(holofs path demo)
  fusermount3 -u $(holofs path demo)")]
pub(super) struct PathArgs {
    /// The space by name or identity
    space: OsString,
}

/// All about one space: what `list` shows, and what only its mount knows.
#[derive(Debug, Serialize)]
struct Status {
    #[serde(flatten)]
    row: Row,
    library: Option<String>,
    /// Whether private copies share extents with the library, and why not.
    reflink: Option<ReflinkProbe>,
    /// What else is in force.
    #[serde(flatten)]
    extra: Option<Extra>,
    /// Private copies made since the mount, by method.
    copy_up: Option<Counts>,
    log: PathBuf,
    /// The changes of the space before rcc deleted it.
    set_aside: Vec<PathBuf>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    let row = find(&args.space, context, LOOKED_AT)?;
    let state_dir = context.env.spaces_dir().join(&row.id);
    // Here, and not in a list, a damaged record is an answer.
    let state = read_state(&state_dir)?;
    let run = read_run(&state_dir).filter(|_| row.state == "mounted" || row.state == "moved");
    let copy_up = run.as_ref().and_then(|_| counts(&row));
    let status = Status {
        library: state.map(|state| state.content.library),
        reflink: run.as_ref().and_then(|run| run.reflink.clone()),
        extra: run.as_ref().and_then(|run| run.extra.clone()),
        copy_up,
        log: state_dir.join("log"),
        set_aside: aside::list(&state_dir),
        row,
    };
    if context.json {
        output::print_json(&status)?;
    } else {
        output::print_lines(&text(&status))?;
    }
    Ok(OK)
}

pub(super) fn run_path(args: &PathArgs, context: &Context) -> Result<u8, Failure> {
    let row = find(&args.space, context, 0)?;
    let there = mountinfo::mount_at(&live::resolved(&row.path)).unwrap_or_default();
    // Programs are run by what this prints.
    if let Some(user) = there.filter(|mount| !mount.is_ours()).and_then(|mount| mount.user_id) {
        let what = format!("{}: user {user} has mounted something on it", row.path.display());
        return Err(failure(MOUNTPOINT, what, Some("another space name")));
    }
    if context.json {
        output::print_json(&serde_json::json!({ "path": row.path }))?;
    } else {
        output::print_path(&row.path)?;
    }
    Ok(OK)
}

fn find(typed: &OsStr, context: &Context, entries: usize) -> Result<Row, Failure> {
    let given = SpaceArg::parse(typed)?;
    let identity = given.identity(&context.env, &context.settings.controller.value)?;
    let shown = typed.to_string_lossy();
    let row = one(&identity, context, entries)?.filter(|row| match &given {
        SpaceArg::Path(path) => live::resolved(path) == live::resolved(&row.path),
        SpaceArg::Identity(_) | SpaceArg::Name(_) => true,
    });
    row.ok_or_else(|| {
        failure(NOT_FOUND, format!("{shown}: no such space ({identity})"), Some("`holofs list`"))
    })
}

/// Asks the live mount itself; one whose daemon hangs is not waited for.
fn counts(row: &Row) -> Option<Counts> {
    let path = row.path.display();
    // An empty answer stands for an error, which only the log wants to know.
    let question = || {
        let mut value = [0u8; 1024];
        let asked = rustix::fs::getxattr(&row.path, STATUS_XATTR, &mut value[..]);
        asked.ok().and_then(|len| value.get(..len)).unwrap_or_default().to_vec()
    };
    match probe::ask(PATIENCE, question) {
        Ok(Some(text)) if text.is_empty() => {
            tracing::warn!(%path, "the mount does not tell what it copied");
            None
        }
        Ok(Some(text)) => serde_json::from_slice(&text).ok(),
        Ok(None) => {
            let why = row.pid.map(|pid| process::condition(pid).to_string());
            tracing::warn!(%path, pid = row.pid, why, "the mount's daemon does not answer");
            None
        }
        Err(error) => {
            tracing::warn!(%path, %error, "the mount was not asked what it copied");
            None
        }
    }
}

/// One screen, with a line for all that is known.
fn text(status: &Status) -> Vec<String> {
    let row = &status.row;
    let yes = |flag: Option<bool>| flag.filter(|flag| *flag).map(|_| "yes".to_owned());
    let lines = [
        ("Space", Some(row.space.clone())),
        ("State", Some(row.state.to_owned())),
        ("Path", Some(row.path.display().to_string())),
        ("Identity", Some(row.id.clone())),
        ("Controller", Some(row.controller.clone())),
        ("Blueprint", Some(row.blueprint.clone())),
        ("Library", status.library.clone()),
        ("Read-only", yes(row.read_only)),
        ("Ephemeral", yes(row.ephemeral)),
        ("Strategy", row.strategy.clone()),
        ("I/O", row.io.clone()),
        ("Reflink", status.reflink.as_ref().map(reflink)),
        ("Changed", Some(row.changed())),
        ("Copied", status.copy_up.as_ref().map(copied)),
        ("Daemon", row.pid.map(|pid| format!("process {pid}, for {}", since(row.started)))),
        (
            "Used",
            Some(format!("{}, last {}", row.use_count, row.last_used)).filter(|_| row.use_count != "N/A"),
        ),
        ("Log", Some(status.log.display().to_string())),
    ];
    let aside = status.set_aside.iter().map(|path| ("Set aside", Some(path.display().to_string())));
    let shown = lines
        .into_iter()
        .chain(aside)
        .filter_map(|(name, value)| Some((name, value.filter(|v| !v.is_empty())?)));
    shown.map(|(name, value)| format!("{name:<11} {value}")).collect()
}

fn reflink(probe: &ReflinkProbe) -> String {
    format!("{}: {}", if probe.supported { "yes" } else { "no" }, probe.reason)
}

fn copied(counts: &Counts) -> String {
    format!(
        "{} files by reflink, {} by copy, {} relocated; {}, of which {} shared with the library",
        counts.reflink,
        counts.copy,
        counts.relocated,
        output::human_bytes(counts.bytes),
        output::human_bytes(counts.bytes_shared)
    )
}

/// How long ago, in the largest unit that says something.
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
