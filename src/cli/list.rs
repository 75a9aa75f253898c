//! `holofs list`: the spaces that holofs or rcc have on this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::exit::{Failure, OK};
use super::unmount::mounts;
use super::{Context, output};
use crate::library::catalogs;
use crate::library::locate::{LibraryKind, Location};
use crate::library::name::Identity;
use crate::space::document::{Header, read_header, read_info};
use crate::space::held::Held;
use crate::space::live;
use crate::space::meta::{beside, usage};
use crate::space::state::{RunInfo, bytes_below, read_run, read_state};
use crate::sys::fuse_mount::is_dead;
use crate::sys::mountinfo::{self, MountEntry};

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
    pub(super) controller: String,
    pub(super) space: String,
    pub(super) blueprint: String,
    pub(super) path: PathBuf,
    meta: PathBuf,
    spec: PathBuf,
    plan: PathBuf,
    #[serde(rename = "last-used")]
    pub(super) last_used: String,
    #[serde(rename = "idle-days")]
    idle_days: u64,
    #[serde(rename = "use-count")]
    pub(super) use_count: String,
    mounted: bool,
    pub(super) state: &'static str,
    pub(super) strategy: Option<String>,
    /// The I/O mode in force: `cached` or `passthrough`.
    pub(super) io: Option<String>,
    pub(super) read_only: Option<bool>,
    pub(super) ephemeral: Option<bool>,
    pub(super) upper_bytes: u64,
    pub(super) pid: Option<u32>,
    pub(super) started: Option<u64>,
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
    output::print_lines(&output::table(&headings, &table))?;
    Ok(OK)
}

/// Every space, by identity.
pub(super) fn rows(context: &Context) -> Result<BTreeMap<String, Row>, Failure> {
    let live = mounts(context)?;
    let mut rows = BTreeMap::new();
    let everybodys = mountinfo::holofs_mounts().unwrap_or_default();
    let bases = bases(context);
    for state_dir in state_dirs(context) {
        let name = state_dir.file_name().unwrap_or_default().as_encoded_bytes();
        if let Ok(identity) = Identity::from_name(name) {
            rows.insert(identity.to_string(), row(&identity, &state_dir, &bases, &live));
        }
    }
    // What rcc restored beside them.
    let ours = rows.values().filter_map(|row| row.path.parent().map(Path::to_owned));
    for base in ours.chain(bases).collect::<BTreeSet<PathBuf>>() {
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
                rows.insert(identity.to_owned(), restored(identity, &path, &header, &everybodys));
            }
        }
    }
    Ok(rows)
}

/// The state directories of this home's spaces.
fn state_dirs(context: &Context) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(context.env.spaces_dir()).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// The directories in which spaces of rcc's own library are. Not those that its catalogs name: a catalog can name any.
fn bases(context: &Context) -> Vec<PathBuf> {
    let library = Location { hololib: context.env.hololib(), kind: LibraryKind::Hololib };
    let mut bases = vec![library.holotree(), context.env.robocorp_home.join("holotree")];
    bases.dedup();
    bases
}

fn row(identity: &Identity, state_dir: &Path, bases: &[PathBuf], live: &[MountEntry]) -> Row {
    let mount = live.iter().rfind(|mount| mount.identity() == Some(identity.as_str()));
    let recorded = read_state(state_dir);
    let is_damaged = recorded.is_err();
    let recorded = recorded.ok().flatten();
    let run = mount.and_then(|_| read_run(state_dir));
    let home = live::recorded_place(state_dir, run.as_ref());
    let place = mount.map(|mount| mount.mountpoint.clone()).or_else(|| home.clone());
    let held =
        recorded.as_ref().zip(place).and_then(|(state, place)| Held::of(state_dir, state, &place).ok());
    let content = recorded.map(|state| state.content);
    let path = mount.map(|mount| mount.mountpoint.clone()).or_else(|| home.clone()).unwrap_or_else(|| {
        // Nothing tells where it was: where it would be.
        bases.first().map_or_else(|| state_dir.to_owned(), |base| base.join(identity.as_str()))
    });
    let has_catalog = content.as_ref().is_none_or(|content| {
        let catalogs = catalogs::list(Path::new(&content.library)).unwrap_or_default();
        catalogs.iter().any(|catalog| catalog.blueprint == content.blueprint)
    });
    let state = match mount {
        Some(mount) if is_stale(mount, run.as_ref()) => "stale",
        Some(mount) if home.is_some_and(|home| live::resolved(&home) != mount.mountpoint) => "moved",
        _ if is_damaged => "damaged",
        _ if held == Some(Held::Deleted) => "deleted",
        _ if !has_catalog => "catalog-gone",
        Some(_) => "mounted",
        None => "unmounted",
    };
    let catalog = content.as_ref().map(|content| content.blueprint.clone()).unwrap_or_default();
    let blueprint = held.map_or(catalog.clone(), |held| held.blueprint(&catalog).to_owned());
    Row {
        mounted: mount.is_some() && state != "stale",
        state,
        strategy: run.as_ref().map(|run| run.strategy.clone()),
        io: run.as_ref().map(|run| run.io.clone()),
        read_only: run.as_ref().map(|run| run.read_only),
        ephemeral: run.as_ref().map(|run| run.ephemeral),
        upper_bytes: bytes_below(&state_dir.join("upper")),
        pid: run.as_ref().map(|run| run.pid),
        started: run.as_ref().map(|run| run.started),
        controller: content.as_ref().map(|content| content.controller.clone()).unwrap_or_default(),
        space: content.map(|content| content.space).unwrap_or_default(),
        ..bare(identity.as_str(), &path, blueprint)
    }
}

/// Whether nobody serves a mount any more. One whose daemon lives is not asked: it might not answer.
fn is_stale(mount: &MountEntry, run: Option<&RunInfo>) -> bool {
    !run.is_some_and(live::is_running) && is_dead(&mount.mountpoint)
}

/// A space that holofs of this home knows nothing about.
fn restored(identity: &str, path: &Path, header: &Header, everybodys: &[MountEntry]) -> Row {
    let is_mounted = everybodys.iter().any(|mount| mount.mountpoint == live::resolved(path));
    Row {
        controller: header.controller.clone(),
        space: header.space.clone(),
        mounted: is_mounted,
        state: if is_mounted { "mounted" } else { "restored" },
        ..bare(identity, path, header.blueprint.clone())
    }
}

/// What the path alone tells.
fn bare(identity: &str, path: &Path, blueprint: String) -> Row {
    // In rcc's words, and with rcc's rounding.
    let (last_used, use_count, idle_days) = match usage(path) {
        None => ("N/A".to_owned(), "N/A".to_owned(), 0),
        Some((uses, used)) => {
            let days = used.elapsed().map_or(0.0, |since| since.as_secs_f64() / 86_400.0);
            (format!("{days:.0} days ago"), format!("{uses} times"), days as u64)
        }
    };
    Row {
        id: identity.to_owned(),
        controller: String::new(),
        space: String::new(),
        blueprint,
        path: path.to_owned(),
        meta: beside(path, ".meta"),
        spec: path.join("identity.yaml"),
        plan: path.join("rcc_plan.log"),
        last_used,
        idle_days,
        use_count,
        mounted: false,
        state: "",
        strategy: None,
        io: None,
        read_only: None,
        ephemeral: None,
        upper_bytes: 0,
        pid: None,
        started: None,
    }
}
