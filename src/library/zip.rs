//! A library in a zip archive, read in place.
//!
//! This is what `rcc holotree export` writes, or the `hololib/hololib.zip` in a robot bundle, which is a script followed by
//! a zip archive. The central directory is read once, when the archive is opened, and gives the place of each blob. Nothing
//! is unpacked before it is read. The archive stays open, so a mount survives that the file is renamed, replaced or removed.
//!
//! Limits: a bundle must store its `hololib.zip` without compression, because deflate has no random access. Only an import,
//! which reads everything once, unpacks it first. A reflink to a blob is not possible. Opening takes time and memory that grow with the central directory.
//!
//! Anybody may have written the archive. It is refused when two entries have one name, when entries overlap, when deflate
//! cannot produce a declared size, when a name contains `..`, when an entry is encrypted or uses another compression method,
//! and when there are more than two million entries. A declared size is an upper limit for each later read: a stream of
//! another length is an error of that entry.
//!
//! Invariant: an archive that changes while it is open yields errors, and never wrong bytes. Blobs are compared with their
//! digests, and catalogs with the checksum in the central directory.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use flate2::bufread::DeflateDecoder;
use rawzip::{
    CompressionMethod, ReaderAt, ZipArchive, ZipArchiveEntryWayfinder, ZipFileHeaderRecord, ZipLocator,
};
use rustix::fs::{Mode, OFlags};

use super::catalog::CatalogError;
use super::catalog::limits::MAX_FILE;
use super::catalogs::{CatalogEntry, CatalogName, CatalogStamp, Catalogs};
use super::digest::Digest;
use super::look::Look;
use super::stored::{Section, StoredBlob, StoredBlobs};
use super::{Library, LibraryError};

/// The library inside a robot bundle.
const NESTED: &str = "hololib/hololib.zip";

/// The maximum number of entries. Real libraries have up to some hundred thousand.
const MAX_ENTRIES: u64 = 1 << 21;

/// The size in bytes of a local header without its name.
const LOCAL_HEADER: u64 = 30;

/// The largest ratio of the sizes of a stream and its deflated form.
const MAX_RATIO: u64 = 1032;

/// The largest ratio for a compressed archive in a bundle. What it holds is compressed already, or is the files of an
/// environment.
const MAX_NESTED_RATIO: u64 = 64;

/// Makes a file for a nested archive of so many bytes.
pub type Unpack<'a> = &'a dyn Fn(u64) -> io::Result<File>;

/// A library in a zip archive.
#[derive(Debug)]
pub struct ZipLibrary {
    name: String,
    archive: ZipArchive<Window>,
    stamp: CatalogStamp,
    modified: SystemTime,
    /// Sorted by name.
    catalogs: Vec<(CatalogName, Member)>,
    /// Sorted by digest.
    blobs: Vec<(Digest, Member)>,
    /// The size in bytes of the entries below `library/` that are no blobs.
    strays: u64,
}

/// An entry of the archive.
#[derive(Clone, Copy, Debug)]
struct Member {
    place: ZipArchiveEntryWayfinder,
    crc: u32,
    is_deflated: bool,
}

/// The part of a file that is the archive.
#[derive(Clone, Debug)]
struct Window {
    file: Arc<File>,
    start: u64,
    len: u64,
}

impl ReaderAt for Window {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = buffer.len().min(left);
        match buffer.get_mut(..len) {
            Some(buffer) if len > 0 => self.file.read_at(buffer, self.start + offset),
            _ => Ok(0),
        }
    }
}

impl Window {
    fn begins_with(&self, magic: &[u8; 4]) -> bool {
        let mut begin = [0; 4];
        self.file.read_exact_at(&mut begin, self.start).is_ok_and(|()| begin == *magic)
    }
}

/// Why a file is not read as a library.
#[derive(Debug)]
enum Refusal {
    /// It is no zip archive, or an archive of something else.
    NotALibrary(&'static str),
    Archive(String),
    Io(io::Error),
}

impl From<rawzip::Error> for Refusal {
    fn from(error: rawzip::Error) -> Self {
        match error.into_kind() {
            rawzip::ErrorKind::IO(error) if error.raw_os_error().is_some() => Self::Io(error),
            rawzip::ErrorKind::IO(_) | rawzip::ErrorKind::Eof => Self::Archive("it is truncated".into()),
            rawzip::ErrorKind::MissingEndOfCentralDirectory => {
                Self::NotALibrary("not a library: it is a file and no zip archive")
            }
            other => Self::Archive(format!("it is damaged ({})", rawzip::Error::from(other))),
        }
    }
}

impl ZipLibrary {
    /// Opens the archive at `path`.
    ///
    /// # Errors
    /// [`LibraryError::NotALibrary`] when the file is something else, and [`LibraryError::Archive`] when it is refused.
    pub fn open(path: &Path) -> Result<Self, LibraryError> {
        Self::open_or_unpack(path, None)
    }

    /// Like [`ZipLibrary::open`]. If the library of a bundle is compressed, it is unpacked into a file that `unpack` makes.
    ///
    /// # Errors
    /// As [`ZipLibrary::open`], and those of `unpack` and of writing the file.
    pub fn open_or_unpack(path: &Path, unpack: Option<Unpack<'_>>) -> Result<Self, LibraryError> {
        // A FIFO must not block.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| LibraryError::io(path)(errno.into()))?;
        let opened = Self::of_file(file.into(), path.to_string_lossy().into_owned(), unpack);
        opened.map_err(|refusal| match refusal {
            Refusal::NotALibrary(why) => LibraryError::NotALibrary { path: path.to_owned(), why },
            Refusal::Archive(why) => LibraryError::Archive { path: path.to_owned(), why },
            Refusal::Io(source) => LibraryError::Io { path: path.to_owned(), source },
        })
    }

    fn of_file(file: File, name: String, unpack: Option<Unpack<'_>>) -> Result<Self, Refusal> {
        let found = file.metadata().map_err(Refusal::Io)?;
        if !found.is_file() {
            let is_dir = found.is_dir();
            return Err(Refusal::NotALibrary(if is_dir {
                "it is a directory, not an archive"
            } else {
                "it is not a file"
            }));
        }
        let modified = found.modified().map_err(Refusal::Io)?;
        let whole = Window { file: Arc::new(file), start: 0, len: found.len() };
        let archive = locate(whole.clone()).map_err(|refusal| match refusal {
            // The beginning is that of an archive, so only the end is missing.
            Refusal::NotALibrary(_) if whole.begins_with(b"PK\x03\x04") => {
                Refusal::Archive("it is truncated".into())
            }
            other => other,
        })?;
        let mut library = Self {
            name,
            archive,
            stamp: Look::from(&found).into(),
            modified,
            catalogs: Vec::new(),
            blobs: Vec::new(),
            strays: 0,
        };
        if let Some(nested) = library.scan()?.filter(|_| library.catalogs.is_empty()) {
            library.archive = locate(library.nested(&nested, &whole, unpack)?)?;
            library.name.push('/');
            library.name.push_str(NESTED);
            library.scan()?;
        }
        if library.catalogs.is_empty() {
            let why = "not a library: the zip archive holds neither catalog/ nor hololib/hololib.zip";
            return Err(Refusal::NotALibrary(why));
        }
        // The stamp must belong to the bytes that were scanned.
        if Look::from(&whole.file.metadata().map_err(Refusal::Io)?) != Look::from(&found) {
            return Err(Refusal::Archive("it changes while it is read".into()));
        }
        Ok(library)
    }

    /// The archive in a bundle, where it lies or unpacked.
    fn nested(&self, nested: &Member, whole: &Window, unpack: Option<Unpack<'_>>) -> Result<Window, Refusal> {
        if !nested.is_deflated {
            let section = self.section(nested).map_err(|error| Refusal::Archive(error.to_string()))?;
            let (start, len) = section.range().ok_or_else(|| Refusal::Archive("it is truncated".into()))?;
            return Ok(Window { start, len, ..whole.clone() });
        }
        let Some(unpack) = unpack else {
            let why = format!(
                "its {NESTED} is compressed, so it cannot be read in place; import it, or extract that file"
            );
            return Err(Refusal::Archive(why));
        };
        let (packed, len) = (nested.place.compressed_size_hint(), nested.place.uncompressed_size_hint());
        if len > packed.saturating_mul(MAX_NESTED_RATIO) {
            let why = "it is compressed more than any library can be";
            return Err(refused(NESTED.as_bytes(), why));
        }
        let mut file = unpack(len).map_err(Refusal::Io)?;
        let mut packed = self.open_member(nested).map_err(Refusal::Io)?;
        // An error of the archive has no errno.
        io::copy(&mut packed, &mut file).map_err(|error| match error.raw_os_error() {
            Some(_) => Refusal::Io(error),
            None => refused(NESTED.as_bytes(), &error.to_string()),
        })?;
        Ok(Window { file: Arc::new(file), start: 0, len })
    }

    /// Reads the central directory into the tables of the library. Returns the entry of a nested archive.
    fn scan(&mut self) -> Result<Option<Member>, Refusal> {
        let declared = self.archive.entries_hint();
        if declared > MAX_ENTRIES {
            return Err(Refusal::Archive(format!(
                "it has {declared} entries; at most {MAX_ENTRIES} are read"
            )));
        }
        (self.catalogs, self.blobs, self.strays) = (Vec::new(), Vec::new(), 0);
        let mut nested = None;
        let mut extents = Vec::new();
        let mut buffer = vec![0; rawzip::MAX_CENTRAL_DIRECTORY_RECORD_SIZE];
        let mut entries = self.archive.entries(&mut buffer);
        while let Some(entry) = entries.next_entry()? {
            if extents.len() as u64 == declared {
                return Err(Refusal::Archive(format!("it has more entries than the {declared} it declares")));
            }
            let path = entry.file_path();
            let name: &[u8] = path.as_ref();
            if is_unsafe(name) {
                return Err(refused(name, "a name that leads out of a directory"));
            }
            let place = entry.wayfinder();
            let start = entry.local_header_offset();
            let least = LOCAL_HEADER + name.len() as u64;
            let end = start.checked_add(least).and_then(|end| end.checked_add(place.compressed_size_hint()));
            extents.push((start, end.ok_or_else(|| refused(name, "it lies outside of the archive"))?));
            let Some(below) = name.strip_prefix(b"library/") else {
                if let Some(catalog) = name.strip_prefix(b"catalog/").and_then(catalog_name) {
                    self.catalogs.push((catalog, member(&entry, name)?));
                } else if name == NESTED.as_bytes() && nested.replace(member(&entry, name)?).is_some() {
                    return Err(refused(name, "it has two entries of this name"));
                }
                continue;
            };
            match blob_digest(below) {
                Some(digest) => self.blobs.push((digest, member(&entry, name)?)),
                None => self.strays = self.strays.saturating_add(place.uncompressed_size_hint()),
            }
        }
        if extents.len() as u64 != declared {
            let found = extents.len();
            return Err(Refusal::Archive(format!("it has {found} entries and declares {declared}")));
        }
        extents.sort_unstable();
        let ends = extents.iter().map(|(_, end)| *end);
        let starts = extents.iter().map(|(start, _)| *start).skip(1).chain([self.archive.directory_offset()]);
        if ends.zip(starts).any(|(end, next)| end > next) {
            return Err(Refusal::Archive("its entries overlap".into()));
        }
        self.blobs.sort_unstable_by_key(|(digest, _)| *digest);
        if let Some(digest) = twice(&self.blobs) {
            return Err(Refusal::Archive(format!("it has two entries of the name of blob {digest}")));
        }
        self.catalogs.sort_by(|a, b| a.0.cmp(&b.0));
        if let Some(name) = twice(&self.catalogs) {
            return Err(Refusal::Archive(format!("it has two entries of the name catalog/{name}")));
        }
        Ok(nested)
    }

    /// The compressed bytes of an entry. Reads its local header to find them.
    fn section(&self, member: &Member) -> io::Result<Section> {
        let entry = self.archive.get_entry(member.place).map_err(|error| match error.into_kind() {
            rawzip::ErrorKind::IO(error) if error.raw_os_error().is_some() => error,
            _ => invalid("the archive is damaged, or was changed since it was opened"),
        })?;
        let (start, end) = entry.compressed_data_range();
        let window = self.archive.get_ref();
        if end > window.len {
            return Err(invalid("it lies outside of the archive"));
        }
        Ok(Section::part(Arc::clone(&window.file), window.start + start, window.start + end))
    }

    fn open_member(&self, member: &Member) -> io::Result<StoredBlob> {
        let section = self.section(member)?;
        if !member.is_deflated {
            return Ok(StoredBlob::new(section.clone(), Some(section)));
        }
        let packed = BufReader::with_capacity(64 * 1024, section.clone());
        let left = member.place.uncompressed_size_hint();
        Ok(StoredBlob::new(Inflated { from: DeflateDecoder::new(packed), left }, Some(section)))
    }
}

impl Library for ZipLibrary {
    fn name(&self) -> &str {
        &self.name
    }

    fn catalogs(&self) -> Result<Catalogs, LibraryError> {
        let entry =
            |(name, _): &(CatalogName, Member)| CatalogEntry { name: name.clone(), modified: self.modified };
        Ok(Catalogs { entries: self.catalogs.iter().map(entry).collect(), not_files: Vec::new() })
    }

    fn catalog_stamp(&self, name: &CatalogName) -> io::Result<CatalogStamp> {
        find(&self.catalogs, name).map(|_| self.stamp.clone())
    }

    fn open_catalog(&self, name: &CatalogName) -> io::Result<StoredBlob> {
        self.open_member(find(&self.catalogs, name)?)
    }

    fn catalog(&self, name: &CatalogName) -> Result<(CatalogStamp, Vec<u8>), LibraryError> {
        let place = self.catalog_place(name);
        let failed = |source| LibraryError::Io { path: (&place).into(), source };
        let refused = |source| LibraryError::Catalog { place: place.clone(), source };
        let member = find(&self.catalogs, name).map_err(failed)?;
        let size = member.place.uncompressed_size_hint();
        if size > MAX_FILE {
            return Err(refused(CatalogError::TooLarge(format!("it is larger than {MAX_FILE} bytes"))));
        }
        let mut bytes = Vec::new();
        self.open_member(member)
            .and_then(|stored| stored.take(MAX_FILE).read_to_end(&mut bytes))
            .map_err(failed)?;
        if crc32fast::hash(&bytes) != member.crc {
            return Err(refused(CatalogError::NotGzip("its checksum is not that of the archive".into())));
        }
        Ok((self.stamp.clone(), bytes))
    }

    fn blob(&self, digest: &Digest) -> io::Result<StoredBlob> {
        self.open_member(find(&self.blobs, digest)?)
    }

    fn has_blob(&self, digest: &Digest) -> io::Result<bool> {
        Ok(find(&self.blobs, digest).is_ok())
    }

    fn blobs(&self) -> Result<StoredBlobs, LibraryError> {
        let stored = |(digest, member): &(Digest, Member)| (*digest, member.place.uncompressed_size_hint());
        Ok(StoredBlobs { blobs: self.blobs.iter().map(stored).collect(), strays: self.strays })
    }
}

/// Finds the central directory at the end of a window.
fn locate(window: Window) -> Result<ZipArchive<Window>, Refusal> {
    let mut buffer = vec![0; rawzip::RECOMMENDED_BUFFER_SIZE];
    let end = window.len;
    Ok(ZipLocator::new().locate_in_reader(window, &mut buffer, end).map_err(|(_, error)| error)?)
}

/// Checks that an entry can be read: it is stored or deflated, not encrypted, and its sizes are possible.
fn member(entry: &ZipFileHeaderRecord<'_>, name: &[u8]) -> Result<Member, Refusal> {
    if entry.flags().is_encrypted() {
        return Err(refused(name, "it is encrypted"));
    }
    let is_deflated = match entry.compression_method() {
        CompressionMethod::STORE => false,
        CompressionMethod::DEFLATE => true,
        _ => return Err(refused(name, "it is neither stored nor deflated")),
    };
    let (packed, size) = (entry.compressed_size_hint(), entry.uncompressed_size_hint());
    let is_possible = if is_deflated { size <= packed.saturating_mul(MAX_RATIO) } else { size == packed };
    if !is_possible {
        return Err(refused(name, "its packed bytes cannot have the size that it declares"));
    }
    Ok(Member { place: entry.wayfinder(), crc: entry.crc32(), is_deflated })
}

fn refused(name: &[u8], why: &str) -> Refusal {
    Refusal::Archive(format!("entry {:?}: {why}", String::from_utf8_lossy(name)))
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Whether a name is meant to be unpacked outside of the directory.
fn is_unsafe(name: &[u8]) -> bool {
    name.starts_with(b"/")
        || name.contains(&0)
        || name.split(|b| matches!(b, b'/' | b'\\')).any(|part| part == b"..")
}

/// Looks up a name in a sorted table.
fn find<'t, N: Ord>(table: &'t [(N, Member)], name: &N) -> io::Result<&'t Member> {
    let at = table.binary_search_by(|(known, _)| known.cmp(name)).ok();
    Ok(&at.and_then(|at| table.get(at)).ok_or(io::ErrorKind::NotFound)?.1)
}

/// A name that stands twice in a sorted table.
fn twice<N: PartialEq>(table: &[(N, Member)]) -> Option<&N> {
    table.iter().zip(table.iter().skip(1)).find(|(a, b)| a.0 == b.0).map(|(a, _)| &a.0)
}

fn catalog_name(name: &[u8]) -> Option<CatalogName> {
    std::str::from_utf8(name).ok().and_then(CatalogName::parse)
}

/// The digest of the blob at `aa/bb/cc/<digest>`.
fn blob_digest(path: &[u8]) -> Option<Digest> {
    let [a, b, b'/', c, d, b'/', e, f, b'/', name @ ..] = path else { return None };
    name.starts_with(&[*a, *b, *c, *d, *e, *f]).then(|| Digest::parse(name).ok()).flatten()
}

/// Decompresses an entry. A stream that is not as long as the archive declares is an error.
struct Inflated<R> {
    from: DeflateDecoder<R>,
    left: u64,
}

impl<R: io::BufRead> Read for Inflated<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        match self.left.checked_sub(n as u64) {
            None => Err(invalid("it is longer than the archive says")),
            Some(left) if n == 0 && left > 0 && !buffer.is_empty() => {
                Err(invalid("it is shorter than the archive says"))
            }
            Some(left) => {
                self.left = left;
                Ok(n)
            }
        }
    }
}
