//! Finds out what a space holds: the environment of its catalog, another one to which rcc converted it, or nothing.
//!
//! rcc converts a space by rewriting its files, among them `identity.yaml` with the blueprint's text. It writes the new
//! blueprint to `.meta` last. Two sources tell of a conversion: `.meta` beside the space, and the blueprint's text in the
//! upper. `.meta` alone is not enough, because rcc may have restored files there while the space was not mounted.
//!
//! This module only reads. Its work does not grow with the environment or its changes. Invariant: a space with a record of
//! a conversion of its present changes is never taken for the catalog's environment.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::path::Path;

use crate::library::catalog::Header;
use crate::library::name;
use crate::space::SpaceError;
use crate::space::meta::{self, Beside};
use crate::space::record::SpaceRecord;
use crate::space::state::has_changes;
use crate::space::upper::entry::{OnDisk, stat_at, unless_vanished};
use crate::space::upper::mark::Mark;
use crate::space::upper::{self, UpperError};
use crate::sys::{boot, guarded};

/// How much of a blueprint's text is read.
const MAX_BLUEPRINT: u64 = 1 << 20;

/// What a space holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Held {
    /// The environment of its catalog, with the user's changes.
    Catalog {
        /// The files beside the space's directory are right already.
        described: bool,
    },
    /// Another environment, to which rcc converted it.
    Converted {
        /// The blueprint of that environment.
        blueprint: String,
    },
    /// Nothing: rcc deleted the space after a mount had written the files beside it.
    Deleted,
}

impl Held {
    /// The blueprint of what the space holds. `catalog` is the blueprint of the space's catalog.
    #[must_use]
    pub fn blueprint<'a>(&'a self, catalog: &'a str) -> &'a str {
        match self {
            Held::Converted { blueprint } => blueprint,
            Held::Catalog { .. } | Held::Deleted => catalog,
        }
    }

    /// Reads what the space holds that has this state directory and record. `place` is the space's directory.
    ///
    /// # Errors
    /// When the upper cannot be read.
    pub fn of(state_dir: &Path, record: &SpaceRecord, place: &Path) -> Result<Held, SpaceError> {
        if record.basis.foreign.is_some() {
            // rcc does not know it, and there are no files beside it.
            return Ok(Held::Catalog { described: true });
        }
        let is_published = record.is_published();
        // `.meta` is the file that the last mount wrote, so rcc has changed nothing.
        if is_published && record.described.is_some() && meta::look_of(place) == record.described {
            return Ok(Held::Catalog { described: true });
        }
        let catalog = record.basis.blueprint.as_str();
        let is_right = |header: &Header| {
            header.blueprint == catalog
                && header.identity == record.basis.identity
                && Path::new(&header.path) == place
        };
        if !has_changes(state_dir)? {
            let described =
                is_published && matches!(meta::beside_of(place), Beside::Says(header) if is_right(&header));
            return Ok(Held::Catalog { described });
        }
        Ok(match (meta::beside_of(place), text_in_upper(state_dir, catalog)) {
            (Beside::Missing, _) if is_published => Held::Deleted,
            (Beside::Missing, _) => Held::Catalog { described: false },
            (Beside::Unreadable, Text::Other(blueprint)) => Held::Converted { blueprint },
            (Beside::Unreadable, _) => Held::Catalog { described: false },
            // Not described if our last mount did not finish `.meta`, or if it is about another directory. After an
            // interrupted conversion the upper has another text. Then `.meta` must stay as it is.
            (Beside::Says(header), text) if header.blueprint == catalog => {
                let described = is_published && is_right(&header) || matches!(text, Text::Other(_));
                Held::Catalog { described }
            }
            // rcc restored something here while the space was not mounted, and it was removed.
            (Beside::Says(_), Text::Catalogs) => Held::Catalog { described: false },
            (Beside::Says(header), _) => Held::Converted { blueprint: header.blueprint },
        })
    }
}

/// Changes of earlier mounts that must be kept, and what the space holds with them.
#[derive(Debug)]
pub struct Kept {
    /// The record of what they are based on.
    pub record: SpaceRecord,
    /// What the space holds.
    pub held: Held,
}

impl Kept {
    /// The blueprint of what the space holds.
    #[must_use]
    pub fn blueprint(&self) -> &str {
        self.held.blueprint(&self.record.basis.blueprint)
    }

    /// None if there are no changes, if an ephemeral mount made them, or if the space has no record.
    ///
    /// # Errors
    /// When the record or the upper cannot be read.
    pub fn of(state_dir: &Path) -> Result<Option<Kept>, SpaceError> {
        if !has_changes(state_dir)? {
            return Ok(None);
        }
        let Some(record) = SpaceRecord::read(state_dir)?.filter(|record| !record.basis.ephemeral) else {
            return Ok(None);
        };
        let held = Held::of(state_dir, &record, &record.basis.place())?;
        Ok(Some(Kept { record, held }))
    }
}

/// The blueprint's text in the space's root.
enum Text {
    /// The catalog's text: the upper has no other.
    Catalogs,
    /// The text of the blueprint with this hash.
    Other(String),
    /// The text was removed, or cannot be read.
    Unknown,
}

fn text_in_upper(state_dir: &Path, catalog: &str) -> Text {
    let upper = state_dir.join("upper");
    match is_untouched(&upper, c"identity.yaml") {
        Ok(true) => return Text::Catalogs,
        Ok(false) => {}
        Err(error) => tracing::debug!(%error, "cannot read whether the blueprint's text was changed"),
    }
    match guarded::read(&upper.join("identity.yaml"), MAX_BLUEPRINT).map(|text| name::sipit_hex(&text)) {
        Ok(hash) if hash == catalog => Text::Catalogs,
        Ok(hash) => Text::Other(hash),
        Err(error) => {
            tracing::debug!(%error, "cannot read the blueprint's text in the space");
            Text::Unknown
        }
    }
}

/// Whether the upper leaves the bytes of this file in the space's root as they are in the catalog.
fn is_untouched(upper: &Path, name: &CStr) -> Result<bool, UpperError> {
    let Some(root) = upper::open(upper)? else { return Ok(true) };
    let Some(stat) = unless_vanished(stat_at(root.as_fd(), name))? else { return Ok(true) };
    let mark = OnDisk::of_stat(root.as_fd(), name, &stat)?.mark;
    Ok(mark.is_some_and(|mark| matches!(mark.in_boot(boot::this(), stat.st_size), Mark::Meta(_))))
}
