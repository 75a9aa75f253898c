//! `holofs fork`.

use std::ffi::OsString;

use super::exit::{Failure, OK};
use super::{Context, output};
use crate::session::changes::fork::fork;

#[derive(Debug, clap::Args)]
#[command(after_help = "The new space has the same environment and the same changes, as of one instant. The
other space may be mounted and in use: its programs wait for a moment. Files share
their blocks where the filesystem can. Mount the new space as any other.

Changed files that name the directory of the other space are copied as they are.

Examples:
  holofs fork demo attempt-1
  holofs mount auto attempt-1")]
pub(super) struct Args {
    /// The space, by name, identity or path
    #[arg(value_name = "SPACE|PATH")]
    space: OsString,
    /// The new space: a name, an identity, or the path of its directory
    #[arg(value_name = "NEW")]
    new: OsString,
}

/// How many files are named in the note about files that name the other space.
const NAMED: usize = 3;

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    let bar = output::counter(context, "copying changes");
    let controller = &context.settings.controller.value;
    let forked = fork(&context.env, &args.space, &args.new, controller, &|| bar.inc(1));
    bar.finish_and_clear();
    let forked = forked?;
    if !forked.mentions.is_empty() {
        let first: Vec<String> =
            forked.mentions.iter().take(NAMED).map(|path| path.display().to_string()).collect();
        let more = if forked.mentions.len() > NAMED { ", ..." } else { "" };
        let (count, first) = (forked.mentions.len(), first.join(", "));
        output::note(
            context.silent,
            &format!(
                "holofs: {count} changed files name the other space, and were copied as they are: {first}{more}"
            ),
        );
    }
    if context.json {
        output::print_json(&forked)?
    } else {
        output::print_path(&forked.path)?
    }
    Ok(OK)
}
