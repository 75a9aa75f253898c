//! `holofs reset`.

use std::ffi::OsString;
use std::path::PathBuf;

use super::exit::{Failure, OK};
use super::{Context, output};
use crate::session::changes::Changed;
use crate::session::changes::reset::reset;

#[derive(Debug, clap::Args)]
#[command(after_help = "Each path shows again what the environment has there. What was added is removed. The
space may be mounted and in use: a program that has a file open keeps it as it is.
A renamed path is reset at both of its places.

Examples:
  holofs reset demo --dry-run
  holofs reset demo lib/python3.11/site-packages/requests
  holofs reset demo                      # the whole space")]
pub(super) struct Args {
    /// The space, by name, identity or path
    #[arg(value_name = "SPACE|PATH")]
    space: OsString,
    /// The paths to reset, below the space's directory; without one, all
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Print what would be reset, and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    let space = Changed::open(&context.env, &args.space, &context.settings.controller.value)?;
    let done = reset(&space, &args.paths, args.dry_run)?;
    let shown: Vec<_> = done.iter().map(|path| path.to_string_lossy()).collect();
    if context.json {
        output::print_json(&shown)?
    } else {
        output::print_lines(&shown)?
    }
    Ok(OK)
}
