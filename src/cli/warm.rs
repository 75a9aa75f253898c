//! `holofs warm`: pays what the first mount and the first reads of an environment would cost.

use std::collections::HashSet;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::exit::{FAILED, Failure, INTEGRITY, INTERRUPTED, NOT_FOUND, OK, failure};
use super::{Context, output};
use crate::library::blob::{BlobError, Blobs, Prepared};
use crate::library::digest::Digest;
use crate::library::index::cache::open_or_compile;
use crate::library::index::{Index, NodeId, NodeKind};
use crate::library::locate::locate;
use crate::library::profile::{self, Touched};
use crate::materialize::SMALL_FILE;
use crate::session::compose;
use crate::space::select::select_environment;
use crate::sys::{process, thread};

#[derive(Debug, clap::Args)]
#[command(after_help = "Compiles the environment's index and unpacks its large files into the cache that all
mounts share; small files are unpacked when they are read. It may be interrupted: what
was unpacked stays.

Examples:
  holofs warm auto demo
  holofs warm ~/.robocorp adb8c26d --profile")]
pub(super) struct Args {
    /// A hololib, a ROBOCORP_HOME, a shared holotree, or `auto` for rcc's own
    library: OsString,
    /// The environment by the beginning of its blueprint's hash, or a space that has it
    #[arg(value_name = "SPACE|CATALOG")]
    environment: OsString,
    /// Only what earlier mounts read
    #[arg(long)]
    profile: bool,
    /// Threads
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
}

/// What was done. The keys of `--json`.
#[derive(Debug, Default, Serialize)]
struct Warmed {
    blueprint: String,
    /// Entries of the index.
    entries: u32,
    /// Blobs that are kept unpacked, and their bytes.
    blobs: usize,
    bytes: u64,
    /// Of them, unpacked and verified now.
    fetched: usize,
    bytes_fetched: u64,
    /// Blobs that could not be, and why.
    failed: Vec<String>,
}

/// A blob to be unpacked.
struct Wish {
    digest: Digest,
    size: u64,
    node: NodeId,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    let library = locate(&args.library, &context.env.hololib())?;
    let controller = &context.settings.controller.value;
    let catalog = select_environment(&library, &args.environment, controller, &context.env)?;
    let cancel = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&cancel))
            .map_err(|error| failure(FAILED, format!("signals: {error}"), None))?;
    }
    let cache_dir = context.env.cache_dir();
    let index = open_or_compile(&*library.library, &catalog, &cache_dir.join("index"))?;
    let files = if args.profile { touched(&index, context)? } else { (0..index.len()).map(NodeId).collect() };
    let wishes = wishes(&index, &files).map_err(|error| failure(FAILED, error.to_string(), None))?;
    let blobs = compose::blobs(&library, compose::blob_cache(&cache_dir)?);
    let mut warmed = Warmed {
        blueprint: catalog.blueprint.clone(),
        entries: index.len(),
        blobs: wishes.len(),
        bytes: wishes.iter().map(|wish| wish.size).sum(),
        ..Warmed::default()
    };
    let bar = progress(context.silent, warmed.bytes);
    let jobs = args.jobs.unwrap_or_else(process::processors).clamp(1, 256);
    let failed_hard = unpack(&blobs, &index, &wishes, jobs, &cancel, &bar, &mut warmed);
    bar.finish_and_clear();
    if let Some(error) = failed_hard {
        let fix = "free some space, or set HOLOFS_HOME to a directory with more";
        return Err(failure(FAILED, error.to_string(), Some(fix)));
    }
    if cancel.load(Ordering::Relaxed) {
        let what = format!("interrupted; {} of {} blobs are ready", warmed.fetched, warmed.blobs);
        return Err(failure(INTERRUPTED, what, None));
    }
    tell(&warmed, context)?;
    Ok(if warmed.failed.is_empty() { OK } else { INTEGRITY })
}

fn touched(index: &Index, context: &Context) -> Result<Vec<NodeId>, Failure> {
    let catalog = index.catalog_sha256();
    let path = profile::place(&context.env.cache_dir(), &catalog);
    profile::read(&path, &catalog, index.len()).map(Touched::into_order).map_err(|error| {
        let fix = "mount the environment and use it once, or leave out --profile";
        failure(NOT_FOUND, format!("{}: {error}", path.display()), Some(fix))
    })
}

/// The blobs of these files that are kept unpacked on disk, each once.
fn wishes(index: &Index, files: &[NodeId]) -> Result<Vec<Wish>, crate::library::index::IndexError> {
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for node in files {
        if let NodeKind::File { size, digest, .. } = index.node(*node)?.kind
            && size > SMALL_FILE
            && seen.insert(digest)
        {
            out.push(Wish { digest, size, node: *node });
        }
    }
    Ok(out)
}

/// Unpacks in some threads. A bad blob concerns the files that have it; what concerns all ends it and is returned.
fn unpack(
    blobs: &Blobs,
    index: &Index,
    wishes: &[Wish],
    jobs: usize,
    cancel: &AtomicBool,
    bar: &ProgressBar,
    warmed: &mut Warmed,
) -> Option<BlobError> {
    let warmed = Mutex::new(warmed);
    let work = |(): &mut (), wish: &Wish| {
        if cancel.load(Ordering::Relaxed) {
            return Ok(());
        }
        let done = blobs.prepare(&wish.digest, wish.size, cancel);
        bar.inc(wish.size);
        let mut warmed = warmed.lock();
        match done {
            Ok(Prepared::Ready | Prepared::Stopped) => {}
            Ok(Prepared::Fetched) => {
                warmed.fetched += 1;
                warmed.bytes_fetched += wish.size;
            }
            Err(error @ BlobError::Io { .. }) => return Err(error),
            Err(error) => warmed.failed.push(format!("{}: {error}", index.path_of(wish.node))),
        }
        Ok(())
    };
    thread::for_each(wishes, jobs, || (), work).err()
}

fn progress(silent: bool, total: u64) -> ProgressBar {
    // Draws nothing where standard error is no terminal.
    let target = if silent { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    match ProgressStyle::with_template("warming {wide_bar} {bytes}/{total_bytes}") {
        Ok(style) => bar.with_style(style),
        // The plain bar does as well.
        Err(_) => bar,
    }
}

fn tell(warmed: &Warmed, context: &Context) -> Result<(), Failure> {
    if context.json {
        return output::print_json(warmed);
    }
    for line in &warmed.failed {
        output::note(false, &format!("holofs: {line}"));
    }
    output::print_line(&format!(
        "{}: {} entries; {} of {} large blobs unpacked now ({} of {}){}",
        warmed.blueprint,
        warmed.entries,
        warmed.fetched,
        warmed.blobs,
        output::human_bytes(warmed.bytes_fetched),
        output::human_bytes(warmed.bytes),
        if warmed.failed.is_empty() { String::new() } else { format!("; {} failed", warmed.failed.len()) },
    ))
}
