//! What a space holds: the environment of its catalog, another one to which rcc converted it, or nothing any more.
//!
//! rcc converts a space by rewriting its files, `identity.yaml` (the blueprint's text) among them, and names the new
//! blueprint in `.meta` last. So two witnesses are heard: rcc's record beside the space, and the blueprint's text in the
//! space's upper. The record alone could tell of files that rcc restored while the space was not mounted.
//!
//! It only reads. Invariants: a space is said to hold its catalog's environment only when no record of rcc's about
//! these very changes says otherwise; the work does not grow with the environment or its changes.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::io::Errno;

use crate::library::catalog::Header;
use crate::library::name;
use crate::space::SpaceError;
use crate::space::meta::{self, Beside};
use crate::space::record::SpaceRecord;
use crate::space::state::has_changes;
use crate::space::upper::entry::{OnDisk, stat_at};
use crate::space::upper::mark::Mark;
use crate::space::upper::{self, UpperError};
use crate::sys::{boot, guarded};

/// The largest blueprint that is read.
const MAX_BLUEPRINT: u64 = 1 << 20;

/// What a space holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Held {
    /// The environment of its catalog, with the user's changes.
    Catalog {
        /// The files beside the space's directory say so already.
        described: bool,
    },
    /// Another environment, to which rcc converted it.
    Converted {
        /// Its blueprint.
        blueprint: String,
    },
    /// Nothing: rcc deleted it after a mount had described it.
    Deleted,
}

impl Held {
    /// The blueprint of what is held; `catalog` is that of the space's catalog.
    #[must_use]
    pub fn blueprint<'a>(&'a self, catalog: &'a str) -> &'a str {
        match self {
            Held::Converted { blueprint } => blueprint,
            Held::Catalog { .. } | Held::Deleted => catalog,
        }
    }

    /// Looks at the space whose state is in `state_dir` and says `state`. `place` is its directory: what lies beside it
    /// counts.
    ///
    /// # Errors
    /// When the upper cannot be read.
    pub fn of(state_dir: &Path, record: &SpaceRecord, place: &Path) -> Result<Held, SpaceError> {
        let is_published = record.is_published();
        // As we wrote it: neither of the two witnesses is needed.
        if is_published && record.described.is_some() && meta::look_of(place) == record.described {
            return Ok(Held::Catalog { described: true });
        }
        let catalog = record.basis.blueprint.as_str();
        let is_right = |header: &Header| header.blueprint == catalog && is_about(header, record, place);
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
            // Not finished by us, or not about this directory. After a conversion that was cut short rcc's record stays.
            (Beside::Says(header), text) if header.blueprint == catalog => {
                let described = is_published && is_right(&header) || matches!(text, Text::Other(_));
                Held::Catalog { described }
            }
            // rcc restored something here while the space was not mounted, and that is gone.
            (Beside::Says(_), Text::Catalogs) => Held::Catalog { described: false },
            (Beside::Says(header), _) => Held::Converted { blueprint: header.blueprint },
        })
    }
}

/// Changes of earlier mounts that are to be kept, and what the space holds with them.
#[derive(Debug)]
pub struct Kept {
    /// The record they belong to.
    pub record: SpaceRecord,
    /// What they make of the space.
    pub held: Held,
}

impl Kept {
    /// The blueprint of what the space holds.
    #[must_use]
    pub fn blueprint(&self) -> &str {
        self.held.blueprint(&self.record.basis.blueprint)
    }

    /// None when there are no changes, when they are an ephemeral mount's, or when the space has no record.
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

fn is_about(header: &Header, record: &SpaceRecord, place: &Path) -> bool {
    header.identity == record.basis.identity && Path::new(&header.path) == place
}

/// Which blueprint's text is in the space's root.
enum Text {
    /// The catalog's: the upper has none, or the same.
    Catalogs,
    /// The text of the blueprint with this hash.
    Other(String),
    /// None that can be read: removed, or no regular file.
    Unknown,
}

fn text_in_upper(state_dir: &Path, catalog: &str) -> Text {
    let upper = state_dir.join("upper");
    match is_untouched(&upper, c"identity.yaml") {
        Ok(true) => return Text::Catalogs,
        Ok(false) => {}
        Err(error) => tracing::debug!(%error, "cannot tell whether the blueprint's text was changed"),
    }
    match guarded::read(&upper.join("identity.yaml"), MAX_BLUEPRINT).map(|text| name::sipit_hex(&text)) {
        Ok(hash) if hash == catalog => Text::Catalogs,
        Ok(hash) => Text::Other(hash),
        Err(error) => {
            tracing::debug!(%error, "which blueprint the space was converted to is not known from its files");
            Text::Unknown
        }
    }
}

/// Whether the bytes of a file in the space's root are still the catalog's, as far as its upper says.
fn is_untouched(upper: &Path, name: &CStr) -> Result<bool, UpperError> {
    let Some(root) = upper::open(upper)? else { return Ok(true) };
    let stat = match stat_at(root.as_fd(), name) {
        Err(UpperError::Os { source: Errno::NOENT, .. }) => return Ok(true),
        stat => stat?,
    };
    let mark = OnDisk::of_stat(root.as_fd(), name, &stat)?.mark;
    Ok(mark.is_some_and(|mark| matches!(mark.in_boot(boot::this(), stat.st_size), Mark::Meta(_))))
}
