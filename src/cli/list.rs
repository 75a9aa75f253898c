//! `holofs list`: the spaces of holofs and of rcc on this machine.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::Context;
use super::exit::Failure;
use super::output::{self, Column};
use crate::session::spaces::{Space, Survey};
use crate::settings::{IoMode, Strategy};
use crate::space::meta::beside;
use crate::space::run::{Death, RunInfo};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  holofs list
  holofs list --mounted --json")]
pub(super) struct Args {
    /// List only mounted spaces
    #[arg(long)]
    mounted: bool,
    /// List the spaces of all controllers, as always
    #[arg(long, hide = true)]
    all_controllers: bool,
}

/// One space. The keys with a hyphen, and the paths beside `path`, are rcc's.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    #[serde(flatten)]
    pub(super) space: Space,
    meta: PathBuf,
    spec: PathBuf,
    plan: PathBuf,
    #[serde(rename = "last-used")]
    pub(super) last_used: String,
    #[serde(rename = "idle-days")]
    idle_days: u64,
    #[serde(rename = "use-count")]
    pub(super) use_count: String,
    pub(super) strategy: Option<Strategy>,
    /// `cached` or `passthrough`.
    pub(super) io: Option<IoMode>,
    pub(super) read_only: Option<bool>,
    pub(super) ephemeral: Option<bool>,
    /// The process that keeps the mount.
    pub(super) pid: Option<u32>,
    /// The process that answers the kernel. The same as `pid` for the daemon of an older version.
    pub(super) worker: Option<u32>,
    /// The version of its program.
    pub(super) version: Option<String>,
    /// Whether `pid` runs. Without it, nothing replaces `worker`.
    pub(super) kept: Option<bool>,
    /// How often that process was replaced.
    pub(super) restarts: Option<u64>,
    /// How the last one died.
    pub(super) last_death: Option<Death>,
    pub(super) started: Option<u64>,
}

/// How many changed files of each space are counted. A space may have hundreds of thousands.
const COUNTED_AT_MOST: usize = 1_000;

impl From<Space> for Row {
    fn from(space: Space) -> Self {
        // Worded and rounded as rcc does.
        let (last_used, use_count, idle_days) = match space.usage {
            None => ("N/A".to_owned(), "N/A".to_owned(), 0),
            Some((uses, used)) => {
                let days = used.elapsed().map_or(0.0, |since| since.as_secs_f64() / 86_400.0);
                (format!("{days:.0} days ago"), format!("{uses} times"), days as u64)
            }
        };
        let run = space.run.as_ref();
        Self {
            meta: beside(&space.path, ".meta"),
            spec: space.path.join("identity.yaml"),
            plan: space.path.join("rcc_plan.log"),
            last_used,
            idle_days,
            use_count,
            strategy: run.and_then(|run| run.strategy),
            io: run.and_then(|run| run.io),
            read_only: run.map(|run| run.read_only),
            ephemeral: run.map(|run| run.ephemeral),
            pid: run.map(|run| run.pid),
            worker: run.map(|run| run.worker.map_or(run.pid, |worker| worker.pid)),
            version: run.and_then(|run| run.version.clone()),
            kept: run.map(RunInfo::is_kept),
            restarts: run.map(|run| run.restarts),
            last_death: run.and_then(|run| run.last_death.clone()),
            started: run.and_then(|run| run.started),
            space,
        }
    }
}

impl Row {
    /// The size of the changes, with `>` when not all were counted.
    pub(super) fn changed(&self) -> String {
        let more = if self.space.upper_bytes_at_least { ">" } else { "" };
        format!("{more}{}", output::human_bytes(self.space.upper_bytes))
    }
}

const COLUMNS: [Column<Row>; 10] = [
    ("Identity", |row| row.space.identity.clone()),
    ("Controller", |row| row.space.controller.clone()),
    ("Space", |row| row.space.label.clone()),
    ("Blueprint", |row| row.space.blueprint.clone()),
    ("Full path", |row| row.space.path.display().to_string()),
    ("Last used", |row| row.last_used.clone()),
    ("Use count", |row| row.use_count.clone()),
    ("State", |row| {
        let given_up = if row.space.given_up.is_some() { ", given up" } else { "" };
        format!("{}{given_up}", row.space.state)
    }),
    ("Changed", Row::changed),
    ("Pid", |row| row.pid.map(|pid| pid.to_string()).unwrap_or_default()),
];

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    if args.all_controllers {
        tracing::debug!("--all-controllers has no effect: the list has the spaces of all controllers");
    }
    let spaces = Survey::new(&context.env)?.all(COUNTED_AT_MOST)?.into_iter();
    let rows: Vec<Row> = spaces.filter(|space| space.is_mounted || !args.mounted).map(Row::from).collect();
    let by_id: BTreeMap<_, _> = rows.iter().map(|row| (&row.space.identity, row)).collect();
    output::print_result(context, &by_id, || output::table(&COLUMNS, rows.iter()))
}
