//! `holofs hash`.

use std::io::{self, Read};
use std::path::PathBuf;

use serde::Serialize;

use super::exit::{ENVIRONMENT, Failure, OK, USAGE, failure};
use super::{Context, output};
use crate::blueprint::{Blueprint, MAX_FILE, Source, local_channel};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The hash is rcc's: it names the environment in libraries. A robot.yaml in the current
directory has no effect, as with `rcc holotree hash`.

Examples:
  holofs hash conda.yaml
  holofs hash common.yaml conda.yaml --show-blueprint
  holofs hash package.yaml --devdeps --json
  generate-conda-yaml | holofs hash --stdin conda.yaml"
)]
pub(super) struct Args {
    /// Files conda.yaml and package.yaml, merged from left to right
    #[arg(value_name = "FILE", required_unless_present = "stdin")]
    files: Vec<PathBuf>,
    /// Print rcc's text of the environment too
    #[arg(long)]
    show_blueprint: bool,
    /// Include the dev-dependencies of package.yaml
    #[arg(long)]
    devdeps: bool,
    /// Read the content of FILE from standard input [default FILE: conda.yaml]
    #[arg(long)]
    stdin: bool,
}

#[derive(Debug, Serialize)]
struct Hash {
    hash: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    blueprint: Option<String>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    let sources = if args.stdin {
        let file = match args.files.as_slice() {
            [] => PathBuf::from("conda.yaml"),
            [file] => file.clone(),
            _ => {
                let what = "--stdin takes one FILE, whose name tells what is read";
                return Err(failure(USAGE, what, Some("one FILE, or none for a conda.yaml")));
            }
        };
        vec![Source::Text(file, read_stdin()?)]
    } else {
        args.files.iter().cloned().map(Source::File).collect()
    };
    let channel = local_channel(&context.env.robocorp_home);
    let made = Blueprint::compose(&sources, args.devdeps, channel.as_deref())?;
    for note in &made.notes {
        output::note(context.silent, &format!("holofs: {note}"));
    }
    let text = args.show_blueprint.then_some(made.text);
    let result = Hash { hash: made.hash, blueprint: text };
    output::print_result(context, &result, || {
        let mut lines = vec![result.hash.clone()];
        if let Some(text) = &result.blueprint {
            lines.push("Blueprint:".to_owned());
            lines.extend(text.lines().map(str::to_owned));
        }
        lines
    })?;
    Ok(OK)
}

fn read_stdin() -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    io::stdin()
        .take(MAX_FILE + 1)
        .read_to_end(&mut text)
        .map_err(|error| failure(ENVIRONMENT, format!("standard input: {error}"), None))?;
    if text.len() as u64 > MAX_FILE {
        return Err(failure(ENVIRONMENT, format!("standard input: more than {MAX_FILE} bytes"), None));
    }
    Ok(text)
}
