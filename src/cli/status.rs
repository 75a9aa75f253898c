//! `holofs status` and `holofs path`.

use std::ffi::{OsStr, OsString};

use serde::Serialize;

use super::exit::{Failure, NOT_FOUND, OK, failure};
use super::list::{Row, rows};
use super::{Context, output};
use crate::fs::STATUS_XATTR;
use crate::materialize::{Counts, ReflinkProbe};
use crate::space::live;
use crate::space::select::SpaceArg;
use crate::space::state::{read_run, read_state};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "State: mounted; unmounted; stale (its daemon is gone: mount it again); moved (a directory above was renamed);
catalog-gone (the library has lost it); damaged (its record cannot be read); restored (by rcc).

Examples:
  holofs status demo
  holofs status demo --json"
)]
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
    read_only: Option<bool>,
    ephemeral: Option<bool>,
    /// Private copies made since the mount, by method.
    copy_up: Option<Counts>,
    log: std::path::PathBuf,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    let row = find(&args.space, context)?;
    let state_dir = context.env.spaces_dir().join(&row.id);
    // Here, and not in a list, a damaged record is an answer.
    let state = read_state(&state_dir)?;
    let run = read_run(&state_dir).filter(|_| row.state == "mounted" || row.state == "moved");
    let copy_up = run.as_ref().and_then(|_| counts(&row));
    let status = Status {
        library: state.map(|state| state.content.library),
        reflink: run.as_ref().and_then(|run| run.reflink.clone()),
        read_only: run.as_ref().map(|run| run.read_only),
        ephemeral: run.as_ref().map(|run| run.ephemeral),
        copy_up,
        log: state_dir.join("log"),
        row,
    };
    if context.json {
        output::print_json(&status)?;
    } else {
        output::print(&text(&status))?;
    }
    Ok(OK)
}

pub(super) fn run_path(args: &PathArgs, context: &Context) -> Result<u8, Failure> {
    let row = find(&args.space, context)?;
    if context.json {
        output::print_json(&serde_json::json!({ "path": row.path }))?;
    } else {
        output::print(&format!("{}\n", row.path.display()))?;
    }
    Ok(OK)
}

fn find(typed: &OsStr, context: &Context) -> Result<Row, Failure> {
    let given = SpaceArg::parse(typed)?;
    let identity = given.identity(&context.env, &context.controller)?;
    let shown = typed.to_string_lossy();
    let row = rows(context)?.remove(identity.as_str()).filter(|row| match &given {
        SpaceArg::Path(path) => live::resolved(path) == live::resolved(&row.path),
        SpaceArg::Identity(_) | SpaceArg::Name(_) => true,
    });
    row.ok_or_else(|| {
        failure(NOT_FOUND, format!("{shown}: no such space ({identity})"), Some("`holofs list`"))
    })
}

/// Asks the live mount itself.
fn counts(row: &Row) -> Option<Counts> {
    let mut value = [0u8; 1024];
    match rustix::fs::getxattr(&row.path, STATUS_XATTR, &mut value[..]) {
        Ok(len) => serde_json::from_slice(value.get(..len)?).ok(),
        Err(errno) => {
            tracing::warn!(%errno, path = %row.path.display(), "the mount does not tell what it copied");
            None
        }
    }
}

fn text(status: &Status) -> String {
    let value = serde_json::to_value(status).unwrap_or_default();
    let mut text = String::new();
    for (key, value) in value.as_object().into_iter().flatten() {
        let shown = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        text.push_str(&format!("{key:<12} {shown}\n"));
    }
    text
}
