//! `holofs catalogs`: the environments of a library.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::SystemTime;

use serde::Serialize;

use super::Context;
use super::exit::Failure;
use super::mount::RemoteArgs;
use super::output::{self, Column};
use crate::library::catalogs::{CatalogEntry, list};
use crate::library::locate::{Location, locate};
use crate::session::environment::Environment;
use crate::settings::Flags;

#[derive(Debug, clap::Args)]
#[command(after_help = "Files and bytes are counted as rcc counts them: files below a link to a directory
count again. With --json, `entries` counts each file, directory and link once.

Examples:
  holofs catalogs
  holofs catalogs ~/.robocorp --identity --json")]
pub(super) struct Args {
    /// The library, as for mount
    #[arg(default_value = "auto")]
    library: OsString,
    /// Show the blueprint of each environment
    #[arg(short, long)]
    identity: bool,
    /// Show the N largest files of each environment
    #[arg(short, long, value_name = "N")]
    top: Option<usize>,
    #[command(flatten)]
    remote: RemoteArgs,
}

impl Args {
    /// Adds these arguments to the flags.
    pub(super) fn set(&self, flags: &mut Flags) {
        self.remote.set(flags);
    }
}

/// One environment. The keys are rcc's, except `entries`.
#[derive(Debug, Serialize)]
struct Row {
    blueprint: String,
    holotree: String,
    #[serde(rename = "identity.yaml")]
    identity_yaml: String,
    platform: String,
    directories: u64,
    files: u64,
    bytes: u64,
    relocations: u64,
    age_in_days: u64,
    /// -1 if it was never used, as in rcc.
    days_since_last_use: i64,
    entries: u32,
    #[serde(rename = "identity-content", skip_serializing_if = "Option::is_none")]
    identity_content: Option<String>,
    /// `top5` with `--top 5`, as in rcc.
    #[serde(flatten)]
    top: BTreeMap<String, BTreeMap<String, u64>>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    let library = locate(&args.library, &context.env.hololib(), &context.env.access())?;
    let mut rows = BTreeMap::new();
    for file in list(&*library.library)? {
        match row(&file, &library, args, context) {
            Ok(row) => {
                rows.insert(row.blueprint.clone(), row);
            }
            // A bad catalog must not hide the others.
            Err(failure) => output::complain(&failure),
        }
    }
    output::print_result(context, &rows, || text(&rows))
}

fn text(rows: &BTreeMap<String, Row>) -> Vec<String> {
    let mut lines = output::table(&COLUMNS, rows.values());
    for row in rows.values() {
        if let Some(content) = &row.identity_content {
            lines.extend([String::new(), format!("{}:", row.blueprint)]);
            // Indented, so that a line of a blueprint cannot look like a line of holofs.
            lines.extend(content.lines().map(|line| format!("  {line}")));
        }
        let mut top: Vec<_> = row.top.values().flatten().collect();
        top.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
        let line = |(path, bytes): (&String, &u64)| {
            format!("{}  {:>10}  {path}", row.blueprint, output::human_bytes(*bytes))
        };
        lines.extend(top.into_iter().map(line));
    }
    lines
}

const COLUMNS: [Column<Row>; 9] = [
    ("Blueprint", |row| row.blueprint.clone()),
    ("Platform", |row| row.platform.clone()),
    ("Dirs", |row| row.directories.to_string()),
    ("Files", |row| row.files.to_string()),
    ("Size", |row| output::human_bytes(row.bytes)),
    ("Relocate", |row| row.relocations.to_string()),
    ("Holotree path", |row| row.holotree.clone()),
    ("Age", |row| format!("{} days", row.age_in_days)),
    ("Idle", |row| match row.days_since_last_use {
        ..0 => "never".to_owned(),
        days => format!("{days} days"),
    }),
];

fn row(entry: &CatalogEntry, library: &Location, args: &Args, context: &Context) -> Result<Row, Failure> {
    let environment = Environment::open(library, &entry.name, &context.env)?;
    let info = environment.index.info();
    let days = |at: SystemTime| at.elapsed().map_or(0, |since| since.as_secs() / 86_400);
    let used = environment.last_use().map_or(-1, |at| i64::try_from(days(at)).unwrap_or(i64::MAX));
    let mut top = BTreeMap::new();
    if let Some(n) = args.top {
        top.insert(format!("top{n}"), environment.largest(n)?.into_iter().collect());
    }
    let (holotree, _) = info.path.rsplit_once('/').unwrap_or_default();
    Ok(Row {
        blueprint: info.blueprint.clone(),
        holotree: holotree.to_owned(),
        identity_yaml: environment.identity_place()?,
        platform: info.platform.clone(),
        directories: info.rcc_directories,
        files: info.rcc_files,
        bytes: info.rcc_bytes,
        relocations: info.rcc_relocations,
        age_in_days: days(entry.modified),
        days_since_last_use: used,
        entries: environment.index.len(),
        identity_content: if args.identity { environment.identity_text()? } else { None },
        top,
    })
}
