//! One of the two trees: does operations on it, and describes everything that is visible of it.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{Result, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::op::Op;
use crate::common::see::{describe, hash, kind, tree, visit, xattrs};

/// The number of files that a sequence may have open at the same time.
pub const SLOTS: usize = 6;

/// A tree and the files that are open in it.
pub struct Side {
    root: PathBuf,
    open: [Option<File>; SLOTS],
    maps: [Option<Map>; SLOTS],
}

/// A shared map, and a descriptor to read the current length of its file.
struct Map {
    file: File,
    map: memmap2::MmapRaw,
    writable: bool,
}

impl Side {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), open: [const { None }; SLOTS], maps: [const { None }; SLOTS] }
    }

    pub fn is_open(&self, slot: usize) -> bool {
        self.open[slot].is_some()
    }

    pub fn close_all(&mut self) {
        self.open = [const { None }; SLOTS];
        self.maps = [const { None }; SLOTS];
    }

    fn at(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }

    fn slot(&self, slot: usize) -> Result<&File> {
        self.open[slot].as_ref().ok_or_else(|| Errno::BADF.into())
    }

    /// Does an operation and returns its result as text that can be compared.
    pub fn apply(&mut self, op: &Op) -> String {
        match self.perform(op) {
            Ok(text) => text,
            Err(error) => match error.raw_os_error() {
                Some(raw) => format!("{:?}", Errno::from_raw_os_error(raw)),
                None => format!("{:?}", error.kind()),
            },
        }
    }

    fn perform(&mut self, op: &Op) -> Result<String> {
        let ok = |()| "ok".to_owned();
        match op {
            Op::Write { path, how, at, len, fill } => {
                let mut file = how.options().custom_flags(libc::O_NONBLOCK).open(self.at(path))?;
                if matches!(how, super::op::How::Append) {
                    file.write_all(&vec![*fill; *len]).map(ok)
                } else {
                    file.write_all_at(&vec![*fill; *len], *at).map(ok)
                }
            }
            Op::Read { path } => self.read(path),
            Op::Truncate { path, len } => {
                // rustix has no truncate(2). An open for writing is the same for a filesystem.
                File::options()
                    .write(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(self.at(path))?
                    .set_len(*len)
                    .map(ok)
            }
            Op::Mkdir { path, mode } => {
                rustix::fs::mkdir(self.at(path), Mode::from_raw_mode(*mode)).map_err(Into::into).map(ok)
            }
            Op::Rmdir { path } => std::fs::remove_dir(self.at(path)).map(ok),
            Op::Unlink { path } => {
                rustix::fs::unlinkat(CWD, self.at(path), AtFlags::empty()).map_err(Into::into).map(ok)
            }
            Op::Rename { from, to, flags } => {
                rustix::fs::renameat_with(CWD, self.at(from), CWD, self.at(to), *flags)
                    .map_err(Into::into)
                    .map(ok)
            }
            Op::Link { from, to } => {
                rustix::fs::linkat(CWD, self.at(from), CWD, self.at(to), AtFlags::empty())
                    .map_err(Into::into)
                    .map(ok)
            }
            Op::Symlink { target, path } => std::os::unix::fs::symlink(target, self.at(path)).map(ok),
            Op::Readlink { path } => Ok(std::fs::read_link(self.at(path))?.display().to_string()),
            Op::Chmod { path, mode } => {
                std::fs::set_permissions(self.at(path), Permissions::from_mode(*mode)).map(ok)
            }
            Op::SetTime { path, seconds } => {
                let time = Timespec { tv_sec: *seconds, tv_nsec: 0 };
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(CWD, self.at(path), &times, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(Into::into)
                    .map(ok)
            }
            Op::SetXattr { path, name, len } => {
                let value = vec![b'x'; *len];
                rustix::fs::lsetxattr(self.at(path), *name, &value, XattrFlags::empty())
                    .map_err(Into::into)
                    .map(ok)
            }
            Op::GetXattr { path, name } => {
                let mut value = vec![0; 4096];
                let len = rustix::fs::lgetxattr(self.at(path), *name, &mut value[..])?;
                Ok(format!("{len} bytes"))
            }
            Op::RemoveXattr { path, name } => {
                rustix::fs::lremovexattr(self.at(path), *name).map_err(Into::into).map(ok)
            }
            Op::ListXattr { path } => Ok(format!("{:?}", xattrs(&self.at(path))?)),
            Op::List { path } => self.list(path),
            Op::Stat { path } => Ok(describe(&std::fs::symlink_metadata(self.at(path))?)),
            Op::Mkfifo { path } => {
                rustix::fs::mknodat(CWD, self.at(path), FileType::Fifo, Mode::from_raw_mode(0o644), 0)
                    .map_err(Into::into)
                    .map(ok)
            }
            Op::Fallocate { path, flags, at, len } => {
                let file = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(self.at(path))?;
                rustix::fs::fallocate(&file, *flags, *at, *len).map_err(Into::into).map(ok)
            }
            Op::CopyRange { from, to, at, put, len } => self.copy_range(from, to, *at, *put, *len),
            Op::Open { slot, path, how } => {
                self.open[*slot] = None;
                self.open[*slot] = Some(how.options().custom_flags(libc::O_NONBLOCK).open(self.at(path))?);
                Ok("open".to_owned())
            }
            Op::WriteOpen { slot, at, len, fill } => {
                self.slot(*slot)?.write_all_at(&vec![*fill; *len], *at).map(ok)
            }
            Op::ReadOpen { slot, at, len } => {
                let mut bytes = vec![0; *len];
                let read = self.slot(*slot)?.read_at(&mut bytes, *at)?;
                Ok(format!("{read} bytes {:x}", hash(&bytes[..read])))
            }
            Op::TruncateOpen { slot, len } => self.slot(*slot)?.set_len(*len).map(ok),
            Op::StatOpen { slot } => Ok(describe(&self.slot(*slot)?.metadata()?)),
            Op::MapOpen { slot, at, fill } => self.write_map(*slot, *at, *fill),
            Op::KeepMap { slot } => self.keep_map(*slot),
            Op::ReadMap { slot } => self.read_map(*slot),
            Op::WriteMap { slot, at, fill } => self.write_kept_map(*slot, *at, *fill),
            Op::Close { slot } => {
                self.open[*slot] = None;
                Ok("closed".to_owned())
            }
            Op::Remount | Op::Kill => Ok(String::new()),
        }
    }

    fn read(&self, path: &str) -> Result<String> {
        use std::io::Read;
        let mut bytes = Vec::new();
        let mut file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(self.at(path))?;
        file.read_to_end(&mut bytes)?;
        Ok(format!("{} bytes {:x}", bytes.len(), hash(&bytes)))
    }

    fn copy_range(&self, from: &str, to: &str, at: u64, put: u64, len: usize) -> Result<String> {
        let open = |path: &str, write: bool| {
            File::options().read(!write).write(write).custom_flags(libc::O_NONBLOCK).open(self.at(path))
        };
        let (from, to) = (open(from, false)?, open(to, true)?);
        let (mut at, mut put) = (at, put);
        let copied = rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut put), len)?;
        Ok(format!("{copied} bytes"))
    }

    #[allow(unsafe_code)]
    fn write_map(&self, slot: usize, at: usize, fill: u8) -> Result<String> {
        let file = self.slot(slot)?;
        let stat = file.metadata()?;
        // The kernel clears the setuid and setgid bits on a write but not on a store to a map; a daemon that is not
        // root writes.
        if !stat.is_file() || stat.len() == 0 || stat.mode() & 0o6000 != 0 {
            return Ok("nothing to map".to_owned());
        }
        // SAFETY: only this thread uses the file, and nothing truncates it while it is mapped.
        let mut map = unsafe { memmap2::MmapMut::map_mut(file)? };
        let at = at % map.len();
        map[at] = fill;
        map.flush()?;
        Ok("mapped".to_owned())
    }

    fn keep_map(&mut self, slot: usize) -> Result<String> {
        use std::os::fd::AsFd;
        self.maps[slot] = None;
        let file = File::from(self.slot(slot)?.as_fd().try_clone_to_owned()?);
        let stat = file.metadata()?;
        if !stat.is_file() || stat.len() == 0 || stat.mode() & 0o6000 != 0 {
            return Ok("nothing to map".to_owned());
        }
        let options = memmap2::MmapOptions::new();
        let (map, writable) = match options.map_raw(&file) {
            Ok(map) => (map, true),
            Err(_) => (options.map_raw_read_only(&file)?, false),
        };
        self.maps[slot] = Some(Map { file, map, writable });
        Ok(format!("mapped, writable: {writable}"))
    }

    /// The part of a map that may be accessed: pages beyond the end of the file cause SIGBUS.
    fn mapped(&self, slot: usize) -> Result<Option<(&Map, usize)>> {
        let Some(map) = &self.maps[slot] else { return Ok(None) };
        let len = usize::try_from(map.file.metadata()?.len()).unwrap().min(map.map.len());
        Ok((len > 0).then_some((map, len)))
    }

    #[allow(unsafe_code)]
    fn read_map(&self, slot: usize) -> Result<String> {
        let Some((Map { map, .. }, len)) = self.mapped(slot)? else { return Ok("no map".to_owned()) };
        // SAFETY: the range is mapped, the file is long enough, and nothing else accesses it.
        let bytes: Vec<u8> = (0..len).map(|at| unsafe { map.as_ptr().add(at).read_volatile() }).collect();
        Ok(format!("{len} bytes {:x}", hash(&bytes)))
    }

    #[allow(unsafe_code)]
    fn write_kept_map(&self, slot: usize, at: usize, fill: u8) -> Result<String> {
        let Some((Map { file, map, writable: true }, len)) = self.mapped(slot)? else {
            return Ok("no map".to_owned());
        };
        if file.metadata()?.mode() & 0o6000 != 0 {
            return Ok("set-id".to_owned());
        }
        // SAFETY: the range is mapped writable, the file is long enough, and nothing else accesses it.
        unsafe { map.as_mut_ptr().add(at % len).write_volatile(fill) };
        map.flush()?;
        Ok("written".to_owned())
    }

    fn list(&self, path: &str) -> Result<String> {
        use std::os::unix::fs::DirEntryExt;
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.at(path))? {
            let entry = entry?;
            // A user without search permission can list a directory, but cannot stat its entries.
            if let Ok(stat) = std::fs::symlink_metadata(entry.path()) {
                assert_eq!(entry.ino(), stat.ino(), "d_ino and st_ino of {:?}", entry.path());
            }
            names.push(format!("{}{}", entry.file_name().display(), kind(&entry.file_type()?)));
        }
        names.sort();
        Ok(names.join(" "))
    }

    /// The inode number of every path that can be reached.
    pub fn numbers(&self) -> BTreeMap<String, u64> {
        let mut out = BTreeMap::new();
        self.visit(&mut |path, stat| {
            if let Ok(stat) = stat {
                out.insert(path.to_owned(), stat.ino());
            }
        });
        out
    }

    /// Calls `see` for every path below the root, in order, and for the root as "".
    pub fn visit(&self, see: &mut dyn FnMut(&str, Result<std::fs::Metadata>)) {
        visit(&self.root, "", see);
    }

    /// Everything visible of the tree, one line for each path.
    pub fn snapshot(&self) -> BTreeMap<String, String> {
        tree(&self.root, &|bytes| format!("{} bytes {:x}", bytes.len(), hash(bytes)))
    }
}
