//! Keys and values of one sequence, in pages.

use kernels::{BLOCK, KvPage, KvShape};

/// The KV cache of one sequence. Prompt and answer can be told from it, so each page is wiped on drop.
pub(crate) struct KvCache {
    pages: Vec<KvPage>,
    length: usize,
}

impl KvCache {
    /// Nothing yet, and no memory taken.
    pub(crate) fn new() -> Self {
        Self { pages: Vec::new(), length: 0 }
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

    /// Takes pages for `count` more tokens.
    pub(super) fn reserve(&mut self, shape: &KvShape, count: usize) {
        let needed = (self.length + count).div_ceil(BLOCK);
        while self.pages.len() < needed {
            self.pages.push(KvPage::zeroed(shape));
        }
    }

    pub(super) fn pages(&self) -> &[KvPage] {
        &self.pages
    }

    pub(super) fn pages_mut(&mut self) -> &mut [KvPage] {
        &mut self.pages
    }

    /// Takes note that every layer has got `count` more positions.
    pub(super) fn advance(&mut self, count: usize) {
        self.length += count;
    }
}
