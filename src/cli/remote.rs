//! `holofs push` and `holofs pull`: environments to and from object stores. A holofs without the feature `remote` refuses them.

use std::collections::BTreeSet;

use super::exit::{self, Failure};
use super::{Context, cancel_on_signals, import, output, pull, push};
use crate::library::catalogs::{self, CatalogName, Outcome, this_platform};
use crate::library::locate::{Location, locate};
use crate::library::remote::push::{Profile, Push, PushedCatalog};
use crate::library::remote::store::Store;
use crate::library::remote::store::rccremote::RccRemote;
use crate::record::rccremote::pull_from_rcc;
use crate::session::choice::Choice;
use crate::session::wanted;

/// `holofs push`
pub(super) fn run_push(args: push::Args, context: &Context) -> Result<u8, Failure> {
    let settings = &context.settings.mount.as_ref()?.remote;
    let store = Store::open(&args.url, settings)?;
    let location = locate(&args.library, &context.env.hololib(), &context.env.access())?;
    let chosen = chosen(&location, &args.catalogs, context, "record an environment, or import one")?;
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
    let pushed = crate::library::remote::push::push(&*store, &what, &bar, &cancel)?;
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

/// `holofs pull`
pub(super) fn run_pull(args: pull::Args, context: &Context) -> Result<u8, Failure> {
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
            let chosen = chosen(&location, &args.catalogs, context, "`holofs push` puts environments there")?;
            crate::record::import::pull(&target, &*location.library, &chosen)?
        }
    };
    import::report(&pulled, "pulled", context)
}

/// The catalogs of a library that the user named. All of them if the user named none.
fn chosen(
    location: &Location,
    names: &[String],
    context: &Context,
    if_empty: &str,
) -> Result<BTreeSet<CatalogName>, Failure> {
    if !names.is_empty() {
        return Ok(wanted::catalogs(location, names, &Choice::default(), &context.env)?);
    }
    let all: BTreeSet<_> = catalogs::list(&*location.library)?.into_iter().map(|entry| entry.name).collect();
    if all.is_empty() {
        let what = format!("{}: no environment is there", location.path.display());
        return Err(exit::failure(exit::NOT_FOUND, what, Some(if_empty)));
    }
    Ok(all)
}

/// A catalog by its name, or by the whole hash of its blueprint.
fn catalog_of(given: &str) -> Result<CatalogName, Failure> {
    let of_hash = || {
        CatalogName::parse(&CatalogName { blueprint: given.into(), platform: this_platform() }.to_string())
    };
    CatalogName::parse(given).or_else(of_hash).ok_or_else(|| {
        let what = format!("{given}: not the name of a catalog, and not the hash of a blueprint");
        exit::failure(exit::USAGE, what, Some("16 hexadecimal digits"))
    })
}
