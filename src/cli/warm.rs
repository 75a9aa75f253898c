//! `holofs warm`: compiles the index of an environment and unpacks its large files, before a mount needs them.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use super::exit::{FAILED, Failure, INTEGRITY, INTERRUPTED, MORE_SPACE, OK, describe, failure};
use super::mount::RemoteArgs;
use super::values::threads;
use super::{Context, cancel_on_signals, output};
use crate::library::LibraryError;
use crate::library::blob::BlobError;
use crate::library::bytecode::build::sources;
use crate::library::catalogs::CatalogName;
use crate::library::locate::{Location, is_url, locate};
use crate::library::warm::Warmed;
use crate::session::bytecode::{self, Compiled};
use crate::session::environment::{Environment, of_space};
use crate::settings::Flags;
use crate::space::select::select_environment;
use crate::sys::process;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Compiles the index of the environment and unpacks its large files into the cache that
all mounts share. Small files are unpacked when they are read, and fetched now if the
library is in an object store. If the command is interrupted, it keeps what it has. With
a space alone, the environment is that of the space.

Examples:
  holofs warm auto demo
  holofs warm ~/.robocorp adb8c26d --profile
  holofs warm s3://bucket/envs adb8c26d
  holofs warm auto demo --pycache && holofs run auto demo --pycache -- python task.py"
)]
pub(super) struct Args {
    /// A hololib, a hololib.zip, a ROBOCORP_HOME, a shared holotree, or `auto` for rcc's own
    library: OsString,
    /// The environment: the first digits of its blueprint's hash, or a space that has it
    #[arg(value_name = "SPACE|CATALOG")]
    environment: Option<OsString>,
    /// Unpack only files that earlier mounts read
    #[arg(long)]
    profile: bool,
    /// Also compile the Python sources, for `mount --pycache` and `push`
    #[arg(long)]
    pycache: bool,
    /// Number of threads [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = threads)]
    jobs: Option<usize>,
    #[command(flatten)]
    remote: RemoteArgs,
}

impl Args {
    /// Adds these arguments to the flags.
    pub(super) fn set(&self, flags: &mut Flags) {
        self.remote.set(flags);
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    let controller = &context.settings.controller.value;
    let (library, catalog) = match &args.environment {
        None if !is_url(&args.library) => of_space(&args.library, controller, &context.env)?,
        environment => {
            let library = locate(&args.library, &context.env.hololib(), &context.env.access())?;
            let environment = environment.as_deref().unwrap_or(OsStr::new("user"));
            let catalog = select_environment(&library, environment, controller, &context.env)?;
            (library, catalog)
        }
    };
    let cancel = cancel_on_signals()?;
    let environment = Environment::open(&library, &catalog, &context.env)?;
    let (warming, blobs) = (environment.warming(args.profile)?, environment.blobs()?);
    let bar = output::progress_bar("warming", context.silent, warming.bytes());
    let jobs = args.jobs.unwrap_or_else(process::processors);
    let warmed = warming.run(&blobs, jobs, &cancel, &|size| bar.inc(size));
    bar.finish_and_clear();
    let warmed = warmed.map_err(|error| match &error {
        BlobError::Io { source, .. } if source.kind() == ErrorKind::HostUnreachable => Failure::from(error),
        BlobError::Panicked(_) => failure(FAILED, error.to_string(), None),
        _ => failure(FAILED, error.to_string(), Some(MORE_SPACE)),
    })?;
    if cancel.load(Ordering::Relaxed) {
        let what = format!("interrupted; {} of {} blobs are ready", warmed.fetched, warmed.blobs);
        return Err(failure(INTERRUPTED, what, None));
    }
    // The compilation forks.
    library.library.pause();
    let bytecode = if args.pycache {
        Some(compile(&library, &catalog, &environment, jobs, &cancel, context)?)
    } else {
        None
    };
    let warmed = All { warmed, bytecode };
    output::print_result(context, &warmed, || text(&warmed))?;
    let warmed = warmed.warmed;
    Ok(if warmed.failed.is_empty() { OK } else { INTEGRITY })
}

/// The keys of `holofs warm --json`.
#[derive(Serialize)]
struct All {
    #[serde(flatten)]
    warmed: Warmed,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytecode: Option<Compiled>,
}

/// Compiles the Python sources of an environment.
fn compile(
    library: &Location,
    catalog: &CatalogName,
    environment: &Environment<'_>,
    jobs: usize,
    cancel: &AtomicBool,
    context: &Context,
) -> Result<Compiled, Failure> {
    let request = bytecode::request(&library.path, &catalog.blueprint);
    let plan = request.plan(&context.settings, context.settings.mount.as_ref()?, &context.env)?;
    let count = sources(&environment.index).map_err(LibraryError::from)?.len() as u64;
    let bar = output::counting_bar("compiling", context.silent, count);
    let compiled = bytecode::compile(&plan, &environment.index, jobs, describe, cancel, &|n| bar.inc(n));
    bar.finish_and_clear();
    if cancel.load(Ordering::Relaxed) {
        return Err(failure(INTERRUPTED, "interrupted; the sources are not compiled", None));
    }
    Ok(compiled?)
}

fn text(All { warmed, bytecode }: &All) -> Vec<String> {
    for line in &warmed.failed {
        output::note(false, &format!("holofs: {line}"));
    }
    let mut lines = vec![format!(
        "{}: {} entries; {} of {} large blobs unpacked now ({} of {}){}",
        warmed.blueprint,
        warmed.entries,
        warmed.fetched,
        warmed.blobs,
        output::human_bytes(warmed.bytes_fetched),
        output::human_bytes(warmed.bytes),
        if warmed.failed.is_empty() { String::new() } else { format!("; {} failed", warmed.failed.len()) },
    )];
    if let Some(Compiled { python, files, bytes, failed }) = bytecode {
        let (bytes, failed) = (output::human_bytes(*bytes), *failed);
        let failed = if failed > 0 { format!("; {failed} are no Python") } else { String::new() };
        lines.push(format!("{}: {files} sources compiled for {python} ({bytes}){failed}", warmed.blueprint));
    }
    lines
}
