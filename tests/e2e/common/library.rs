//! Writes small libraries in rcc's format, as an independent witness of the format.
//!
//! It shares no code with holofs. The generator of the benchmark uses it too.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::hash::Hasher;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// The name of the stage directory. Where it appears in the bytes of a file, the file has a relocation.
pub const STAGE: &str = "hea7ce2c_493f813dad24d3t";

/// A library with one environment.
#[derive(Clone, Debug)]
pub struct Library {
    root: Dir,
    raw: bool,
    blueprint: String,
}

#[derive(Clone, Debug, Default)]
struct Dir {
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
enum Entry {
    Dir(Dir),
    File { mode: u32, bytes: Vec<u8> },
    Link { target: String, to_dir: bool },
}

impl Library {
    /// An environment that contains only its `identity.yaml`; blobs are compressed.
    pub fn new() -> Self {
        Self { root: Dir::default(), raw: false, blueprint: String::new() }.named("a test")
    }

    /// A small tree with one entry of every kind that tests need.
    pub fn sample() -> Self {
        let script = format!("#!/bin/sh\n# /somewhere/{STAGE}/bin/tool\necho \"tool $0 $*\"\n");
        Self::new()
            .file("readme.txt", b"hello, space\n")
            .file("lib/data.bin", &pattern(300_000))
            .file("lib/module.py", b"VALUE = 42\n")
            .file("lib/deep/er/leaf.txt", b"leaf\n")
            .file("lib/deep/other.txt", b"other\n")
            .file("empty", b"")
            .file_mode("bin/tool", 0o755, script.as_bytes())
            .file_mode("secret", 0o600, b"private\n")
            .file_mode("readonly", 0o444, b"look, do not touch\n")
            .file("etc/prefix.conf", format!("prefix=/x/{STAGE}/lib\n").as_bytes())
            .file("many/a", b"a\n")
            .file("many/b", b"b\n")
            .file("many/c", b"c\n")
            .file("many/d", b"d\n")
            .dir("hollow/inner")
            .link("link-to-file", "readme.txt")
            .dir_link("lib64", "lib")
    }

    /// Stores raw blobs under SipHash digests, as rcc does with `compress.no`.
    pub fn raw(mut self) -> Self {
        self.raw = true;
        self
    }

    /// Uses another blueprint, so that one library can hold several environments.
    pub fn named(mut self, blueprint: &str) -> Self {
        self.blueprint = format!("name: {blueprint}");
        let text = self.blueprint.clone();
        self.file("identity.yaml", text.as_bytes())
    }

    pub fn dir(mut self, path: &str) -> Self {
        self.root.reach(path);
        self
    }

    pub fn file(self, path: &str, bytes: &[u8]) -> Self {
        self.file_mode(path, 0o644, bytes)
    }

    pub fn file_mode(self, path: &str, mode: u32, bytes: &[u8]) -> Self {
        self.put(path, Entry::File { mode, bytes: bytes.to_vec() })
    }

    /// Adds a link to a file or to nothing.
    pub fn link(self, path: &str, target: &str) -> Self {
        self.put(path, Entry::Link { target: target.to_owned(), to_dir: false })
    }

    /// Adds a link to a directory of the environment.
    pub fn dir_link(self, path: &str, target: &str) -> Self {
        self.put(path, Entry::Link { target: target.to_owned(), to_dir: true })
    }

    fn put(mut self, path: &str, entry: Entry) -> Self {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.root.reach(dir).entries.insert(name.to_owned(), entry);
        self
    }

    /// The hash of the blueprint.
    pub fn hash(&self) -> String {
        let mut hasher = siphasher::sip::SipHasher24::new_with_keys(9_007_199_254_740_993, 2_147_483_647);
        hasher.write(self.blueprint.as_bytes());
        format!("{:016x}", hasher.finish())
    }

    /// The path of its catalog in a hololib.
    pub fn catalog(&self, hololib: &Path) -> PathBuf {
        let machine = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        hololib.join("catalog").join(format!("{}v12.linux_{machine}", self.hash()))
    }

    /// The path of a file's blob in a hololib.
    pub fn blob(&self, hololib: &Path, path: &str) -> PathBuf {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut at = &self.root;
        for part in dir.split('/').filter(|part| !part.is_empty()) {
            let Some(Entry::Dir(dir)) = at.entries.get(part) else { panic!("no directory {part} in {path}") };
            at = dir;
        }
        let Some(Entry::File { bytes, .. }) = at.entries.get(name) else { panic!("no file {path}") };
        blob_path(hololib, &self.digest(bytes))
    }

    /// Writes blobs and catalog. `base` is the directory that will hold the spaces.
    pub fn write(&self, hololib: &Path, base: &Path) {
        self.write_edited(hololib, base, |_| ());
    }

    /// Like [`Self::write`], but `edit` may change the JSON of the catalog first.
    pub fn write_edited(&self, hololib: &Path, base: &Path, edit: impl FnOnce(&mut Value)) {
        for dir in ["catalog", "library", "used", "pids"] {
            std::fs::create_dir_all(hololib.join(dir)).expect("make the library");
        }
        if self.raw {
            std::fs::write(hololib.join("catalog/compress.no"), "present").expect("write the marker");
        }
        self.write_blobs(&self.root, hololib);
        let path = base.join(STAGE);
        let path = path.to_str().expect("a path in UTF-8");
        let platform = if cfg!(target_arch = "aarch64") { "linux_arm64" } else { "linux_amd64" };
        let mut catalog = json!({
            "rcc": "v18.18.1",
            "identity": STAGE,
            "path": path,
            "controller": "",
            "space": "",
            "platform": platform,
            "blueprint": self.hash(),
            "lifted": true,
            "tree": self.dir_json("", &self.root, &self.root, false),
        });
        edit(&mut catalog);
        let text = serde_json::to_vec_pretty(&catalog).expect("JSON");
        std::fs::write(self.catalog(hololib), gzip(&text)).expect("write the catalog");
    }

    /// Writes the tree to `to` as rcc would restore it.
    pub fn restore(&self, to: &Path) {
        let name = to.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        restore_dir(&self.root, to, &name);
    }

    fn write_blobs(&self, dir: &Dir, hololib: &Path) {
        for entry in dir.entries.values() {
            match entry {
                Entry::Dir(dir) => self.write_blobs(dir, hololib),
                Entry::Link { .. } => {}
                Entry::File { bytes, .. } => {
                    let path = blob_path(hololib, &self.digest(bytes));
                    if path.exists() {
                        continue;
                    }
                    std::fs::create_dir_all(path.parent().expect("a parent")).expect("make the fan-out");
                    let stored = if self.raw { bytes.clone() } else { gzip(bytes) };
                    std::fs::write(&path, stored).expect("write a blob");
                }
            }
        }
    }

    fn digest(&self, bytes: &[u8]) -> String {
        if self.raw { sip128(bytes) } else { hex(&Sha256::digest(bytes)) }
    }

    fn dir_json(&self, name: &str, dir: &Dir, root: &Dir, shadow: bool) -> Value {
        let mut subdirs = Map::new();
        let mut files = Map::new();
        for (name, entry) in &dir.entries {
            match entry {
                Entry::Dir(dir) => {
                    subdirs.insert(name.clone(), self.dir_json(name, dir, root, shadow));
                }
                // rcc follows a link to a directory when it lists, and marks all levels but the first.
                Entry::Link { target, to_dir: true } => {
                    let Some(Entry::Dir(found)) = root.entries.get(target) else {
                        panic!("no directory {target}")
                    };
                    let mut json = self.dir_json(name, found, root, true);
                    json["symlink"] = json!(target);
                    if !shadow {
                        json.as_object_mut().expect("an object").shift_remove("shadow");
                    }
                    subdirs.insert(name.clone(), json);
                }
                Entry::Link { target, to_dir: false } => {
                    let found = root.entries.get(target);
                    let (mode, bytes) = match found {
                        Some(Entry::File { mode, bytes }) => (*mode, bytes.as_slice()),
                        _ => (0o644, &b""[..]),
                    };
                    let mut json = self.file_json(name, mode, bytes);
                    json["symlink"] = json!(target);
                    files.insert(name.clone(), json);
                }
                Entry::File { mode, bytes } => {
                    files.insert(name.clone(), self.file_json(name, *mode, bytes));
                }
            }
        }
        let mut json =
            json!({ "name": name, "mode": 0x8000_0000_u32 | 0o755, "subdirs": subdirs, "files": files });
        if shadow {
            json["shadow"] = json!(true);
        }
        json
    }

    fn file_json(&self, name: &str, mode: u32, bytes: &[u8]) -> Value {
        json!({
            "name": name,
            "size": bytes.len(),
            "mode": go_mode(mode),
            "digest": self.digest(bytes),
            "rewrite": relocations(bytes),
        })
    }
}

impl Dir {
    fn reach(&mut self, path: &str) -> &mut Dir {
        path.split('/').filter(|part| !part.is_empty()).fold(self, |dir, part| {
            let entry = dir.entries.entry(part.to_owned()).or_insert_with(|| Entry::Dir(Dir::default()));
            match entry {
                Entry::Dir(dir) => dir,
                _ => panic!("{part} of {path} is not a directory"),
            }
        })
    }
}

fn restore_dir(dir: &Dir, to: &Path, space: &str) {
    std::fs::create_dir_all(to).expect("mkdir");
    for (name, entry) in &dir.entries {
        let path = to.join(name);
        match entry {
            Entry::Dir(dir) => restore_dir(dir, &path, space),
            Entry::Link { target, .. } => std::os::unix::fs::symlink(target, &path).expect("symlink"),
            Entry::File { mode, bytes } => {
                let mut bytes = bytes.clone();
                for at in relocations(&bytes) {
                    bytes[at..at + space.len()].copy_from_slice(space.as_bytes());
                }
                std::fs::write(&path, bytes).expect("write");
                set_mother_time(&path);
                std::fs::set_permissions(&path, Permissions::from_mode(*mode)).expect("chmod");
            }
        }
    }
    std::fs::set_permissions(to, Permissions::from_mode(0o750 & !umask())).expect("chmod");
    set_mother_time(to);
}

fn set_mother_time(path: &Path) {
    let time = rustix::fs::Timespec { tv_sec: 1_610_000_000, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty()).expect("utimens");
}

/// The umask of this process, read without changing it.
pub fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:")).expect("Umask");
    u32::from_str_radix(line.trim(), 8).expect("octal")
}

/// Bytes that differ at each position.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 4);
    let mut at = 0_u32;
    while out.len() < len {
        out.extend_from_slice(&at.wrapping_mul(2_654_435_761).to_le_bytes());
        at += 1;
    }
    out.truncate(len);
    out
}

/// The offsets that rcc writes into `rewrite`. Two bugs of rcc (a match at the end is missed; some are listed twice)
/// are not reproduced.
fn relocations(bytes: &[u8]) -> Vec<usize> {
    let stage = STAGE.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(stage.len()).position(|window| window == stage) {
        out.push(at + found);
        at += found + stage.len();
    }
    out
}

/// Permission bits of an st_mode as Go's `fs.FileMode`.
fn go_mode(mode: u32) -> u32 {
    let special = [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)];
    special.iter().filter(|(bit, _)| mode & bit != 0).fold(mode & 0o777, |go, (_, flag)| go | flag)
}

fn blob_path(hololib: &Path, digest: &str) -> PathBuf {
    hololib.join("library").join(&digest[..2]).join(&digest[2..4]).join(&digest[4..6]).join(digest)
}

fn sip128(bytes: &[u8]) -> String {
    use siphasher::sip128::Hasher128;
    let mut hasher = siphasher::sip128::SipHasher24::new_with_key(b"Very_Random-Seed");
    hasher.write(bytes);
    hex(&hasher.finish128().as_bytes())
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One gzip member, compression level 1.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).expect("gzip");
    out.finish().expect("gzip")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_rccs() {
        assert_eq!(sip128(b""), "457d3202e0db95686547f60ad99125ac");
        assert_eq!(sip128(b"hello\n"), "79385034bd2529e675348170617088f5");
    }

    #[test]
    fn blueprint_hash_is_rccs() {
        let library = Library { root: Dir::default(), raw: false, blueprint: "a".to_owned() };
        assert_eq!(library.hash(), "87a6a950373852b6");
    }
}
