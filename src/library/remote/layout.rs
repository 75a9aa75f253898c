//! The layout of an environment in an object store: where each of its blobs is.
//!
//! A blob is an object of its own, or lies in a *pack* among others. Neighbours in a pack form a *group*, which is fetched by
//! one request. `docs/REMOTE.md` describes the order of blobs in packs.
//!
//! ```text
//! header   64 bytes: see `Header`
//! packs    40 bytes each: SHA-256, size in bytes
//! groups   32 bytes each: see `RawGroup`
//! entries  64 bytes each: see `RawEntry`; sorted by digest
//! order    4 bytes each: the entries of all groups, group by group, in the order in which they lie there
//! ```
//!
//! All numbers are little-endian. The name of a layout object is the SHA-256 of its bytes.
//!
//! Invariant: who could write to the store could write any layout. [`Layout::parse`] checks all of it, so that no later look
//! leaves a table or a pack. Looks do not allocate.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use memmap2::Mmap;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::library::digest::Digest;
use crate::sys::fd;

const MAGIC: [u8; 8] = *b"holofspk";
/// Raised with every change after which an old layout could be misread.
const VERSION: u32 = 2;
/// The version before: all blobs are as the library stores them.
const WITHOUT_PACKING: u32 = 1;
/// In place of a group: the blob is an object of its own.
const ALONE: u32 = u32::MAX;

/// Why a layout is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a layout of blobs: {0}")]
pub struct LayoutError(&'static str);

/// The number of a group in a layout.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GroupId(pub u32);

/// A run of neighbouring blobs in a pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Group {
    pub id: GroupId,
    /// The SHA-256 of the pack.
    pub pack: [u8; 32],
    /// The offset in the pack, in bytes.
    pub offset: u64,
    /// The length in bytes.
    pub len: u64,
}

/// How the bytes in a store become the content of a blob.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Packing {
    /// As in the library.
    AsInLibrary,
    /// A frame of Zstandard with the content.
    Zstd,
}

/// A blob as a store has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Blob {
    pub digest: Digest,
    /// The size of the content in bytes.
    pub size: u64,
    /// The size of the stored bytes.
    pub stored: u64,
    pub packing: Packing,
}

/// A blob of a layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    pub blob: Blob,
    /// The group, and the offset in the group in bytes. None for an object of its own.
    pub grouped: Option<(GroupId, u64)>,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    packs: U32,
    groups: U32,
    entries: U32,
    /// The number of entries that are in groups.
    grouped: U32,
    reserved: [u8; 36],
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPack {
    sha256: [u8; 32],
    bytes: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawGroup {
    pack: U32,
    /// The position of its first entry in the order.
    first: U32,
    /// The number of its entries.
    count: U32,
    reserved: U32,
    offset: U64,
    len: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    /// Filled with zero bytes if it is shorter.
    digest: [u8; 32],
    /// The length of the digest in bytes: 32 for SHA-256, 16 for SipHash.
    digest_len: U16,
    /// 0: as in the library. 1: Zstandard.
    packing: U16,
    group: U32,
    /// In the group.
    offset: U64,
    stored: U64,
    size: U64,
}

impl RawEntry {
    fn decode(&self) -> Option<Entry> {
        let digest = match (self.digest_len.get(), self.digest) {
            (32, bytes) => Digest::Sha256(bytes),
            (16, bytes) => {
                let ([low, high], _) = bytes.as_chunks::<16>() else { return None };
                (*high == [0; 16]).then_some(Digest::Sip128(*low))?
            }
            _ => return None,
        };
        let packing = match self.packing.get() {
            0 => Packing::AsInLibrary,
            1 => Packing::Zstd,
            _ => return None,
        };
        let grouped =
            Some((GroupId(self.group.get()), self.offset.get())).filter(|(group, _)| group.0 != ALONE);
        let blob = Blob { digest, size: self.size.get(), stored: self.stored.get(), packing };
        Some(Entry { blob, grouped })
    }

    fn encode(entry: &Entry) -> Self {
        let blob = &entry.blob;
        let mut digest = [0; 32];
        let bytes = blob.digest.bytes();
        digest.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        let (group, offset) = entry.grouped.map_or((ALONE, 0), |(GroupId(group), offset)| (group, offset));
        Self {
            digest,
            digest_len: (bytes.len() as u16).into(),
            packing: match blob.packing {
                Packing::AsInLibrary => 0,
                Packing::Zstd => 1,
            }
            .into(),
            group: group.into(),
            offset: offset.into(),
            stored: blob.stored.into(),
            size: blob.size.into(),
        }
    }
}

/// The bytes of a layout.
#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    InMemory(Vec<u8>),
}

/// A layout that was checked.
#[derive(Debug)]
pub struct Layout {
    bytes: Bytes,
    header: Header,
}

/// The tables of a layout.
struct Tables<'l> {
    packs: &'l [RawPack],
    groups: &'l [RawGroup],
    entries: &'l [RawEntry],
    order: &'l [U32],
}

impl<'l> Tables<'l> {
    fn of(header: &Header, bytes: &'l [u8]) -> Option<Self> {
        let rest = bytes.get(size_of::<Header>()..)?;
        let (packs, rest) =
            <[RawPack]>::ref_from_prefix_with_elems(rest, header.packs.get() as usize).ok()?;
        let (groups, rest) =
            <[RawGroup]>::ref_from_prefix_with_elems(rest, header.groups.get() as usize).ok()?;
        let (entries, rest) =
            <[RawEntry]>::ref_from_prefix_with_elems(rest, header.entries.get() as usize).ok()?;
        let order = <[U32]>::ref_from_bytes_with_elems(rest, header.grouped.get() as usize).ok()?;
        Some(Self { packs, groups, entries, order })
    }

    fn group(&self, id: GroupId) -> Option<Group> {
        let raw = self.groups.get(id.0 as usize)?;
        let pack = self.packs.get(raw.pack.get() as usize)?;
        Some(Group { id, pack: pack.sha256, offset: raw.offset.get(), len: raw.len.get() })
    }

    fn in_group(&self, id: GroupId) -> impl Iterator<Item = Entry> + use<'l> {
        let (entries, order) = (self.entries, self.order);
        let range = self.groups.get(id.0 as usize).map(|group| {
            let first = group.first.get() as usize;
            first..first.saturating_add(group.count.get() as usize)
        });
        let positions = range.and_then(|range| order.get(range)).unwrap_or_default();
        positions.iter().filter_map(move |at| entries.get(at.get() as usize)?.decode())
    }

    /// Checks that each look stays within the tables, each group within its pack, and each blob within its group.
    fn check(&self) -> Result<(), LayoutError> {
        let mut before = None;
        for raw in self.entries {
            let entry = raw.decode().ok_or(LayoutError("a digest or a packing of unknown kind"))?;
            let digest = entry.blob.digest;
            if before.replace(digest).is_some_and(|before| before >= digest) {
                return Err(LayoutError("its digests are not in order"));
            }
            if let Some((group, _)) = entry.grouped
                && group.0 as usize >= self.groups.len()
            {
                return Err(LayoutError("a blob is in a group that is not there"));
            }
        }
        let mut position = 0;
        for (raw, number) in self.groups.iter().zip(0..) {
            let id = GroupId(number);
            let pack = self.packs.get(raw.pack.get() as usize);
            let pack = pack.ok_or(LayoutError("a group is in a pack that is not there"))?;
            let end = raw.offset.get().checked_add(raw.len.get());
            if end.is_none_or(|end| end > pack.bytes.get()) {
                return Err(LayoutError("a group lies beyond the end of its pack"));
            }
            if raw.first.get() != position {
                return Err(LayoutError("the groups are not in order"));
            }
            position = position.checked_add(raw.count.get()).ok_or(LayoutError("too many blobs"))?;
            let mut at = 0u64;
            let mut count = 0;
            for entry in self.in_group(id) {
                if entry.grouped != Some((id, at)) {
                    return Err(LayoutError("a blob is not where its group says"));
                }
                at = at.checked_add(entry.blob.stored).ok_or(LayoutError("a blob is too large"))?;
                count += 1;
            }
            if count != raw.count.get() || at != raw.len.get() {
                return Err(LayoutError("a group is not what its blobs fill"));
            }
        }
        let grouped = self.entries.iter().filter(|entry| entry.group.get() != ALONE).count();
        if position as usize != self.order.len() || grouped != self.order.len() {
            return Err(LayoutError("blobs and groups do not match"));
        }
        Ok(())
    }
}

impl Layout {
    /// Checks the bytes of a layout.
    ///
    /// # Errors
    /// When they are not a layout of this version, or a look could leave a table or a pack.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, LayoutError> {
        Self::checked(Bytes::InMemory(bytes))
    }

    /// Maps a file of the cache, and checks it.
    ///
    /// # Errors
    /// When the file cannot be mapped; [`io::ErrorKind::InvalidData`] when it is not a layout.
    pub fn map(file: &File) -> io::Result<Self> {
        let map = fd::map(file)?;
        Self::checked(Bytes::Mapped(map)).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    fn checked(bytes: Bytes) -> Result<Self, LayoutError> {
        let all = bytes.as_ref();
        let (header, _) = Header::read_from_prefix(all).map_err(|_| LayoutError("shorter than a header"))?;
        if header.magic != MAGIC {
            return Err(LayoutError("its first bytes are others"));
        }
        if ![WITHOUT_PACKING, VERSION].contains(&header.version.get()) {
            return Err(LayoutError("a version of the format that this holofs does not read"));
        }
        let tables = Tables::of(&header, all).ok_or(LayoutError("its length is wrong"))?;
        if header.version.get() == WITHOUT_PACKING && tables.entries.iter().any(|raw| raw.packing.get() != 0)
        {
            return Err(LayoutError("a packing that its version does not have"));
        }
        tables.check()?;
        Ok(Self { bytes, header })
    }

    fn tables(&self) -> Tables<'_> {
        // It was checked that there are tables.
        let none = Tables { packs: &[], groups: &[], entries: &[], order: &[] };
        Tables::of(&self.header, self.bytes.as_ref()).unwrap_or(none)
    }

    /// Looks a blob up.
    #[must_use]
    pub fn find(&self, digest: &Digest) -> Option<Entry> {
        let entries = self.tables().entries;
        let found =
            entries.binary_search_by_key(&Some(*digest), |entry| Some(entry.decode()?.blob.digest)).ok()?;
        entries.get(found)?.decode()
    }

    /// All blobs, sorted by digest.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        self.tables().entries.iter().filter_map(RawEntry::decode)
    }

    /// All groups.
    pub fn groups(&self) -> impl Iterator<Item = Group> {
        let tables = self.tables();
        (0..self.header.groups.get()).filter_map(move |id| tables.group(GroupId(id)))
    }

    /// A group. None if the layout has none of this number.
    #[must_use]
    pub fn group(&self, id: GroupId) -> Option<Group> {
        self.tables().group(id)
    }

    /// The blobs of a group, in the order in which they lie there.
    pub fn in_group(&self, id: GroupId) -> impl Iterator<Item = Entry> {
        self.tables().in_group(id)
    }

    /// The packs: SHA-256, and size in bytes.
    pub fn packs(&self) -> impl Iterator<Item = ([u8; 32], u64)> {
        self.tables().packs.iter().map(|pack| (pack.sha256, pack.bytes.get()))
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::InMemory(bytes) => bytes,
        }
    }
}

/// Writes a layout.
#[derive(Debug, Default)]
pub struct Writer {
    packs: Vec<RawPack>,
    /// The numbers of the packs.
    known: BTreeMap<[u8; 32], u32>,
    groups: Vec<RawGroup>,
    entries: BTreeMap<Digest, Entry>,
    /// The digests of all groups.
    order: Vec<Digest>,
}

impl Writer {
    /// Adds a blob that is an object of its own.
    pub fn alone(&mut self, blob: Blob) {
        self.entries.insert(blob.digest, Entry { blob, grouped: None });
    }

    /// Adds a group at `offset` of a pack of `pack_bytes` bytes: the blobs in it, in order. No blob may be added twice.
    pub fn group(
        &mut self,
        pack: [u8; 32],
        pack_bytes: u64,
        offset: u64,
        blobs: impl IntoIterator<Item = Blob>,
    ) {
        let next = self.packs.len() as u32;
        let number = *self.known.entry(pack).or_insert(next);
        if number == next {
            self.packs.push(RawPack { sha256: pack, bytes: pack_bytes.into() });
        }
        let id = GroupId(self.groups.len() as u32);
        let first = self.order.len();
        let mut at = 0;
        for blob in blobs {
            self.entries.insert(blob.digest, Entry { blob, grouped: Some((id, at)) });
            self.order.push(blob.digest);
            at += blob.stored;
        }
        self.groups.push(RawGroup {
            pack: number.into(),
            first: (first as u32).into(),
            count: ((self.order.len() - first) as u32).into(),
            reserved: 0.into(),
            offset: offset.into(),
            len: at.into(),
        });
    }

    /// The bytes of the layout.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        let header = Header {
            magic: MAGIC,
            version: VERSION.into(),
            packs: (self.packs.len() as u32).into(),
            groups: (self.groups.len() as u32).into(),
            entries: (self.entries.len() as u32).into(),
            grouped: (self.order.len() as u32).into(),
            reserved: [0; 36],
        };
        let positions: BTreeMap<&Digest, u32> = self.entries.keys().zip(0..).collect();
        let order = self.order.iter().filter_map(|digest| positions.get(digest));
        let mut out = header.as_bytes().to_vec();
        out.extend(self.packs.as_bytes());
        out.extend(self.groups.as_bytes());
        self.entries.values().for_each(|entry| out.extend(RawEntry::encode(entry).as_bytes()));
        order.for_each(|position| out.extend(position.to_le_bytes()));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        Digest::Sha256([n; 32])
    }

    fn blob(digest: Digest, size: u64, stored: u64) -> Blob {
        Blob { digest, size, stored, packing: Packing::Zstd }
    }

    fn written() -> Vec<u8> {
        let mut writer = Writer::default();
        writer.alone(blob(digest(9), 1000, 700));
        writer.group([1; 32], 100, 0, [blob(digest(5), 20, 10), blob(digest(2), 40, 30)]);
        let as_in_library = Blob { packing: Packing::AsInLibrary, ..blob(digest(7), 70, 60) };
        writer.group([1; 32], 100, 40, [as_in_library]);
        writer.group([2; 32], 5, 0, [blob(Digest::Sip128([3; 16]), 5, 5), blob(digest(1), 0, 0)]);
        writer.finish()
    }

    /// The bytes that version 1 wrote are those of version 2 with blobs as in the library.
    #[test]
    fn version_one_is_read_and_knows_no_packing() {
        let mut writer = Writer::default();
        writer.alone(Blob { packing: Packing::AsInLibrary, ..blob(digest(9), 1000, 700) });
        let mut bytes = writer.finish();
        bytes[8] = 1;
        assert_eq!(
            Layout::parse(bytes).unwrap().find(&digest(9)).unwrap().blob.packing,
            Packing::AsInLibrary
        );
        let mut packed = written();
        packed[8] = 1;
        assert!(Layout::parse(packed.clone()).is_err());
        packed[8] = 3;
        assert!(Layout::parse(packed).unwrap_err().to_string().contains("version"));
    }

    #[test]
    fn what_is_written_is_found() {
        let layout = Layout::parse(written()).unwrap();
        assert_eq!(layout.packs().collect::<Vec<_>>(), [([1; 32], 100), ([2; 32], 5)]);
        let alone = layout.find(&digest(9)).unwrap();
        assert_eq!((alone.blob, alone.grouped), (blob(digest(9), 1000, 700), None));
        let second = layout.find(&digest(2)).unwrap();
        assert_eq!((second.blob, second.grouped), (blob(digest(2), 40, 30), Some((GroupId(0), 10))));
        assert_eq!(layout.find(&digest(7)).unwrap().blob.packing, Packing::AsInLibrary);
        let group = layout.group(GroupId(1)).unwrap();
        assert_eq!((group.pack, group.offset, group.len), ([1; 32], 40, 60));
        let digests = |id| layout.in_group(GroupId(id)).map(|entry| entry.blob.digest).collect::<Vec<_>>();
        assert_eq!(digests(0), [digest(5), digest(2)]);
        assert_eq!(digests(2), [Digest::Sip128([3; 16]), digest(1)]);
        assert_eq!(layout.find(&digest(3)), None);
        assert!(layout.group(GroupId(3)).is_none() && layout.in_group(GroupId(3)).next().is_none());
        assert_eq!((layout.entries().count(), layout.groups().count()), (6, 3));
        Layout::parse(Writer::default().finish()).unwrap();
    }

    /// Each byte matters, and none leads a look out of the tables.
    #[test]
    fn no_changed_byte_leads_astray() {
        let good = written();
        for at in 0..good.len() {
            for change in [1, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= change;
                let Ok(layout) = Layout::parse(bad) else { continue };
                for group in layout.groups() {
                    let pack = layout.packs().find(|(pack, _)| *pack == group.pack).unwrap();
                    assert!(group.offset + group.len <= pack.1);
                    let len: u64 = layout.in_group(group.id).map(|entry| entry.blob.stored).sum();
                    assert_eq!(len, group.len);
                }
                for entry in layout.entries() {
                    assert_eq!(layout.find(&entry.blob.digest), Some(entry));
                }
            }
        }
        for len in 0..good.len() {
            assert!(Layout::parse(good[..len].to_vec()).is_err(), "{len} bytes");
        }
        assert!(Layout::parse([good, vec![0]].concat()).is_err());
    }
}
