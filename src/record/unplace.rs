//! Reverses the relocation of a whole path, of any length, in a file that was changed in a space.
//!
//! The files of an environment that is mounted at another path name that path. What is recorded must name the path of the
//! stage again. The bytes are a user's, so the path counts only where it can be one: `/env` in `/usr/bin/env` is none. In a
//! text its length may change. In a binary the string is filled up with NUL bytes, so the path of the stage must not be
//! longer there.

use std::fs::File;
use std::io::{self, Read, Seek};

use memchr::memmem::Finder;

/// The path of the space, and the path of the stage that takes its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Paths<'a> {
    pub(crate) from: &'a [u8],
    pub(crate) to: &'a [u8],
}

/// The path of the stage does not fit into a binary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DoesNotFit;

/// Whether a file has the bytes of a path.
pub(super) fn mentions(file: &mut File, path: &[u8], piece: &mut [u8]) -> io::Result<bool> {
    let finder = Finder::new(path);
    let mut view = Vec::new();
    file.rewind()?;
    loop {
        let read = match file.read(piece) {
            Ok(0) => return Ok(false),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        view.extend_from_slice(piece.get(..read).unwrap_or_default());
        if finder.find(&view).is_some() {
            return Ok(true);
        }
        view.drain(..view.len().saturating_sub(path.len().saturating_sub(1)));
    }
}

impl Paths<'_> {
    /// The content with the path of the stage in it. None if it does not name the path of the space.
    pub(crate) fn reverse(self, content: &[u8]) -> Result<Option<Vec<u8>>, DoesNotFit> {
        let Self { from, to } = self;
        let finder = Finder::new(from);
        let found = finder.find_iter(content);
        let found: Vec<usize> = found.filter(|at| is_path(content, *at, at + from.len())).collect();
        if found.is_empty() {
            return Ok(None);
        }
        let binary = memchr::memchr(0, content).is_some();
        if binary && to.len() > from.len() {
            return Err(DoesNotFit);
        }
        let mut out = Vec::with_capacity(content.len());
        let part = |start: usize, end: usize| content.get(start..end).unwrap_or_default();
        let mut done = 0;
        for at in found {
            if binary {
                // The string before this one, if it ends before.
                let nul = memchr::memchr(0, part(done, at)).map_or(at, |nul| done + nul);
                out.extend_from_slice(part(done, nul));
                if nul < at {
                    out.resize(nul, 0);
                    out.extend_from_slice(part(nul, at));
                }
            } else {
                out.extend_from_slice(part(done, at));
            }
            out.extend_from_slice(to);
            done = at + from.len();
        }
        if binary {
            let nul = memchr::memchr(0, part(done, content.len())).map_or(content.len(), |nul| done + nul);
            out.extend_from_slice(part(done, nul));
            out.resize(nul, 0);
            done = nul;
        }
        out.extend_from_slice(part(done, content.len()));
        Ok(Some(out))
    }
}

/// Whether bytes that equal a path are one: not a part of a longer name.
fn is_path(content: &[u8], start: usize, end: usize) -> bool {
    let in_name = |byte: &u8| byte.is_ascii_alphanumeric() || !byte.is_ascii() || b"._-~@+/".contains(byte);
    let after = content.get(end).is_none_or(|next| *next == b'/' || !in_name(next));
    let before = content.get(..start).unwrap_or_default();
    let starts = match before {
        [] => true,
        // `file:///path`
        [.., b':', b'/', b'/'] => true,
        // `-I/path`
        [b'-', flag] if flag.is_ascii_alphabetic() => true,
        [.., space, b'-', flag] if flag.is_ascii_alphabetic() && !in_name(space) => true,
        [.., last] => !in_name(last),
    };
    starts && after
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reversed(content: &[u8], to: &str) -> Result<Option<Vec<u8>>, DoesNotFit> {
        Paths { from: b"/srv/env", to: to.as_bytes() }.reverse(content)
    }

    #[test]
    fn a_text_gets_the_path_of_the_stage() {
        let text = b"#!/srv/env/bin/python -I/srv/env/include file:///srv/env \"/srv/env\"";
        for to in ["/s", "/a/much/longer/path"] {
            let expected = format!("#!{to}/bin/python -I{to}/include file://{to} \"{to}\"");
            assert_eq!(reversed(text, to).unwrap().unwrap(), expected.as_bytes());
        }
    }

    #[test]
    fn parts_of_other_paths_stay() {
        for other in ["/usr/srv/env", "/srv/env2/x", "/srv/env.bak", "x/srv/env", "/srv/env-2", "/srv/en", ""]
        {
            assert_eq!(reversed(other.as_bytes(), "/s"), Ok(None), "{other}");
        }
    }

    #[test]
    fn strings_of_a_binary_keep_their_places() {
        let binary = b"\0/srv/env/lib:/srv/env\0x\0/srv/env/y";
        let expected = b"\0/s/lib:/s\0\0\0\0\0\0\0\0\0\0\0\0\0x\0/s/y\0\0\0\0\0\0";
        assert_eq!(reversed(binary, "/s").unwrap().unwrap(), expected);
        assert_eq!(binary.len(), expected.len());
        assert_eq!(reversed(binary, "/srv/env"), Ok(Some(binary.to_vec())));
        assert_eq!(reversed(binary, "/srv/envs"), Err(DoesNotFit));
    }

    #[test]
    fn a_path_across_two_pieces_is_found() {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456/srv/env").unwrap();
        for piece in 1..20 {
            assert!(mentions(&mut file, b"/srv/env", &mut vec![0; piece]).unwrap());
            assert!(!mentions(&mut file, b"/srv/envy", &mut vec![0; piece]).unwrap());
        }
    }
}
