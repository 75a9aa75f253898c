//! `holofs warm`: compiles the index of an environment and unpacks its large files, before a mount needs them.

use std::ffi::OsString;
use std::sync::atomic::Ordering;

use super::exit::{FAILED, Failure, INTEGRITY, INTERRUPTED, MORE_SPACE, OK, failure};
use super::{Context, cancel_on_signals, output};
use crate::library::blob::BlobError;
use crate::library::locate::locate;
use crate::library::warm::Warmed;
use crate::session::environment::Environment;
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
    let cancel = cancel_on_signals()?;
    let environment = Environment::open(&library, &catalog, &context.env)?;
    let (warming, blobs) = (environment.warming(args.profile)?, environment.blobs()?);
    let bar = output::progress_bar("warming", context.silent, warming.bytes());
    let jobs = args.jobs.unwrap_or_else(process::processors);
    let warmed = warming.run(&blobs, jobs, &cancel, &|size| bar.inc(size));
    bar.finish_and_clear();
    let warmed = warmed.map_err(|error| {
        let fix = (!matches!(error, BlobError::Panicked(_))).then_some(MORE_SPACE);
        failure(FAILED, error.to_string(), fix)
    })?;
    if cancel.load(Ordering::Relaxed) {
        let what = format!("interrupted; {} of {} blobs are ready", warmed.fetched, warmed.blobs);
        return Err(failure(INTERRUPTED, what, None));
    }
    output::print_result(context, &warmed, || text(&warmed))?;
    Ok(if warmed.failed.is_empty() { OK } else { INTEGRITY })
}

fn text(warmed: &Warmed) -> Vec<String> {
    for line in &warmed.failed {
        output::note(false, &format!("holofs: {line}"));
    }
    vec![format!(
        "{}: {} entries; {} of {} large blobs unpacked now ({} of {}){}",
        warmed.blueprint,
        warmed.entries,
        warmed.fetched,
        warmed.blobs,
        output::human_bytes(warmed.bytes_fetched),
        output::human_bytes(warmed.bytes),
        if warmed.failed.is_empty() { String::new() } else { format!("; {} failed", warmed.failed.len()) },
    )]
}
