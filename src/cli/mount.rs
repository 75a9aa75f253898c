//! `holofs mount`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::exit::{CONFIG, Failure, NOT_FOUND, OK, USAGE, describe, failure, no_catalog};
use super::{Context, catalogs, output, seconds};
use crate::library::locate::{Location, locate};
use crate::session;
use crate::session::plan::{Asked, MountPlan, ServeOptions};
use crate::settings::{IoMode, Prefetch, Strategy};
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
    #[arg(long, value_name = "auto|cached|passthrough", value_parser = io_mode)]
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
    /// How long to wait for a lock that rcc holds, in seconds
    #[arg(long, value_name = "S", default_value = "30", value_parser = seconds)]
    lock_timeout: Duration,
    /// How much the cache of unpacked blobs may keep, with K, M, G or T [default: 10G]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    cache_size: Option<u64>,
}

/// How many bytes of unpacked blobs the cache may keep where nobody says.
const DEFAULT_CACHE_SIZE: u64 = 10 << 30;

fn size(text: &str) -> Result<u64, String> {
    let no_size = || "a number of bytes, or of K, M, G or T".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(no_size()),
    };
    let number: u64 = digits.parse().map_err(|_| no_size())?;
    number.checked_mul(1 << shift).ok_or_else(no_size)
}

fn strategy(text: &str) -> Result<Strategy, String> {
    let name = text.to_lowercase();
    Strategy::parse(&name).ok_or_else(|| match name.as_str() {
        "hardlink" => "hardlink shares one inode between environments; use smart".to_owned(),
        _ => "possible values: smart, reflink, copy".to_owned(),
    })
}

fn io_mode(text: &str) -> Result<IoMode, String> {
    match text.to_lowercase().as_str() {
        "auto" => Ok(IoMode::Auto),
        "cached" => Ok(IoMode::Cached),
        "passthrough" => Ok(IoMode::Passthrough),
        _ => Err("possible values: auto, cached, passthrough".to_owned()),
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
    let env = &context.env;
    let library = locate(&args.library, &env.hololib())?;
    let wanted = Wanted {
        space: &args.space,
        controller: &context.controller,
        blueprint: args.blueprint.as_deref(),
        fresh: args.fresh,
    };
    let mut selected = select(&library, &wanted, env);
    // rcc writes catalogs in place: for a moment there is none that can be read.
    if matches!(selected, Err(SpaceError::BadCatalog { .. }))
        && session::wait_for_recording(&library, args.lock_timeout)
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
        strategy: chosen_strategy(args.strategy)?,
        io: chosen(args.io, "HOLOFS_IO", io_mode)?,
        prefetch: prefetch(args.prefetch)?,
        cache_size: args.cache_size.unwrap_or(DEFAULT_CACHE_SIZE),
        read_only,
        ephemeral: args.ephemeral,
        allow_other,
        options,
    };
    check_outside(&env.state_dir(&selected.space.identity), &library.hololib)?;
    Ok(MountPlan {
        holds: selected.holds,
        catalog: selected.catalog,
        space: selected.space,
        library,
        env: env.clone(),
        serve,
        asked,
        fresh: args.fresh,
        foreground: args.foreground,
        lock_timeout: args.lock_timeout,
    })
}

/// A choice that could not be made is put to the user with what tells the environments apart.
fn refusal(error: SpaceError, library: &Location, context: &Context) -> Failure {
    let SpaceError::NoCatalog { why, candidates } = &error else { return error.into() };
    let told = candidates.iter().map(|candidate| {
        let text = catalogs::first_lines(&candidate.path, library, context);
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

/// The flag, else the environment's word, else what is chosen where nobody says.
fn chosen<T: Default>(
    flag: Option<T>,
    name: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, Failure> {
    match (flag, std::env::var(name)) {
        (Some(choice), _) => Ok(choice),
        (None, Ok(value)) => {
            parse(&value).map_err(|why| failure(CONFIG, format!("{name}={value}: {why}"), None))
        }
        (None, Err(_)) => Ok(T::default()),
    }
}

/// The flag, else the environment's word, else smart.
fn chosen_strategy(flag: Option<Strategy>) -> Result<Strategy, Failure> {
    if let Some(strategy) = flag {
        return Ok(strategy);
    }
    for name in ["HOLOFS_STRATEGY", "RCC_HOLOTREE_STRATEGY"] {
        let Ok(value) = std::env::var(name) else { continue };
        return match strategy(&value) {
            Ok(strategy) => Ok(strategy),
            // Set for rcc's own restores, where it is right.
            Err(_) if value.eq_ignore_ascii_case("hardlink") => {
                tracing::warn!("{name}=hardlink: a mount never shares an inode; acting as smart");
                Ok(Strategy::Smart)
            }
            Err(why) => Err(failure(CONFIG, format!("{name}={value}: {why}"), None)),
        };
    }
    Ok(Strategy::Smart)
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_with_and_without_a_unit() {
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("10g"), Ok(10 << 30));
        for bad in ["", "G", "1.5G", "-1", "99999999T", "10GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
