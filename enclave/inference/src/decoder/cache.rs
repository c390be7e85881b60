//! Keys and values of one sequence, in pages.

use std::sync::Arc;

use kernels::{BLOCK, KvPage, KvShape};

/// The KV cache of one sequence. Prompt and answer can be told from it, so each page is wiped when nobody holds it any more.
///
/// Pages may be shared with other sequences that begin alike. A shared page is never written to.
pub(crate) struct KvCache {
    pages: Vec<Arc<KvPage>>,
    length: usize,
}

impl KvCache {
    /// Nothing yet, and no memory taken.
    pub(crate) fn new() -> Self {
        Self::of_pages(Vec::new())
    }

    /// What others have computed: full pages, from position 0 on.
    pub(crate) fn of_pages(pages: Vec<Arc<KvPage>>) -> Self {
        Self { length: pages.len() * BLOCK, pages }
    }

    /// Tokens in the cache.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Forgets all but the first `length` tokens.
    pub(crate) fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
        self.pages.truncate(self.length.div_ceil(BLOCK));
    }

    /// The pages that will not be written to any more, unless tokens are forgotten.
    pub(crate) fn full_pages(&self) -> &[Arc<KvPage>] {
        self.pages.get(..self.length / BLOCK).unwrap_or_default()
    }

    /// Takes pages for `count` more tokens.
    pub(super) fn reserve(&mut self, shape: &KvShape, count: usize) {
        if !self.length.is_multiple_of(BLOCK)
            && let Some(last) = self.pages.last_mut()
            && Arc::get_mut(last).is_none()
        {
            // What follows on a shared page is written to a page of one's own.
            let mut own = KvPage::zeroed(shape);
            own.bytes_mut().copy_from_slice(last.bytes());
            *last = Arc::new(own);
        }
        let needed = (self.length + count).div_ceil(BLOCK);
        while self.pages.len() < needed {
            self.pages.push(Arc::new(KvPage::zeroed(shape)));
        }
    }

    pub(super) fn pages(&self) -> &[Arc<KvPage>] {
        &self.pages
    }

    /// The pages for `count` more positions, which were reserved: nobody else holds them. None in the place of one that is shared.
    pub(super) fn pages_mut(&mut self, count: usize) -> impl Iterator<Item = Option<&mut KvPage>> {
        let pages = self.pages.get_mut(self.length / BLOCK..(self.length + count).div_ceil(BLOCK));
        pages.into_iter().flatten().map(Arc::get_mut)
    }

    /// Takes note that every layer has got `count` more positions.
    pub(super) fn advance(&mut self, count: usize) {
        self.length += count;
    }
}
