//! Puts a library into a directory in the format of an object store, as `holofs push` does, but with small groups, and with
//! blobs as the library has them, as the first version of the format did.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use holofs::library::catalogs::CatalogName;
use holofs::library::digest::Digest;
use holofs::library::remote::head::{self, Head, Object};
use holofs::library::remote::layout::{Blob, Packing, Writer};
use sha2::{Digest as _, Sha256};

use super::files_below;
use super::fixture::gunzip;

/// Stored blobs that are larger are objects of their own.
const ALONE: usize = 64 << 10;
/// The number of blobs in a group.
const GROUP: usize = 4;

/// A store that is a directory.
#[derive(Debug)]
pub struct FileStore(pub PathBuf);

impl FileStore {
    /// Puts all catalogs of a hololib below `dir`.
    pub fn push(hololib: &Path, dir: &Path) -> Self {
        let store = Self(dir.to_owned());
        let library = hololib.join("library");
        let (mut writer, mut small) = (Writer::default(), Vec::new());
        for path in files_below(&library) {
            let digest = Digest::parse(path.file_name().unwrap().as_encoded_bytes()).unwrap();
            let stored = std::fs::read(library.join(path)).unwrap();
            let size = if digest.is_raw() { stored.len() } else { gunzip(&stored).len() } as u64;
            let blob = Blob { digest, size, stored: stored.len() as u64, packing: Packing::AsInLibrary };
            if stored.len() > ALONE {
                writer.alone(blob);
                store.put(&head::blob(&blob), &stored);
            } else {
                small.push((blob, stored));
            }
        }
        let pack: Vec<u8> = small.iter().flat_map(|(_, stored)| stored).copied().collect();
        let sum = sha256(&pack);
        store.put(&head::pack(&sum), &pack);
        let mut offset = 0;
        for group in small.chunks(GROUP) {
            writer.group(sum, pack.len() as u64, offset, group.iter().map(|(blob, _)| *blob));
            offset += group.iter().map(|(blob, _)| blob.stored).sum::<u64>();
        }
        let layout = writer.finish();
        store.put(&head::layout(&sha256(&layout)), &layout);
        for entry in std::fs::read_dir(hololib.join("catalog")).unwrap().map(Result::unwrap) {
            let Some(name) = CatalogName::parse(entry.file_name().to_str().unwrap()) else { continue };
            let catalog = std::fs::read(entry.path()).unwrap();
            store.put(&head::catalog(&sha256(&catalog)), &catalog);
            let made = Head {
                version: head::VERSION,
                catalog: object(&catalog),
                layout: object(&layout),
                profile: None,
                finds: None,
                bytecode: None,
            };
            store.put(&head::head(&name), &made.to_bytes().unwrap());
        }
        store
    }

    pub fn url(&self) -> String {
        format!("file://{}", self.0.display())
    }

    pub fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// The only file in a directory of the store.
    pub fn only(&self, dir: &str) -> PathBuf {
        let files = files_below(&self.0.join(dir));
        assert_eq!(files.len(), 1, "{files:?}");
        self.0.join(dir).join(&files[0])
    }

    /// Takes the store away. Drop what is returned to bring it back.
    pub fn away(&self) -> Away<'_> {
        std::fs::rename(&self.0, self.hidden()).unwrap();
        Away(self)
    }

    fn hidden(&self) -> PathBuf {
        self.0.with_extension("away")
    }
}

/// A store that is not there.
#[derive(Debug)]
pub struct Away<'s>(&'s FileStore);

impl Drop for Away<'_> {
    fn drop(&mut self) {
        std::fs::rename(self.0.hidden(), &self.0.0).unwrap();
    }
}

fn object(bytes: &[u8]) -> Object {
    Object { sha256: sha256(bytes), bytes: bytes.len() as u64 }
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// A web server that gives the objects of a store, and can fall silent. It has no lists.
#[derive(Debug)]
pub struct WebServer {
    port: u16,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    root: PathBuf,
    silent: AtomicBool,
    ended: AtomicBool,
    trap: std::sync::Mutex<Option<String>>,
    /// The names of the objects that were asked for.
    asked: std::sync::Mutex<Vec<String>>,
}

impl WebServer {
    pub fn of(store: &FileStore) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State { root: store.0.clone(), ..State::default() });
        let theirs = Arc::clone(&state);
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                if theirs.ended.load(Ordering::Relaxed) {
                    return;
                }
                let state = Arc::clone(&theirs);
                // A connection that is cut is the client's business.
                std::thread::spawn(move || serve(&connection.unwrap(), &state).unwrap_or_default());
            }
        });
        Self { port, state }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Stops to answer, or answers again.
    pub fn be_silent(&self, silent: bool) {
        self.state.silent.store(silent, Ordering::Relaxed);
    }

    /// Stops to answer as soon as an object is asked for whose name begins so.
    pub fn be_silent_from(&self, prefix: &str) {
        *self.state.trap.lock().unwrap() = Some(prefix.to_owned());
    }

    pub fn is_silent(&self) -> bool {
        self.state.silent.load(Ordering::Relaxed)
    }

    /// Takes the names of the objects that were asked for since the last call.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.state.asked.lock().unwrap())
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        self.be_silent(false);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

fn serve(connection: &TcpStream, state: &State) -> std::io::Result<()> {
    let mut lines = BufReader::new(connection).lines();
    loop {
        let Some(first) = lines.next() else { return Ok(()) };
        let first = first?;
        let mut range = None;
        for line in lines.by_ref() {
            let line = line?.to_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(bytes) = line.strip_prefix("range: bytes=") {
                let (from, to) = bytes.split_once('-').unwrap();
                range = Some(from.parse::<usize>().unwrap()..to.parse::<usize>().unwrap() + 1);
            }
        }
        if state.trap.lock().unwrap().as_ref().is_some_and(|prefix| first.contains(&format!("/{prefix}"))) {
            state.silent.store(true, Ordering::Relaxed);
        }
        while state.silent.load(Ordering::Relaxed) && !state.ended.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut words = first.split(' ');
        let (method, name) = (words.next().unwrap(), words.next().unwrap().trim_start_matches('/'));
        state.asked.lock().unwrap().push(name.to_owned());
        let found = std::fs::read(state.root.join(name)).ok();
        let mut out = connection;
        let Some(all) = found.filter(|_| method == "GET") else {
            write!(out, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        };
        let date = "Last-Modified: Thu, 07 Jan 2021 06:13:20 GMT";
        match range {
            Some(range) if range.start < all.len() => {
                let part = &all[range.start..range.end.min(all.len())];
                let (from, to, len) = (range.start, range.start + part.len() - 1, all.len());
                write!(
                    out,
                    "HTTP/1.1 206 Partial Content\r\n{date}\r\nContent-Range: bytes {from}-{to}/{len}\r\nContent-Length: {}\r\n\r\n",
                    part.len()
                )?;
                out.write_all(part)?;
            }
            _ => {
                write!(out, "HTTP/1.1 200 OK\r\n{date}\r\nContent-Length: {}\r\n\r\n", all.len())?;
                out.write_all(&all)?;
            }
        }
    }
}
