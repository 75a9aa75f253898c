//! `holofs blueprint`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::exit::{Failure, NOT_FOUND, OK};
use super::{Context, output};
use crate::blueprint::BlueprintError;
use crate::blueprint::robot;
use crate::library::LibraryError;
use crate::library::catalogs::{CatalogName, this_platform};
use crate::library::locate::locate;
use crate::session::choice::Choice;
use crate::session::wanted;

#[derive(Debug, clap::Args)]
#[command(after_help = "Without -r, ./robot.yaml counts too if it exists, as with rcc.

Examples:
  holofs blueprint
  holofs blueprint conda.yaml --check || echo missing
  holofs blueprint -r robot.yaml --library hololib.zip --json")]
pub(super) struct Args {
    /// Files conda.yaml and package.yaml, merged from left to right
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The robot.yaml whose environment they are merged with [default: robot.yaml]
    #[arg(short, long, value_name = "FILE")]
    robot: Option<PathBuf>,
    /// The library, as for mount
    #[arg(long, value_name = "LIBRARY", default_value = "auto")]
    library: OsString,
    /// Include the dev-dependencies of package.yaml
    #[arg(long)]
    devdeps: bool,
    /// Fail with exit code 6 if the library does not have the environment
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Serialize)]
struct Answer {
    exist: bool,
    hash: String,
    /// The catalog of the environment, if it exists.
    catalog: Option<String>,
    /// The hashes of the layers.
    layers: [String; 3],
}

pub(super) fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let mut choice =
        Choice { robot: args.robot, conda: args.files, devdeps: args.devdeps, ..Choice::default() };
    if choice.is_empty() && Path::new(robot::FILE).exists() {
        choice.robot = Some(robot::FILE.into());
    }
    let composed = choice.compose(&context.env)?.ok_or(BlueprintError::NoFile)?;
    for note in composed.notes.iter().chain(&composed.blueprint.notes) {
        output::note(context.silent, &format!("holofs: {note}"));
    }
    let catalog = match locate(&args.library, &context.env.hololib(), &context.env.access()) {
        Ok(library) => wanted::look(&library, &composed, &context.env)?.map(|blueprint| {
            library.library.catalog_place(&CatalogName { blueprint, platform: this_platform() })
        }),
        // rcc has built nothing yet.
        Err(LibraryError::NotALibrary { .. }) if args.library == "auto" => None,
        Err(error) => return Err(error.into()),
    };
    let answer = Answer {
        exist: catalog.is_some(),
        hash: composed.blueprint.hash,
        catalog,
        layers: composed.blueprint.layers,
    };
    output::print_result(context, &answer, || {
        vec![format!("{} {}", answer.hash, if answer.exist { "available" } else { "missing" })]
    })?;
    Ok(if args.check && !answer.exist { NOT_FOUND } else { OK })
}
