//! The filesystems of the library, of the cache and of the spaces.

use std::io;
use std::path::Path;

use super::report::{PathReport, Report, ask};
use super::{Error, shown};
use crate::settings::{Settings, Strategy};
use crate::space::home::Env;
use crate::sys::errno_of;
use crate::sys::probe::{self, Place, Refusal};

/// A space starts to be in the way of its disk below this number of free bytes.
const LITTLE: u64 = 1 << 30;

/// The directories of an installation, as far as their disks answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Disks {
    rows: Vec<(&'static str, Place)>,
}

impl Disks {
    fn get(&self, role: &str) -> Option<&Place> {
        self.rows.iter().find(|(name, _)| *name == role).map(|(_, place)| place)
    }

    /// The lines that `df -T` would show.
    pub(super) fn table(&self) -> Vec<String> {
        let line = |(role, place): &(&str, Place)| {
            let gib = place.free as f64 / f64::from(1 << 30);
            format!(
                "{role:<8} {:<8} {gib:>8.1} GiB free  device {:x}  {}",
                place.fs,
                place.dev,
                shown(&place.path)
            )
        };
        let mut lines: Vec<String> = self.rows.iter().map(line).collect();
        let mut devices: Vec<u64> = self.rows.iter().map(|(_, place)| place.dev).collect();
        devices.dedup();
        lines.push(match devices.len() {
            1 => "All on one filesystem.".to_owned(),
            _ => "On different filesystems.".to_owned(),
        });
        lines
    }
}

/// Examines the disks of an installation.
pub(super) fn examine(report: &mut Report, library: Option<&Path>, settings: &Settings, env: &Env) -> Disks {
    let own = env.hololib();
    let (cache, spaces) = (env.cache_dir(), env.spaces_dir());
    let mut disks = Disks::default();
    for (role, kind, path) in [
        ("library", "filesystem-library", library.unwrap_or(&own)),
        ("cache", "filesystem-cache", &*cache),
        ("spaces", "filesystem-spaces", &*spaces),
    ] {
        match place_of(path) {
            Ok(place) => {
                let message = format!("{} ({:#x}) at {}", place.fs, place.magic, shown(&place.path));
                if role != "library" && !place.is_writable {
                    let fix = "run as its owner, or set HOLOFS_HOME to a directory of your own";
                    report.fail(kind, format!("{message}: you may not write there"), fix);
                } else if REMOTE.contains(&&*place.fs) {
                    let fix = match role {
                        "library" => "`holofs warm` before the first use",
                        _ => "HOLOFS_HOME on a local disk",
                    };
                    report.warn(kind, format!("{message}: each access may wait for a server"), fix);
                } else if role != "library" && place.free < LITTLE {
                    let message = format!("{message}: {} MiB are free", place.free >> 20);
                    report.warn(kind, message, "free some space, or set HOLOFS_HOME to another disk");
                } else {
                    report.ok(kind, message);
                }
                disks.rows.push((role, place));
            }
            Err(why) => report.fail(kind, format!("{}: {why}", shown(path)), "look at this disk or server"),
        }
    }
    one_filesystem(report, &disks);
    user_attributes(report, &disks);
    reflink(report, &disks, settings);
    disks
}

fn one_filesystem(report: &mut Report, disks: &Disks) {
    let kind = "one-filesystem";
    let (Some(library), Some(cache), Some(spaces)) =
        (disks.get("library"), disks.get("cache"), disks.get("spaces"))
    else {
        return;
    };
    if cache.dev != spaces.dev {
        let message =
            "the cache and the spaces are on different filesystems, so nothing can be shared by reflink";
        report.warn(
            kind,
            message,
            "leave out the setting of the cache directory, so that it lies beside the spaces",
        );
    } else if library.dev != spaces.dev {
        let message = "the library and the spaces are on different filesystems: reflink impossible across \
                       filesystems; the cache lies beside the spaces";
        report.warn(kind, message, format!("HOLOFS_HOME on the filesystem of {}", shown(&library.path)));
    } else {
        report.ok(kind, "library, cache and spaces are on one filesystem");
    }
}

/// The upper keeps in user attributes what a file on the disk cannot hold.
fn user_attributes(report: &mut Report, disks: &Disks) {
    let kind = "user-attributes";
    let Some(spaces) = disks.get("spaces").filter(|spaces| spaces.is_writable) else { return };
    match ask(|| probe::user_attribute(&spaces.path)) {
        Ok(Ok(())) => report.ok(kind, format!("{} keeps the attributes of spaces", spaces.fs)),
        Ok(Err(refusal)) => {
            let message = format!("{} is {}: {refusal}", shown(&spaces.path), spaces.fs);
            report.fail(
                kind,
                message,
                "HOLOFS_HOME on a filesystem with user attributes, such as ext4, xfs or btrfs",
            );
        }
        Err(why) => report.warn(kind, why, "look at this disk"),
    }
}

/// Reading a file for the first time waits for a server where the library is on one of these.
const REMOTE: [&str; 10] =
    ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse"];

fn reflink(report: &mut Report, disks: &Disks, settings: &Settings) {
    let kind = "reflink";
    let strategy = settings.mount.as_ref().map(|mount| mount.strategy.value).unwrap_or_default();
    if strategy == Strategy::Copy {
        report.ok(kind, "not used: the strategy is copy");
        return;
    }
    let (Some(cache), Some(spaces)) = (disks.get("cache"), disks.get("spaces")) else { return };
    let tried = ask(|| probe::reflink(&cache.path, &spaces.path)).unwrap_or_else(|why| {
        report.warn(kind, why, "look at this disk");
        Err(Refusal { call: "FICLONE".to_owned(), errno: rustix::io::Errno::TIMEDOUT.raw_os_error() })
    });
    match tried {
        Ok(()) => report.ok(kind, format!("FICLONE works from the cache to the spaces ({})", spaces.fs)),
        Err(refusal) => {
            let message = format!("{} is {}: no reflink ({refusal})", shown(&spaces.path), spaces.fs);
            let fix = "HOLOFS_HOME on btrfs, or on XFS made with reflink=1, beside the library";
            if strategy == Strategy::Reflink {
                report.fail(kind, message.clone(), format!("--strategy smart; or {fix}"));
            } else {
                report.warn(kind, message.clone(), fix);
                report.fall_back("reflink", "copy", message);
            }
        }
    }
}

/// Examines a directory that the user named.
pub(super) fn path(path: &Path, library: Option<&Path>) -> Result<PathReport, Error> {
    let not = |why: String| Error::NotProbed { path: path.to_owned(), why };
    let given = std::path::absolute(path).map_err(|error| not(crate::sys::plain(&error)))?;
    let place = ask(|| -> Result<Place, i32> {
        let found = given.canonicalize().and_then(|real| {
            // The filesystem of a file is that of its directory.
            let dir = if real.is_dir() { Some(&*real) } else { real.parent() };
            probe::place(dir.unwrap_or(&real))
        });
        found.map_err(number)
    });
    let place = place.map_err(not)?.map_err(|errno| not(in_words(errno)))?;
    if !place.is_writable {
        return Err(not("you may not write there, which the probe needs".to_owned()));
    }
    let probe = ask(|| probe::reflink(&place.path, &place.path)).map_err(not)?;
    if let Err(refusal) = &probe
        && !refusal.is_about_sharing()
    {
        return Err(not(refusal.to_string()));
    }
    let library = library.and_then(|library| place_of(library).ok());
    Ok(PathReport {
        path: shown(&place.path),
        magic: format!("{:#x}", place.magic),
        reflink: probe.is_ok(),
        probe: probe.err().map_or("ok".to_owned(), |refusal| refusal.to_string()),
        same_fs_as_library: library.is_some_and(|library| library.dev == place.dev),
        fs: place.fs,
    })
}

fn place_of(path: &Path) -> Result<Place, String> {
    ask(|| probe::place(path).map_err(number))?.map_err(in_words)
}

fn number(error: io::Error) -> i32 {
    errno_of(&error).raw_os_error()
}

fn in_words(errno: i32) -> String {
    crate::sys::plain(&rustix::io::Errno::from_raw_os_error(errno))
}
