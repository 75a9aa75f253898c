//! Creates and removes names: create, mkdir, mknod, symlink, link, unlink, rmdir.
//!
//! Each operation holds the lock of the one directory that it changes (rmdir also that of the directory it removes).
//! What it needs is prepared in the staging directory, and its last system call makes the change visible.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};

use super::copy_up::CopyUp;
use super::dir::{DirState, Entry};
use super::read::DIR_SIZE;
use super::table::{Locked, Node};
use super::types::{Attr, Caller, Error, Ino, Kind, Result, SetAttr, upper as call};
use super::{Found, Namespace, backing, c_name};
use crate::materialize::staging::Staged;
use crate::space::upper::entry::Present;

/// The kind of entry to create.
#[derive(Clone, Copy, Debug)]
pub enum Make<'a> {
    /// A regular file with these permission bits.
    File(u32),
    /// A directory with these permission bits.
    Dir(u32),
    /// A symbolic link with this text.
    Symlink(&'a CStr),
    /// A named pipe, socket or device node with these permission bits and this device number.
    Node(FileType, u32, u64),
}

impl Make<'_> {
    /// Kind and mode of the new entry. The mode may have bits of the file type.
    fn kind_and_mode(self) -> Result<(Kind, u32)> {
        Ok(match self {
            Self::File(mode) => (Kind::File, mode),
            Self::Dir(mode) => (Kind::Dir, mode),
            Self::Symlink(_) => (Kind::Symlink, 0o777),
            Self::Node(file_type, mode, _) => match Kind::of_file(file_type) {
                None | Some(Kind::File | Kind::Dir | Kind::Symlink) => {
                    return Err(Error::Invalid("no such kind of entry"));
                }
                Some(kind) => (kind, mode),
            },
        })
    }
}

impl Namespace {
    /// Creates an entry, and counts one lookup of it.
    ///
    /// # Errors
    /// `Exists`, `NotFound` when the directory itself was removed, and those of the system calls on the upper.
    pub fn make(&self, parent: Ino, name: &[u8], what: Make<'_>, caller: Caller) -> Result<Attr> {
        let name = c_name(name)?;
        if let Some(attr) = self.made_before(parent, name.as_bytes())? {
            return Ok(attr);
        }
        let dir = self.upper_dir(parent)?;
        let mut guard = dir.dir.write();
        let state = self.loaded(&dir, &mut guard)?;
        let covered = self.must_be_free(&dir, state, &name)?;
        self.about_to_make();
        let at = self.backing_fd(&dir)?;
        let dir_stat = rustix::fs::fstat(&at).map_err(call("stat"))?;
        let dir_setgid = self.held_mode(&dir, &at)?.unwrap_or(dir_stat.st_mode) & 0o2000 != 0;
        let gid = if dir_setgid { dir_stat.st_gid } else { caller.gid };
        let (kind, mode) = what.kind_and_mode()?;
        let mut mode = mode & 0o7777;
        if dir_setgid && kind == Kind::Dir {
            mode |= 0o2000;
        }
        // A file that can have the wanted owner and mode from the start is created in place, by one system call.
        let plain = !covered
            && (caller.uid, gid) == (self.owner.uid, self.owner.gid)
            && dir_stat.st_mode & 0o2000 == 0
            && mode & 0o600 == 0o600
            && mode & 0o7000 == 0;
        let (fd, stat, held) = match what {
            Make::File(_) if plain => {
                let (fd, stat) = self.create_plain(at.as_fd(), &name, mode)?;
                (fd, stat, None)
            }
            _ => {
                let (fd, staged) = self.stage(what)?;
                self.own(&fd, caller.uid, gid)?;
                let held = match what {
                    Make::Symlink(_) => None,
                    _ => backing::write_mode(fd.as_fd(), kind, mode, None)?,
                };
                let stat = rustix::fs::fstat(&fd).map_err(call("stat"))?;
                put(staged, at.as_fd(), &name, kind, covered)?;
                (fd, stat, held)
            }
        };
        let present = Present::created(kind, stat.st_ino);
        let ino = present.ino;
        self.set_entry(&dir, state, name.to_bytes(), Entry::Present(present))?;
        let node = self.entry_node(&dir, &name, present, 1);
        if kind == Kind::Dir {
            *node.dir.write() = Some(DirState::default());
        }
        node.state.lock().mode = Some(held);
        let generation = self.generation(&node, &fd);
        self.keep_created(ino, kind, fd);
        drop(guard);
        let mut attr = backing::attr_of(&stat, ino, kind);
        attr.generation = generation;
        attr.mode = held.unwrap_or(attr.mode);
        if kind == Kind::Dir {
            (attr.size, attr.blocks, attr.nlink) = (DIR_SIZE, DIR_SIZE / 512, 2);
        }
        Ok(attr)
    }

    /// Creates an empty file at its place.
    fn create_plain(&self, at: BorrowedFd<'_>, name: &CString, mode: u32) -> Result<(OwnedFd, Stat)> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(at, name, flags, Mode::from_raw_mode(mode)).map_err(call("create"))?;
        match rustix::fs::fstat(&fd) {
            Ok(stat) => Ok((fd, stat)),
            Err(errno) => {
                if let Err(second) = rustix::fs::unlinkat(at, name, AtFlags::empty()) {
                    tracing::error!(?name, %second, "cannot remove a file whose creation failed");
                }
                Err(call("stat")(errno))
            }
        }
    }

    /// Creates the entry in the staging directory. The descriptor of a file is writable, that of anything else is an
    /// `O_PATH` descriptor.
    fn stage(&self, what: Make<'_>) -> Result<(OwnedFd, Staged)> {
        let name = match what {
            Make::File(_) => {
                let (file, staged) = self.staging.file().map_err(call("create"))?;
                return Ok((file.into(), staged));
            }
            Make::Dir(_) => return self.staging.directory().map_err(call("mkdir")),
            Make::Node(FileType::CharacterDevice, _, 0) => {
                return Err(Error::NotPermitted("a character device 0/0 would be a whiteout"));
            }
            Make::Node(file_type, _, device) => {
                let name = self.staging.fresh_name();
                rustix::fs::mknodat(self.staging.dir(), &name, file_type, Mode::RUSR | Mode::WUSR, device)
                    .map_err(call("mknod"))?;
                name
            }
            Make::Symlink(text) => {
                let name = self.staging.fresh_name();
                rustix::fs::symlinkat(text, self.staging.dir(), &name).map_err(call("symlink"))?;
                name
            }
        };
        let staged = self.staging.adopt(name, false);
        let fd = backing::open_path(self.staging.dir(), staged.name().map_err(call("stage"))?)?;
        Ok((fd, staged))
    }

    /// Fails if a name shows an entry. Returns whether the upper has a whiteout under the name.
    fn must_be_free(&self, dir: &Node, state: &DirState, name: &CString) -> Result<bool> {
        if dir.is_gone() {
            return Err(Error::NotFound);
        }
        match self.find(dir, state, name.as_bytes())? {
            Some(_) => Err(Error::Exists),
            None => Ok(state.get(name.as_bytes()) == Some(Entry::Whiteout)),
        }
    }

    /// Creates a hard link to a file, returns the file's attributes, and counts one lookup of it.
    ///
    /// # Errors
    /// `NotPermitted` for a directory, `Exists`, and those of a copy-up.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        let name = c_name(name)?;
        if let Some(attr) = self.linked_before(ino, parent, name.as_bytes())? {
            return Ok(attr);
        }
        let how = match self.attr(ino)?.kind {
            Kind::Dir => return Err(Error::NotPermitted("a directory cannot have two names")),
            // Both names are links to one backing file. A later copy-up would replace it under one name only, so the
            // bytes are copied up now.
            Kind::File => CopyUp::Data(u64::MAX),
            Kind::Symlink | Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => {
                CopyUp::Metadata
            }
        };
        let node = self.copy_up(ino, how, &SetAttr::default())?;
        let dir = self.upper_dir(parent)?;
        let mut guard = dir.dir.write();
        let state = self.loaded(&dir, &mut guard)?;
        let covered = self.must_be_free(&dir, state, &name)?;
        self.about_to_change(ino);
        let at = self.backing_fd(&dir)?;
        let before = self.node_attr(&node)?;
        let fd = self.backing_fd(&node)?;
        let source = crate::sys::fd::proc_path(&fd);
        let follow = AtFlags::SYMLINK_FOLLOW;
        if covered {
            let staged_name = self.staging.fresh_name();
            rustix::fs::linkat(rustix::fs::CWD, &source, self.staging.dir(), &staged_name, follow)
                .map_err(call("link"))?;
            let staged = self.staging.adopt(staged_name, false);
            staged.publish(at.as_fd(), &name).map_err(call("rename"))?;
        } else {
            rustix::fs::linkat(rustix::fs::CWD, &source, &at, &name, follow).map_err(call("link"))?;
        }
        let present = node.present();
        self.set_entry(&dir, state, name.to_bytes(), Entry::Present(present))?;
        self.entry_node(&dir, &name, present, 1);
        drop(guard);
        // The link is made, so a failure to read the new attributes is not an error of the operation.
        Ok(self.node_attr(&node).unwrap_or(Attr { nlink: before.nlink.saturating_add(1), ..before }))
    }

    /// Removes a name of an entry that is not a directory.
    ///
    /// # Errors
    /// `NotFound`, `IsADirectory`, and those of the system calls on the upper.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let name = c_name(name)?;
        if self.removed_before(parent, &name)? {
            return Ok(());
        }
        // Checked before the directory is copied up, so that an operation which fails leaves no trace.
        self.must_show(parent, &name)?;
        let dir = self.upper_dir(parent)?;
        let mut guard = dir.dir.write();
        let state = self.loaded(&dir, &mut guard)?;
        let found = self.find(&dir, state, name.as_bytes())?.ok_or(Error::NotFound)?;
        let node = match found {
            Found::Lower(lower) => self.node_of_lower(lower)?,
            Found::Upper(present) => self.entry_node(&dir, &name, present, 0),
        };
        if node.kind == Kind::Dir {
            return Err(Error::IsADirectory);
        }
        self.remove_locked(&dir, state, &name, &node, false)?;
        drop(guard);
        self.unlinked(&node, parent, &name);
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, `NotEmpty`, and those of the system calls on the upper.
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let name = c_name(name)?;
        if self.removed_before(parent, &name)? {
            return Ok(());
        }
        let _renames = self.renames.lock();
        let attr = self.must_show(parent, &name)?;
        if attr.kind != Kind::Dir {
            return Err(Error::NotADirectory);
        }
        let child = self.node(attr.ino)?;
        // Checked before the parent is copied up, so that an operation which fails leaves no trace. Renames are
        // locked out from here on, but another thread can create an entry, so it is checked again below.
        self.with_dir(&child, |state| self.is_empty(&child, state))?.then_some(()).ok_or(Error::NotEmpty)?;
        let dir = self.upper_dir(parent)?;
        let mut locked = Locked::new(&[&dir, &child]);
        let silent = {
            let state = self.loaded(&child, locked.of(&child)?)?;
            if !self.is_empty(&child, state)? {
                return Err(Error::NotEmpty);
            }
            state.is_silent()
        };
        let state = self.loaded(&dir, locked.of(&dir)?)?;
        self.remove_locked(&dir, state, &name, &child, silent)?;
        *locked.of(&child)? = Some(DirState::default());
        drop(locked);
        self.unlinked(&child, parent, &name);
        Ok(())
    }

    /// Removes the entry `node` from a directory, which then has a whiteout if the lower has the name. A directory shows
    /// no entries any more. `silent`: it has no whiteouts either.
    fn remove_locked(
        &self,
        dir: &Node,
        state: &mut DirState,
        name: &CString,
        node: &Node,
        silent: bool,
    ) -> Result<()> {
        let at = self.backing_fd(dir)?;
        let in_lower = self.lower_child(dir, name.as_bytes())?.is_some();
        let found = self.find(dir, state, name.as_bytes())?.ok_or(Error::NotFound)?;
        self.hold(node)?;
        self.about_to_change(node.ino);
        let done = match found {
            Found::Lower(_) => self.whiteouts.put(&self.staging, at.as_fd(), name),
            Found::Upper(_) => self.remove_backing(at.as_fd(), name, node.kind, in_lower, silent),
        };
        done.inspect_err(|_| self.unhold(node))?;
        self.set_entry(dir, state, name.as_bytes(), in_lower.then_some(Entry::Whiteout))
    }

    fn remove_backing(
        &self,
        at: BorrowedFd<'_>,
        name: &CString,
        kind: Kind,
        in_lower: bool,
        silent: bool,
    ) -> Result<()> {
        match (kind == Kind::Dir, in_lower) {
            (true, true) => {
                self.whiteouts.stage(&self.staging)?.exchange(at, name, true).map_err(call("rename"))
            }
            (true, false) if silent => {
                rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR).map_err(call("rmdir"))
            }
            (true, false) => {
                let junk = self.staging.fresh_name();
                rustix::fs::renameat(at, name, self.staging.dir(), &junk).map_err(call("rename"))?;
                drop(self.staging.adopt(junk, true));
                Ok(())
            }
            (false, true) => self.whiteouts.replace(&self.staging, at, name),
            (false, false) => rustix::fs::unlinkat(at, name, AtFlags::empty()).map_err(call("unlink")),
        }
    }

    /// Notes that a name of a node was removed. The change is done, so this cannot fail.
    pub(super) fn unlinked(&self, node: &Node, parent: Ino, name: &CString) {
        let (last, pinned) = {
            let mut state = node.state.lock();
            state.places.retain(|(at, known)| *at != parent || known != name);
            (state.places.is_empty(), state.pinned.as_ref().map(|pin| Arc::clone(&pin.fd)))
        };
        if !last {
            return node.unpin();
        }
        let links = match pinned {
            // If the link count cannot be read, it may not be 0. The node then stays until the kernel forgets it.
            Some(fd) if node.kind != Kind::Dir => rustix::fs::fstat(&fd).map_or(1, |stat| stat.st_nlink),
            _ => 0,
        };
        if links == 0 {
            node.state.lock().gone = true;
            self.table.close(node.ino);
            self.table.drop_unused(node.ino);
        }
    }
}

/// Renames a staged entry to its place. `covered`: there is a whiteout at the place.
fn put(mut staged: Staged, at: BorrowedFd<'_>, name: &CString, kind: Kind, covered: bool) -> Result<()> {
    let done = match (covered, kind) {
        (false, _) => staged.publish_with(at, name, RenameFlags::NOREPLACE),
        // rename(2) cannot put a directory over a device. So the two change places, and dropping `staged` removes the
        // whiteout.
        (true, Kind::Dir) => staged.exchange(at, name, false),
        (true, _) => staged.publish(at, name),
    };
    done.map_err(call("rename"))
}
