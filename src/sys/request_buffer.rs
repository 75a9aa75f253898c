//! Has the buffers of requests in memory before requests are read into them.
//!
//! The kernel copies a request into the buffer of a loop. If the process is killed while a page of the buffer has to be
//! made for that, the copy fails. The kernel then answers the request itself, with EIO, instead of keeping it for the next
//! worker. With all pages there, the copy cannot fail.
//!
//! fuser allocates the buffers, zeroed and much larger than the requests of this program. So the allocator of the program
//! recognises them by their size, and makes the pages that requests need: two at first, and all at the first write that does
//! not fit there. A mount in which nobody writes much stays small.
//!
//! Limits: that first large write itself is not covered. Linux before 5.14 cannot make pages in advance.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The size of such a buffer, with some room for other versions of fuser.
const SIZES: RangeInclusive<usize> = 16 << 20..=(16 << 20) + (64 << 10);

/// The largest data of a write, in bytes. The kernel splits larger writes.
pub const LARGEST_WRITE: u32 = 1 << 20;

/// Enough for all requests but large writes.
const LEAST: usize = 8 << 10;

/// `MADV_POPULATE_WRITE` of `asm-generic/mman-common.h`.
const POPULATE_WRITE: libc::c_int = 23;

static WANTED: AtomicUsize = AtomicUsize::new(0);

/// The buffers: their addresses, or 0. More loops than that get no pages later.
static BUFFERS: [AtomicUsize; 16] = [const { AtomicUsize::new(0) }; 16];

/// Whether writes of this many bytes need all pages of the buffers.
#[must_use]
pub fn is_large(bytes: usize) -> bool {
    bytes > LEAST
}

/// Has the pages in memory that writes of this many bytes need: those of the buffers that are there, and of those that are
/// allocated from now on.
pub fn prepare(bytes: usize) {
    let wanted = if is_large(bytes) { LARGEST_WRITE as usize + LEAST } else { LEAST };
    WANTED.store(wanted, Ordering::Relaxed);
    for buffer in &BUFFERS {
        let at = buffer.load(Ordering::Relaxed);
        if at != 0 {
            populate(at, wanted);
        }
    }
}

fn populate(at: usize, len: usize) {
    let first = at & !(PAGE - 1);
    // SAFETY: the call makes pages and does not change bytes, whatever is mapped there: the buffer, or after its end something
    // else or nothing. Without it, pages are made when they are needed.
    unsafe {
        libc::madvise(std::ptr::without_provenance_mut(first), len + (at - first), POPULATE_WRITE);
    }
}

/// Notes a new buffer. Not inlined, as [`forget`].
#[cold]
#[inline(never)]
fn note(at: usize) {
    let wanted = WANTED.load(Ordering::Relaxed);
    let free =
        |buffer: &&AtomicUsize| buffer.compare_exchange(0, at, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    if wanted > 0 && BUFFERS.iter().find(free).is_some() {
        populate(at, wanted);
    }
}

/// Notes that a buffer is gone. Not inlined: the compiler inlines the allocator wherever memory is freed, and this loop
/// there made the program five times as large.
#[cold]
#[inline(never)]
fn forget(at: usize) {
    for buffer in BUFFERS.iter().filter(|buffer| buffer.load(Ordering::Relaxed) == at) {
        buffer.store(0, Ordering::Relaxed);
    }
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
        if SIZES.contains(&layout.size()) {
            forget(at.addr());
        }
        // SAFETY: as the caller's.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller's.
        let at = unsafe { System.alloc_zeroed(layout) };
        if SIZES.contains(&layout.size()) && !at.is_null() {
            note(at.addr());
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
    fn a_buffer_has_the_pages_in_memory_that_writes_need() {
        prepare(0);
        let buffer = vec![0_u8; (16 << 20) + 4096];
        assert_eq!(present(&buffer, 2), 2);
        prepare(LEAST + 1);
        assert_eq!(present(&buffer, 256), 256);
        assert!(buffer.iter().all(|byte| *byte == 0));
    }
}
