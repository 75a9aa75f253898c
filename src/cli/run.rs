//! `holofs run` and `holofs shell`.
//!
//! The exit code is the program's, so the codes of other commands would be ambiguous: a failure of holofs is
//! `RUN_FAILED`, or with `--rcc-exit-codes` what `rcc run` uses.

use std::ffi::OsString;
use std::path::PathBuf;

use super::exit::{Failure, code_of_run, describe};
use super::{Context, mount, output};
use crate::session::run::activation::ActivationFlags;
use crate::session::run::{self, Finished, Job, RunRequest};
use crate::settings::Flags;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Mounts the space, runs the command with the variables of the space, and unmounts. A space that
was mounted before stays mounted, and so does one that another run still uses. Without a
command, the robot's task runs in its directory, as with `rcc run`; words after `--` are then
added to the task's command if --task is given.

Examples:
  holofs run                                          # the task of the robot in this directory
  holofs run -r robot.yaml --task Produce
  holofs run auto demo -- python -m pytest
  holofs run hololib.zip ci --ephemeral -r robot.yaml -- python -m robot tests

Exit codes: that of the command, 128+n if signal n ended it, 126 if it cannot be executed,
127 if there is no such program, 125 for every other failure"
)]
pub(super) struct Args {
    #[command(flatten)]
    space: SpaceArgs,
    /// The task of the robot to run
    #[arg(short, long, value_name = "NAME")]
    task: Option<String>,
    /// Run a task of `devTasks`
    #[arg(long)]
    dev: bool,
    /// Use the exit codes of rcc: 10 when the command fails
    #[arg(long)]
    rcc_exit_codes: bool,
    /// The command
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Runs $SHELL in a space, without its start-up files, because those often set PATH anew.
The exit codes are those of `holofs run`.

Examples:
  holofs shell
  holofs shell auto demo --ephemeral"
)]
pub(super) struct ShellArgs {
    #[command(flatten)]
    space: SpaceArgs,
}

#[derive(Debug, clap::Args)]
struct SpaceArgs {
    #[command(flatten)]
    mount: mount::MountArgs,
    #[command(flatten)]
    activation: ActivationFlags,
    /// The space, if no LIBRARY is given
    #[arg(id = "space_name", short = 's', long = "space", value_name = "SPACE", conflicts_with = "space")]
    name: Option<OsString>,
    /// Leave the space mounted
    #[arg(long)]
    keep: bool,
    /// Mount where only this command sees it, if the directory of spaces belongs to others
    #[arg(long, conflicts_with = "keep")]
    private_ns: bool,
    /// The directory to run in
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
}

impl Args {
    pub(super) fn set(&self, flags: &mut Flags) {
        self.space.mount.set(flags);
    }

    /// The exit code of a failure that has no code of its own.
    pub(super) fn failed(&self) -> u8 {
        code_of_run(None, self.rcc_exit_codes)
    }
}

impl ShellArgs {
    pub(super) fn set(&self, flags: &mut Flags) {
        self.space.mount.set(flags);
    }
}

pub(super) fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let job = match (args.task, args.command) {
        (None, command) if !command.is_empty() && !args.dev => Job::Command(command),
        (name, args_of_task) => Job::Task { name, dev: args.dev, args: args_of_task },
    };
    go(args.space, job, args.rcc_exit_codes, context)
}

pub(super) fn run_shell(args: ShellArgs, context: &Context) -> Result<u8, Failure> {
    go(args.space, Job::Shell, false, context)
}

fn go(args: SpaceArgs, job: Job, rcc_codes: bool, context: &Context) -> Result<u8, Failure> {
    let mut mount = args.mount.request;
    mount.choice.build &= !context.rcc.no_build;
    mount.show = output::show(context);
    if let Some(name) = args.name {
        mount.space = Some(name);
    }
    let request = RunRequest {
        mount,
        activation: context.rcc.managed(args.activation),
        job,
        cwd: args.cwd,
        keep: args.keep,
        private_ns: args.private_ns,
    };
    let settings = context.settings.mount.as_ref()?;
    let mut note = |text: &str| output::note(context.silent, text);
    match run::run(&request, &context.settings, settings, &context.env, describe, &mut note) {
        Ok(Finished { ended, left }) => {
            if let Some(left) = left {
                output::complain(&left.into());
            }
            Ok(match ended.code() {
                0 => 0,
                code if !rcc_codes => code,
                _ => super::exit::RCC_TASK_FAILED,
            })
        }
        Err(error) => {
            let code = code_of_run(Some(&error), rcc_codes);
            output::complain(&Failure { code, ..error.into() });
            Ok(code)
        }
    }
}
