//! `holofs catalogs`: the environments of a library.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::SystemTime;

use serde::Serialize;

use super::exit::{Failure, OK};
use super::{Context, output};
use crate::library::catalogs::{CatalogEntry, list};
use crate::library::locate::{Location, locate};
use crate::session::environment::Environment;

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
    let library = locate(&args.library, &context.env.hololib())?;
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
    if context.json {
        output::print_json(&rows)?;
        return Ok(OK);
    }
    let table: Vec<Vec<String>> = rows.values().map(cells).collect();
    let headings =
        ["Blueprint", "Platform", "Dirs", "Files", "Size", "Relocate", "Holotree path", "Age", "Idle"];
    output::print_lines(&output::table(&headings, &table))?;
    for row in rows.values() {
        if let Some(content) = &row.identity_content {
            output::print_lines(&["", &format!("{}:", row.blueprint)])?;
            // Indented, so that a line of a blueprint cannot look like a line of holofs.
            output::print_lines(&content.lines().map(|line| format!("  {line}")).collect::<Vec<_>>())?;
        }
        let mut top: Vec<_> = row.top.values().flatten().collect();
        top.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
        for (path, bytes) in top {
            output::print_line(&format!("{}  {:>10}  {path}", row.blueprint, output::human_bytes(*bytes)))?;
        }
    }
    Ok(OK)
}

fn cells(row: &Row) -> Vec<String> {
    vec![
        row.blueprint.clone(),
        row.platform.clone(),
        row.directories.to_string(),
        row.files.to_string(),
        output::human_bytes(row.bytes),
        row.relocations.to_string(),
        row.holotree.clone(),
        format!("{} days", row.age_in_days),
        if row.days_since_last_use < 0 {
            "never".to_owned()
        } else {
            format!("{} days", row.days_since_last_use)
        },
    ]
}

fn row(entry: &CatalogEntry, library: &Location, args: &Args, context: &Context) -> Result<Row, Failure> {
    let environment = Environment::open(library, &entry.name, &context.env)?;
    let info = environment.info();
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
        entries: environment.entries(),
        identity_content: if args.identity { environment.identity_text()? } else { None },
        top,
    })
}
