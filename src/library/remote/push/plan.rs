//! Decides where each blob of a catalog will be: where an earlier layout of the store has it, or in new packs.
//!
//! The same blobs in the same order always give the same packs, so an interrupted push finds what it has sent.

use std::collections::{HashMap, HashSet};

use super::order::{ALONE, Class, Wanted};
use crate::library::digest::Digest;
use crate::library::remote::layout::{Blob, GroupId, Layout, Packing};

/// The size of a pack, in bytes.
pub(super) const PACK: u64 = 16 << 20;
/// The largest group of what programs read together.
const GROUP: u64 = 4 << 20;
/// The largest group of other blobs.
const SMALL_GROUP: u64 = 1 << 20;
/// How many bytes of other environments are fetched along, at most, to keep two runs of blobs in one group.
const GAP: u64 = 32 << 10;

/// A group of a pack that the store has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Known {
    pub(super) pack: [u8; 32],
    pub(super) pack_bytes: u64,
    pub(super) offset: u64,
    pub(super) blobs: Vec<Blob>,
}

/// Where the blobs of a catalog will be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Groups of packs that the store has.
    pub(super) known: Vec<Known>,
    /// Objects of their own that the store has.
    pub(super) known_alone: Vec<Blob>,
    /// Objects of their own to be sent.
    pub(super) alone: Vec<Blob>,
    /// Packs to be sent, each with its groups. Sizes are those of the library: in the store, blobs are smaller.
    pub(super) packs: Vec<Vec<Vec<Blob>>>,
}

impl Plan {
    /// The blobs to be read and sent.
    pub(super) fn to_send(&self) -> impl Iterator<Item = &Blob> {
        self.alone.iter().chain(self.packs.iter().flatten().flatten())
    }
}

/// Plans the places of blobs, in this order, each with the size of its stored bytes. `layouts` are those of the store, and
/// `packs` (with their sizes) and `alone` what it has.
pub(super) fn plan(
    blobs: &[(Wanted, u64)],
    layouts: &[Layout],
    packs: &HashMap<[u8; 32], u64>,
    alone: impl Fn(&Digest) -> Option<Blob>,
) -> Plan {
    let mut plan = Plan::default();
    let mut placed = HashSet::new();
    for (wanted, _) in blobs {
        if let Some(known) = alone(&wanted.digest) {
            plan.known_alone.push(Blob { size: wanted.size, ..known });
            placed.insert(wanted.digest);
        }
    }
    let needed: HashSet<Digest> = blobs.iter().map(|(wanted, _)| wanted.digest).collect();
    let shared =
        |layout: &Layout| layout.entries().filter(|entry| needed.contains(&entry.blob.digest)).count();
    let mut by_use: Vec<_> = layouts.iter().map(|layout| (shared(layout), layout)).collect();
    by_use.sort_by_key(|(shared, _)| std::cmp::Reverse(*shared));
    for (shared, layout) in by_use {
        if shared > 0 {
            reuse(layout, packs, &needed, &mut placed, &mut plan.known);
        }
    }
    let mut packer = Packer::default();
    for (wanted, stored) in blobs {
        if !placed.insert(wanted.digest) {
            continue;
        }
        let (digest, size) = (wanted.digest, wanted.size);
        let blob = Blob { digest, size, stored: *stored, packing: Packing::AsInLibrary };
        if *stored > ALONE {
            plan.alone.push(blob);
        } else {
            packer.add(wanted, blob);
        }
    }
    plan.packs = packer.finish();
    plan
}

/// Takes the runs of needed blobs from the groups of a layout.
fn reuse(
    layout: &Layout,
    packs: &HashMap<[u8; 32], u64>,
    needed: &HashSet<Digest>,
    placed: &mut HashSet<Digest>,
    known: &mut Vec<Known>,
) {
    let sizes: HashMap<[u8; 32], u64> = layout.packs().collect();
    for group in layout.groups() {
        let Some(bytes) = sizes.get(&group.pack).filter(|bytes| packs.get(&group.pack) == Some(*bytes))
        else {
            continue;
        };
        for (offset, blobs) in runs(layout, group.id, needed, placed) {
            placed.extend(blobs.iter().map(|blob| blob.digest));
            known.push(Known { pack: group.pack, pack_bytes: *bytes, offset: group.offset + offset, blobs });
        }
    }
}

/// The runs of needed blobs in a group, each with its offset in the group. Small gaps between them are included.
fn runs(
    layout: &Layout,
    group: GroupId,
    needed: &HashSet<Digest>,
    placed: &HashSet<Digest>,
) -> Vec<(u64, Vec<Blob>)> {
    let mut runs: Vec<(u64, Vec<Blob>)> = Vec::new();
    // The blobs since the last needed one, if they may be included.
    let mut gap: Option<Vec<Blob>> = None;
    for entry in layout.in_group(group) {
        let blob = entry.blob;
        let offset = entry.grouped.map_or(0, |(_, offset)| offset);
        let is_free = !placed.contains(&blob.digest);
        if is_free && needed.contains(&blob.digest) {
            match (runs.last_mut(), gap.take()) {
                (Some((_, run)), Some(between)) => {
                    run.extend(between);
                    run.push(blob);
                }
                _ => runs.push((offset, vec![blob])),
            }
            gap = Some(Vec::new());
        } else {
            gap = gap.filter(|_| is_free).map(|mut between| {
                between.push(blob);
                between
            });
            gap = gap.filter(|between| between.iter().map(|blob| blob.stored).sum::<u64>() <= GAP);
        }
    }
    runs
}

/// Fills packs.
#[derive(Default)]
struct Packer {
    packs: Vec<Vec<Vec<Blob>>>,
    pack: Vec<Vec<Blob>>,
    /// Of the groups in `pack`.
    pack_bytes: u64,
    group: Vec<Blob>,
    group_bytes: u64,
    unit: Option<(Class, usize)>,
}

impl Packer {
    fn add(&mut self, wanted: &Wanted, blob: Blob) {
        let limit = match wanted.class {
            Class::Profile | Class::Start | Class::Code => GROUP,
            Class::Data | Class::Rare => SMALL_GROUP,
        };
        let unit = Some((wanted.class, wanted.unit));
        let stored = blob.stored;
        if self.unit != unit || self.group_bytes + stored > limit {
            self.end_group();
            if self.pack_bytes + limit.max(stored) > PACK {
                self.end_pack();
            }
        }
        self.unit = unit;
        self.group_bytes += stored;
        self.group.push(blob);
    }

    fn end_group(&mut self) {
        if !self.group.is_empty() {
            self.pack.push(std::mem::take(&mut self.group));
            self.pack_bytes += std::mem::take(&mut self.group_bytes);
        }
    }

    fn end_pack(&mut self) {
        if !self.pack.is_empty() {
            self.packs.push(std::mem::take(&mut self.pack));
            self.pack_bytes = 0;
        }
    }

    fn finish(mut self) -> Vec<Vec<Vec<Blob>>> {
        self.end_group();
        self.end_pack();
        self.packs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library::remote::layout::Writer;

    fn digest(n: u32) -> Digest {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&n.to_le_bytes());
        Digest::Sha256(bytes)
    }

    fn blob(n: u32, class: Class, stored: u64) -> (Wanted, u64) {
        (Wanted { digest: digest(n), size: 2 * stored, class, unit: 0, is_file: true }, stored)
    }

    fn sized(n: u32, size: u64, stored: u64) -> Blob {
        Blob { digest: digest(n), size, stored, packing: Packing::AsInLibrary }
    }

    fn numbers(blobs: &[Blob]) -> Vec<u32> {
        blobs.iter().map(|blob| u32::from_le_bytes(blob.digest.bytes()[..4].try_into().unwrap())).collect()
    }

    #[test]
    fn packs_and_groups_are_filled_in_order() {
        const K: u64 = 1 << 10;
        let mut blobs = vec![blob(1, Class::Profile, 3000 * K / 3), blob(2, Class::Profile, 1000 * K)];
        blobs.push(blob(3, Class::Profile, ALONE + 1));
        blobs.extend((10..200).map(|n| blob(n, Class::Data, 100 * K)));
        blobs.extend((200..205).map(|n| blob(n, Class::Rare, K)));
        let plan = plan(&blobs, &[], &HashMap::new(), |_| None);
        assert_eq!(plan.alone, [sized(3, 2 * (ALONE + 1), ALONE + 1)]);
        assert_eq!(numbers(&plan.packs[0][0]), [1, 2]);
        assert_eq!(numbers(&plan.packs[0][1]), (10..20).collect::<Vec<_>>());
        assert_eq!(numbers(plan.packs.last().unwrap().last().unwrap()), [200, 201, 202, 203, 204]);
        for pack in &plan.packs {
            let bytes = |blobs: &[Blob]| blobs.iter().map(|blob| blob.stored).sum::<u64>();
            assert!(pack.iter().map(|group| bytes(group)).sum::<u64>() <= PACK);
            assert!(pack.iter().all(|group| bytes(group) <= GROUP));
        }
        assert_eq!(plan.to_send().count(), blobs.len());
    }

    #[test]
    fn a_group_ends_with_its_unit() {
        let mut blobs: Vec<_> = (0..6).map(|n| blob(n, Class::Code, 10)).collect();
        blobs.iter_mut().skip(2).for_each(|(wanted, _)| wanted.unit = 1);
        let plan = plan(&blobs, &[], &HashMap::new(), |_| None);
        let groups: Vec<_> = plan.packs[0].iter().map(|group| numbers(group)).collect();
        assert_eq!(groups, [vec![0, 1], vec![2, 3, 4, 5]]);
    }

    /// A layout with one group: numbers of blobs, and their stored sizes.
    fn layout(pack: u8, blobs: &[(u32, u64)]) -> Layout {
        let mut writer = Writer::default();
        let bytes = blobs.iter().map(|(_, stored)| stored).sum();
        writer.group([pack; 32], bytes, 0, blobs.iter().map(|(n, stored)| sized(*n, 2 * stored, *stored)));
        Layout::parse(writer.finish()).unwrap()
    }

    #[test]
    fn what_the_store_has_keeps_its_place() {
        let layouts = [layout(1, &[(90, 10), (1, 10), (91, 20), (2, 10), (92, GAP + 1), (3, 10)])];
        let wanted: Vec<_> = [1, 2, 3, 4, 5].map(|n| blob(n, Class::Data, 10)).to_vec();
        let packs = HashMap::from([([1; 32], 60 + GAP + 1)]);
        let alone = |wanted: &Digest| {
            (*wanted == digest(5)).then_some(Blob { packing: Packing::Zstd, ..sized(5, 0, 17) })
        };
        let found = plan(&wanted, &layouts, &packs, alone);
        let places: Vec<_> = found.known.iter().map(|known| (known.offset, numbers(&known.blobs))).collect();
        assert_eq!(places, [(10, vec![1, 91, 2]), (50 + GAP + 1, vec![3])]);
        assert_eq!(found.known_alone, [Blob { packing: Packing::Zstd, ..sized(5, 20, 17) }]);
        assert_eq!(found.packs.concat().concat(), [sized(4, 20, 10)]);
        // A pack that is gone, or another one in its place, is of no use.
        for packs in [HashMap::new(), HashMap::from([([1; 32], 1)])] {
            assert_eq!(plan(&wanted, &layouts, &packs, alone).packs.concat().concat().len(), 4);
        }
    }

    #[test]
    fn no_blob_is_placed_twice() {
        // 90 is in the gaps of both.
        let layouts =
            [layout(1, &[(1, 10), (90, 10), (2, 10)]), layout(2, &[(2, 10), (3, 10), (90, 10), (4, 10)])];
        let wanted: Vec<_> = [1, 2, 3, 4].map(|n| blob(n, Class::Data, 10)).to_vec();
        let packs = HashMap::from([([1; 32], 30), ([2; 32], 40)]);
        let found = plan(&wanted, &layouts, &packs, |_| None);
        let mut all: Vec<u32> = found.known.iter().flat_map(|known| numbers(&known.blobs)).collect();
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3, 4, 90]);
        assert!(found.packs.is_empty());
    }
}
