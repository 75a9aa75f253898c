//! Compiles the Python sources of an environment, for all of its spaces.
//!
//! The environment's own Python compiles them, in a new space that is mounted read-only for this and removed afterwards.
//! No program has run there, so the bytecode is that of the library, and no user of a space can put something into it.
//! Nothing of the environment is imported but Python's own start.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use super::choice::Choice;
use super::end::{How, unmount};
use super::error::{Describe, Error};
use super::registry;
use super::request::{MountPlan, MountRequest};
use crate::activate::Facts;
use crate::library::LibraryError;
use crate::library::bytecode::build::{self, sources};
use crate::library::index::{Index, NodeId, NodeKind};
use crate::space::SpaceError;
use crate::sys::{plain, thread, tree};

/// The space in which the sources are compiled.
const SPACE: &str = "holofs-bytecode";
/// The number of sources that one process compiles.
const AT_ONCE: usize = 200;
/// The largest bytecode of one source that is accepted.
const MAX_SIZE: u32 = 64 << 20;
/// How long the daemon may take to end.
const ENDING: Duration = Duration::from_secs(10);

/// Reads the names of sources from standard input. Writes Python's tag, and the bytecode of each source; nothing for one
/// that is no Python. Bytecode with the flags 3 is compared with the hash of its source at each import.
const PROGRAM: &str = "
import sys, marshal, importlib.util as u
def put(data):
    sys.stdout.buffer.write(len(data).to_bytes(4, 'little') + data)
put(sys.implementation.cache_tag.encode())
for path in sys.stdin.buffer.read().split(b'\\0')[:-1]:
    with open(path, 'rb') as file:
        source = file.read()
    digest = u.source_hash(source)
    try:
        code = compile(source, path.decode('utf-8', 'surrogateescape'), 'exec', dont_inherit=True)
        data = u.MAGIC_NUMBER + (3).to_bytes(4, 'little') + digest + marshal.dumps(code)
    except Exception:
        data = b''
    put(data)
sys.stdout.buffer.flush()
";

/// What was compiled. A part of `holofs warm --json`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Compiled {
    /// The tag of Python's bytecode, such as `cpython-311`.
    pub python: String,
    /// The number of sources that were compiled.
    pub files: u32,
    /// The size of the bytecode in bytes.
    pub bytes: u64,
    /// The number of sources that Python could not compile.
    pub failed: u32,
}

/// The plan of a mount for compiling the environment with this blueprint.
#[must_use]
pub fn request(library: &Path, blueprint: &str) -> MountRequest {
    MountRequest {
        library: Some(library.into()),
        space: Some(SPACE.into()),
        choice: Choice { blueprint: Some(blueprint.to_owned()), ..Choice::default() },
        read_only: true,
        ephemeral: true,
        no_profile: true,
        ..MountRequest::default()
    }
}

/// Compiles the sources of an environment, unless that was done before. `plan` is of [`request`]. Calls `done` for each
/// source.
///
/// # Errors
/// When the environment cannot be mounted, or has no Python that can compile. Older bytecode stays.
pub fn compile(
    plan: &MountPlan,
    index: &Index,
    jobs: usize,
    describe: Describe,
    cancel: &AtomicBool,
    done: &(dyn Fn(u64) + Sync),
) -> Result<Compiled, Error> {
    let sources = sources(index).map_err(LibraryError::from)?;
    let mounted = super::start::start(plan, describe)?;
    if mounted.reused || mounted.restored.is_some() {
        let identity = plan.space.identity.to_string();
        return Err(SpaceError::Busy { identity, pid: Some(mounted.pid) }.into());
    }
    let compiled = compile_in(&mounted.path, index, plan, &sources, jobs, cancel, done);
    let removed = remove(plan);
    let compiled = compiled?;
    removed?;
    Ok(compiled)
}

fn compile_in(
    root: &Path,
    index: &Index,
    plan: &MountPlan,
    sources: &[NodeId],
    jobs: usize,
    cancel: &AtomicBool,
    done: &(dyn Fn(u64) + Sync),
) -> Result<Compiled, Error> {
    let facts = Facts::of(root).map_err(SpaceError::from)?;
    let python = root.join(facts.python.ok_or_else(|| Error::NoPython(root.to_owned()))?);
    let paths: Vec<(NodeId, PathBuf)> =
        sources.iter().map(|id| (*id, PathBuf::from(index.path_of(*id)))).collect();
    let chunks: Vec<&[(NodeId, PathBuf)]> = paths.chunks(AT_ONCE).collect();
    let (failed, tag) = (AtomicU32::new(0), Mutex::new(String::new()));
    let cache = plan.env.cache_dir();
    let size = |id: &NodeId| match index.node(*id).map(|node| node.kind) {
        Ok(NodeKind::File { size, .. }) => size,
        _ => 0,
    };
    let bytes = sources.iter().map(size).sum();
    let written = build::write(&cache, &index.catalog_sha256(), bytes, |builder| {
        let builder = Mutex::new(builder);
        let take = |(id, path): &(NodeId, PathBuf), python_tag: &str, content: Option<&[u8]>| {
            done(1);
            let Some(content) = content.filter(|content| !content.is_empty()) else {
                failed.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            };
            python_tag.clone_into(&mut tag.lock());
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            // The lock is held while the content is written, so that contents do not mix.
            builder.lock().add(*id, name, python_tag, content)
        };
        thread::for_each(&chunks, jobs, || (), |(), chunk| chunk_of(&python, root, chunk, cancel, &take))
    })?;
    let failed = failed.into_inner();
    Ok(Compiled { python: tag.into_inner(), files: written.files, bytes: written.bytes, failed })
}

type Take<'a> = &'a (dyn Fn(&(NodeId, PathBuf), &str, Option<&[u8]>) -> std::io::Result<()> + Sync);

/// Compiles some sources. One at which Python dies is left out.
fn chunk_of(
    python: &Path,
    root: &Path,
    chunk: &[(NodeId, PathBuf)],
    cancel: &AtomicBool,
    take: Take<'_>,
) -> Result<(), Error> {
    let mut rest = chunk;
    let mut deaths = 0;
    while !rest.is_empty() {
        let failed = |source: std::io::Error| Error::Python { path: python.to_owned(), why: plain(&source) };
        let compiled = run(python, root, rest, take).map_err(failed)?;
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Python { path: python.to_owned(), why: "interrupted".to_owned() });
        }
        rest = rest.get(compiled..).unwrap_or_default();
        if let Some((dead, left)) = rest.split_first() {
            deaths += 1;
            if compiled == 0 && deaths > 3 {
                let why = "it cannot compile: Python 3.7 or later is needed".to_owned();
                return Err(Error::Python { path: python.to_owned(), why });
            }
            take(dead, "", None).map_err(failed)?;
            rest = left;
        }
    }
    Ok(())
}

/// Has one process compile sources, and returns how many it has compiled before it died.
fn run(python: &Path, root: &Path, sources: &[(NodeId, PathBuf)], take: Take<'_>) -> std::io::Result<usize> {
    let mut child = Command::new(python)
        .args(["-I", "-S", "-B", "-W", "ignore", "-c", PROGRAM])
        .current_dir(root)
        .env_clear()
        .env("LANG", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let names: Vec<u8> =
        sources.iter().flat_map(|(_, path)| [path.as_os_str().as_encoded_bytes(), b"\0"].concat()).collect();
    // The program reads all names before it writes. It may die before it has read them.
    if let Some(mut stdin) = child.stdin.take()
        && let Err(error) = stdin.write_all(&names)
    {
        tracing::debug!(%error, "Python did not read the names of the sources");
    }
    let mut compiled = 0;
    let mut passed = Ok(());
    if let Some(mut out) = child.stdout.take()
        && let Some(tag) = next(&mut out)
    {
        let tag = String::from_utf8_lossy(&tag).into_owned();
        for source in sources {
            let Some(content) = next(&mut out) else { break };
            passed = take(source, &tag, Some(&content));
            if passed.is_err() {
                break;
            }
            compiled += 1;
        }
    }
    if passed.is_err() {
        child.kill()?;
    }
    let status = child.wait()?;
    if !status.success() {
        tracing::debug!(%status, "Python died while it compiled");
    }
    passed.map(|()| compiled)
}

/// The next answer of the program. None when it has died, or what comes is no answer.
fn next(out: &mut impl Read) -> Option<Vec<u8>> {
    let mut len = [0; 4];
    out.read_exact(&mut len).ok()?;
    let len = u32::from_le_bytes(len);
    let mut content = Vec::new();
    let read = out.take(len.into()).read_to_end(&mut content).ok()?;
    (len <= MAX_SIZE && read == len as usize).then_some(content)
}

/// Ends the mount, and removes what it has left.
fn remove(plan: &MountPlan) -> Result<(), Error> {
    let state_dir = plan.state_dir();
    if let Some(live) = registry::find(&state_dir)? {
        unmount(&live, Some(&state_dir), How { lazy: false, force: true, timeout: ENDING })?;
    }
    let mountpoint = &plan.space.mountpoint;
    let gone = |path: &Path, removed: std::io::Result<()>| match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::from(SpaceError::io(path)(error)))
        }
        _ => Ok(()),
    };
    gone(mountpoint, std::fs::remove_dir(mountpoint))?;
    for ending in [".meta", ".meta.info", ".use", ".lck"] {
        let path = PathBuf::from(format!("{}{ending}", mountpoint.display()));
        gone(&path, std::fs::remove_file(&path))?;
    }
    gone(&state_dir, tree::remove(rustix::fs::CWD, state_dir.as_path()).map_err(Into::into))
}
