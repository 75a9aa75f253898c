//! Extended attributes. An entry that is only in the lower has none; setting one copies its metadata up.

use std::ffi::CString;
use std::os::fd::AsFd;

use rustix::fs::XattrFlags;

use super::Fs;
use crate::namespace::backing;
use crate::namespace::types::{Error, Ino, Result};
use crate::space::upper::mark::OWN_XATTRS;

/// The attribute of the root that holds the counters of a live mount, as JSON of
/// [`Metrics::snapshot`](crate::metrics::Metrics::snapshot). `holofs status` reads it; it is not listed.
pub const STATUS_XATTR: &str = "user.holofs.status";

impl Fs {
    /// The value of an attribute.
    ///
    /// # Errors
    /// `NoAttribute`, and those of getxattr(2).
    pub fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        if ino == Ino::ROOT && name == STATUS_XATTR.as_bytes() {
            let counters = self.metrics().snapshot();
            return serde_json::to_vec(&counters)
                .map_err(|_| Error::NotSupported("the counters have no text"));
        }
        let name = checked(name).map_err(|_| Error::NoAttribute)?;
        let fd = self.namespace.existing_fd(ino)?.ok_or(Error::NoAttribute)?;
        backing::get_xattr(fd.as_fd(), &name)
    }

    /// The names of the attributes, each terminated by a NUL.
    ///
    /// # Errors
    /// Those of listxattr(2).
    pub fn list_xattrs(&self, ino: Ino) -> Result<Vec<u8>> {
        match self.namespace.existing_fd(ino)? {
            Some(fd) => backing::list_xattrs(fd.as_fd()),
            None => Ok(Vec::new()),
        }
    }

    /// Sets an attribute.
    ///
    /// # Errors
    /// `NotPermitted` for holofs's own attributes, and those of the copy-up and of setxattr(2).
    pub fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        let name = checked(name)?;
        let flags = XattrFlags::from_bits_retain(flags);
        // A call that fails must not copy anything up.
        if flags.contains(XattrFlags::REPLACE) {
            self.get_xattr(ino, name.to_bytes())?;
        }
        let fd = self.namespace.changed_fd(ino)?;
        backing::set_xattr(fd.as_fd(), &name, value, flags)?;
        self.namespace.attribute_changed(ino);
        Ok(())
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// `NoAttribute`, `NotPermitted` for holofs's own attributes, and those of removexattr(2).
    pub fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        let name = checked(name)?;
        let fd = self.namespace.existing_fd(ino)?.ok_or(Error::NoAttribute)?;
        backing::remove_xattr(fd.as_fd(), &name)?;
        self.namespace.attribute_changed(ino);
        Ok(())
    }
}

/// Refuses holofs's own attributes, and ACLs, which this filesystem does not enforce.
fn checked(name: &[u8]) -> Result<CString> {
    if name.starts_with(OWN_XATTRS) {
        return Err(Error::NotPermitted("user.holofs.* belongs to holofs"));
    }
    if name.starts_with(b"system.") {
        return Err(Error::NotSupported("POSIX ACLs are not supported"));
    }
    CString::new(name).map_err(|_| Error::Invalid("an attribute's name cannot hold a NUL byte"))
}
