//! Memory for what is read in one go: on lines of the cache, and where it is large on huge pages.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ffi::c_void;
use std::num::NonZero;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use zeroize::{Zeroize, optimization_barrier};

/// Bytes, all zero at first.
pub(crate) struct Store {
    start: NonNull<u8>,
    bytes: usize,
    from: Source,
}

/// Where the memory goes back to.
enum Source {
    /// When nothing is left in it.
    Mapping(#[expect(dead_code, reason = "it is held")] Arc<Mapping>),
    Allocator(Layout),
}

/// Zeros for all matrices of a model. What is cut off lies side by side, so that small ones lie on huge pages as well, and that only
/// the last of these is not used to its end: each with pages of its own, a model of unlucky shape took a third more than it has.
pub struct Room {
    mapping: Arc<Mapping>,
    /// From here on nobody has it.
    free: usize,
}

// SAFETY: a `Store` owns its memory alone, as a `Vec<u8>` does.
unsafe impl Send for Store {}
// SAFETY: as above; what is shared is only read.
unsafe impl Sync for Store {}

impl Room {
    /// Room for so many bytes. None of it takes memory before it is used.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { mapping: Arc::new(Mapping::new(bytes)), free: 0 }
    }

    /// The next bytes; if there are not so many left, others.
    pub(crate) fn take(&mut self, bytes: usize) -> Store {
        let first = self.free.next_multiple_of(LINE);
        match first.checked_add(bytes).filter(|end| *end <= self.mapping.bytes) {
            Some(end) => {
                self.free = end;
                // SAFETY: within the mapping; and no two stores overlap, because `free` only grows.
                let start = unsafe { self.mapping.start.add(first) };
                Store { start, bytes, from: Source::Mapping(Arc::clone(&self.mapping)) }
            }
            None => Store::zeroed(bytes),
        }
    }
}

impl Store {
    pub(crate) fn zeroed(bytes: usize) -> Self {
        if bytes < MAPPED_FROM {
            return Self::allocated(bytes);
        }
        // Not by the allocator, which keeps what is given back and cannot use it for the next page of a KV cache: half as much again
        // and more was lost that way.
        let mapping = Mapping::new(bytes);
        Self { start: mapping.start, bytes, from: Source::Mapping(Arc::new(mapping)) }
    }

    fn allocated(bytes: usize) -> Self {
        #[expect(clippy::expect_used, reason = "the alignment is a power of two, and the size is small")]
        let layout = Layout::from_size_align(bytes.max(LINE), LINE).expect("a small size");
        // SAFETY: the layout has a size.
        let Some(start) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        Self { start, bytes, from: Source::Allocator(layout) }
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
    /// At the speed of memory: a page of a KV cache has megabytes, and the library writes bytes one by one.
    fn zeroize(&mut self) {
        self.bytes_mut().fill(0);
        optimization_barrier(self.bytes());
    }
}

impl Drop for Store {
    /// What was held is gone: the kernel hands no page on before it has cleared it, and what goes back to the allocator is
    /// cleared here.
    fn drop(&mut self) {
        if let Source::Allocator(layout) = self.from {
            self.zeroize();
            // SAFETY: allocated with this layout, and nothing else refers to it.
            unsafe { dealloc(self.start.as_ptr(), layout) }
        }
    }
}

/// Pages of our own, which are longer than what is used of them.
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
    pages: NonNull<c_void>,
    length: usize,
}

// SAFETY: addresses of memory that any thread may use; who may use which part of it is the stores' matter.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(bytes: usize) -> Self {
        let is_large = bytes >= HUGE_PAGE;
        let spare = if is_large { HUGE_PAGE } else { 0 };
        let length = NonZero::new(bytes.saturating_add(spare)).unwrap_or(NonZero::<usize>::MIN);
        let (access, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: a new mapping, which nothing else refers to. It holds zeros (mmap(2), MAP_ANONYMOUS).
        let pages = unsafe { mmap_anonymous(None, length, access, flags) };
        let Ok(pages) = pages else { handle_alloc_error(Layout::new::<u8>()) };
        let (start, length) = (pages.cast::<u8>(), length.get());
        if !is_large {
            return Self { start, bytes, pages, length };
        }
        // A stream of weights needs a translation every 4 KiB, which takes as long as reading them; with huge pages it reads twice as
        // fast. Before the first touch, because pages are chosen then. If it is refused, nothing is lost but speed.
        // SAFETY: less than a huge page, and one more than `bytes` needs was mapped.
        let start = unsafe { start.add(start.as_ptr().align_offset(HUGE_PAGE).min(HUGE_PAGE)) };
        // Only what fills huge pages: of the last bytes each KV page, and each model, would take a whole one.
        // SAFETY: a part of the mapping; the advice changes no content.
        let _ = unsafe { madvise(start.cast(), bytes / HUGE_PAGE * HUGE_PAGE, MmapAdvise::MADV_HUGEPAGE) };
        Self { start, bytes, pages, length }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and nothing else refers to it. It cannot fail for a mapping that is there.
        let _ = unsafe { munmap(self.pages, self.length) };
    }
}

/// Of the cache: stores begin on one.
pub(crate) const LINE: usize = 64;
const MAPPED_FROM: usize = 64 << 10;
const HUGE_PAGE: usize = 2 << 20;
