//! The command line: what was typed becomes a call of the layers below, and their answer becomes text or JSON.
//!
//! It decides nothing about spaces, libraries or mounts. Results go to standard output, everything else to standard
//! error; a failure is one line of what and why, and one of what to try. A closed output is no failure.

mod catalogs;
mod check;
mod config;
mod escape;
pub mod exit;
mod list;
mod log;
mod mount;
mod output;
mod record;
mod status;
mod unmount;
mod values;
mod warm;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};

use crate::settings::{Flags, Settings};
use crate::space::home::Env;
use crate::sys::{process, surroundings};
use exit::{Failure, USAGE};
use tracing::level_filters::LevelFilter;

/// Mount rcc holotree environments instead of restoring them.
#[derive(Debug, Parser)]
#[command(
    name = "holofs",
    version,
    about,
    long_about = None,
    after_help = "Examples:
  holofs mount auto demo           # rcc's own library; prints the directory
  holofs list                      # what there is, and what is mounted
  holofs unmount demo              # changes stay, and are there at the next mount
  holofs help mount

Exit codes:
  0 ok, 1 other failure, 2 usage, 3 library, 4 configuration, 5 environment,
  6 blueprint or space not found, 7 mountpoint, 8 FUSE not available,
  9 strategy impossible here, 11 integrity, 12 busy or lock timeout, 130 interrupted"
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// rcc's home, instead of $ROBOCORP_HOME or ~/.robocorp
    #[arg(long, value_name = "DIR", global = true, help_heading = "Global options")]
    home: Option<OsString>,
    /// Whose spaces are meant, as rcc's --controller
    #[arg(long, value_name = "NAME", global = true, help_heading = "Global options")]
    controller: Option<String>,
    /// Answer with JSON
    #[arg(short, long, global = true, help_heading = "Global options")]
    json: bool,
    /// Say nothing but the result
    #[arg(short = 'q', long, global = true, help_heading = "Global options")]
    silent: bool,
    /// Say what is done
    #[arg(long, global = true, help_heading = "Global options")]
    debug: bool,
    /// Say every step
    #[arg(long, global = true, help_heading = "Global options")]
    trace: bool,
    /// Write what would be said to this file
    #[arg(long, value_name = "FILE", global = true, help_heading = "Global options")]
    log_file: Option<PathBuf>,
    /// No colours
    #[arg(long, global = true, action = ArgAction::SetTrue, help_heading = "Global options")]
    colorless: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Present an environment as a directory, at once
    Mount(mount::Args),
    /// End a mount; changes stay
    #[command(visible_alias = "umount")]
    Unmount(unmount::Args),
    /// List the spaces on this machine
    #[command(visible_aliases = ["ls", "ps"])]
    List(list::Args),
    /// Tell all about one space
    Status(status::Args),
    /// Print the directory of a space
    Path(status::PathArgs),
    /// List the environments of a library
    Catalogs(catalogs::Args),
    /// Check the integrity of a library
    #[command(visible_alias = "chk")]
    Check(check::Args),
    /// Unpack an environment before its first use
    Warm(warm::Args),
    /// Record what a command installs as an environment of a library
    Record(record::Args),
    /// Print each setting and where it was set
    Config(config::Args),
}

/// What every command works with.
#[derive(Debug)]
pub(crate) struct Context {
    /// The directories of this user.
    pub(crate) env: Env,
    /// Each value in force, and where it was set.
    pub(crate) settings: Settings,
    /// Whether to answer with JSON.
    pub(crate) json: bool,
    /// Whether to say nothing but the result.
    pub(crate) silent: bool,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // --help and --version are errors to clap, and go to standard output.
        Err(error) if !error.use_stderr() => return output::print_help(&error),
        // Nothing but the program's name: the help says what could follow.
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            for line in error.render().to_string().trim_end().lines() {
                output::note(false, line);
            }
            return ExitCode::from(USAGE);
        }
        Err(error) => {
            let failure = usage(&error, std::env::args_os().skip(1));
            output::complain(&failure);
            return ExitCode::from(failure.code);
        }
    };
    surroundings::reset();
    // The recorder's command may need what it inherits (make's jobs, for one); a daemon must not keep it.
    let inherited =
        if matches!(cli.command, Command::Mount(_)) { process::close_inherited() } else { Ok(()) };
    let settings = read_settings(&cli);
    let started = settings.and_then(|settings| {
        let serves = matches!(cli.command, Command::Mount(_));
        log::start(settings.log_level.value, cli.global.log_file.as_deref(), serves)?;
        Ok(settings)
    });
    if let Err(errno) = inherited {
        tracing::debug!(%errno, "what was inherited stays open");
    }
    match started.and_then(|settings| run(cli, settings)) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            output::complain(&failure);
            ExitCode::from(failure.code)
        }
    }
}

/// The settings that this command line, the environment and the files make.
fn read_settings(cli: &Cli) -> Result<Settings, Failure> {
    let global = &cli.global;
    let log_level = match (global.trace, global.debug, global.silent) {
        (true, ..) => Some(LevelFilter::TRACE),
        (_, true, _) => Some(LevelFilter::DEBUG),
        (.., true) => Some(LevelFilter::ERROR),
        _ => None,
    };
    let mut flags = Flags {
        robocorp_home: global.home.clone(),
        controller: global.controller.clone(),
        log_level,
        ..Flags::default()
    };
    match &cli.command {
        Command::Mount(args) => args.set(&mut flags),
        Command::Record(args) => args.set(&mut flags),
        _ => {}
    }
    Ok(Settings::read(flags)?)
}

fn run(cli: Cli, settings: Settings) -> Result<u8, Failure> {
    let Global { json, silent, .. } = cli.global;
    let context = Context { env: Env::new(&settings), settings, json, silent };
    // The recorder keeps nothing there.
    if !matches!(cli.command, Command::Record(_)) {
        context.env.check_own_dirs().map_err(|error| Failure::from(&error))?;
    }
    match cli.command {
        Command::Mount(args) => mount::run(args, &context),
        Command::Unmount(args) => unmount::run(&args, &context),
        Command::List(args) => list::run(&args, &context),
        Command::Status(args) => status::run(&args, &context),
        Command::Path(args) => status::run_path(&args, &context),
        Command::Catalogs(args) => catalogs::run(&args, &context),
        Command::Check(args) => check::run(&args, &context),
        Command::Warm(args) => warm::run(&args, &context),
        Command::Record(args) => record::run(args, &context),
        Command::Config(_) => config::run(&context),
    }
}

/// What clap says over a paragraph or two, in one line, and where to read on.
fn usage(error: &clap::Error, mut args: impl Iterator<Item = OsString>) -> Failure {
    let text = error.render().to_string();
    let what = text.split("\n\n").next().unwrap_or_default();
    let what: Vec<&str> = what.trim_start_matches("error:").split_whitespace().collect();
    let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
    let cli = Cli::command();
    let command = args.find_map(|arg| cli.find_subcommand(arg)).map(clap::Command::get_name);
    let help = command.map_or("`holofs --help`".to_owned(), |name| format!("`holofs {name} --help`"));
    exit::failure(USAGE, what.join(" "), Some(tip.unwrap_or(&help)))
}

#[cfg(test)]
mod tests;
