//! Goes on where an earlier worker of the mount died: with the open files and the backing numbers that it left.

use std::collections::HashMap;

use super::{Backing, Free, Inodes, MOST_BACKINGS, MOST_MAPPED, MOST_OPENS, Open, Passthrough, Way};
use crate::fs::Side;
use crate::handoff::opens::{Mode, Opened};

/// Backing numbers that an earlier worker left and that nobody needs.
#[derive(Debug)]
#[must_use = "they keep files open in the kernel"]
pub(in crate::fuse) struct Unused(Vec<Backing>);

impl Passthrough {
    /// Takes over what an earlier worker left in the shared memory, after [`Opens::settle`] and before the first request.
    ///
    /// [`Opens::settle`]: crate::handoff::opens::Opens::settle
    pub(in crate::fuse) fn take_over(&self) -> Unused {
        self.backings.take_over(self.handoff.restarts());
        self.close_lost();
        self.rebuild(&mut self.inodes.lock())
    }

    /// Gives back what nobody needs. May take long, with the mount helper.
    pub(in crate::fuse) fn give_back_all(&self, unused: Unused) {
        unused.0.into_iter().for_each(|backing| self.give_back(backing));
    }

    /// Closes the numbers that the kernel had assigned before their records were written.
    fn close_lost(&self) {
        let records = self.records();
        let numbers = records.cut_short();
        let known: Vec<u32> = records.backings().map(|backing| backing.id).collect();
        for id in numbers.filter(|id| !known.contains(id)) {
            match self.backings.close(id) {
                Ok(()) => tracing::debug!(id, "closed a backing number that an earlier worker had not noted"),
                Err(error) => tracing::debug!(id, %error, "no such backing number was lost"),
            }
        }
        records.end_registering();
    }

    fn rebuild(&self, inodes: &mut Inodes) -> Unused {
        let records = self.records();
        let mut of_id = HashMap::new();
        for backing in records.backings().filter(|backing| !backing.is_closing) {
            of_id.insert(backing.id, Backing { id: backing.id, slot: backing.slot });
        }
        let mut open_slots = Vec::new();
        for Opened { handle, ino, mode, .. } in records.opens() {
            open_slots.extend(handle.slot());
            let way = way(mode, &of_id);
            if way.mode() != mode {
                tracing::error!(ino, ?mode, "an open file has a backing number that was closed");
            }
            inodes.open.entry(ino).or_insert(Open { way, files: 0 }).files += 1;
        }
        let mut unused = Vec::new();
        let mut slots = Vec::new();
        for found in records.backings() {
            slots.push(found.slot);
            let backing = Backing { id: found.id, slot: found.slot };
            let is_open = |open: &Open| open.way.backing.is_some_and(|used| used.id == found.id);
            if inodes.open.get(&found.ino).is_some_and(is_open) {
                continue;
            }
            // A file of the upper may have been deleted, and the kernel's word that it has forgotten it may be lost.
            if found.is_closing || !found.lower || inodes.open.contains_key(&found.ino) {
                unused.push(backing);
                continue;
            }
            let way = Way { side: Side::Lower, backing: Some(backing) };
            unused.extend(inodes.idle.push(found.ino, way).and_then(|(_, other)| other.backing));
        }
        let mut mapped_slots = Vec::new();
        for (slot, ino) in records.all_mapped() {
            mapped_slots.push(slot);
            inodes.mapped.insert(ino, Some(slot));
        }
        inodes.more_mapped = records.has_more_mapped();
        inodes.free.opens = Free::without(open_slots, MOST_OPENS);
        inodes.free.backings = Free::without(slots, MOST_BACKINGS);
        inodes.free.mapped = Free::without(mapped_slots, MOST_MAPPED);
        Unused(unused)
    }
}

fn way(mode: Mode, of_id: &HashMap<u32, Backing>) -> Way {
    let side = if mode.lower { Side::Lower } else { Side::Upper };
    Way { side, backing: mode.id.and_then(|id| of_id.get(&id).copied()) }
}
