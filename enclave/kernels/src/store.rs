//! Memory for what is read in one go: on lines of the cache, and where it is large on huge pages.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ffi::c_void;
use std::num::NonZero;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use zeroize::Zeroize;

/// Bytes, all zero at first.
pub(crate) struct Store {
    start: NonNull<u8>,
    bytes: usize,
    from: Source,
}

/// Where the memory goes back to.
enum Source {
    /// A mapping of its own, which is longer than what is used of it.
    Mapping(NonNull<c_void>, usize),
    Allocator(Layout),
}

// SAFETY: a `Store` owns its memory alone, as a `Vec<u8>` does.
unsafe impl Send for Store {}
// SAFETY: as above; what is shared is only read.
unsafe impl Sync for Store {}

impl Store {
    pub(crate) fn zeroed(bytes: usize) -> Self {
        if bytes < MAPPED_FROM { Self::allocated(bytes) } else { Self::mapped(bytes) }
    }

    fn allocated(bytes: usize) -> Self {
        #[expect(clippy::expect_used, reason = "the alignment is a power of two, and the size is small")]
        let layout = Layout::from_size_align(bytes.max(LINE), LINE).expect("a small size");
        // SAFETY: the layout has a size.
        let Some(start) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        Self { start, bytes, from: Source::Allocator(layout) }
    }

    /// Not by the allocator, which keeps what is given back and cannot use it for the next page of a KV cache: half as much again
    /// and more was lost that way.
    fn mapped(bytes: usize) -> Self {
        let is_large = bytes >= 2 * HUGE_PAGE;
        let spare = if is_large { HUGE_PAGE } else { 0 };
        let length = NonZero::new(bytes.saturating_add(spare)).unwrap_or(NonZero::<usize>::MIN);
        let (access, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: a new mapping, which nothing else refers to. It holds zeros (mmap(2), MAP_ANONYMOUS).
        let mapping = unsafe { mmap_anonymous(None, length, access, flags) };
        let Ok(mapping) = mapping else { handle_alloc_error(Layout::new::<u8>()) };
        let start = mapping.cast::<u8>();
        if !is_large {
            return Self { start, bytes, from: Source::Mapping(mapping, length.get()) };
        }
        // A stream of weights needs a translation every 4 KiB, which takes as long as reading them; with huge pages it reads twice as
        // fast. Before the first touch, because pages are chosen then. If it is refused, nothing is lost but speed.
        // SAFETY: the whole mapping; the advice changes no content.
        let _ = unsafe { madvise(mapping, length.get(), MmapAdvise::MADV_HUGEPAGE) };
        // SAFETY: less than a huge page, and one more than `bytes` needs was mapped.
        let start = unsafe { start.add(start.as_ptr().align_offset(HUGE_PAGE).min(HUGE_PAGE)) };
        Self { start, bytes, from: Source::Mapping(mapping, length.get()) }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `zeroed` has got so many initialised bytes, which live as long as `self`.
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
        match self.from {
            // SAFETY: mapped with this length, and nothing else refers to it. It cannot fail for a mapping that is there.
            Source::Mapping(mapping, length) => drop(unsafe { munmap(mapping, length) }),
            // SAFETY: allocated with this layout, and nothing else refers to it.
            Source::Allocator(layout) => unsafe { dealloc(self.start.as_ptr(), layout) },
        }
    }
}

const LINE: usize = 64;
const MAPPED_FROM: usize = 64 << 10;
const HUGE_PAGE: usize = 2 << 20;
