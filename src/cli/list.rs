//! `holofs list`: the spaces that holofs or rcc have on this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use super::exit::{Failure, OK};
use super::unmount::mounts;
use super::{Context, output};
use crate::library::catalogs;
use crate::space::document::{Header, read_header, read_info};
use crate::space::meta::{beside, usage};
use crate::space::name::Identity;
use crate::space::state::{bytes_below, read_run, read_state};
use crate::sys::fuse_mount::is_dead;
use crate::sys::mountinfo::MountEntry;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  holofs list
  holofs list --mounted --json")]
pub(super) struct Args {
    /// Only what is mounted now
    #[arg(long)]
    mounted: bool,
}

/// One space; the keys are rcc's, and our own behind them.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) id: String,
    controller: String,
    space: String,
    pub(super) blueprint: String,
    pub(super) path: PathBuf,
    meta: PathBuf,
    spec: PathBuf,
    plan: PathBuf,
    #[serde(rename = "last-used")]
    last_used: String,
    #[serde(rename = "idle-days")]
    idle_days: u64,
    #[serde(rename = "use-count")]
    use_count: String,
    mounted: bool,
    pub(super) state: &'static str,
    strategy: Option<String>,
    upper_bytes: u64,
    pid: Option<u32>,
    started: Option<u64>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    let mut rows = rows(context)?;
    rows.retain(|_, row| !args.mounted || row.mounted);
    if context.json {
        output::print_json(&rows)?;
        return Ok(OK);
    }
    let table: Vec<Vec<String>> = rows
        .values()
        .map(|row| {
            vec![
                row.id.clone(),
                row.controller.clone(),
                row.space.clone(),
                row.blueprint.clone(),
                row.path.display().to_string(),
                row.last_used.clone(),
                row.use_count.clone(),
                row.state.to_owned(),
                output::human_bytes(row.upper_bytes),
                row.pid.map(|pid| pid.to_string()).unwrap_or_default(),
            ]
        })
        .collect();
    let headings = [
        "Identity",
        "Controller",
        "Space",
        "Blueprint",
        "Full path",
        "Last used",
        "Use count",
        "State",
        "Changed",
        "Pid",
    ];
    output::print(&output::table(&headings, &table))?;
    Ok(OK)
}

/// Every space, by identity.
pub(super) fn rows(context: &Context) -> Result<BTreeMap<String, Row>, Failure> {
    let live = mounts(context)?;
    let mut rows = BTreeMap::new();
    for identity in identities(context, &live) {
        if let Some(row) = row(&identity, context, &live) {
            rows.insert(identity.to_string(), row);
        }
    }
    // What rcc restored beside them.
    for base in bases(context, &rows) {
        let Ok(entries) = std::fs::read_dir(&base) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(identity) = name.to_str().and_then(|name| name.strip_suffix(".meta")) else { continue };
            if rows.contains_key(identity) {
                continue;
            }
            let path = base.join(identity);
            if let Ok(header) =
                read_info(&beside(&path, ".meta.info")).or_else(|_| read_header(&entry.path()))
            {
                rows.insert(identity.to_owned(), restored(identity, &path, &header));
            }
        }
    }
    Ok(rows)
}

/// The spaces that holofs keeps state of, or has mounted.
fn identities(context: &Context, live: &[MountEntry]) -> BTreeSet<Identity> {
    let kept = std::fs::read_dir(context.env.spaces_dir()).into_iter().flatten().flatten();
    let names = kept.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mounted = live.iter().filter_map(|mount| mount.identity().map(str::to_owned));
    names.chain(mounted).filter_map(|name| Identity::from_name(name.as_bytes()).ok()).collect()
}

/// The directories in which spaces can be.
fn bases(context: &Context, rows: &BTreeMap<String, Row>) -> BTreeSet<PathBuf> {
    let mut bases: BTreeSet<PathBuf> =
        rows.values().filter_map(|row| row.path.parent().map(Path::to_owned)).collect();
    for catalog in catalogs::list(&context.env.hololib()).unwrap_or_default() {
        let mut info = catalog.path.clone().into_os_string();
        info.push(".info");
        let header = read_info(Path::new(&info)).or_else(|_| read_header(&catalog.path));
        if let Some(base) = header.ok().and_then(|header| header.base().map(Path::to_owned)) {
            bases.insert(base);
        }
    }
    bases
}

fn row(identity: &Identity, context: &Context, live: &[MountEntry]) -> Option<Row> {
    let state_dir = context.env.state_dir(identity);
    let mount = live.iter().rfind(|mount| mount.identity() == Some(identity.as_str()));
    // A damaged record is `status`'s and `mount`'s to complain about; a list goes on.
    let state = read_state(&state_dir).ok().flatten();
    let content = state.as_ref().map(|state| &state.content);
    let home = content.map(|content| Path::new(&content.base).join(identity.as_str()));
    let path = mount.map(|mount| mount.mountpoint.clone()).or(home.clone())?;
    let run = mount.and_then(|_| read_run(&state_dir));
    let library = content.map(|content| PathBuf::from(&content.library));
    let blueprint = content.map(|content| content.blueprint.clone()).unwrap_or_default();
    let has_catalog = library.is_some_and(|library| {
        let catalogs = catalogs::list(&library).unwrap_or_default();
        catalogs.iter().any(|catalog| catalog.blueprint == blueprint)
    });
    let shown = match mount {
        Some(mount) if is_dead(&mount.mountpoint) => "stale",
        Some(mount) if home.is_some_and(|home| home != mount.mountpoint) => "moved",
        _ if !has_catalog => "catalog-gone",
        Some(_) => "mounted",
        None => "unmounted",
    };
    Some(Row {
        controller: content.map(|content| content.controller.clone()).unwrap_or_default(),
        space: content.map(|content| content.space.clone()).unwrap_or_default(),
        mounted: mount.is_some() && shown != "stale",
        state: shown,
        strategy: run.as_ref().map(|run| run.strategy.clone()),
        upper_bytes: bytes_below(&state_dir.join("upper")),
        pid: run.as_ref().map(|run| run.pid),
        started: run.as_ref().map(|run| run.started),
        ..bare(identity.as_str(), &path, blueprint)
    })
}

fn restored(identity: &str, path: &Path, header: &Header) -> Row {
    Row {
        controller: header.controller.clone(),
        space: header.space.clone(),
        state: "restored",
        ..bare(identity, path, header.blueprint.clone())
    }
}

/// What the path alone tells.
fn bare(identity: &str, path: &Path, blueprint: String) -> Row {
    let (uses, used) = usage(path).unwrap_or((0, SystemTime::now()));
    let idle_days = used.elapsed().map_or(0, |since| since.as_secs() / 86_400);
    Row {
        id: identity.to_owned(),
        controller: String::new(),
        space: String::new(),
        blueprint,
        path: path.to_owned(),
        meta: beside(path, ".meta"),
        spec: path.join("identity.yaml"),
        plan: path.join("rcc_plan.log"),
        last_used: format!("{idle_days} days ago"),
        idle_days,
        use_count: format!("{uses} times"),
        mounted: false,
        state: "",
        strategy: None,
        upper_bytes: 0,
        pid: None,
        started: None,
    }
}
