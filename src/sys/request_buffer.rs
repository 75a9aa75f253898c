//! Has the buffers of requests in memory before requests are read into them.
//!
//! The kernel copies a request into the buffer of a loop. If the process is killed while a page of the buffer has to be
//! made for that, the copy fails. The kernel then answers the request itself, with EIO, instead of keeping it for the next
//! worker. With all pages there, the copy cannot fail.
//!
//! fuser allocates the buffers, zeroed and much larger than the requests of this program. So the allocator of the program
//! recognises them by their size, and makes the pages that requests have needed so far.
//!
//! Limit: Linux before 5.14 cannot make pages in advance.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The size of such a buffer, with some room for other versions of fuser.
const SIZES: RangeInclusive<usize> = 16 << 20..=(16 << 20) + (64 << 10);

/// Enough for all requests but writes.
const LEAST: usize = 8 << 10;

/// `MADV_POPULATE_WRITE` of `asm-generic/mman-common.h`.
const POPULATE_WRITE: libc::c_int = 23;

static WANTED: AtomicUsize = AtomicUsize::new(0);

/// Has this many bytes of each buffer in memory that is allocated from now on, for requests with that much data.
pub fn populate(bytes: usize) {
    WANTED.store(bytes.saturating_add(LEAST), Ordering::Relaxed);
}

/// The system's allocator.
#[derive(Debug)]
pub struct Allocator;

// SAFETY: every call is passed on to the system's allocator unchanged. What is done beside that neither changes the bytes
// of an allocation nor allocates.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller's.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller's.
        let at = unsafe { System.alloc_zeroed(layout) };
        let wanted = WANTED.load(Ordering::Relaxed).min(layout.size());
        if SIZES.contains(&layout.size()) && wanted > 0 && !at.is_null() {
            let first = at.map_addr(|at| at & !(PAGE - 1));
            let len = wanted + (at.addr() - first.addr());
            // SAFETY: the range is mapped: it is that of the allocation, from the start of the page in which it begins. The
            // call makes pages and does not change bytes. Without it, they are made when they are needed.
            unsafe { libc::madvise(first.cast(), len, POPULATE_WRITE) };
        }
        at
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller's.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// The smallest page: the start of a larger one is also the start of such a page, but not the other way round. A larger
/// page makes the call fail, which does no harm.
const PAGE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    /// The pages of a buffer that are in memory, of the first `count`.
    fn present(buffer: &[u8], count: usize) -> usize {
        let first = buffer.as_ptr().map_addr(|at| (at + PAGE - 1) & !(PAGE - 1));
        let mut pages = vec![0_u8; count];
        // SAFETY: the pages are those of the buffer, and `pages` has a byte for each.
        let done = unsafe { libc::mincore(first.cast_mut().cast(), count * PAGE, pages.as_mut_ptr()) };
        assert_eq!(done, 0);
        pages.iter().filter(|page| **page & 1 == 1).count()
    }

    #[test]
    fn a_buffer_has_its_first_pages_in_memory() {
        populate(1 << 20);
        let buffer = vec![0_u8; (16 << 20) + 4096];
        assert_eq!(present(&buffer, 256), 256);
        assert_eq!(present(&buffer[8 << 20..], 256), 0);
        assert!(buffer.iter().all(|byte| *byte == 0));
    }
}
