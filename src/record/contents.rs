//! Reads the contents of files, and stores them as blobs.
//!
//! One thread per processor takes files, the largest first. A thread reads a file once, and computes its digest and the
//! offsets of the stage's name. It stores a blob if the library lacks it. A small file is kept in memory between the
//! two steps. A large file is read again, and must have the same digest.
//!
//! Invariant: a file that changes while it is read is refused.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Cursor, Read, Seek};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::RecordError;
use super::rename::{Names, Renaming};
use super::search::Search;
use super::store::Store;
use super::tree::{self, Content, Facts, OnDisk};
use super::unplace::{self, DoesNotFit, Paths};
use crate::library::blob::Blobs;
use crate::library::digest::{Digest, Hasher};
use crate::sys::{process, thread};

/// Files up to this size in bytes are kept in memory between digest and blob.
const KEEP: usize = 8 << 20;
/// How many bytes are read at once.
const PIECE: usize = 256 << 10;

/// How contents are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading<'a> {
    /// The name of the stage, which is searched for.
    pub(crate) stage: &'a [u8],
    /// The name of the space from which files on the disk come. It is replaced by the stage's.
    pub(crate) space: Option<&'a [u8]>,
    /// The whole paths, if the space is at another one than its catalog says.
    pub(crate) paths: Option<Paths<'a>>,
    /// The blobs of the library from which the environment comes.
    pub(crate) origin: Option<&'a Blobs>,
}

/// Stores all files, and returns what was found in each. `done` is called after each file that was read with its
/// size.
///
/// # Errors
/// The first error of any thread. The other threads stop soon after it.
pub(super) fn store_all(
    store: &Store<'_>,
    files: &[tree::File],
    reading: Reading<'_>,
    cancel: &AtomicBool,
    done: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Facts>, RecordError> {
    let facts: Vec<OnceLock<Facts>> = files.iter().map(|_| OnceLock::new()).collect();
    let is_read = |file: &tree::File| !matches!(file.content, Content::Known(_));
    let mut order: Vec<_> = files.iter().zip(&facts).filter(|(file, _)| is_read(file)).collect();
    order.sort_by_key(|(file, _)| std::cmp::Reverse(file.content.to_read()));
    let worker = || Worker { store, reading, kept: Vec::new(), piece: vec![0; PIECE] };
    thread::for_each(&order, process::processors(), worker, |worker, (file, slot)| {
        if cancel.load(Ordering::Relaxed) {
            return Err(RecordError::Interrupted);
        }
        let found = worker.content(&file.content)?;
        slot.get_or_init(|| found);
        done(file.content.to_read());
        Ok(())
    })?;
    let facts = facts.into_iter().zip(files);
    let facts = facts.map(|(facts, file)| match &file.content {
        Content::Known(facts) => Ok(facts.clone()),
        _ => facts.into_inner().ok_or_else(not_hashed),
    });
    facts.collect()
}

/// The error for a file that the threads left out. This is a bug.
pub(super) fn not_hashed() -> RecordError {
    RecordError::io("a file")(io::Error::other("internal error: it was not hashed"))
}

/// The buffers of one thread.
struct Worker<'s> {
    store: &'s Store<'s>,
    reading: Reading<'s>,
    kept: Vec<u8>,
    piece: Vec<u8>,
}

impl Worker<'_> {
    fn content(&mut self, content: &Content) -> Result<Facts, RecordError> {
        match content {
            Content::Known(facts) => Ok(facts.clone()),
            Content::Bytes(bytes) => self.stored(&mut Cursor::new(bytes), None, Path::new("the blueprint")),
            Content::OnDisk(file) => self.on_disk(file),
            Content::Elsewhere(digest, size) => {
                let origin = self.reading.origin.ok_or_else(not_hashed)?;
                let mut file = origin.open_raw(digest, *size)?;
                let path = Path::new("a blob");
                file.rewind().map_err(RecordError::io(path))?;
                self.stored(&mut file, None, path)
            }
        }
    }

    fn on_disk(&mut self, content: &OnDisk) -> Result<Facts, RecordError> {
        let path = &content.path;
        let (mut file, before) = open(content)?;
        let names = self.reading.space.map(|from| Names { from, to: self.reading.stage });
        let (facts, len) = match self.reversed(&mut file, path)? {
            Some((content, len)) => (self.stored(&mut Cursor::new(&content), names, path)?, len),
            None => {
                file.rewind().map_err(RecordError::io(path))?;
                let facts = self.stored(&mut file, names, path)?;
                let len = facts.size;
                (facts, len)
            }
        };
        let after = file.metadata().map_err(RecordError::io(path))?;
        let state = |m: &Metadata| (m.len(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        if state(&before) != state(&after) || len != after.len() {
            return Err(RecordError::Changed { path: path.clone() });
        }
        Ok(facts)
    }

    /// A file that names the path of its space, with the path of the stage, and its length before. None for others.
    fn reversed(&mut self, file: &mut File, path: &Path) -> Result<Option<(Vec<u8>, u64)>, RecordError> {
        let Some(paths) = self.reading.paths else { return Ok(None) };
        if !unplace::mentions(file, paths.from, &mut self.piece).map_err(RecordError::io(path))? {
            return Ok(None);
        }
        let mut content = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut content)).map_err(RecordError::io(path))?;
        match paths.reverse(&content) {
            Ok(Some(reversed)) => Ok(Some((reversed, content.len() as u64))),
            Ok(None) => Ok(None),
            Err(DoesNotFit) => Err(RecordError::DoesNotFit { path: path.to_owned() }),
        }
    }

    /// Hashes a content, with its names replaced, and stores its blob.
    fn stored(
        &mut self,
        file: &mut (impl Read + Seek),
        names: Option<Names<'_>>,
        path: &Path,
    ) -> Result<Facts, RecordError> {
        let (digest, size, rewrite) = self.read(file, names).map_err(RecordError::io(path))?;
        if self.store.claim(digest, size) {
            let (kept, piece) = (&self.kept, &mut self.piece);
            self.store.blob(digest, size, &mut |out| {
                if kept.len() as u64 == size {
                    return out.write_all(kept).map(|()| digest);
                }
                file.rewind()?;
                let mut hasher = Hasher::new(digest.kind());
                each_piece(file, piece, names, &mut |bytes| {
                    hasher.update(bytes);
                    out.write_all(bytes)
                })?;
                Ok(hasher.finish())
            })?;
        }
        Ok(Facts { digest, size, rewrite })
    }

    /// Reads a content. If it is small enough, it is in `kept` afterwards.
    fn read(
        &mut self,
        file: &mut impl Read,
        names: Option<Names<'_>>,
    ) -> io::Result<(Digest, u64, Vec<u64>)> {
        let mut hasher = Hasher::new(self.store.kind);
        let mut search = Search::new(self.reading.stage);
        let mut size = 0u64;
        self.kept.clear();
        let kept = &mut self.kept;
        each_piece(file, &mut self.piece, names, &mut |read| {
            hasher.update(read);
            search.update(read);
            if size == kept.len() as u64 && kept.len() + read.len() <= KEEP {
                kept.extend_from_slice(read);
            }
            size += read.len() as u64;
            Ok(())
        })?;
        Ok((hasher.finish(), size, search.finish()))
    }
}

/// Opens the file that the walk found, but not another one in its place.
fn open(content: &OnDisk) -> Result<(File, Metadata), RecordError> {
    let path = &content.path;
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path);
    let file = file.map_err(RecordError::io(path))?;
    let metadata = file.metadata().map_err(RecordError::io(path))?;
    if !metadata.is_file() || (metadata.dev(), metadata.ino()) != content.inode {
        return Err(RecordError::Changed { path: path.clone() });
    }
    Ok((file, metadata))
}

/// Reads a file to its end, replaces names in it, and passes each piece to `take`.
fn each_piece(
    file: &mut impl Read,
    buffer: &mut [u8],
    names: Option<Names<'_>>,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut renaming = Renaming::new(names);
    loop {
        match file.read(buffer) {
            Ok(0) => return renaming.finish(take),
            Ok(n) => renaming.update(buffer.get(..n).unwrap_or_default(), take)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::super::store::Written;
    use super::*;
    use crate::library::digest::DigestKind;
    use crate::sys::guarded::Dir;

    const READING: Reading<'_> = Reading { stage: b"needle", space: None, paths: None, origin: None };

    fn content(path: &Path) -> tree::File {
        let metadata = std::fs::metadata(path).unwrap();
        let inode = (metadata.dev(), metadata.ino());
        let content = OnDisk { path: path.to_owned(), size: metadata.len(), inode };
        tree::File { mode: metadata.mode(), content: Content::OnDisk(content) }
    }

    fn opened(path: &Path) -> Dir {
        Dir::open_or_make(path, 0o750, false).unwrap()
    }

    fn store_one(library: &Path, kind: DigestKind, file: &Path) -> (Facts, u64) {
        let library = opened(library);
        let written = Written::default();
        let store = Store::new(&library, kind, false, &written);
        let facts =
            store_all(&store, &[content(file)], READING, &AtomicBool::new(false), &|_| {}).unwrap().remove(0);
        (facts, written.blobs.into_inner())
    }

    fn unpack(blob: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        flate2::read::GzDecoder::new(blob).read_to_end(&mut out).unwrap();
        out
    }

    fn count_files(dir: &Path) -> usize {
        let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
        entries.map(|path| if path.is_dir() { count_files(&path) } else { 1 }).sum()
    }

    #[test]
    fn blobs_small_and_large_of_both_kinds() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        for size in [0, 1, PIECE, KEEP, KEEP + 1] {
            let bytes: Vec<u8> = (0..size).map(|i| (i / 7 + i * 31) as u8).collect();
            std::fs::write(&file, &bytes).unwrap();
            for kind in [DigestKind::Sha256, DigestKind::Sip128] {
                let library = dir.path().join("library");
                let (facts, written) = store_one(&library, kind, &file);
                assert_eq!((facts.size, facts.digest), (size as u64, Hasher::digest(kind, &bytes)));
                assert_eq!(written, 1);
                let blob = std::fs::read(library.join(facts.digest.fan_out())).unwrap();
                if kind == DigestKind::Sha256 {
                    assert_eq!(blob[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 0xff]);
                    assert!(unpack(&blob) == bytes);
                } else {
                    assert!(blob == bytes);
                }
                assert_eq!(store_one(&library, kind, &file).1, 0, "it is there");
                std::fs::remove_dir_all(&library).unwrap();
            }
        }
    }

    #[test]
    fn obviously_broken_blob_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"some content").unwrap();
        for kind in [DigestKind::Sha256, DigestKind::Sip128] {
            let (facts, _) = store_one(dir.path(), kind, &file);
            let blob = dir.path().join(facts.digest.fan_out());
            let good = std::fs::read(&blob).unwrap();
            for bad in [&b""[..], b"xx", &good[..good.len() - 1]] {
                std::fs::write(&blob, bad).unwrap();
                assert_eq!(store_one(dir.path(), kind, &file).1, 1);
                assert_eq!(std::fs::read(&blob).unwrap(), good);
            }
        }
    }

    #[test]
    fn exchanged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (file, library) = (dir.path().join("file"), dir.path().join("library"));
        std::fs::write(&file, b"x").unwrap();
        let seen = content(&file);
        std::fs::write(dir.path().join("new"), b"y").unwrap();
        std::fs::rename(dir.path().join("new"), &file).unwrap();
        let library = opened(&library);
        let written = Written::default();
        let store = Store::new(&library, DigestKind::Sha256, false, &written);
        let never = AtomicBool::new(false);
        let result = store_all(&store, &[seen], READING, &never, &|_| {});
        assert!(matches!(result, Err(RecordError::Changed { .. })), "{result:?}");
    }

    #[test]
    fn failed_blob_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let library = opened(dir.path());
        let written = Written::default();
        let store = Store::new(&library, DigestKind::Sha256, false, &written);
        let digest = Hasher::digest(DigestKind::Sha256, b"abc");
        let other = Hasher::digest(DigestKind::Sha256, b"abd");
        let error = store.blob(digest, 3, &mut |out| out.write_all(b"abd").map(|()| other)).unwrap_err();
        assert!(error.to_string().contains("changed"), "{error}");
        store.blob(digest, 3, &mut |_| Err(io::Error::other("disk"))).unwrap_err();
        assert_eq!(count_files(dir.path()), 0);
    }

    #[test]
    fn a_shared_library_is_open_to_all() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"x").unwrap();
        let library = dir.path().join("library");
        let opened = opened(&library);
        let written = Written::default();
        let store = Store::new(&opened, DigestKind::Sha256, true, &written);
        let never = AtomicBool::new(false);
        let facts = store_all(&store, &[content(&file)], READING, &never, &|_| {}).unwrap().remove(0);
        let blob = library.join(facts.digest.fan_out());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&blob), 0o666);
        assert_eq!(mode(blob.parent().unwrap()), 0o777);
    }

    #[test]
    fn a_link_in_a_librarys_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (library, private) = (dir.path().join("library"), dir.path().join("private"));
        std::fs::create_dir(&private).unwrap();
        std::fs::set_permissions(&private, Permissions::from_mode(0o700)).unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"x").unwrap();
        let digest = Hasher::digest(DigestKind::Sha256, b"x");
        let fan_out = digest.fan_out();
        let first = library.join(fan_out.iter().next().unwrap());
        std::fs::create_dir(&library).unwrap();
        std::os::unix::fs::symlink(&private, &first).unwrap();
        let opened = opened(&library);
        let written = Written::default();
        let store = Store::new(&opened, DigestKind::Sha256, true, &written);
        let never = AtomicBool::new(false);
        let error = store_all(&store, &[content(&file)], READING, &never, &|_| {}).unwrap_err();
        assert!(error.to_string().contains("link"), "{error}");
        assert_eq!(std::fs::read_dir(&private).unwrap().count(), 0);
        // A link in the place of a blob is replaced. Its target stays.
        std::fs::remove_file(&first).unwrap();
        let blob = library.join(&fan_out);
        std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&file, &blob).unwrap();
        store.forget();
        store_all(&store, &[content(&file)], READING, &never, &|_| {}).unwrap();
        assert_eq!(unpack(&std::fs::read(&blob).unwrap()), b"x");
        assert_eq!(std::fs::read(&file).unwrap(), b"x");
        assert!(store.is_whole().unwrap());
        std::fs::remove_file(&blob).unwrap();
        assert!(!store.is_whole().unwrap());
    }
}
