//! `holofs pull`.

#[cfg(feature = "remote")]
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::Duration;

use super::Context;
use super::exit::{self, Failure};
use super::values::seconds;
#[cfg(feature = "remote")]
use super::{cancel_on_signals, import};
#[cfg(feature = "remote")]
use crate::library::catalogs;
#[cfg(feature = "remote")]
use crate::library::catalogs::{CatalogName, this_platform};
#[cfg(feature = "remote")]
use crate::library::locate::locate;
#[cfg(feature = "remote")]
use crate::library::remote::store::rccremote::RccRemote;
#[cfg(feature = "remote")]
use crate::record::import::pull;
#[cfg(feature = "remote")]
use crate::record::rccremote::pull_from_rcc;
#[cfg(feature = "remote")]
use crate::session::choice::Choice;
#[cfg(feature = "remote")]
use crate::session::wanted;
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
    url: OsString,
    /// The library: a hololib, a ROBOCORP_HOME, a shared holotree, `auto`, or a directory to be made
    library: OsString,
    /// Catalogs to pull: their names, or the first digits of their blueprints' hashes
    #[arg(value_name = "CATALOG")]
    catalogs: Vec<String>,
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

/// A holofs that cannot do it.
#[cfg(not(feature = "remote"))]
pub(super) fn run(_: Args, _: &Context) -> Result<u8, Failure> {
    Err(exit::without_stores())
}

#[cfg(feature = "remote")]
pub(super) fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let settings = &context.settings.mount.as_ref()?.remote;
    let given = args.url.to_string_lossy().into_owned();
    let server = RccRemote::named(&given, settings)?;
    let cancel = cancel_on_signals()?;
    let target = import::target(args.library, cancel, context);
    let pulled = match server {
        Some(server) => {
            let chosen =
                args.catalogs.iter().map(|name| catalog_of(name)).collect::<Result<BTreeSet<_>, _>>()?;
            if chosen.is_empty() {
                let fix = "the whole hashes of blueprints: `holofs hash` prints that of a robot";
                return Err(exit::failure(
                    exit::USAGE,
                    "an rccremote cannot tell which catalogs it has",
                    Some(fix),
                ));
            }
            pull_from_rcc(&target, &server, &chosen)?
        }
        None => {
            let location = locate(&args.url, &context.env.hololib(), &context.env.access())?;
            let chosen: BTreeSet<_> = if args.catalogs.is_empty() {
                catalogs::list(&*location.library)?.into_iter().map(|entry| entry.name).collect()
            } else {
                wanted::catalogs(&location, &args.catalogs, &Choice::default(), &context.env)?
            };
            if chosen.is_empty() {
                let what = format!("{}: no environment is there", location.path.display());
                return Err(exit::failure(
                    exit::NOT_FOUND,
                    what,
                    Some("`holofs push` puts environments there"),
                ));
            }
            pull(&target, &*location.library, &chosen)?
        }
    };
    import::report(&pulled, "pulled", context)
}

/// A catalog by its name, or by the whole hash of its blueprint.
#[cfg(feature = "remote")]
fn catalog_of(given: &str) -> Result<CatalogName, Failure> {
    let of_hash = || {
        CatalogName::parse(&CatalogName { blueprint: given.into(), platform: this_platform() }.to_string())
    };
    CatalogName::parse(given).or_else(of_hash).ok_or_else(|| {
        let what = format!("{given}: not the name of a catalog, and not the hash of a blueprint");
        exit::failure(exit::USAGE, what, Some("16 hexadecimal digits"))
    })
}
