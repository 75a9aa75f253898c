//! `holofs mount`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::exit::{Failure, NOT_FOUND, OK, USAGE, describe, failure, no_catalog};
use super::values::{seconds, size, strategy};
use super::{Context, catalogs, output};
use crate::library::locate::{Location, locate};
use crate::session;
use crate::session::plan::{Asked, MountPlan, ServeOptions};
use crate::settings::{Flags, IoMode, Prefetch, Strategy};
use crate::space::SpaceError;
use crate::space::select::{Wanted, select};
use crate::space::state::check_outside;
use crate::sys::fuse_mount::check_option;

#[derive(Debug, clap::Args)]
#[command(after_help = "The mountpoint is the directory to which rcc would restore the space. It is
printed when the mount answers. `fusermount3 -u`, umount, `holofs unmount`, SIGTERM
and SIGINT end the mount; changes stay. The same space mounted again, as it is, is
success.

Examples:
  holofs mount auto demo
  holofs mount ~/.robocorp demo --blueprint adb8c26d
  holofs mount /opt/robocorp/ht ci-job --ephemeral
  holofs mount auto ~/.robocorp/holotree/720c7a8_5a1fac3_700be151 --read-only")]
pub(super) struct Args {
    /// A hololib, a ROBOCORP_HOME, a shared holotree, or `auto` for rcc's own
    library: OsString,
    /// A name, an identity, or the path of a directory where the environment works
    space: OsString,
    /// The environment, by the beginning of its blueprint's hash
    #[arg(long, value_name = "HASH")]
    blueprint: Option<String>,
    /// How private copies are made
    #[arg(long, visible_alias = "holotree-strategy", value_name = "smart|reflink|copy", value_parser = strategy)]
    strategy: Option<Strategy>,
    /// Who reads and writes files: the daemon through the page cache, or the kernel on the backing files
    #[arg(long, value_name = "auto|cached|passthrough", hide_possible_values = true, ignore_case = true)]
    io: Option<IoMode>,
    /// Unpack in the background what earlier mounts of the environment read, or what a profile names
    #[arg(long, value_name = "PROFILE", num_args = 0..=1, require_equals = true)]
    prefetch: Option<Option<PathBuf>>,
    /// Refuse every change
    #[arg(long)]
    read_only: bool,
    /// Drop the changes of earlier mounts first
    #[arg(long)]
    fresh: bool,
    /// Drop the changes at unmount
    #[arg(long)]
    ephemeral: bool,
    /// Serve in this process until the mount ends
    #[arg(short, long)]
    foreground: bool,
    /// Mount options: ro, noexec, noatime, sync, dirsync, allow_other
    #[arg(short, value_name = "OPTS", value_delimiter = ',')]
    options: Vec<String>,
    /// Let other users in
    #[arg(long)]
    allow_other: bool,
    /// How long to wait for a lock that rcc holds, in seconds [default: 30]
    #[arg(long, value_name = "S", value_parser = seconds)]
    lock_timeout: Option<Duration>,
    /// How much the cache of unpacked blobs may keep, with K, M, G or T [default: 10G]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    cache_size: Option<u64>,
}

impl Args {
    /// Adds what was typed to the flags.
    pub(super) fn set(&self, flags: &mut Flags) {
        flags.lock_timeout = self.lock_timeout;
        flags.strategy = self.strategy;
        flags.io = self.io;
        flags.cache_size = self.cache_size;
    }
}

pub(super) fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let plan = plan(args, context)?;
    let mut told = Ok(());
    session::mount(&plan, describe, &mut |mounted| {
        if mounted.reused {
            output::note(context.silent, &format!("holofs: already mounted, by process {}", mounted.pid));
        }
        if mounted.missing_blobs > 0 {
            let count = mounted.missing_blobs;
            let note = format!(
                "holofs: {count} of its blobs are not in the library, so files cannot be read: `holofs check`"
            );
            output::note(context.silent, &note);
        }
        if let Some(aside) = &mounted.set_aside {
            let note = format!(
                "holofs: rcc deleted this space: it is a new one; its changes are in {}",
                aside.display()
            );
            output::note(context.silent, &note);
        }
        told = if context.json { output::print_json(mounted) } else { output::print_path(&mounted.path) };
    })?;
    told.map(|()| OK)
}

fn plan(args: Args, context: &Context) -> Result<MountPlan, Failure> {
    let (env, settings) = (&context.env, context.settings.mount.as_ref()?);
    let lock_timeout = context.settings.lock_timeout.value;
    if let Some(warning) = &settings.warning {
        tracing::warn!("{warning}");
    }
    let library = locate(&args.library, &env.hololib())?;
    let wanted = Wanted {
        space: &args.space,
        controller: &context.settings.controller.value,
        blueprint: args.blueprint.as_deref(),
        fresh: args.fresh,
    };
    let mut selected = select(&library, &wanted, env);
    // rcc writes catalogs in place: for a moment there is none that can be read.
    if matches!(selected, Err(SpaceError::BadCatalog { .. }))
        && session::wait_for_recording(&library, lock_timeout)
    {
        selected = select(&library, &wanted, env);
    }
    let selected = selected.map_err(|error| refusal(error, &library, context))?;
    let (mut read_only, mut allow_other) = (args.read_only, args.allow_other);
    let mut options = Vec::new();
    for option in args.options {
        match option.as_str() {
            "ro" => read_only = true,
            "allow_other" => allow_other = true,
            other if check_option(other) => options.push(option),
            other => {
                let fix = "ro, noexec, noatime, sync, dirsync, allow_other";
                return Err(failure(USAGE, format!("-o {other}: no such mount option"), Some(fix)));
            }
        }
    }
    let asked = Asked { strategy: args.strategy, io: args.io, cache_size: args.cache_size };
    let serve = ServeOptions {
        strategy: settings.strategy.value,
        io: settings.io.value,
        prefetch: prefetch(args.prefetch)?,
        cache_size: settings.cache_size.value,
        read_only,
        ephemeral: args.ephemeral,
        allow_other,
        options,
    };
    check_outside(&env.state_dir(&selected.space.identity), &library.path)?;
    Ok(MountPlan {
        holds: selected.holds,
        catalog: selected.catalog,
        index: selected.index,
        space: selected.space,
        location: library,
        env: env.clone(),
        serve,
        asked,
        fresh: args.fresh,
        foreground: args.foreground,
        mount_helper: settings.mount_helper.value.clone(),
        lock_timeout,
    })
}

/// A choice that could not be made is put to the user with what tells the environments apart.
fn refusal(error: SpaceError, library: &Location, context: &Context) -> Failure {
    let SpaceError::NoCatalog { why, candidates } = &error else { return error.into() };
    let told = candidates.iter().map(|candidate| {
        let text = catalogs::first_lines(candidate, library, context);
        (candidate, text.unwrap_or_default())
    });
    no_catalog(why, &told.collect::<Vec<_>>())
}

/// A profile is named by its path; the daemon has another working directory.
fn prefetch(flag: Option<Option<PathBuf>>) -> Result<Prefetch, Failure> {
    let Some(path) = flag else { return Ok(Prefetch::No) };
    let Some(path) = path else { return Ok(Prefetch::Own) };
    let found = std::path::absolute(&path).and_then(|path| std::fs::File::open(&path).map(|_| path));
    found.map(Prefetch::From).map_err(|error| {
        let fix = "a profile of this environment, from profiles/ in holofs's cache; or --prefetch alone";
        failure(NOT_FOUND, format!("{}: {error}", path.display()), Some(fix))
    })
}
