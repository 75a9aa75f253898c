//! `holofs record`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::exit::{ENVIRONMENT, Failure, OK, failure};
use super::values::seconds;
use super::{Context, cancel_on_signals, output};
use crate::blueprint::{Blueprint, Source, local_channel};
use crate::record::{RecordOptions, record};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  holofs record ./lib --blueprint conda.yaml -- sh -c 'python3 -m venv --copies \"$HOLOFS_STAGE\"'
  holofs mount ./lib demo --conda conda.yaml")]
pub(super) struct Args {
    /// The library: a hololib, a ROBOCORP_HOME, a shared holotree, `auto`, or a directory to be made
    library: OsString,
    /// A conda.yaml or package.yaml, from which rcc would make the environment; or a file without the ending .yaml or .yml,
    /// whose text is the blueprint itself
    #[arg(long, value_name = "FILE")]
    blueprint: PathBuf,
    /// Include the dev-dependencies of package.yaml
    #[arg(long)]
    devdeps: bool,
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
    let blueprint = blueprint(&args, context)?;
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

/// The text of the environment. Its hash is the name under which rcc and holofs find the environment.
fn blueprint(args: &Args, context: &Context) -> Result<String, Failure> {
    let file = &args.blueprint;
    if !file.extension().is_some_and(|ending| ending == "yaml" || ending == "yml") {
        return std::fs::read_to_string(file).map_err(|error| {
            failure(ENVIRONMENT, format!("{}: {error}", file.display()), Some("a conda.yaml or package.yaml"))
        });
    }
    let channel = local_channel(&context.env.robocorp_home);
    let made = Blueprint::compose(&[Source::File(file.clone())], args.devdeps, channel.as_deref())?;
    for note in &made.notes {
        output::note(context.silent, &format!("holofs: {note}"));
    }
    Ok(made.text)
}
