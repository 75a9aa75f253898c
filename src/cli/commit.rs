//! `holofs commit`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::exit::Failure;
use super::record::{blueprint, print, progress};
use super::values::seconds;
use super::{Context, cancel_on_signals};
use crate::record::Target;
use crate::session::changes::commit::Commit;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Files that the space did not change keep their blobs in the library and are not read.
What rcc never records is left out: __pycache__, .git and the like.

Examples:
  holofs run auto demo --keep -- pip install cowsay
  holofs commit demo --blueprint conda.yaml      # prints the hash of the new environment
  holofs mount auto other --conda conda.yaml"
)]
pub(super) struct Args {
    /// The space, mounted or not: a name, an identity, or the path of its directory
    space: OsString,
    /// A conda.yaml or package.yaml, from which rcc would make the new environment; or a file without the ending .yaml or
    /// .yml, whose text is the blueprint itself
    #[arg(long, value_name = "FILE")]
    blueprint: PathBuf,
    /// Include the dev-dependencies of package.yaml
    #[arg(long)]
    devdeps: bool,
    /// Replace another environment of this blueprint. Spaces with changes over the old one are then refused by mount
    #[arg(long)]
    force: bool,
    /// The library to record into [default: the space's own]
    #[arg(long, value_name = "LIBRARY")]
    library: Option<OsString>,
    /// Seconds to wait for rcc's lock [default: 30]
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub(super) lock_timeout: Option<Duration>,
}

pub(super) fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let blueprint = blueprint(&args.blueprint, args.devdeps, context)?;
    let cancel = cancel_on_signals()?;
    let commit = Commit::of(&args.space, &context.settings.controller.value, &context.env)?;
    let recorded = commit.record(
        &blueprint,
        &Target {
            library: args.library.unwrap_or_else(|| commit.library()),
            default_hololib: context.env.hololib(),
            robocorp_home: Some(context.env.robocorp_home.clone()),
            compress: None,
            lock_timeout: context.settings.lock_timeout.value,
            progress: progress(context),
            cancel: Arc::clone(&cancel),
        },
        args.force,
    )?;
    print(&recorded, context)
}
