//! Reverses the relocation of a file: the name of the space becomes the name of the stage again.
//!
//! The bytes come in pieces of any size. A name may lie across two of them, so as many bytes as a part of a name can have
//! are held back until the next piece. The names have the same length, and no part of the stage's name can begin a
//! space's name: it has an `h` or a `t`, which are not hexadecimal digits, at both ends.

use std::io;

/// Replaces `from` by `to`, which has the same length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names<'a> {
    pub(super) from: &'a [u8],
    pub(super) to: &'a [u8],
}

/// The renaming in one file.
#[derive(Debug)]
pub(super) struct Renaming<'a> {
    /// None changes nothing.
    names: Option<Names<'a>>,
    /// The bytes that are held back, and the current piece.
    view: Vec<u8>,
}

impl<'a> Renaming<'a> {
    pub(super) fn new(names: Option<Names<'a>>) -> Self {
        Self { names, view: Vec::new() }
    }

    /// Renames in the next bytes of the file, and passes what is final to `take`.
    pub(super) fn update(
        &mut self,
        bytes: &[u8],
        take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(Names { from, to }) = self.names else { return take(bytes) };
        self.view.extend_from_slice(bytes);
        replace_all(&mut self.view, from, to);
        let held_back = from.len().saturating_sub(1);
        let done = self.view.len().saturating_sub(held_back);
        take(self.view.get(..done).unwrap_or_default())?;
        self.view.drain(..done);
        Ok(())
    }

    /// Passes the bytes that were held back.
    pub(super) fn finish(self, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        if self.view.is_empty() { Ok(()) } else { take(&self.view) }
    }
}

fn replace_all(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    let Some(&first) = from.first() else { return };
    let mut at = 0;
    while let Some(rest) = bytes.get_mut(at..) {
        let Some(skipped) = rest.iter().position(|byte| *byte == first) else { break };
        at += skipped;
        match rest.get_mut(skipped..skipped + from.len()) {
            Some(found) if found == from => {
                found.copy_from_slice(to);
                at += from.len();
            }
            Some(_) => at += 1,
            None => break,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Names<'_> = Names { from: b"ea7ce2c_5a1fac3_ca793c28", to: b"hea7ce2c_493f813dad24d3t" };

    fn renamed(content: &[u8], piece: usize) -> Vec<u8> {
        let (mut out, mut renaming) = (Vec::new(), Renaming::new(Some(NAMES)));
        let mut take = |bytes: &[u8]| {
            out.extend_from_slice(bytes);
            Ok(())
        };
        for piece in content.chunks(piece) {
            renaming.update(piece, &mut take).unwrap();
        }
        renaming.finish(&mut take).unwrap();
        out
    }

    #[test]
    fn names_are_replaced_wherever_the_pieces_end() {
        let text = |name: &str| format!("{name}#!/x/{name}/bin/e{name}{name} ea7ce2c_5a1fac3_ca793c2{name}");
        let (from, to) = (std::str::from_utf8(NAMES.from).unwrap(), std::str::from_utf8(NAMES.to).unwrap());
        for piece in 1..90 {
            let found = renamed(text(from).as_bytes(), piece);
            assert_eq!(String::from_utf8(found).unwrap(), text(to), "{piece}");
        }
    }

    #[test]
    fn other_bytes_and_short_files_stay() {
        for content in [&b""[..], b"e", b"ea7ce2c_5a1fac3_ca793c2", b"ea7ce2c_5a1fac3_ca793c29"] {
            assert_eq!(renamed(content, 7), content);
        }
        let mut out = Vec::new();
        Renaming::new(None)
            .update(NAMES.from, &mut |bytes| {
                out.extend_from_slice(bytes);
                Ok(())
            })
            .unwrap();
        assert_eq!(out, NAMES.from);
    }
}
