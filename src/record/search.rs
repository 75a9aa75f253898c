//! Finds the stage's name in the bytes of a file. These are the offsets at which a restore writes the space's name.
//!
//! The offsets must equal those of rcc, so that a catalog made here equals rcc's. rcc reads blocks of 32768 bytes,
//! carries as many bytes as the name has into the next block, and searches while more bytes than that are in view. This
//! has two consequences. A name that ends exactly on a block boundary is listed twice. The repeat is harmless and is
//! kept. And some names are *missed*: one that ends the file and follows another name or the name's last byte, or that
//! is the whole file. A missed name breaks the file in every space, and an additional offset is harmless, since readers
//! write the name at all offsets. **So the missed names are added.** This is the one intended difference to rcc's
//! offsets.
//!
//! The search takes the bytes in pieces of any size.
//!
//! Invariant: the offsets are ascending, possibly with equal neighbours, and include every occurrence of the name.

/// The size of rcc's blocks, which is what Go's `io.Copy` reads at once.
const BLOCK: usize = 32 * 1024;

/// The search in one file.
#[derive(Debug)]
pub(super) struct Search<'a> {
    name: &'a [u8],
    /// The carried bytes and then the current block. `view[..carried]` was searched before.
    view: Vec<u8>,
    carried: usize,
    /// The offset in the file of `view[0]`.
    start: u64,
    found: Vec<u64>,
}

impl<'a> Search<'a> {
    /// Starts a search for `name`, which must not be empty.
    pub(super) fn new(name: &'a [u8]) -> Self {
        let view = Vec::with_capacity(name.len() + BLOCK);
        Self { name, view, carried: 0, start: 0, found: Vec::new() }
    }

    /// Searches the next bytes of the file.
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = (self.carried + BLOCK).saturating_sub(self.view.len());
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.view.extend_from_slice(now);
            bytes = later;
            if self.view.len() == self.carried + BLOCK {
                self.block();
            }
        }
    }

    /// Returns the offsets.
    pub(super) fn finish(mut self) -> Vec<u64> {
        if self.view.len() > self.carried {
            self.block();
        }
        // rcc misses names only at the end of a file.
        if self.view.ends_with(self.name) {
            let last = self.start + (self.view.len() - self.name.len()) as u64;
            if self.found.last() != Some(&last) {
                self.found.push(last);
            }
        }
        self.found
    }

    /// Searches the view as rcc does, and carries its last bytes over.
    fn block(&mut self) {
        let Some(&last) = self.name.last() else { return };
        let mut rest = self.view.as_slice();
        while rest.len() > self.name.len() {
            let Some(position) = rest.iter().position(|byte| *byte == last) else { break };
            let end = self.view.len() - rest.len() + position + 1;
            // rcc compares with the bytes before its position in the whole view, not only with those that are left to
            // search.
            if self.view.get(..end).is_some_and(|seen| seen.ends_with(self.name)) {
                self.found.push(self.start + (end - self.name.len()) as u64);
            }
            rest = self.view.get(end..).unwrap_or_default();
        }
        let keep = self.view.len().min(self.name.len());
        self.start += (self.view.len() - keep) as u64;
        self.view.drain(..self.view.len() - keep);
        self.carried = keep;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "hea7ce2c_493f813dad24d3t";

    fn offsets(name: &str, content: &[u8]) -> Vec<u64> {
        let mut search = Search::new(name.as_bytes());
        search.update(content);
        search.finish()
    }

    /// rcc's search as the format page describes it, on a whole file, without the added offsets.
    fn of_rcc(name: &[u8], content: &[u8]) -> Vec<u64> {
        let mut found = Vec::new();
        let mut seen = 0;
        for block in content.chunks(BLOCK) {
            let from = seen - name.len().min(seen);
            seen += block.len();
            let view = &content[from..seen];
            let mut p = 0;
            while view.len() - p > name.len() {
                let Some(t) = view[p..].iter().position(|b| b == name.last().unwrap()) else { break };
                let e = p + t + 1;
                if e >= name.len() && &view[e - name.len()..e] == name {
                    found.push((from + e - name.len()) as u64);
                }
                p = e;
            }
        }
        found
    }

    fn everywhere(name: &[u8], content: &[u8]) -> Vec<u64> {
        (0..content.len()).filter(|i| content[*i..].starts_with(name)).map(|i| i as u64).collect()
    }

    #[test]
    fn finds_what_rcc_finds_and_the_ends_it_misses() {
        let cases: [(&str, &[u64], &[u64]); 10] = [
            ("I", &[], &[0]),
            ("I\n", &[0], &[]),
            ("xI", &[1], &[]),
            ("tI", &[], &[1]),
            ("tI\n", &[1], &[]),
            ("/I", &[1], &[]),
            ("II", &[0], &[24]),
            ("II\n", &[0, 24], &[]),
            ("III", &[0, 24], &[48]),
            ("prefix = /a/I/bin\nI", &[12, 41], &[]),
        ];
        for (text, by_rcc, added) in cases {
            let content = text.replace('I', ID).into_bytes();
            assert_eq!(of_rcc(ID.as_bytes(), &content), by_rcc, "{text:?}");
            assert_eq!(offsets(ID, &content), [by_rcc, added].concat(), "{text:?}");
        }
    }

    #[test]
    fn agrees_with_every_vector_of_the_real_program() {
        #[derive(serde::Deserialize)]
        struct Vector {
            op: String,
            #[serde(default)]
            text: String,
            #[serde(default)]
            needle: String,
            #[serde(default)]
            found: Vec<u64>,
        }
        let mut count = 0;
        for line in include_str!("../../tests/vectors/rcc.jsonl").lines() {
            let vector: Vector = serde_json::from_str(line).unwrap();
            if vector.op != "locations" {
                continue;
            }
            count += 1;
            let (name, content) = (vector.needle.as_bytes(), vector.text.as_bytes());
            assert_eq!(of_rcc(name, content), vector.found, "{:?}", vector.text);
            let mut wanted = [vector.found, everywhere(name, content)].concat();
            wanted.sort_unstable();
            wanted.dedup();
            assert_eq!(offsets(&vector.needle, content), wanted, "{:?}", vector.text);
        }
        assert!(count >= 10, "{count}");
    }

    #[test]
    fn a_name_that_ends_on_a_block_boundary_is_listed_twice() {
        let mut content = vec![b'.'; BLOCK - 24];
        content.extend_from_slice(ID.as_bytes());
        assert_eq!(offsets(ID, &content), [(BLOCK - 24) as u64]);
        content.push(b'.');
        assert_eq!(offsets(ID, &content), [(BLOCK - 24) as u64; 2]);
    }

    proptest! {
        /// Names, parts of names and fillings around block boundaries, in pieces of any size.
        #[test]
        fn every_occurrence_is_found_and_rccs_list_is_kept(
            before in prop_oneof![0..80usize, BLOCK - 60..BLOCK + 3, 2 * BLOCK - 60..2 * BLOCK + 3],
            parts in prop::collection::vec(prop_oneof![
                Just(ID), Just("t"), Just("h"), Just("x"), Just(&ID[..23]), Just(&ID[1..]), Just("\n")
            ], 0..12),
            piece in 1..70_000usize,
        ) {
            let mut content = vec![b'.'; before];
            content.extend_from_slice(parts.concat().as_bytes());
            let mut search = Search::new(ID.as_bytes());
            content.chunks(piece).for_each(|bytes| search.update(bytes));
            let found = search.finish();
            let mut distinct = found.clone();
            distinct.dedup();
            prop_assert_eq!(&distinct, &everywhere(ID.as_bytes(), &content));
            prop_assert!(found.is_sorted());
            // All of rcc's offsets are in ours, with the repeats.
            let rcc = of_rcc(ID.as_bytes(), &content);
            let mut ours = found.iter();
            prop_assert!(rcc.iter().all(|offset| ours.any(|o| o == offset)), "{:?} {:?}", rcc, found);
            prop_assert!(found.len() <= rcc.len() + 1);
        }
    }
}
