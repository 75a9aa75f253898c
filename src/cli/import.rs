//! `holofs import`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::exit::{Failure, OK};
use super::values::seconds;
use super::{Context, cancel_on_signals, output};
use crate::record::Target;
use crate::record::import::{ImportOptions, Imported, import};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Reads what `rcc holotree export` and `holofs export` write, and robot bundles. Every blob is
verified before it is stored. Blobs that the library has stay as they are, so mounts may go on.
An environment is imported whole or not at all. Prints the hashes of the blueprints.

Examples:
  holofs import auto hololib.zip
  holofs import ./lib robot.py"
)]
pub(super) struct Args {
    /// The library: a hololib, a ROBOCORP_HOME, a shared holotree, `auto`, or a directory to be made
    library: OsString,
    /// Archives to import; of two catalogs with the same name, the last counts
    #[arg(value_name = "FILE", required = true)]
    archives: Vec<PathBuf>,
    /// Seconds to wait for rcc's lock [default: 30]
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub(super) lock_timeout: Option<Duration>,
}

pub(super) fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let cancel = cancel_on_signals()?;
    let target = target(args.library, cancel, context);
    let imported = import(&ImportOptions { target, archives: args.archives })?;
    report(&imported, "imported", context)
}

/// The library to import into.
pub(super) fn target(library: OsString, cancel: Arc<AtomicBool>, context: &Context) -> Target {
    Target {
        library,
        default_hololib: context.env.hololib(),
        robocorp_home: Some(context.env.robocorp_home.clone()),
        compress: None,
        lock_timeout: context.settings.lock_timeout.value,
        progress: if context.silent {
            |total| output::progress_bar("importing", true, total)
        } else {
            |total| output::progress_bar("importing", false, total)
        },
        cancel,
    }
}

/// Tells what was imported.
pub(super) fn report(imported: &Imported, done: &str, context: &Context) -> Result<u8, Failure> {
    for catalog in imported.catalogs.iter().filter(|catalog| !catalog.is_at_home) {
        let (name, place) = (&catalog.blueprint, catalog.holotree.display());
        output::note(context.silent, &format!("holofs: the environment {name} works in {place} only"));
    }
    if context.json {
        output::print_json(imported)?;
    } else {
        output::note(
            context.silent,
            &format!(
                "{done} {} catalogs; {} of {} blobs new ({})",
                imported.catalogs.len(),
                imported.blobs_new,
                imported.blobs_total,
                output::human_bytes(imported.bytes_stored)
            ),
        );
        let hashes: Vec<&str> = imported.catalogs.iter().map(|catalog| &*catalog.blueprint).collect();
        output::print_lines(&hashes)?;
    }
    Ok(OK)
}
