//! Does to a space what rcc v18.18.1 does, by the same file operations: restore, convert, delete, record, list.
//!
//! Like `library.rs` it is independent: it shares no code with holofs, and the tests need no rcc.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::fixture::gunzip;
use super::library::{STAGE, gzip};
use super::{Library, MOTHER_TIME, World};

/// A lock of rcc, held until it is dropped.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] File);

/// Takes a lock as rcc does: it truncates the file, and waits without a time limit.
pub fn lock(path: &Path) -> Lock {
    let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o666).open(path);
    let file = open.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).expect("flock");
    Lock(file)
}

/// The path of a file beside the directory of a space.
pub fn beside(space: &Path, ending: &str) -> PathBuf {
    PathBuf::from(format!("{}{ending}", space.display()))
}

/// The JSON of a catalog, or of the `.meta` of a space.
pub fn read(path: &Path) -> Value {
    serde_json::from_slice(&gunzip(&std::fs::read(path).expect("a catalog"))).expect("JSON")
}

/// The blueprint of each space that `rcc holotree list` shows.
pub fn list(world: &World) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(world.base()).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().expect("a name");
        if let Some(identity) = name.strip_suffix(".meta") {
            // rcc skips files that it cannot read.
            let Ok(text) = std::panic::catch_unwind(|| read(&entry.path())) else { continue };
            found.insert(identity.to_owned(), text["blueprint"].as_str().expect("a blueprint").to_owned());
        }
    }
    found
}

/// Does what `rcc holotree variables` and `rcc run` do: restores an environment into a space, new or not. Returns the
/// number of dirty entries.
pub fn restore(world: &World, library: &Library, space: &Path) -> usize {
    let _global = lock(&world.base().join("global.lck"));
    let _lock = lock(&beside(space, ".lck"));
    let catalog = library.catalog(&world.hololib());
    let mut wanted = read(&catalog);
    let meta = beside(space, ".meta");
    let mut known = BTreeMap::new();
    let mut label = json!("restored");
    if let Some(old) = meta.exists().then(|| read(&meta)) {
        label = old["space"].clone();
        digests(&old["tree"], Path::new(old["path"].as_str().expect("a path")), &mut known);
    }
    let restorer = Restorer { hololib: world.hololib(), known, space };
    make_directories(&wanted["tree"], space);
    let dirty = restorer.directory(&wanted["tree"], space);
    wanted["identity"] = json!(space.file_name().expect("a name").to_str());
    wanted["path"] = json!(space);
    wanted["controller"] = json!("rcc.user");
    wanted["space"] = label;
    // In place, and `.meta` before the files, as rcc does.
    std::fs::write(&meta, gzip(&serde_json::to_vec_pretty(&wanted).expect("JSON"))).expect("write .meta");
    wanted.as_object_mut().expect("an object").retain(|key, _| !matches!(key.as_str(), "lifted" | "tree"));
    std::fs::write(beside(space, ".meta.info"), serde_json::to_vec_pretty(&wanted).expect("JSON"))
        .expect("write .meta.info");
    File::options()
        .append(true)
        .open(&catalog)
        .expect("catalog")
        .set_modified(std::time::SystemTime::now())
        .ok();
    dirty
}

/// An unfinished recording: the catalog is written, and no blob.
#[derive(Debug)]
pub struct Recording {
    lock: Option<Lock>,
    aside: PathBuf,
    library: PathBuf,
}

impl Recording {
    /// Starts to record an environment into a library without blobs.
    pub fn begin(world: &World, library: &Library) -> Self {
        std::fs::create_dir_all(world.base()).expect("mkdir");
        let lock = Some(lock(&world.base().join("global.lck")));
        world.add(library);
        let this =
            Self { lock, aside: world.path().join("to-come"), library: world.hololib().join("library") };
        std::fs::rename(&this.library, &this.aside).expect("rename");
        std::fs::create_dir(&this.library).expect("mkdir");
        this
    }

    /// Writes the blobs and releases the lock.
    pub fn finish(mut self) {
        std::fs::remove_dir(&self.library).expect("rmdir");
        std::fs::rename(&self.aside, &self.library).expect("rename");
        self.lock = None;
    }
}

/// Does what `rcc holotree delete` does: removes `.meta`, `.lck`, then everything in the space. It takes no lock, and
/// fails at the end if the space is mounted.
pub fn delete(space: &Path) {
    for ending in [".meta", ".lck"] {
        drop(std::fs::remove_file(beside(space, ending)));
    }
    remove_all(space);
}

/// Does what `rcc configuration cleanup --quick` does: renames the holotree and removes it. Returns the new path of a
/// mount in it.
pub fn cleanup(world: &World) -> PathBuf {
    let renamed = world.home().join("holotree.025825E2");
    std::fs::rename(world.base(), &renamed).expect("rename the holotree");
    remove_all(&renamed);
    renamed
}

/// Like Go's `os.RemoveAll`, goes on after an entry that cannot be removed.
fn remove_all(path: &Path) {
    if path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            remove_all(&entry.path());
        }
        drop(std::fs::remove_dir(path));
    } else {
        drop(std::fs::remove_file(path));
    }
}

fn digests(dir: &Value, at: &Path, out: &mut BTreeMap<PathBuf, String>) {
    for (name, file) in members(dir, "files") {
        out.insert(at.join(name), file["digest"].as_str().expect("a digest").to_owned());
    }
    for (name, dir) in members(dir, "subdirs") {
        digests(dir, &at.join(name), out);
    }
}

fn members<'a>(dir: &'a Value, kind: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    dir[kind].as_object().expect("an object").iter()
}

fn make_directories(dir: &Value, at: &Path) {
    if dir.get("symlink").is_some() {
        return;
    }
    std::fs::create_dir_all(at).expect("mkdir");
    for (name, dir) in members(dir, "subdirs") {
        make_directories(dir, &at.join(name));
    }
    set_time(at);
}

fn set_time(path: &Path) {
    let time = rustix::fs::Timespec { tv_sec: MOTHER_TIME, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty()).expect("utimens");
}

struct Restorer<'a> {
    hololib: PathBuf,
    /// The digest of each file according to the old `.meta`.
    known: BTreeMap<PathBuf, String>,
    space: &'a Path,
}

impl Restorer<'_> {
    fn directory(&self, dir: &Value, at: &Path) -> usize {
        if dir.get("shadow").is_some() {
            return 0;
        }
        if let Some(target) = dir.get("symlink").and_then(Value::as_str) {
            if std::fs::read_link(at).is_ok_and(|found| found == Path::new(target)) {
                return 0;
            }
            remove_all(at);
            std::os::unix::fs::symlink(target, at).expect("symlink");
            return 1;
        }
        let mut dirty = 0;
        let mut seen = Vec::new();
        for entry in std::fs::read_dir(at).expect("a directory").map(Result::unwrap) {
            let name = entry.file_name().into_string().expect("a name");
            let path = entry.path();
            if entry.file_type().expect("a type").is_dir() {
                if dir["subdirs"].get(&name).is_none() {
                    remove_all(&path);
                    dirty += 1;
                }
                continue;
            }
            if dir["subdirs"].get(&name).is_some_and(|found| found.get("symlink").is_some()) {
                continue;
            }
            let Some(file) = dir["files"].get(&name) else {
                drop(std::fs::remove_file(&path));
                dirty += 1;
                continue;
            };
            seen.push(name);
            if !self.is_clean(file, &path) {
                self.drop_file(file, &path);
                dirty += 1;
            }
        }
        for (name, file) in members(dir, "files") {
            if !seen.contains(name) {
                self.drop_file(file, &at.join(name));
                dirty += 1;
            }
        }
        for (name, dir) in members(dir, "subdirs") {
            dirty += self.directory(dir, &at.join(name));
        }
        dirty
    }

    fn is_clean(&self, file: &Value, path: &Path) -> bool {
        if let Some(target) = file.get("symlink").and_then(Value::as_str)
            && std::fs::read_link(path).is_ok_and(|found| found == Path::new(target))
        {
            return true;
        }
        let same_digest = self.known.get(path).is_none_or(|known| file["digest"] == known.as_str());
        let found = path.symlink_metadata().expect("lstat");
        let same = found.is_file()
            && file["size"] == found.len()
            && file["mode"].as_u64() == Some(u64::from(found.mode() & 0o777));
        same_digest && same
    }

    fn drop_file(&self, file: &Value, path: &Path) {
        if let Some(target) = file.get("symlink").and_then(Value::as_str) {
            remove_all(path);
            std::os::unix::fs::symlink(target, path).expect("symlink");
            return;
        }
        let digest = file["digest"].as_str().expect("a digest");
        let blob = self.hololib.join("library").join(&digest[..2]).join(&digest[2..4]).join(&digest[4..6]);
        let stored = std::fs::read(blob.join(digest)).expect("a blob");
        let mut bytes = if digest.len() == 64 { gunzip(&stored) } else { stored };
        let name = self.space.file_name().and_then(|name| name.to_str()).expect("a name");
        for at in file["rewrite"].as_array().expect("offsets") {
            let at = usize::try_from(at.as_u64().expect("an offset")).expect("an offset");
            bytes[at..at + STAGE.len()].copy_from_slice(name.as_bytes());
        }
        let part = beside(path, ".part#1");
        File::create(&part).and_then(|mut file| file.write_all(&bytes)).expect("write");
        std::fs::rename(&part, path).expect("rename");
        let mode = u32::try_from(file["mode"].as_u64().expect("a mode")).expect("a mode");
        std::fs::set_permissions(path, Permissions::from_mode(mode & 0o777)).expect("chmod");
        set_time(path);
    }
}
