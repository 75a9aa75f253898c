//! `holofs record`.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use indicatif::ProgressBar;

use super::exit::{ENVIRONMENT, Failure, OK, failure};
use super::values::seconds;
use super::{Context, cancel_on_signals, output};
use crate::blueprint::{Blueprint, Source, local_channel};
use crate::record::{RecordOptions, Recorded, Target, record};

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
    /// Replace the environment of this blueprint. Spaces with changes over the old one are then refused by mount
    #[arg(long)]
    force: bool,
    /// Keep the stage directory
    #[arg(long)]
    keep_stage: bool,
    /// Build in a directory with a long path, so that the environment works at every shorter one
    #[arg(long)]
    portable: bool,
    /// Seconds to wait for rcc's lock [default: 30]
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub(super) lock_timeout: Option<Duration>,
    /// The command that fills the directory $HOLOFS_STAGE; it runs in that directory
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(super) fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let blueprint = blueprint(&args.blueprint, args.devdeps, context)?;
    let cancel = cancel_on_signals()?;
    let done = record(&RecordOptions {
        target: Target {
            library: args.library,
            default_hololib: context.env.hololib(),
            robocorp_home: Some(context.env.robocorp_home.clone()),
            compress: args.no_compress.then_some(false),
            lock_timeout: context.settings.lock_timeout.value,
            progress: progress(context),
            cancel: Arc::clone(&cancel),
        },
        home: context.env.home.clone(),
        blueprint,
        command: args.command,
        keep_stage: args.keep_stage,
        replace: args.force,
        portable: args.portable,
    });
    if cancel.load(Ordering::Relaxed) && done.is_ok() {
        output::note(context.silent, "the signal came after everything was recorded");
    }
    let recorded = done?;
    print(&recorded, context)
}

/// Makes the progress bar of a recording.
pub(super) fn progress(context: &Context) -> fn(u64) -> ProgressBar {
    if context.silent {
        |total| output::progress_bar("recording", true, total)
    } else {
        |total| output::progress_bar("recording", false, total)
    }
}

/// Prints what was recorded: the hash of its blueprint, and a summary.
pub(super) fn print(recorded: &Recorded, context: &Context) -> Result<u8, Failure> {
    for warning in &recorded.warnings {
        output::note(context.silent, &format!("holofs: {warning}"));
    }
    if context.json {
        output::print_json(recorded)?;
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

/// The largest blueprint that is read, in bytes: that of a conda.yaml.
const MAX_BLUEPRINT: u64 = 1 << 20;

/// The text of the environment. Its hash is the name under which rcc and holofs find the environment.
pub(super) fn blueprint(file: &Path, devdeps: bool, context: &Context) -> Result<String, Failure> {
    if !file.extension().is_some_and(|ending| ending == "yaml" || ending == "yml") {
        // It may be a pipe of the shell: `--blueprint <(...)`.
        let mut text = String::new();
        let read = File::open(file).and_then(|open| open.take(MAX_BLUEPRINT + 1).read_to_string(&mut text));
        let why = match read {
            Ok(len) if len as u64 <= MAX_BLUEPRINT => return Ok(text),
            Ok(_) => "larger than 1 MiB".to_owned(),
            Err(error) => error.to_string(),
        };
        let what = format!("{}: {why}", file.display());
        return Err(failure(ENVIRONMENT, what, Some("a conda.yaml or package.yaml")));
    }
    let channel = local_channel(&context.env.robocorp_home);
    let made = Blueprint::compose(&[Source::File(file.to_owned())], devdeps, channel.as_deref())?;
    for note in &made.notes {
        output::note(context.silent, &format!("holofs: {note}"));
    }
    Ok(made.text)
}
