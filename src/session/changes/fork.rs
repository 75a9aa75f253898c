//! Makes a further space with the changes of another one, as of one instant, also while that one is mounted.
//!
//! The first pass copies the changes while programs go on. Then the daemon lets no change begin, and a second pass copies
//! what has changed since: that takes about as long as one stat(2) of each changed entry. If this process dies, or takes
//! longer than `FROZEN_AT_MOST`, the daemon lets changes go on.
//!
//! In passthrough mode the kernel writes to open files without the daemon. Such files are copied until a pass finds none
//! that was written to since.
//!
//! A store to a shared map becomes part of the copy when the kernel has written it back. Just before the instant, the kernel
//! is made to (`writeback`), so the stores from before the fork are in the copy, and of later ones some.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::writeback::hand_over_stores;
use crate::library::index::NodeId;
use crate::library::index::place::unusable;
use crate::library::name;
use crate::session::changes::Changed;
use crate::session::control::{Client, Request};
use crate::session::error::Error;
use crate::settings::IoMode;
use crate::space::SpaceError;
use crate::space::copy::CopyError;
use crate::space::fork::{NewSpace, Renamed, copy, is_taken, rename_in};
use crate::space::held::Held;
use crate::space::home::Env;
use crate::space::path::resolved;
use crate::space::record::Basis;
use crate::space::run::read_run;
use crate::space::select::SpaceArg;
use crate::space::state::StateDir;

/// The longest time for which programs that change the space wait.
const FROZEN_AT_MOST: Duration = Duration::from_secs(30);

/// How long the daemon may take to answer. It waits for changes that are in progress.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// How often files are copied that programs write to without the daemon.
const PASSES: u32 = 40;

/// A further space. The keys of `holofs fork --json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Forked {
    /// The directory of the new space.
    pub path: PathBuf,
    /// The name of that directory.
    pub identity: String,
    /// The blueprint of its environment.
    pub blueprint: String,
    /// Files whose extents it shares with the other space.
    pub reflinked: u64,
    /// Files that were copied.
    pub copied: u64,
    /// The bytes of the latter.
    pub bytes: u64,
    /// For how long changes of the other space waited, in milliseconds. None while it was not mounted.
    pub frozen_ms: Option<u64>,
    /// Changed files and links that name the directory of the other space. They are copied as they are.
    pub mentions: Vec<PathBuf>,
}

/// Keeps the space as it is: the daemon lets no change begin, or no mount can begin.
enum Quiet {
    Frozen(Client, Instant),
    Locked,
}

/// Makes the space `new` from the space `given`. Calls `each` for each changed entry, to show progress.
///
/// # Errors
/// See [`Error`]. There is no new space then.
pub fn fork(
    env: &Env,
    given: &OsStr,
    new: &OsStr,
    controller: &str,
    each: &dyn Fn(),
) -> Result<Forked, Error> {
    let space = Changed::open(env, given, controller)?;
    let old = space.record.basis.clone();
    if let Held::Converted { blueprint } = Held::of(&space.state_dir, &space.record, &old.place())? {
        return Err(Error::Converted { identity: old.identity, blueprint });
    }
    let basis = basis_of(env, &old, new, controller)?;
    if basis.identity == old.identity || is_taken(&basis.place())? {
        return Err(SpaceError::Exists(basis.place()).into());
    }
    let locked = match &space.mounted {
        Some(_) => None,
        None => Some(StateDir::open_locked(&space.state_dir)?),
    };
    let made = NewSpace::begin(&env.spaces_dir(), &basis.identity)?;
    let forked = fill(&space, &made, &basis, each);
    drop(locked);
    match forked {
        Ok(forked) => {
            made.publish(basis)?;
            Ok(forked)
        }
        Err(error) => {
            made.abandon();
            Err(error)
        }
    }
}

/// What the new space's changes are based on.
fn basis_of(env: &Env, old: &Basis, new: &OsStr, controller: &str) -> Result<Basis, Error> {
    let arg = SpaceArg::parse(new)?;
    if let Some(place) = old.placed_at() {
        return placed_basis_of(env, old, place, &arg, controller);
    }
    let identity = arg.identity(env, controller)?.to_string();
    let label = match &arg {
        SpaceArg::Name(name) => name.clone(),
        SpaceArg::Identity(_) => identity.clone(),
        SpaceArg::Path(path) => {
            let base = PathBuf::from(&old.base);
            if path.parent().map(resolved) != Some(resolved(&base)) {
                return Err(SpaceError::BaseMismatch { given: path.clone(), base }.into());
            }
            identity.clone()
        }
    };
    let controller = name::controller_identity(controller);
    Ok(Basis { identity, space: label, controller, ephemeral: false, ..old.clone() })
}

/// What the new space's changes are based on, if the files of the old space name a path of their own. The new path has the same
/// length: the changes are copied as they are, and the path is written over the old one.
fn placed_basis_of(
    env: &Env,
    old: &Basis,
    place: &Path,
    arg: &SpaceArg,
    controller: &str,
) -> Result<Basis, Error> {
    let identity = arg.anywhere(env, controller)?.to_string();
    let path = match arg {
        SpaceArg::Path(path) => path.clone(),
        SpaceArg::Name(_) | SpaceArg::Identity(_) => Path::new(&old.base).join(&identity),
    };
    if path.as_os_str().len() != place.as_os_str().len() {
        let len = place.as_os_str().len();
        return Err(SpaceError::OtherLength { path, len }.into());
    }
    if let Some(why) = unusable(&path) {
        return Err(SpaceError::Unusable { path, why }.into());
    }
    let space = if let SpaceArg::Name(name) = arg { name.clone() } else { identity.clone() };
    let controller = name::controller_identity(controller);
    let base = path.parent().unwrap_or(&path).to_string_lossy().into_owned();
    Ok(Basis { identity, space, controller, base, foreign: Some(path), ephemeral: false, ..old.clone() })
}

/// Copies the changes.
fn fill(space: &Changed, made: &NewSpace, basis: &Basis, each: &dyn Fn()) -> Result<Forked, Error> {
    let old = &space.record.basis;
    // `basis_of` made them of equal length.
    let path = old.placed_at().and_then(Path::to_str).zip(basis.placed_at().and_then(Path::to_str));
    let renamed = Renamed { name: (&old.identity, &basis.identity), path };
    let edit = |node: NodeId, file: &File| rename_in(&space.index, node, file, renamed);
    // Before anything waits: a store to a map is written back by a request that would have to wait.
    let settled = || {
        space.mounted.as_ref().is_none_or(|mountpoint| {
            hand_over_stores(mountpoint, space.upper.as_fd(), read_run(&space.state_dir).as_ref())
        })
    };
    let freeze = || -> Result<Quiet, Error> {
        if space.mounted.is_none() {
            return Ok(Quiet::Locked);
        }
        if !settled() {
            tracing::warn!("the mount does not answer: stores to mapped files may be missing");
        }
        let mut client = Client::connect(&space.state_dir)?;
        let ms = u64::try_from(FROZEN_AT_MOST.as_millis()).unwrap_or(u64::MAX);
        client.ask(&Request::Freeze { ms }, ANSWER_WITHIN)?;
        Ok(Quiet::Frozen(client, Instant::now()))
    };
    let io = read_run(&space.state_dir).and_then(|run| run.io);
    let bypasses = space.mounted.is_some() && io != Some(IoMode::Cached);
    let upper = made.upper()?;
    let copied = copy(&space.upper, upper, (&edit, each), if bypasses { PASSES } else { 0 }, freeze)?;
    let Some((copied, held)) = copied else { return Err(Error::KeepsChanging(space.record.basis.place())) };
    let frozen_ms = match held {
        Quiet::Locked => None,
        Quiet::Frozen(client, since) => {
            let frozen = since.elapsed();
            if client.finish(ANSWER_WITHIN)? != true {
                return Err(Error::KeepsChanging(space.record.basis.place()));
            }
            Some(u64::try_from(frozen.as_millis()).unwrap_or(u64::MAX))
        }
    };
    Ok(Forked {
        path: basis.place(),
        identity: basis.identity.clone(),
        blueprint: basis.blueprint.clone(),
        reflinked: copied.reflinked,
        copied: copied.copied,
        bytes: copied.bytes,
        frozen_ms,
        mentions: made.mentions(path.map_or(old.identity.as_str(), |(old, _)| old))?,
    })
}

impl From<CopyError> for Error {
    fn from(error: CopyError) -> Self {
        SpaceError::Io { path: error.path, source: error.source }.into()
    }
}
