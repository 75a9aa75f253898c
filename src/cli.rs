//! The command line: parses the arguments, calls the layers below, and prints what they return as text or JSON.
//!
//! It makes no decision about spaces, libraries or mounts. Results go to standard output, everything else to standard
//! error. A failure is one line with what failed and why, and one line with what to try. A closed standard output is not
//! a failure.

mod bench;
mod blueprint;
mod catalogs;
mod check;
mod commit;
mod completions;
mod config;
mod delete;
mod diff;
mod doctor;
mod escape;
pub mod exit;
mod export;
mod fork;
mod gc;
mod hash;
mod help;
mod import;
mod keeper;
mod list;
mod log;
mod man;
mod mount;
mod mount8;
mod output;
mod pull;
mod push;
mod rcc;
mod record;
#[cfg(feature = "remote")]
mod remote;
mod reset;
mod restore;
mod run;
mod stats;
mod status;
mod unmount;
mod upgrade;
mod values;
mod variables;
mod warm;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::error::{ContextKind, ErrorKind};
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::session::doctor::PATIENCE;
use crate::settings::{Flags, Product, Settings};
use crate::space::home::Env;
use crate::sys::{process, surroundings};
use exit::{FAILED, Failure, USAGE};
use tracing::level_filters::LevelFilter;

/// Mount rcc holotree environments instead of restoring them.
#[derive(Debug, Parser)]
#[command(
    name = "holofs",
    version,
    about,
    long_about = None,
    // For the man page. `holofs --help` has a text of its own, see `help`.
    after_help = "Exit codes:
  0 success, 1 other failure, 2 usage, 3 library, 4 configuration, 5 environment,
  6 blueprint or space not found, 7 mountpoint, 8 FUSE not available,
  9 strategy not possible, 11 integrity, 12 busy or lock timeout, 130 interrupted"
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
    /// rcc's home [default: $ROBOCORP_HOME, or ~/.robocorp]
    #[arg(long, value_name = "DIR", global = true, help_heading = "Global options")]
    home: Option<OsString>,
    /// The product whose rcc is meant, which decides the default of --home [default: robocorp]
    #[arg(
        long,
        value_name = "robocorp|sema4ai",
        global = true,
        hide_possible_values = true,
        ignore_case = true,
        help_heading = "Global options"
    )]
    product: Option<Product>,
    /// Ignore settings.yaml
    #[arg(long, global = true, help_heading = "Global options")]
    no_config: bool,
    /// The controller that owns the spaces, as in rcc [default: user]
    #[arg(long, value_name = "NAME", global = true, help_heading = "Global options")]
    controller: Option<String>,
    /// Print JSON
    #[arg(short, long, global = true, help_heading = "Global options")]
    json: bool,
    /// Print only results and errors
    #[arg(short = 'q', long, global = true, help_heading = "Global options")]
    silent: bool,
    /// Log what is done
    #[arg(long, global = true, help_heading = "Global options")]
    debug: bool,
    /// Log every step
    #[arg(long, global = true, help_heading = "Global options")]
    trace: bool,
    /// Write the log to this file instead of standard error
    #[arg(long, value_name = "FILE", global = true, help_heading = "Global options")]
    log_file: Option<PathBuf>,
    /// Print no colours
    #[arg(long, global = true, action = ArgAction::SetTrue, help_heading = "Global options")]
    colorless: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount an environment as a directory
    Mount(mount::Args),
    /// Unmount spaces; their changes are kept
    #[command(visible_alias = "umount")]
    Unmount(unmount::Args),
    /// Run a command or a robot's task in a space
    Run(run::Args),
    /// Start a shell in a space
    Shell(run::ShellArgs),
    /// Print the variables of a space
    #[command(visible_alias = "vars")]
    Variables(variables::Args),
    /// List the spaces on this machine
    #[command(visible_aliases = ["ls", "ps"])]
    List(list::Args),
    /// Show one space in detail
    Status(status::Args),
    /// Show what the mounts of spaces have done
    Stats(stats::Args),
    /// Print the directory of a space
    Path(status::PathArgs),
    /// Show what was changed in a space
    Diff(diff::Args),
    /// Undo changes of a space
    Reset(reset::Args),
    /// Make a further space with the changes of a space
    Fork(fork::Args),
    /// List the environments of a library
    Catalogs(catalogs::Args),
    /// Print the hash of an environment
    Hash(hash::Args),
    /// Tell whether a library has an environment
    #[command(visible_alias = "bp")]
    Blueprint(blueprint::Args),
    /// Check the integrity of a library
    #[command(visible_alias = "chk")]
    Check(check::Args),
    /// Unpack an environment before it is used
    Warm(warm::Args),
    /// Record what a command installs as an environment in a library
    Record(record::Args),
    /// Restore an environment as plain files, without FUSE
    Restore(restore::Args),
    /// Time the ways to get an environment
    Bench(bench::Args),
    /// Record a space with its changes as a new environment in a library
    Commit(commit::Args),
    /// Write environments of a library to an archive
    Export(export::Args),
    /// Add the environments of archives to a library
    Import(import::Args),
    /// Put environments of a library into an object store
    Push(push::Args),
    /// Add environments of an object store, or of rccremote, to a library
    Pull(pull::Args),
    /// Delete spaces with their changes
    #[command(visible_alias = "del")]
    Delete(delete::Args),
    /// Remove what is left of spaces, mounts and catalogs that are gone
    Gc(gc::Args),
    /// Print each setting and where it was set
    Config(config::Args),
    /// Have mounts go on with this version of holofs
    Upgrade(upgrade::Args),
    /// Examine whether and how well holofs works here
    #[command(visible_alias = "probe")]
    Doctor(doctor::Args),
    /// Print completions for a shell
    Completions(completions::Args),
    /// Show a manual page
    Man(man::Args),
}

/// The values that every command gets.
#[derive(Debug)]
pub(crate) struct Context {
    /// The directories of this user.
    pub(crate) env: Env,
    /// The settings in force.
    pub(crate) settings: Settings,
    /// Print JSON.
    pub(crate) json: bool,
    /// Print only results and errors.
    pub(crate) silent: bool,
    /// What callers of rcc add.
    pub(crate) rcc: rcc::OfRcc,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // Before anything changes signals or descriptors.
    if let [_, command, args @ ..] = args.as_slice()
        && command == "keeper"
    {
        return ExitCode::from(keeper::run(args));
    }
    let code = match mount8::recognize(&args) {
        None => execute(&args),
        Some(call) => {
            let done = call.and_then(|call| mount8::run(&call));
            mount8::code(done.unwrap_or_else(|failure| output::fail(&failure)))
        }
    };
    ExitCode::from(code)
}

/// Runs holofs with these arguments; the first is the name of the program. Returns the exit code.
fn execute(args: &[OsString]) -> u8 {
    let (rcc, args) = rcc::OfRcc::take(args);
    let cli = match parse(&args) {
        Ok(cli) => cli,
        // For clap, --help and --version are errors. They go to standard output.
        Err(error) if !error.use_stderr() => return output::print_help(&error),
        // No command was given: the help lists the commands.
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            for line in error.render().to_string().trim_end().lines() {
                output::note(false, line);
            }
            return USAGE;
        }
        Err(error) => return output::fail(&usage(&error, args.iter().skip(1).cloned())),
    };
    // These need neither a home nor settings.
    match &cli.command {
        Command::Completions(args) => return finish(completions::run(args), None),
        Command::Man(args) => return finish(man::run(args), None),
        _ => {}
    }
    surroundings::reset();
    // A daemon must not keep inherited descriptors open. A command that is run may need them, such as make's jobserver.
    let (serves, inherited) = match &cli.command {
        Command::Mount(_) | Command::Variables(_) | Command::Warm(_) => (true, process::close_inherited()),
        Command::Run(_) | Command::Shell(_) => {
            process::note_inherited();
            (true, Ok(()))
        }
        _ => (false, Ok(())),
    };
    let failed = match &cli.command {
        Command::Run(args) => Some(args.failed()),
        Command::Shell(_) => Some(exit::RUN_FAILED),
        _ => None,
    };
    let started = read_settings(&cli).and_then(|settings| {
        log::start(settings.log_level.value, cli.global.log_file.as_deref(), serves)?;
        Ok(settings)
    });
    if let Err(errno) = inherited {
        tracing::debug!(%errno, "cannot close inherited descriptors");
    }
    finish(started.and_then(|settings| run(cli, rcc, settings)), failed)
}

/// Prints a failure, with another exit code if `failed` has one. Returns the exit code.
fn finish(done: Result<u8, Failure>, failed: Option<u8>) -> u8 {
    done.unwrap_or_else(|failure| output::fail(&Failure { code: failed.unwrap_or(failure.code), ..failure }))
}

/// Parses the arguments. To define all commands takes longer than most of them run, so the command that seems to be meant
/// is tried alone first. What it does not accept, the whole definition accepts or explains.
fn parse(args: &[OsString]) -> Result<Cli, clap::Error> {
    let command = args.iter().skip(1).find_map(|arg| alone(arg.to_str()?));
    let short = clap::Command::new("holofs").version(env!("CARGO_PKG_VERSION")).subcommands(command);
    let matches = Global::augment_args(short).try_get_matches_from(args);
    match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Err(error) if error.kind() != ErrorKind::DisplayVersion => {
            Cli::from_arg_matches(&help::definition().try_get_matches_from(args)?)
        }
        done => done,
    }
}

/// The definition of a command that programs start often.
fn alone(name: &str) -> Option<clap::Command> {
    let (name, define): (_, fn(clap::Command) -> clap::Command) = match name {
        "blueprint" => ("blueprint", blueprint::Args::augment_args),
        "catalogs" => ("catalogs", catalogs::Args::augment_args),
        "delete" => ("delete", delete::Args::augment_args),
        "diff" => ("diff", diff::Args::augment_args),
        "fork" => ("fork", fork::Args::augment_args),
        "hash" => ("hash", hash::Args::augment_args),
        "list" => ("list", list::Args::augment_args),
        "mount" => ("mount", mount::Args::augment_args),
        "path" => ("path", status::PathArgs::augment_args),
        "reset" => ("reset", reset::Args::augment_args),
        "restore" => ("restore", restore::Args::augment_args),
        "run" => ("run", run::Args::augment_args),
        "shell" => ("shell", run::ShellArgs::augment_args),
        "stats" => ("stats", stats::Args::augment_args),
        "status" => ("status", status::Args::augment_args),
        "unmount" | "umount" => ("unmount", unmount::Args::augment_args),
        "variables" | "vars" => ("variables", variables::Args::augment_args),
        _ => return None,
    };
    Some(define(clap::Command::new(name)))
}

/// Reads the settings, with the flags of this command line.
fn read_settings(cli: &Cli) -> Result<Settings, Failure> {
    let global = &cli.global;
    let log_level = match (global.trace, global.debug, global.silent) {
        (true, ..) => Some(LevelFilter::TRACE),
        (_, true, _) => Some(LevelFilter::DEBUG),
        (.., true) => Some(LevelFilter::ERROR),
        _ => None,
    };
    let mut flags = Flags {
        product: global.product,
        no_config: global.no_config,
        robocorp_home: global.home.clone(),
        controller: global.controller.clone(),
        log_level,
        ..Flags::default()
    };
    match &cli.command {
        Command::Mount(args) => args.set(&mut flags),
        Command::Restore(args) => args.set(&mut flags),
        Command::Run(args) => args.set(&mut flags),
        Command::Shell(args) => args.set(&mut flags),
        Command::Record(args) => flags.lock_timeout = args.lock_timeout,
        Command::Commit(args) => flags.lock_timeout = args.lock_timeout,
        Command::Import(args) => flags.lock_timeout = args.lock_timeout,
        Command::Warm(args) => args.set(&mut flags),
        Command::Catalogs(args) => args.set(&mut flags),
        Command::Export(args) => args.set(&mut flags),
        Command::Check(args) => args.set(&mut flags),
        Command::Pull(args) => args.set(&mut flags),
        Command::Push(args) => flags.remote_timeout = args.remote_timeout,
        Command::Gc(args) => flags.cache_size = args.cache_size,
        Command::Doctor(_) => flags.patience = Some(PATIENCE),
        _ => {}
    }
    Ok(Settings::read(flags)?)
}

fn run(cli: Cli, rcc: rcc::OfRcc, settings: Settings) -> Result<u8, Failure> {
    let Global { json, silent, .. } = cli.global;
    rcc.log();
    let context = Context { env: Env::new(&settings), settings, json, silent, rcc };
    // `record` and `import` do not use these directories, and `doctor` says what is wrong with them.
    if !matches!(cli.command, Command::Record(_) | Command::Import(_) | Command::Doctor(_)) {
        context.env.check_own_dirs().map_err(exit::of_own_dirs)?;
    }
    match cli.command {
        Command::Mount(args) => mount::run(args, &context),
        Command::Run(args) => run::run(args, &context),
        Command::Shell(args) => run::run_shell(args, &context),
        Command::Variables(args) => variables::run(args, &context),
        Command::Unmount(args) => unmount::run(&args, &context),
        Command::Upgrade(args) => upgrade::run(&args, &context),
        Command::List(args) => list::run(&args, &context),
        Command::Stats(args) => stats::run(&args, &context),
        Command::Status(args) => status::run(&args, &context),
        Command::Path(args) => status::run_path(&args, &context),
        Command::Diff(args) => diff::run(&args, &context),
        Command::Reset(args) => reset::run(&args, &context),
        Command::Fork(args) => fork::run(&args, &context),
        Command::Catalogs(args) => catalogs::run(&args, &context),
        Command::Hash(args) => hash::run(&args, &context),
        Command::Blueprint(args) => blueprint::run(args, &context),
        Command::Check(args) => check::run(&args, &context),
        Command::Warm(args) => warm::run(&args, &context),
        Command::Record(args) => record::run(args, &context),
        Command::Restore(args) => restore::run(args, &context),
        Command::Bench(args) => bench::run(args, &context),
        Command::Commit(args) => commit::run(args, &context),
        Command::Export(args) => export::run(args, &context),
        Command::Import(args) => import::run(args, &context),
        #[cfg(feature = "remote")]
        Command::Push(args) => remote::run_push(args, &context),
        #[cfg(feature = "remote")]
        Command::Pull(args) => remote::run_pull(args, &context),
        #[cfg(not(feature = "remote"))]
        Command::Push(_) | Command::Pull(_) => Err(exit::without_stores()),
        Command::Delete(args) => delete::run(args, &context),
        Command::Gc(args) => gc::run(&args, &context),
        Command::Config(_) => config::run(&context),
        Command::Doctor(args) => doctor::run(args, &context),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    }
}

/// A flag that SIGINT and SIGTERM set, for commands that end in good order.
fn cancel_on_signals() -> Result<Arc<AtomicBool>, Failure> {
    let cancel = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&cancel))
            .map_err(|error| exit::failure(FAILED, format!("signals: {error}"), None))?;
    }
    Ok(cancel)
}

/// Shortens clap's message to one line, and adds the help to read.
fn usage(error: &clap::Error, mut args: impl Iterator<Item = OsString>) -> Failure {
    let text = error.render().to_string();
    let what = text.split("\n\n").next().unwrap_or_default();
    let what: Vec<&str> = what.trim_start_matches("error:").split_whitespace().collect();
    // Nobody who mistypes a flag wants to pass it as a value.
    let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
    let tip = tip.filter(|tip| !tip.starts_with("to pass "));
    let what = match error.kind() {
        ErrorKind::MissingSubcommand => "no command was given".to_owned(),
        _ => what.join(" "),
    };
    let cli = Cli::command();
    let command = args.find_map(|arg| cli.find_subcommand(arg)).map(clap::Command::get_name);
    let invalid = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
    let help = match (command, error.kind()) {
        (None, _) => "`holofs --help`".to_owned(),
        (Some(name @ ("mount" | "run" | "shell" | "restore")), ErrorKind::MissingRequiredArgument) => {
            format!("LIBRARY and SPACE, for example `holofs {name} auto demo`; or `holofs {name} --help`")
        }
        (Some("run"), ErrorKind::UnknownArgument) if !invalid.starts_with('-') => {
            "the command after `--`, for example `holofs run auto demo -- python -V`".to_owned()
        }
        (Some(name), _) => format!("`holofs {name} --help`"),
    };
    let code = if matches!(command, Some("run" | "shell")) { exit::RUN_FAILED } else { USAGE };
    exit::failure(code, what, Some(tip.unwrap_or(&help)))
}

#[cfg(test)]
mod tests;
