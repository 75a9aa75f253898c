//! `holofs mount`.

use std::ffi::OsString;
use std::time::Duration;

use super::exit::{Failure, OK, describe};
use super::values::{seconds, size, strategy};
use super::{Context, output};
use crate::session;
use crate::session::request::MountRequest;
use crate::settings::{Flags, IoMode, Strategy, Verify};

/// A mount: what `mount`, `run` and `shell` have in common.
#[derive(Debug, clap::Args)]
pub(super) struct MountArgs {
    #[command(flatten)]
    pub(super) request: MountRequest,
    /// How to make private copies of files [default: smart]
    #[arg(long, visible_alias = "holotree-strategy", value_name = "smart|reflink|copy", value_parser = strategy)]
    strategy: Option<Strategy>,
    /// Serve reads and writes through the page cache, or let the kernel use the backing files [default: auto]
    #[arg(long, value_name = "auto|cached|passthrough", hide_possible_values = true, ignore_case = true)]
    io: Option<IoMode>,
    /// When to compare blobs with their digests [default: once]
    #[arg(long, value_name = "once|always|never", hide_possible_values = true, ignore_case = true)]
    verify: Option<Verify>,
    /// Show the bytecode that `holofs warm --pycache` has compiled into the cache, or that an object store has
    #[arg(long)]
    pycache: bool,
    /// Seconds to wait for rcc's locks [default: 30]
    #[arg(long, value_name = "S", value_parser = seconds)]
    lock_timeout: Option<Duration>,
    /// Size limit of the cache of unpacked blobs, with a unit K, M, G or T [default: 10G]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    cache_size: Option<u64>,
    /// The directory of compiled indexes and unpacked blobs [default: cache in holofs's home]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<OsString>,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// What commands have in common that read libraries in object stores.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct RemoteArgs {
    /// Ask no object store: use what is in the cache
    #[arg(long)]
    offline: bool,
    /// Seconds after which a read fails while an object store does not answer [default: 60]
    #[arg(long, value_name = "S", value_parser = seconds)]
    remote_timeout: Option<Duration>,
}

impl RemoteArgs {
    /// Adds these arguments to the flags.
    pub(super) fn set(&self, flags: &mut Flags) {
        flags.offline = self.offline;
        flags.remote_timeout = self.remote_timeout;
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "The space is mounted on the path SPACE, or else on the directory to which rcc would
restore it. The command prints this directory when the mount is ready. If the space is
already mounted with the same options, it succeeds too.

The environment is the one that the flags choose, else that of the space's changes, else
that of an earlier mount or restore, else the only one of the library. Without arguments
it is that of ./robot.yaml, in the space `user`, as with rcc.

`holofs unmount`, `fusermount3 -u`, umount, SIGTERM and SIGINT end the mount. The
changes are kept, and are there at the next mount.

Examples:
  holofs mount                          # the robot in this directory
  holofs mount auto demo -r robot.yaml
  holofs mount auto demo --conda conda.yaml --build
  holofs mount ~/.robocorp demo --blueprint adb8c26d
  holofs mount /opt/robocorp/ht ci-job --ephemeral
  holofs mount auto ~/.robocorp/holotree/720c7a8_5a1fac3_700be151 --read-only")]
pub(super) struct Args {
    #[command(flatten)]
    mount: MountArgs,
    /// Serve in this process until the mount ends
    #[arg(short, long)]
    foreground: bool,
}

impl Args {
    pub(super) fn set(&self, flags: &mut Flags) {
        self.mount.set(flags);
    }
}

impl MountArgs {
    /// Adds these arguments to the flags.
    pub(super) fn set(&self, flags: &mut Flags) {
        flags.lock_timeout = self.lock_timeout;
        flags.strategy = self.strategy;
        flags.io = self.io;
        flags.cache_size = self.cache_size;
        flags.verify = self.verify;
        flags.pycache = self.pycache;
        flags.cache_dir = self.cache_dir.clone();
        self.remote.set(flags);
    }
}

pub(super) fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let mut request = args.mount.request;
    request.foreground = args.foreground;
    request.show = output::show(context);
    request.choice.build &= !context.rcc.no_build;
    let plan = request.plan(&context.settings, context.settings.mount.as_ref()?, &context.env)?;
    for note in plan.notes() {
        output::note(context.silent, &format!("holofs: {note}"));
    }
    let mut printed = Ok(());
    session::mount(&plan, describe, &mut |mounted| {
        if mounted.reused {
            output::note(context.silent, &format!("holofs: already mounted, by process {}", mounted.pid));
        }
        for note in mounted.notes(&plan) {
            output::note(context.silent, &format!("holofs: {note}"));
        }
        printed = if context.json { output::print_json(mounted) } else { output::print_path(&mounted.path) };
    })?;
    printed.map(|()| OK)
}
