//! `holofs push`.

#[cfg(feature = "remote")]
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::Duration;

use super::Context;
use super::exit::{self, Failure};
use super::values::seconds;
#[cfg(feature = "remote")]
use super::{cancel_on_signals, output};
#[cfg(feature = "remote")]
use crate::library::catalogs;
#[cfg(feature = "remote")]
use crate::library::locate::locate;
#[cfg(feature = "remote")]
use crate::library::remote::push::{Outcome, Profile, Push, PushedCatalog, push};
#[cfg(feature = "remote")]
use crate::library::remote::store::Store;
#[cfg(feature = "remote")]
use crate::session::choice::Choice;
#[cfg(feature = "remote")]
use crate::session::wanted;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "URL is s3://BUCKET/PATH, gs://, az://, https:// or file:///DIRECTORY. Credentials come from the
usual variables and files of each service: AWS_* and ~/.aws, GOOGLE_APPLICATION_CREDENTIALS,
AZURE_*. AWS_ENDPOINT_URL names another store than Amazon's. Never put them into the URL.

Only what the store lacks is sent, and every blob is verified before. A push that was interrupted
is repeated. Without CATALOG all environments are pushed.

Examples:
  holofs push auto s3://envs/team
  holofs push auto s3://envs/team adb8c26db4d86a93 --dry-run
  AWS_ENDPOINT_URL=http://127.0.0.1:3900 holofs push auto s3://envs"
)]
pub(super) struct Args {
    /// The library, as for mount
    library: OsString,
    /// The object store
    url: String,
    /// Catalogs to push: their names, or the first digits of their blueprints' hashes
    #[arg(value_name = "CATALOG")]
    catalogs: Vec<String>,
    /// What mounts prefetch: what mounts of this machine read, nothing, or the profile in a file
    #[arg(long, value_name = "auto|none|FILE", default_value = "auto")]
    profile: OsString,
    /// Send small files again, in packs in the order of the profile
    #[arg(long)]
    repack: bool,
    /// Only tell what would be sent
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Seconds after which the push fails while the store does not answer [default: 60]
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub(super) remote_timeout: Option<Duration>,
}

/// A holofs that cannot do it.
#[cfg(not(feature = "remote"))]
pub(super) fn run(_: Args, _: &Context) -> Result<u8, Failure> {
    Err(exit::without_stores())
}

#[cfg(feature = "remote")]
pub(super) fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let settings = &context.settings.mount.as_ref()?.remote;
    let store = Store::open(&args.url, settings)?;
    let location = locate(&args.library, &context.env.hololib(), &context.env.access())?;
    let chosen: BTreeSet<_> = if args.catalogs.is_empty() {
        catalogs::list(&*location.library)?.into_iter().map(|entry| entry.name).collect()
    } else {
        wanted::catalogs(&location, &args.catalogs, &Choice::default(), &context.env)?
    };
    if chosen.is_empty() {
        let fix = "record an environment, or import one";
        let what = format!("{}: the library has no environment", location.path.display());
        return Err(exit::failure(exit::NOT_FOUND, what, Some(fix)));
    }
    let cancel = cancel_on_signals()?;
    let what = Push {
        library: &location.library,
        catalogs: &chosen,
        profile: match args.profile.to_str() {
            Some("auto") => Profile::Auto,
            Some("none") => Profile::None,
            _ => Profile::File(args.profile.into()),
        },
        cache_dir: &context.env.cache_dir(),
        repack: args.repack,
        dry_run: args.dry_run,
    };
    let bar = |total| output::progress_bar("pushing", context.silent, total);
    let pushed = push(&*store, &what, &bar, &cancel)?;
    if context.json {
        output::print_json(&pushed)?;
        return Ok(exit::OK);
    }
    for catalog in &pushed.catalogs {
        if catalog.missing_for_links > 0 {
            let (missing, name) = (catalog.missing_for_links, &catalog.blueprint);
            let text = format!(
                "holofs: the library lacks {missing} blobs of links of {name}; holofs needs none of them"
            );
            output::note(context.silent, &text);
        }
    }
    let new: u64 = pushed.catalogs.iter().map(|catalog| catalog.bytes_new).sum();
    let done = if pushed.dry_run {
        format!("would push {} catalogs; {} of blobs new", pushed.catalogs.len(), output::human_bytes(new))
    } else {
        format!(
            "pushed {} catalogs; {} objects sent ({})",
            pushed.catalogs.len(),
            pushed.objects_sent,
            output::human_bytes(pushed.bytes_sent)
        )
    };
    output::note(context.silent, &done);
    let line = |catalog: &PushedCatalog| {
        let outcome = match catalog.outcome {
            Outcome::New => "new",
            Outcome::Replaced => "replaced",
            Outcome::Unchanged => "unchanged",
        };
        format!("{} {outcome}", catalog.blueprint)
    };
    output::print_lines(&pushed.catalogs.iter().map(line).collect::<Vec<_>>())?;
    Ok(exit::OK)
}
