//! The arguments of `holofs pull`. See `cli::remote`.

use std::ffi::OsString;
use std::time::Duration;

use super::values::seconds;
use crate::settings::Flags;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Every blob is verified before it is stored, and an environment is pulled whole or not at all. Blobs
that the library has are not fetched. Without CATALOG all environments are pulled.

An rccremote is rcc+http://HOST:PORT or rcc+https://HOST; `rcc` means RCC_REMOTE_ORIGIN. It has no
list, so CATALOG is the whole hash of a blueprint. RCC_REMOTE_AUTHORIZATION is sent to it as it is.

Examples:
  holofs pull s3://envs/team auto
  holofs pull file:///mnt/envs ./lib adb8c26db4d86a93
  holofs pull rcc+http://build:4653 auto adb8c26db4d86a93"
)]
pub(super) struct Args {
    /// The object store, or the rccremote
    pub(super) url: OsString,
    /// The library: a hololib, a ROBOCORP_HOME, a shared holotree, `auto`, or a directory to be made
    pub(super) library: OsString,
    /// Catalogs to pull: their names, or the first digits of their blueprints' hashes
    #[arg(value_name = "CATALOG")]
    pub(super) catalogs: Vec<String>,
    /// Seconds to wait for rcc's lock [default: 30]
    #[arg(long, value_name = "S", value_parser = seconds)]
    lock_timeout: Option<Duration>,
    /// Seconds after which the pull fails while the store does not answer [default: 60]
    #[arg(long, value_name = "S", value_parser = seconds)]
    remote_timeout: Option<Duration>,
}

impl Args {
    /// Adds these arguments to the flags.
    pub(super) fn set(&self, flags: &mut Flags) {
        flags.lock_timeout = self.lock_timeout;
        flags.remote_timeout = self.remote_timeout;
    }
}
