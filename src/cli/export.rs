//! `holofs export`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use super::exit::{Failure, OK};
use super::mount::RemoteArgs;
use super::{Context, cancel_on_signals, output};
use crate::library::catalogs;
use crate::library::export::{Exported, export};
use crate::library::locate::locate;
use crate::session::choice::Choice;
use crate::session::wanted;
use crate::settings::Flags;

#[derive(Debug, clap::Args)]
#[command(after_help = "The archive has rcc's layout: `rcc holotree import` and `holofs import` read it, and
`holofs mount hololib.zip demo` mounts it in place. Every blob is verified. The same environments
always give the same bytes. Without CATALOG the command lists the catalogs, as rcc does.

Examples:
  holofs export auto
  holofs export auto adb8c26db4d86a93 -z hololib.zip
  holofs export auto -r robot.yaml")]
pub(super) struct Args {
    /// The library, as for mount
    library: OsString,
    /// Catalogs to export: their names, or the first digits of their blueprints' hashes
    #[arg(value_name = "CATALOG")]
    catalogs: Vec<String>,
    /// The archive to write
    #[arg(short, long, value_name = "FILE", default_value = "hololib.zip")]
    zipfile: PathBuf,
    /// Export the environment of a robot, by its robot.yaml
    #[arg(short, long, value_name = "FILE")]
    robot: Option<PathBuf>,
    /// Export all catalogs
    #[arg(long, conflicts_with_all = ["catalogs", "robot"])]
    all: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

impl Args {
    /// Adds these arguments to the flags.
    pub(super) fn set(&self, flags: &mut Flags) {
        self.remote.set(flags);
    }
}

pub(super) fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let location = locate(&args.library, &context.env.hololib(), &context.env.access())?;
    let choice = Choice { robot: args.robot, ..Choice::default() };
    let list = || catalogs::list(&*location.library);
    let chosen: BTreeSet<_> = match args.all {
        true => list()?.into_iter().map(|entry| entry.name).collect(),
        false => wanted::catalogs(&location, &args.catalogs, &choice, &context.env)?,
    };
    if chosen.is_empty() {
        let names: Vec<String> = list()?.into_iter().map(|entry| entry.name.to_string()).collect();
        return output::print_result(context, &names, || names.clone());
    }
    let cancel = cancel_on_signals()?;
    let bar = |total| output::progress_bar("exporting", context.silent, total);
    let exported = export(&*location.library, &chosen, &args.zipfile, bar, &cancel)?;
    let Exported { missing_for_links: missing, .. } = exported;
    if missing > 0 {
        let text = format!(
            "holofs: the library lacks {missing} blobs of links; rcc takes the environment for incomplete"
        );
        output::note(context.silent, &text);
    }
    if context.json {
        output::print_json(&exported)?;
    } else {
        let (blobs, bytes) = (exported.blobs, output::human_bytes(exported.bytes));
        let text = format!("exported {} catalogs with {blobs} blobs ({bytes})", exported.catalogs.len());
        output::note(context.silent, &text);
        output::print_path(&exported.path)?;
    }
    Ok(OK)
}
