//! `holofs warm`: compiles the index of an environment and unpacks its large files, before a mount needs them.

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::exit::{FAILED, Failure, INTEGRITY, INTERRUPTED, NOT_FOUND, OK, failure};
use super::{Context, output};
use crate::library::LibraryError;
use crate::library::index::cache::open_or_compile;
use crate::library::index::{Index, NodeId};
use crate::library::locate::locate;
use crate::library::profile::{self, Touched};
use crate::library::warm::{Warmed, Warming};
use crate::materialize::SMALL_FILE;
use crate::session::compose;
use crate::space::select::select_environment;
use crate::sys::process;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Compiles the index of the environment and unpacks its large files into the cache that
all mounts share. Small files are unpacked when they are read. If the command is
interrupted, it keeps what it has unpacked.

Examples:
  holofs warm auto demo
  holofs warm ~/.robocorp adb8c26d --profile"
)]
pub(super) struct Args {
    /// A hololib, a hololib.zip, a ROBOCORP_HOME, a shared holotree, or `auto` for rcc's own
    library: OsString,
    /// The environment: the first digits of its blueprint's hash, or a space that has it
    #[arg(value_name = "SPACE|CATALOG")]
    environment: OsString,
    /// Unpack only files that earlier mounts read
    #[arg(long)]
    profile: bool,
    /// Number of threads [default: one for each processor]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
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
    let warming = Warming::new(&index, files, SMALL_FILE).map_err(LibraryError::from)?;
    let blobs = compose::blobs(&library, compose::blob_cache(&cache_dir)?);
    let bar = progress(context.silent, warming.bytes());
    let jobs = args.jobs.unwrap_or_else(process::processors);
    let warmed = warming.run(&blobs, jobs, &cancel, &|size| bar.inc(size));
    bar.finish_and_clear();
    let warmed = warmed.map_err(|error| {
        let fix = "free some space, or set HOLOFS_HOME to a directory with more";
        failure(FAILED, error.to_string(), Some(fix))
    })?;
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

fn progress(silent: bool, total: u64) -> ProgressBar {
    // Draws nothing if standard error is not a terminal.
    let target = if silent { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    match ProgressStyle::with_template("warming {wide_bar} {bytes}/{total_bytes}") {
        Ok(style) => bar.with_style(style),
        // A plain bar will do.
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
