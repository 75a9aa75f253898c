//! `holofs mount`.

use std::ffi::OsString;
use std::time::Duration;

use super::exit::{Failure, OK, describe};
use super::values::{prefetch, seconds, size, strategy};
use super::{Context, output};
use crate::session;
use crate::session::request::MountRequest;
use crate::settings::{Flags, IoMode, Prefetch, Strategy};

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
    /// A hololib, a hololib.zip, a ROBOCORP_HOME, a shared holotree, or `auto` for rcc's own
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
    #[arg(long, value_name = "PROFILE", num_args = 0..=1, require_equals = true, default_missing_value = "", value_parser = prefetch())]
    prefetch: Option<Prefetch>,
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
    let request = MountRequest {
        library: args.library,
        space: args.space,
        blueprint: args.blueprint,
        prefetch: args.prefetch.unwrap_or_default(),
        read_only: args.read_only,
        fresh: args.fresh,
        ephemeral: args.ephemeral,
        allow_other: args.allow_other,
        foreground: args.foreground,
        options: args.options,
    };
    let plan = request.plan(&context.settings, context.settings.mount.as_ref()?, &context.env)?;
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
