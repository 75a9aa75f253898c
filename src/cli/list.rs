//! `holofs list`: the spaces that holofs or rcc have on this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::exit::{Failure, OK};
use super::{Context, output};
use crate::library::catalogs;
use crate::library::locate::{LibraryKind, Location};
use crate::library::name::Identity;
use crate::session::registry::Registry;
use crate::space::held::Held;
use crate::space::live;
use crate::space::meta::{beside, recorded, usage};
use crate::space::run::{RunInfo, read_run};
use crate::space::state::read_state;
use crate::space::upper::walk::bytes_below;
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
    /// There are more changes than were looked at.
    pub(super) upper_bytes_at_least: bool,
    pub(super) pid: Option<u32>,
    pub(super) started: Option<u64>,
}

/// How many changed entries of each space a list looks at: a space may have hundreds of thousands.
const LISTED: usize = 1_000;

impl Row {
    /// How much was changed, in words.
    pub(super) fn changed(&self) -> String {
        let more = if self.upper_bytes_at_least { ">" } else { "" };
        format!("{more}{}", output::human_bytes(self.upper_bytes))
    }
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
                row.changed(),
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
fn rows(context: &Context) -> Result<BTreeMap<String, Row>, Failure> {
    let look = Look::new(context)?;
    let mut rows = BTreeMap::new();
    let entries = std::fs::read_dir(context.env.spaces_dir()).into_iter().flatten().flatten();
    for state_dir in entries.map(|entry| entry.path()) {
        let name = state_dir.file_name().unwrap_or_default().as_encoded_bytes();
        if let Ok(identity) = Identity::from_name(name) {
            rows.insert(identity.to_string(), look.row(&identity, &state_dir, LISTED));
        }
    }
    // What rcc restored beside them.
    let ours = rows.values().filter_map(|row| row.path.parent().map(Path::to_owned));
    for base in ours.chain(look.bases.iter().cloned()).collect::<BTreeSet<PathBuf>>() {
        let Ok(entries) = std::fs::read_dir(&base) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(identity) = name.to_str().and_then(|name| name.strip_suffix(".meta")) else { continue };
            if !rows.contains_key(identity)
                && let Some(row) = look.restored(identity, &base)
            {
                rows.insert(identity.to_owned(), row);
            }
        }
    }
    Ok(rows)
}

/// One space, without a look at any other; at most `entries` of its changes are looked at.
pub(super) fn one(identity: &Identity, context: &Context, entries: usize) -> Result<Option<Row>, Failure> {
    let look = Look::new(context)?;
    let state_dir = context.env.state_dir(identity);
    if state_dir.is_dir() {
        return Ok(Some(look.row(identity, &state_dir, entries)));
    }
    Ok(look.bases.iter().find_map(|base| look.restored(identity.as_str(), base)))
}

/// The directories in which spaces of rcc's own library are. Not those that its catalogs name: a catalog can name any.
fn bases(context: &Context) -> Vec<PathBuf> {
    let library = Location::directory(context.env.hololib(), LibraryKind::Hololib);
    let home = context.env.robocorp_home.join("holotree");
    let mut bases: Vec<_> = library.holotree().into_iter().chain([home]).collect();
    bases.dedup();
    bases
}

/// What a look at spaces needs to know of the machine.
struct Look {
    registry: Registry,
    /// The mounts of all users and homes.
    everybodys: Vec<MountEntry>,
    /// The directories in which spaces of rcc's own library are.
    bases: Vec<PathBuf>,
}

impl Look {
    fn new(context: &Context) -> Result<Self, Failure> {
        let registry = Registry::read(&context.env.spaces_dir())?;
        let everybodys = mountinfo::holofs_mounts().unwrap_or_default();
        Ok(Self { registry, everybodys, bases: bases(context) })
    }

    fn row(&self, identity: &Identity, state_dir: &Path, entries: usize) -> Row {
        let run = read_run(state_dir);
        let mount = self.registry.find(state_dir, run.as_ref());
        let run = run.filter(|_| mount.is_some());
        let recorded = read_state(state_dir);
        let is_damaged = recorded.is_err();
        let recorded = recorded.ok().flatten();
        let home = live::recorded_place(state_dir, run.as_ref());
        let place = mount.map(|mount| mount.mountpoint.clone()).or_else(|| home.clone());
        let held =
            recorded.as_ref().zip(place).and_then(|(state, place)| Held::of(state_dir, state, &place).ok());
        let content = recorded.map(|state| state.content);
        let path =
            mount.map(|mount| mount.mountpoint.clone()).or_else(|| home.clone()).unwrap_or_else(|| {
                // Nothing tells where it was: where it would be.
                self.bases.first().map_or_else(|| state_dir.to_owned(), |base| base.join(identity.as_str()))
            });
        let has_catalog = content.as_ref().is_none_or(|content| {
            let library = Location::recorded(Path::new(&content.library));
            let catalogs = library.and_then(|library| catalogs::list(&*library.library)).unwrap_or_default();
            catalogs.iter().any(|catalog| catalog.name.blueprint == content.blueprint)
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
        let (upper_bytes, is_all) = bytes_below(&state_dir.join("upper"), entries);
        Row {
            mounted: mount.is_some() && state != "stale",
            state,
            strategy: run.as_ref().map(|run| run.strategy.clone()),
            io: run.as_ref().map(|run| run.io.clone()),
            read_only: run.as_ref().map(|run| run.read_only),
            ephemeral: run.as_ref().map(|run| run.ephemeral),
            upper_bytes,
            upper_bytes_at_least: !is_all,
            pid: run.as_ref().map(|run| run.pid),
            started: run.as_ref().map(|run| run.started),
            controller: content.as_ref().map(|content| content.controller.clone()).unwrap_or_default(),
            space: content.map(|content| content.space).unwrap_or_default(),
            ..bare(identity.as_str(), &path, blueprint)
        }
    }

    /// A space that holofs of this home knows nothing about.
    fn restored(&self, identity: &str, base: &Path) -> Option<Row> {
        let path = base.join(identity);
        let header = recorded(&path)?;
        let resolved = live::resolved(&path);
        let is_mounted = self.everybodys.iter().any(|mount| mount.mountpoint == resolved);
        Some(Row {
            controller: header.controller.clone(),
            space: header.space.clone(),
            mounted: is_mounted,
            state: if is_mounted { "mounted" } else { "restored" },
            ..bare(identity, &path, header.blueprint.clone())
        })
    }
}

/// Whether nobody serves a mount any more. One whose daemon lives is not asked: it might not answer.
fn is_stale(mount: &MountEntry, run: Option<&RunInfo>) -> bool {
    !run.is_some_and(live::is_running) && is_dead(&mount.mountpoint)
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
        upper_bytes_at_least: false,
        pid: None,
        started: None,
    }
}
