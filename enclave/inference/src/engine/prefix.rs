//! Beginnings of earlier requests: keys and values of whole pages, to be used again by requests that begin alike.
//!
//! A page is found only under its model, its scope and the exact tokens from the first one on, which are compared themselves. So what a
//! request gets is what it would compute. A shared page is full and is never written to; it is wiped as soon as neither a request nor
//! this cache holds it.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernels::{BLOCK, KvPage};
use zeroize::Zeroizing;

use crate::asker::{Asker, PrefixScope};

/// The cache. Time is an argument.
pub(super) struct Prefixes {
    most_bytes: u64,
    entries: HashMap<Arc<Key>, Entry>,
    /// Who was used when; of one beginning later pages before earlier ones.
    by_use: BTreeMap<u64, Arc<Key>>,
    bytes: u64,
    ids: u64,
    uses: u64,
}

/// What a page was computed from.
#[derive(PartialEq, Eq)]
struct Key {
    model: u64,
    scope: PrefixScope,
    /// The entry of the page before, which stands for all tokens up to here; 0 for the first page.
    before: u64,
    tokens: Zeroizing<Vec<u32>>,
}

struct Entry {
    id: u64,
    page: Arc<KvPage>,
    customer: [u8; 32],
    tenant: [u8; 32],
    /// When the first page of this beginning came.
    since: Instant,
    use_number: u64,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.model, self.scope, self.before, self.tokens.as_slice()).hash(state);
    }
}

impl Prefixes {
    pub(super) fn new(most_bytes: u64) -> Self {
        Self { most_bytes, entries: HashMap::new(), by_use: BTreeMap::new(), bytes: 0, ids: 0, uses: 0 }
    }

    /// The pages that are there of the beginning of `tokens`, but not of the last token.
    pub(super) fn recall(&mut self, model: u64, asker: &Asker, tokens: &[u32], now: Instant) -> Vec<Arc<KvPage>> {
        self.sweep(now);
        let (mut before, mut found, mut pages) = (0, Vec::new(), Vec::new());
        let (Some(scope), Some((_, tokens))) = (asker.prefixes, tokens.split_last()) else { return pages };
        for tokens in tokens.chunks_exact(BLOCK) {
            let key = Key { model, scope, before, tokens: Zeroizing::new(tokens.to_vec()) };
            let Some((key, entry)) = self.entries.get_key_value(&key) else { break };
            before = entry.id;
            found.push(Arc::clone(key));
            pages.push(Arc::clone(&entry.page));
        }
        self.used(found);
        pages
    }

    /// Keeps `pages`, which hold keys and values of the first of `tokens`.
    pub(super) fn remember(&mut self, model: u64, asker: &Asker, tokens: &[u32], pages: &[Arc<KvPage>], now: Instant) {
        self.sweep(now);
        let Some(scope) = asker.prefixes else { return };
        let (mut before, mut since, mut found) = (0, now, Vec::new());
        for (tokens, page) in tokens.chunks_exact(BLOCK).zip(pages) {
            let key = Arc::new(Key { model, scope, before, tokens: Zeroizing::new(tokens.to_vec()) });
            let entry = self.entries.entry(Arc::clone(&key)).or_insert_with(|| {
                self.ids += 1;
                self.bytes = self.bytes.saturating_add(bytes_of(page));
                let Asker { customer, tenant, .. } = *asker;
                Entry { id: self.ids, page: Arc::clone(page), customer, tenant, since, use_number: 0 }
            });
            (before, since) = (entry.id, entry.since);
            found.push(key);
        }
        self.used(found);
        // Whatever names a customer makes up, half of all is left to others.
        self.evict(self.most_bytes / 4, |entry| entry.tenant == asker.tenant);
        self.evict(self.most_bytes / 2, |entry| entry.customer == asker.customer);
        self.shrink(self.most_bytes);
    }

    /// Wipes the least recently used, until at most `bytes` are left.
    pub(super) fn shrink(&mut self, bytes: u64) {
        if self.bytes > bytes {
            self.evict(bytes, |_| true);
        }
    }

    /// Wipes what is too old.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.retain(|_, entry| now.saturating_duration_since(entry.since) < AGE_MAX);
    }

    /// Wipes what `model` computed.
    pub(super) fn forget(&mut self, model: u64) {
        self.retain(|key, _| key.model != model);
    }

    /// Takes note that the pages of one beginning, in their order, are used now.
    fn used(&mut self, beginning: Vec<Arc<Key>>) {
        // The last page is the first to go: without those before it a page is never found.
        for key in beginning.into_iter().rev() {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            self.uses += 1;
            self.by_use.remove(&entry.use_number);
            entry.use_number = self.uses;
            self.by_use.insert(self.uses, key);
        }
    }

    /// Of those that `is_meant`, wipes the least recently used, until they hold at most `bytes`.
    fn evict(&mut self, bytes: u64, is_meant: impl Fn(&Entry) -> bool) {
        let meant = self.entries.values().filter(|entry| is_meant(entry)).map(|entry| bytes_of(&entry.page));
        let mut held = meant.fold(0, u64::saturating_add);
        let Self { entries, by_use, bytes: in_all, .. } = self;
        by_use.retain(|_, key| {
            let Some(entry) = entries.get(key).filter(|entry| held > bytes && is_meant(entry)) else { return true };
            let freed = bytes_of(&entry.page);
            held -= freed;
            *in_all -= freed;
            entries.remove(key);
            false
        });
    }

    fn retain(&mut self, stays: impl Fn(&Key, &Entry) -> bool) {
        let Self { entries, by_use, bytes, .. } = self;
        entries.retain(|key, entry| {
            let stays = stays(key, entry);
            if !stays {
                by_use.remove(&entry.use_number);
                *bytes -= bytes_of(&entry.page);
            }
            stays
        });
    }
}

/// The page, and what it takes to find it.
fn bytes_of(page: &KvPage) -> u64 {
    (page.bytes().len() + ENTRY_BYTES) as u64
}

/// Key and entry, and their places in both maps: generously.
const ENTRY_BYTES: usize = 1024;
/// As long as a data key is cached, so that what was computed from a request outlives the last request that could be opened by no more
/// than that. It counts from the first page on: what was computed from an old beginning is as old as that.
pub(super) const AGE_MAX: Duration = Duration::from_secs(300);
