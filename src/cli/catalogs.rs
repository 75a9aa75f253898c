//! `holofs catalogs`: the environments of a library.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::SystemTime;

use serde::Serialize;

use super::exit::{Failure, OK};
use super::{Context, output};
use crate::library::catalogs::{CatalogEntry, CatalogName, list};
use crate::library::digest::Digest;
use crate::library::index::cache::open_or_compile;
use crate::library::index::{Index, NodeId, NodeKind};
use crate::library::locate::{Location, locate};
use crate::session::compose;

#[derive(Debug, clap::Args)]
#[command(after_help = "Files and bytes are counted as rcc counts them: what lies below links to
directories counts again. `entries` (JSON) counts what a mount shows.

Examples:
  holofs catalogs
  holofs catalogs ~/.robocorp --identity --json")]
pub(super) struct Args {
    /// The library
    #[arg(default_value = "auto")]
    library: OsString,
    /// Show the text of each identity.yaml
    #[arg(short, long)]
    identity: bool,
    /// Show the N largest files of each
    #[arg(short, long, value_name = "N")]
    top: Option<usize>,
}

/// The longest identity.yaml that is shown, in bytes.
const MAX_IDENTITY: u64 = 1 << 20;

/// One environment; rcc's keys, and `entries`.
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
    /// -1 when nobody ever used it, as in rcc.
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
            // One bad catalog must not hide the others.
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
            // Indented: a line of somebody's text must not look like one of ours.
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

fn row(file: &CatalogEntry, library: &Location, args: &Args, context: &Context) -> Result<Row, Failure> {
    let cache = context.env.cache_dir();
    let index = open_or_compile(&*library.library, &file.name, &cache.join("index"))?;
    let info = index.info();
    let days = |at: SystemTime| at.elapsed().map_or(0, |since| since.as_secs() / 86_400);
    let used =
        last_use(library, &info.blueprint).map_or(-1, |at| i64::try_from(days(at)).unwrap_or(i64::MAX));
    let (holotree, _) = info.path.rsplit_once('/').unwrap_or_default();
    Ok(Row {
        blueprint: info.blueprint.clone(),
        holotree: holotree.to_owned(),
        identity_yaml: identity_blob(&index).map_or_else(
            || format!("{}/library/identity.yaml", library.library.name()),
            |digest| library.library.blob_place(&digest),
        ),
        platform: info.platform.clone(),
        directories: info.rcc_directories,
        files: info.rcc_files,
        bytes: info.rcc_bytes,
        relocations: info.rcc_relocations,
        age_in_days: days(file.modified),
        days_since_last_use: used,
        entries: index.len(),
        identity_content: if args.identity { identity_text(&index, library, context)? } else { None },
        top: args.top.map(|n| (format!("top{n}"), largest(&index, n))).into_iter().collect(),
    })
}

/// When anybody on this machine used it last, by the library's usage marks.
fn last_use(library: &Location, blueprint: &str) -> Option<SystemTime> {
    let entries = std::fs::read_dir(library.hololib()?.join("used")).ok()?.flatten();
    let of_it = entries.filter(|entry| {
        let name = entry.file_name();
        name.to_str().and_then(|name| name.split_once('.')).is_some_and(|(hash, _)| hash == blueprint)
    });
    of_it.filter_map(|entry| entry.metadata().ok()?.modified().ok()).max()
}

/// What tells one environment from another: how its blueprint begins, in one line. None when it cannot be read.
pub(super) fn first_lines(catalog: &CatalogName, library: &Location, context: &Context) -> Option<String> {
    let index = open_or_compile(&*library.library, catalog, &context.env.cache_dir().join("index")).ok()?;
    let text = identity_text(&index, library, context).ok()??;
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(6).collect();
    Some(lines.join(" ").chars().take(70).collect())
}

fn identity_blob(index: &Index) -> Option<Digest> {
    let node = index.lookup(NodeId(0), b"identity.yaml").ok().flatten().and_then(|id| index.node(id).ok());
    match node.map(|node| node.kind) {
        Some(NodeKind::File { digest, .. }) => Some(digest),
        _ => None,
    }
}

fn identity_text(index: &Index, library: &Location, context: &Context) -> Result<Option<String>, Failure> {
    let Some(id) = index.lookup(NodeId(0), b"identity.yaml").ok().flatten() else { return Ok(None) };
    let Ok(NodeKind::File { digest, size, .. }) = index.node(id).map(|node| node.kind) else {
        return Ok(None);
    };
    if size > MAX_IDENTITY {
        return Ok(Some(format!("(it is longer than {MAX_IDENTITY} bytes)")));
    }
    let blobs = compose::blobs(library, compose::blob_cache(&context.env.cache_dir())?);
    Ok(match blobs.read_all(&digest, size) {
        Ok(text) => Some(String::from_utf8_lossy(&text).into_owned()),
        Err(error) => Some(format!("({error})")),
    })
}

/// The largest files, by name of path.
fn largest(index: &Index, n: usize) -> BTreeMap<String, u64> {
    let mut files: Vec<(u64, NodeId)> = (0..index.len())
        .filter_map(|id| match index.node(NodeId(id)).ok()?.kind {
            NodeKind::File { size, .. } => Some((size, NodeId(id))),
            NodeKind::Dir { .. } | NodeKind::Symlink { .. } => None,
        })
        .collect();
    files.sort_unstable_by(|a, b| b.cmp(a));
    files.truncate(n);
    files.into_iter().map(|(size, id)| (index.path_of(id), size)).collect()
}
