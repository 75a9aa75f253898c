//! The start of a mount: takes the space, unless it is mounted already with the options that were asked for.
//!
//! A mount keeps the options that it was made with. A repeated `mount` gets it only if the options that the user typed
//! are in force. Defaults are not compared, with two exceptions: leaving out `--read-only` or `--ephemeral` asks for
//! changes to be allowed, or kept.

use std::time::{Duration, Instant};

use super::arrival;
use super::mounted::Mounted;
use super::pending::PendingMount;
use crate::library::index::Index;
use crate::session::end::{How, unmount};
use crate::session::error::Error;
use crate::session::registry;
use crate::session::request::MountPlan;
use crate::settings::Prefetch;
use crate::space::SpaceError;
use crate::space::held::Held;
use crate::space::record::{self, SpaceRecord};
use crate::space::run::{RunInfo, read_run};
use crate::space::state::link_target;
use crate::sys::fuse_mount::{self, Liveness};
use crate::sys::mountinfo::MountEntry;
use crate::sys::process;

/// How long the daemon of a mount that was ended may take to release the space.
const ENDING: Duration = Duration::from_secs(5);

/// Mounts the space, unless it is mounted, and serves it until the mount ends. Calls `claimed` when this process holds the
/// locks of the space, and `ready` when the mount answers.
pub(in crate::session) fn begin(
    plan: &MountPlan,
    started: Instant,
    claimed: &dyn Fn() -> Result<(), Error>,
    ready: &mut (dyn FnMut(&Mounted) + Send),
) -> Result<(), Error> {
    let (index, missing_blobs) = arrival::whole_index(plan)?;
    // This process is going to fork.
    plan.location.library.pause();
    // The catalog was compiled.
    if plan.index.is_none() {
        process::trim_heap();
    }
    let deadline = started + ENDING.min(plan.lock_timeout);
    loop {
        if let Some(reused) = reuse(plan, &index, started)? {
            ready(&reused);
            return Ok(());
        }
        match plan.claim(&index.catalog_sha256()) {
            // The space is not mounted, so the holder of its lock either ends or starts a mount. Look again.
            Err(SpaceError::Busy { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            claim => {
                let pending = PendingMount { plan, index, claim: claim?, started, missing_blobs };
                claimed()?;
                return pending.serve(ready);
            }
        }
    }
}

/// The existing mount, if its options are those of the plan. Unmounts a dead mount, whose daemon was killed. None if the
/// space is not mounted, or not any more.
fn reuse(plan: &MountPlan, index: &Index, started: Instant) -> Result<Option<Mounted>, Error> {
    let Some(live) = registry::find(&plan.state_dir())? else { return Ok(None) };
    match fuse_mount::liveness(&live.mountpoint, plan.lock_timeout) {
        Liveness::Alive => {}
        Liveness::Silent => {
            let daemon = read_run(&plan.state_dir()).map(|run| run.server());
            return Err(Error::no_answer(live.mountpoint, daemon));
        }
        Liveness::Dead => {
            tracing::info!(path = %live.mountpoint.display(), "unmounting a dead mount: its daemon was killed");
            return match fuse_mount::unmount(&live.mountpoint, true) {
                Ok(()) => Ok(None),
                // The mount was ending, and has ended.
                Err(_) if !registry::is_mounted(&live)? => Ok(None),
                Err(source) => Err(Error::Mount { path: live.mountpoint, source }),
            };
        }
    }
    let Some(run) = record_of(plan, &live)? else { return Ok(None) };
    let state_dir = plan.state_dir();
    let record = SpaceRecord::read(&state_dir)?.ok_or_else(|| SpaceError::DamagedState {
        path: state_dir.join(record::FILE),
        why: "it is missing, and the space is mounted".to_owned(),
    })?;
    let held = Held::of(&state_dir, &record, &live.mountpoint)?;
    if held == Held::Deleted {
        end_deleted(plan, live)?;
        return Ok(None);
    }
    let mounted = held.blueprint(&record.basis.blueprint).to_owned();
    if mounted != plan.holds {
        let wanted = plan.holds.clone();
        return Err(Error::OtherBlueprint { path: live.mountpoint, mounted, wanted });
    }
    if plan.request.fresh {
        return Err(Error::InUse { path: live.mountpoint, pids: vec![run.pid] });
    }
    let mut differs = differences(plan, &run);
    if let Some(place) = record.basis.foreign.as_ref().filter(|_| plan.space.own.is_none()) {
        differs.push(format!("no --foreign (in force: --foreign, on {})", place.display()));
    }
    if !differs.is_empty() {
        return Err(Error::OtherOptions { path: live.mountpoint, differs });
    }
    let mounted = Mounted::of(plan, index, run, started);
    Ok(Some(Mounted { path: live.mountpoint, reused: true, ..mounted }))
}

/// The record of a live mount's daemon. The daemon writes it just after mounting, and removes it just before it ends. None
/// if the mount has ended meanwhile.
fn record_of(plan: &MountPlan, live: &MountEntry) -> Result<Option<RunInfo>, Error> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        // A daemon that was killed leaves its record behind.
        if let Some(run) = read_run(&plan.state_dir()).filter(RunInfo::is_running) {
            return Ok(Some(run));
        }
        match registry::find(&plan.state_dir())? {
            Some(now) if now.dev == live.dev => {}
            _ => return Ok(None),
        }
        if Instant::now() >= deadline {
            return Err(Error::no_answer(live.mountpoint.clone(), None));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends the mount of a space that rcc deleted. A new mount of the space follows.
fn end_deleted(plan: &MountPlan, live: MountEntry) -> Result<(), Error> {
    tracing::info!(path = %live.mountpoint.display(), "rcc deleted this space: ending its mount");
    let how = How { lazy: false, force: false, timeout: ENDING };
    match unmount(&live, Some(&plan.state_dir()), how) {
        Ok(_) => Ok(()),
        Err(Error::InUse { path, pids }) => Err(Error::DeletedInUse { path, pids }),
        Err(error) => Err(error),
    }
}

/// The options of the plan that the mount does not have, as they are typed, with the value in force.
#[must_use]
fn differences(plan: &MountPlan, run: &RunInfo) -> Vec<String> {
    let mut out = Vec::new();
    let mut differ = |asked: String, in_force: &str| out.push(format!("{asked} (in force: {in_force})"));
    let asked = &plan.settings;
    if let Some(strategy) = asked.strategy.typed().filter(|asked| Some(**asked) != run.strategy) {
        differ(format!("--strategy {strategy}"), &in_words(run.strategy));
    }
    if let Some(io) = asked.io.typed().map(|io| io.in_force()).filter(|asked| Some(*asked) != run.io) {
        differ(format!("--io {io}"), &in_words(run.io));
    }
    if let Some(probe) = run.reflink.as_ref().filter(|probe| plan.request.require_reflink && !probe.supported)
    {
        differ("--require-reflink".to_owned(), &probe.reason);
    }
    for (name, asked, in_force, otherwise) in [
        ("--read-only", plan.request.read_only, run.read_only, "changes are allowed"),
        ("--ephemeral", plan.request.ephemeral, run.ephemeral, "changes are kept"),
    ] {
        match (asked, in_force) {
            (true, false) => differ(name.to_owned(), otherwise),
            (false, true) => differ(format!("no {name}"), name),
            _ => {}
        }
    }
    if plan.request.foreground {
        differ("--foreground".to_owned(), &format!("served by process {}", run.pid));
    }
    if plan.space.mountpoint != run.mountpoint && plan.space.own.is_some() {
        let asked = plan.space.mountpoint.display().to_string();
        differ(asked, &format!("mounted on {}", run.mountpoint.display()));
    }
    if let Some(dir) = &plan.request.upper_dir {
        let wanted = dir.join(plan.space.identity.as_str());
        let place = link_target(&plan.state_dir()).unwrap_or_else(|| plan.state_dir());
        if place != wanted {
            differ(format!("--upper-dir {}", dir.display()), &place.display().to_string());
        }
    }
    // The daemon of an older version does not record the rest.
    let Some(extra) = &run.extra else { return out };
    let wanted = plan.extra();
    if wanted.allow_other && !extra.allow_other {
        differ("--allow-other".to_owned(), "other users have no access");
    }
    if wanted.auto_unmount && !extra.auto_unmount {
        differ("--auto-unmount".to_owned(), "it stays mounted when its daemon is killed");
    }
    for option in wanted.options.iter().filter(|option| !extra.options.contains(option)) {
        let in_force = extra.options.join(",");
        differ(format!("-o {option}"), if in_force.is_empty() { "no options" } else { &in_force });
    }
    if wanted.prefetch.is_some() && wanted.prefetch != extra.prefetch {
        let name = |prefetch: &Option<Prefetch>| match prefetch {
            None => "none".to_owned(),
            Some(Prefetch::Own) => "own".to_owned(),
            Some(Prefetch::From(path)) => path.display().to_string(),
        };
        differ(format!("--prefetch {}", name(&wanted.prefetch)), &name(&extra.prefetch));
    }
    if asked.pycache.typed().is_some() && !extra.pycache {
        differ("--pycache".to_owned(), "no bytecode is shown");
    }
    if let Some(dir) = plan.typed_cache_dir.as_ref().filter(|dir| extra.cache_dir.as_ref() != Some(dir)) {
        let in_force = extra.cache_dir.as_ref().map(|dir| dir.display().to_string());
        differ(format!("--cache-dir {}", dir.display()), &in_words(in_force));
    }
    if let Some(verify) = asked.verify.typed().filter(|verify| Some(**verify) != extra.verify) {
        differ(format!("--verify {verify}"), &in_words(extra.verify));
    }
    if let Some(size) = asked.cache_size.typed().filter(|size| **size != extra.cache_size) {
        differ(format!("--cache-size {size}"), &extra.cache_size.to_string());
    }
    out
}

fn in_words<T: std::fmt::Display>(in_force: Option<T>) -> String {
    in_force.map_or("unknown to this version".to_owned(), |choice| choice.to_string())
}
