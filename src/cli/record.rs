//! `holofs record`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::exit::{ENVIRONMENT, Failure, OK, failure};
use super::values::seconds;
use super::{Context, cancel_on_signals, output};
use crate::record::{RecordOptions, record};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  printf 'channels: []\\ndependencies: [demo]\\n' > demo.yaml
  holofs record ./lib --blueprint demo.yaml -- sh -c 'python3 -m venv --copies \"$HOLOFS_STAGE\"'
  holofs mount ./lib demo")]
pub(super) struct Args {
    /// The library: a hololib, a ROBOCORP_HOME, a shared holotree, `auto`, or a directory to be made
    library: OsString,
    /// The blueprint: a text file; its hash becomes the name of the environment
    #[arg(long, value_name = "FILE")]
    blueprint: PathBuf,
    /// Store blobs without compression, in a new library only; reflinks then need no cache
    #[arg(long)]
    no_compress: bool,
    /// Keep the stage directory
    #[arg(long)]
    keep_stage: bool,
    /// Seconds to wait for rcc's lock [default: 30]
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub(super) lock_timeout: Option<Duration>,
    /// The command that fills the directory $HOLOFS_STAGE; it runs in that directory
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(super) fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let blueprint = std::fs::read_to_string(&args.blueprint).map_err(|error| {
        failure(
            ENVIRONMENT,
            format!("{}: {error}", args.blueprint.display()),
            Some("a YAML file of your own"),
        )
    })?;
    let cancel = cancel_on_signals()?;
    let done = record(&RecordOptions {
        library: args.library,
        default_hololib: context.env.hololib(),
        robocorp_home: Some(context.env.robocorp_home.clone()),
        home: context.env.home.clone(),
        blueprint,
        command: args.command,
        compress: args.no_compress.then_some(false),
        keep_stage: args.keep_stage,
        lock_timeout: context.settings.lock_timeout.value,
        progress: if context.silent {
            |total| output::progress_bar("recording", true, total)
        } else {
            |total| output::progress_bar("recording", false, total)
        },
        cancel: Arc::clone(&cancel),
    });
    if cancel.load(Ordering::Relaxed) && done.is_ok() {
        output::note(context.silent, "the signal came after everything was recorded");
    }
    let recorded = done?;
    for warning in &recorded.warnings {
        output::note(context.silent, &format!("holofs: {warning}"));
    }
    if context.json {
        output::print_json(&recorded)?;
    } else {
        output::note(
            context.silent,
            &format!(
                "recorded {} files, {} directories, {} links; {} of {} blobs new ({}); {} relocated files",
                recorded.files,
                recorded.dirs,
                recorded.links,
                recorded.blobs_new,
                recorded.blobs_total,
                output::human_bytes(recorded.bytes_stored),
                recorded.relocated
            ),
        );
        output::print_lines(&[&recorded.blueprint])?;
    }
    Ok(OK)
}
