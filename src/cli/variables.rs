//! `holofs variables`.

use std::ffi::OsString;
use std::path::PathBuf;

use super::exit::{Failure, OK, describe};
use super::{Context, output};
use crate::activate::deduplicated;
use crate::activate::format::{Format, written};
use crate::session::choice::Choice;
use crate::session::request::MountRequest;
use crate::session::run::activation::ActivationFlags;
use crate::session::run::variables::{self, VariablesRequest};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Prints what `rcc holotree variables` prints, in the same order, and quotes the values. If a
name occurs more than once, its last value counts. The space is mounted if necessary, and
stays mounted. Without FILE and --robot, the robot.yaml in the current directory chooses
the environment. `--no-pyc-management` and `--no-temp-management` act as in rcc.

Examples:
  source <(holofs variables -s demo -r robot.yaml)
  holofs variables conda.yaml --json
  holofs variables -s demo --format dotenv --dedupe > .env
  holofs variables -s demo --format fish | source"
)]
pub(super) struct Args {
    /// conda.yaml and package.yaml files, merged from left to right
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    activation: ActivationFlags,
    /// The space: a name, an identity, or the path of its directory
    #[arg(short, long)]
    space: Option<OsString>,
    /// The library, as for `holofs mount`
    #[arg(long)]
    library: Option<OsString>,
    /// What reads the variables [default: export]
    #[arg(
        long,
        value_name = "export|json|dotenv|null|fish|powershell",
        hide_possible_values = true,
        ignore_case = true
    )]
    format: Option<Format>,
    /// Print only the last value of each name
    #[arg(long)]
    dedupe: bool,
    /// Fail if the space is not mounted
    #[arg(long)]
    no_mount: bool,
    /// Drop the changes of the space and mount it anew
    #[arg(short, long, conflicts_with = "no_mount")]
    force: bool,
}

pub(super) fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let mut choice = args.choice;
    choice.conda.extend(args.files);
    choice.build &= !context.rcc.no_build;
    let request = VariablesRequest {
        mount: MountRequest {
            library: args.library,
            space: args.space,
            choice,
            show: output::show(context),
            ..MountRequest::default()
        },
        activation: context.rcc.managed(args.activation),
        no_mount: args.no_mount,
        force: args.force,
    };
    let mut list = variables::variables(
        request,
        &context.settings,
        context.settings.mount.as_ref()?,
        &context.env,
        describe,
        &mut |note| output::note(context.silent, note),
    )?;
    if args.dedupe {
        list = deduplicated(list);
    }
    let format = if context.json { Format::Json } else { args.format.unwrap_or_default() };
    output::print_for_program(&written(&list, format))?;
    Ok(OK)
}
