//! Plans which entries of an upper have to go, so that paths show what the catalog has.
//!
//! An entry of the catalog can show at one place only, because its place in the catalog is its inode number. So a path is
//! reset together with the places to which something of it was renamed, and with the place from which it was renamed. What
//! was renamed away goes before its own place shows it again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::diff::{Entry, Scan};
use super::upper::UpperError;
use super::upper::changes::What;
use crate::library::index::NodeId;

/// One step of a reset.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// What the upper has at this path goes, with everything below it.
    Entry(PathBuf),
    /// This directory gets its attributes back. Not shown if only its time is other, because of entries in it that come or
    /// go with the reset.
    Dir {
        /// Its path.
        path: PathBuf,
        /// Something of it was changed.
        shown: bool,
    },
}

impl Step {
    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Entry(path) | Self::Dir { path, .. } => path,
        }
    }

    /// Whether it is one of the paths that a reset lists.
    #[must_use]
    pub fn is_shown(&self) -> bool {
        !matches!(self, Self::Dir { shown: false, .. })
    }
}

/// Why a path cannot be reset.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// Neither the space nor the catalog has it.
    #[error("{0}: there is no such path")]
    NotThere(String),
    /// A directory above it was removed, renamed or replaced.
    #[error("{path}: the directory {above} was removed, renamed or replaced")]
    Above {
        /// The path.
        path: String,
        /// The directory.
        above: String,
    },
    /// A further hard link of the catalog's file shows elsewhere.
    #[error("{path}: {other} is a hard link to it")]
    Linked {
        /// The path.
        path: String,
        /// The other name.
        other: String,
    },
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// It cannot be done.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The upper cannot be read.
    #[error(transparent)]
    Upper(#[from] UpperError),
}

/// The steps that reset these paths, or with none the whole space.
///
/// # Errors
/// [`Refusal`], and when the index is damaged.
pub fn plan(scan: &Scan<'_>, targets: &[PathBuf]) -> Result<Vec<Step>, PlanError> {
    let is_root = |path: &PathBuf| path.as_os_str().is_empty();
    let targets: &[PathBuf] = if targets.iter().any(is_root) { &[] } else { targets };
    for target in targets {
        check(scan, target)?;
    }
    let entries = &scan.entries;
    let is_meant =
        |entry: &Entry| targets.is_empty() || targets.iter().any(|target| entry.path.starts_with(target));
    let mut chosen = BTreeSet::new();
    let mut dirs = BTreeMap::new();
    let mut top: Option<&Path> = None;
    for (n, entry) in entries.iter().enumerate().filter(|(_, entry)| is_meant(entry)) {
        // What lies below an entry goes with it.
        if top.is_some_and(|top| entry.path.starts_with(top)) {
            continue;
        }
        if entry.what == What::Merged && is_at_home(entry) {
            if entry.metadata || entry.touched {
                dirs.insert(entry.path.clone(), true);
            }
        } else {
            chosen.insert(n);
            top = Some(&entry.path);
        }
    }
    loop {
        let more = related(scan, &chosen)?;
        if more.is_empty() {
            break;
        }
        chosen.extend(more);
    }
    let mut steps: Vec<&Entry> = chosen.iter().filter_map(|n| entries.get(*n)).collect();
    for entry in steps.iter().filter(|entry| !is_at_home(entry)) {
        let dir = entry.path.parent().unwrap_or(Path::new(""));
        if targets.is_empty() || targets.iter().any(|target| dir.starts_with(target)) {
            dirs.entry(dir.to_owned()).or_insert(false);
        }
    }
    let paths: HashSet<&Path> = steps.iter().map(|entry| entry.path.as_path()).collect();
    let goes_with_another = |path: &Path| path.ancestors().skip(1).any(|above| paths.contains(above));
    steps.retain(|entry| !goes_with_another(&entry.path));
    // What was renamed to its place goes before the place that it came from shows again.
    steps.sort_by_key(|entry| is_at_home(entry) || entry.origin.is_none());
    dirs.retain(|path, _| !paths.contains(path.as_path()) && !goes_with_another(path));
    let dirs = dirs.into_iter().map(|(path, shown)| Step::Dir { path, shown });
    Ok(steps.iter().map(|entry| Step::Entry(entry.path.clone())).chain(dirs).collect())
}

/// Whether an entry is the changed form of what the catalog has at its place.
fn is_at_home(entry: &Entry) -> bool {
    entry.origin.is_some() && entry.origin == entry.covers
}

/// The entries that have to go as well: those that show what the chosen ones bring back, and the places from which the
/// chosen ones were renamed.
fn related(scan: &Scan<'_>, chosen: &BTreeSet<usize>) -> Result<Vec<usize>, PlanError> {
    let tops = || chosen.iter().filter_map(|n| scan.entries.get(*n));
    let paths: HashSet<&Path> = tops().map(|top| top.path.as_path()).collect();
    let back: HashMap<NodeId, &Entry> = tops().filter_map(|top| Some((top.covers?, top))).collect();
    let sources: HashSet<NodeId> =
        tops().filter(|top| top.origin != top.covers).filter_map(|top| top.origin).collect();
    let mut more = Vec::new();
    for (n, entry) in scan.entries.iter().enumerate() {
        if entry.path.ancestors().any(|path| paths.contains(path)) {
            continue;
        }
        let moved = entry.origin.filter(|origin| Some(*origin) != entry.covers);
        if let Some(origin) = moved
            && let Some(top) = brought_back(scan, origin, &back)
        {
            if scan.is_at_home(origin) {
                let text = |entry: &Entry| entry.path.to_string_lossy().into_owned();
                return Err(Refusal::Linked { path: text(top), other: text(entry) }.into());
            }
            more.push(n);
        }
        if entry.what == What::Removed && entry.covers.is_some_and(|node| sources.contains(&node)) {
            more.push(n);
        }
    }
    Ok(more)
}

/// The entry whose reset brings a node back to its place: it hides that node, or a directory above it.
fn brought_back<'e>(scan: &Scan<'_>, node: NodeId, back: &HashMap<NodeId, &'e Entry>) -> Option<&'e Entry> {
    let mut at = node;
    loop {
        if let Some(top) = back.get(&at) {
            return Some(top);
        }
        match scan.index.node(at) {
            // A parent comes before its children.
            Ok(found) if found.parent < at => at = found.parent,
            _ => return None,
        }
    }
}

/// Checks that a path exists, and that the directories above it are where the catalog has them.
fn check(scan: &Scan<'_>, target: &Path) -> Result<(), PlanError> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    for entry in &scan.entries {
        let is_above = entry.path != target && target.starts_with(&entry.path);
        let is_addition = entry.what == What::Created && entry.covers.is_none();
        if is_above && !is_at_home(entry) && !is_addition {
            return Err(Refusal::Above { path: text(target), above: text(&entry.path) }.into());
        }
    }
    if scan.entries.iter().any(|entry| entry.path == target) {
        return Ok(());
    }
    let mut at = NodeId(0);
    for name in target {
        match scan.index.lookup(at, name.as_bytes()).map_err(UpperError::from)? {
            Some(node) => at = node,
            None => return Err(Refusal::NotThere(text(target)).into()),
        }
    }
    Ok(())
}
