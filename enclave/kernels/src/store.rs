//! Memory for what is read in one go: on lines of the cache, and where it is large on huge pages.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};
use zeroize::Zeroize;

/// Bytes, all zero at first.
pub(crate) struct Store {
    start: NonNull<u8>,
    layout: Layout,
    bytes: usize,
}

// SAFETY: a `Store` owns its memory alone, as a `Vec<u8>` does.
unsafe impl Send for Store {}
// SAFETY: as above; what is shared is only read.
unsafe impl Sync for Store {}

impl Store {
    pub(crate) fn zeroed(bytes: usize) -> Self {
        let is_large = bytes >= 2 * HUGE_PAGE;
        let layout = Layout::from_size_align(bytes.max(LINE), if is_large { HUGE_PAGE } else { LINE });
        #[expect(
            clippy::expect_used,
            reason = "the alignments are powers of two, and no slice of a file is larger than isize::MAX"
        )]
        let layout = layout.expect("a size that fits the address space");
        // SAFETY: the layout has a size.
        let start = unsafe { if is_large { alloc(layout) } else { alloc_zeroed(layout) } };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        if is_large {
            // A stream of weights needs a translation every 4 KiB, which takes as long as reading them; with huge pages it reads
            // twice as fast. Before the first touch, because pages are chosen then. If it is refused, nothing is lost but speed.
            // SAFETY: whole pages of memory that was just allocated; the advice changes no content.
            let _ = unsafe { madvise(start.cast(), bytes / PAGE * PAGE, MmapAdvise::MADV_HUGEPAGE) };
            // SAFETY: so many bytes were allocated.
            unsafe { start.write_bytes(0, bytes) };
        }
        Self { start, layout, bytes }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `zeroed` has allocated and initialised so many bytes, which live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed for as long.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Zeroize for Store {
    fn zeroize(&mut self) {
        self.bytes_mut().zeroize();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and nothing else refers to it.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

const LINE: usize = 64;
const PAGE: usize = 4096;
const HUGE_PAGE: usize = 2 << 20;
