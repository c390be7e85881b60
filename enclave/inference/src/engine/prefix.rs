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

    /// The pages that are there of the beginning of `tokens`, but not of the last token; and since when: now, if there are none.
    pub(super) fn recall(
        &mut self,
        model: u64,
        asker: &Asker,
        tokens: &[u32],
        now: Instant,
    ) -> (Vec<Arc<KvPage>>, Instant) {
        let (mut before, mut since, mut found, mut pages) = (0, now, Vec::new(), Vec::new());
        let (Some(scope), Some((_, tokens))) = (asker.prefixes, tokens.split_last()) else { return (pages, since) };
        self.sweep(now);
        for tokens in tokens.chunks_exact(BLOCK) {
            let key = Key { model, scope, before, tokens: Zeroizing::new(tokens.to_vec()) };
            let Some((key, entry)) = self.entries.get_key_value(&key) else { break };
            (before, since) = (entry.id, since.min(entry.since));
            found.push(Arc::clone(key));
            pages.push(Arc::clone(&entry.page));
        }
        self.used(found);
        (pages, since)
    }

    /// Keeps `pages`, which hold keys and values of the first of `tokens`, and of which the first came at `since`: they are no younger
    /// for having been swept out, or evicted, meanwhile.
    pub(super) fn remember(
        &mut self,
        model: u64,
        asker: &Asker,
        (tokens, pages): (&[u32], &[Arc<KvPage>]),
        mut since: Instant,
        now: Instant,
    ) {
        let Some(scope) = asker.prefixes else { return };
        self.sweep(now);
        if now.saturating_duration_since(since) >= AGE_MAX {
            return;
        }
        let (mut before, mut found) = (0, Vec::new());
        for (tokens, page) in tokens.chunks_exact(BLOCK).zip(pages) {
            let key = Arc::new(Key { model, scope, before, tokens: Zeroizing::new(tokens.to_vec()) });
            let entry = self.entries.entry(Arc::clone(&key)).or_insert_with(|| {
                self.ids += 1;
                self.bytes = self.bytes.saturating_add(bytes_of(page));
                let Asker { customer, tenant, .. } = *asker;
                Entry { id: self.ids, page: Arc::clone(page), customer, tenant, since, use_number: 0 }
            });
            (before, since) = (entry.id, since.min(entry.since));
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

    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
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
        if held <= bytes {
            return;
        }
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

#[cfg(test)]
mod tests {
    use kernels::{KvElement, KvShape};

    use super::*;

    fn page() -> Arc<KvPage> {
        Arc::new(KvPage::zeroed(&KvShape { layers: 1, kv_heads: 1, head_width: 2, element: KvElement::F16 }))
    }

    fn asker(customer: u8, tenant: u8) -> Asker {
        Asker { customer: [customer; 32], tenant: [tenant; 32], prefixes: Some(PrefixScope([tenant; 32])) }
    }

    /// Pages of tokens that differ from those of another number in the first one.
    fn tokens(number: u32, pages: usize) -> Vec<u32> {
        std::iter::once(number).chain(1..(pages * BLOCK) as u32).collect()
    }

    fn keep(prefixes: &mut Prefixes, asker: &Asker, tokens: &[u32], now: Instant) -> Vec<Arc<KvPage>> {
        let pages: Vec<_> = tokens.chunks_exact(BLOCK).map(|_| page()).collect();
        prefixes.remember(1, asker, (tokens, &pages), now, now);
        pages
    }

    /// How many pages are found of a request that begins with `tokens`.
    fn found(prefixes: &mut Prefixes, model: u64, asker: &Asker, tokens: &[u32], now: Instant) -> usize {
        prefixes.recall(model, asker, &[tokens, &[7]].concat(), now).0.len()
    }

    #[test]
    fn a_page_is_found_only_under_its_model_scope_and_every_token_from_the_first_on() {
        let (mut prefixes, now, own) = (Prefixes::new(1 << 30), Instant::now(), asker(1, 1));
        let tokens = tokens(5, 3);
        let kept = keep(&mut prefixes, &own, &tokens, now);
        let (again, _) = prefixes.recall(1, &own, &[tokens.as_slice(), &[7]].concat(), now);
        assert!(again.iter().zip(&kept).all(|(again, kept)| Arc::ptr_eq(again, kept)) && again.len() == 3);
        assert_eq!(prefixes.recall(1, &own, &tokens, now).0.len(), 2, "the last token is computed anew");
        for (place, left) in [(0, 0), (63, 0), (64, 1), (150, 2), (191, 2)] {
            let mut other = tokens.clone();
            other[place] += 1;
            assert_eq!(found(&mut prefixes, 1, &own, &other, now), left, "token {place}");
        }
        assert_eq!(found(&mut prefixes, 1, &own, &tokens[64..], now), 0, "the second page is not a first one");
        assert_eq!(found(&mut prefixes, 2, &own, &tokens, now), 0, "another model");
        assert_eq!(found(&mut prefixes, 1, &asker(1, 2), &tokens, now), 0, "another tenant");
        let other_scope = Asker { prefixes: Some(PrefixScope([9; 32])), ..own };
        assert_eq!(found(&mut prefixes, 1, &other_scope, &tokens, now), 0, "another scope");
        assert_eq!(found(&mut prefixes, 1, &Asker { prefixes: None, ..own }, &tokens, now), 0, "no scope");
        keep(&mut prefixes, &Asker::NOBODY, &tokens, now);
        assert_eq!(prefixes.entries.len(), 3, "of nobody nothing is kept");
    }

    #[test]
    fn pages_are_as_old_as_when_they_were_first_kept_however_often_they_are_used_and_kept_again() {
        let (mut prefixes, start, own) = (Prefixes::new(1 << 30), Instant::now(), asker(1, 1));
        let tokens = tokens(5, 2);
        let pages = keep(&mut prefixes, &own, &tokens, start);
        let (late, later) = (start + AGE_MAX - Duration::from_secs(1), start + AGE_MAX);
        let (recalled, since) = prefixes.recall(1, &own, &[tokens.as_slice(), &[7]].concat(), late);
        assert_eq!((recalled.len(), since), (2, start));
        // Evicted while an answer still has them, and kept again before their time is over.
        prefixes.shrink(0);
        prefixes.remember(1, &own, (&tokens, &pages), since, late);
        assert_eq!(found(&mut prefixes, 1, &own, &tokens, late), 2);
        prefixes.sweep(later);
        assert_eq!(prefixes.bytes, 0);
        prefixes.remember(1, &own, (&tokens, &pages), since, later);
        assert_eq!(prefixes.bytes, 0, "too old to be kept again");
    }

    #[test]
    fn ten_thousand_beginnings_stay_within_their_bytes_and_the_latest_are_there() {
        let (now, own, stranger) = (Instant::now(), asker(1, 1), asker(2, 2));
        let entry = bytes_of(&page());
        let mut prefixes = Prefixes::new(64 * entry);
        keep(&mut prefixes, &stranger, &tokens(1, 4), now);
        for number in 0..10_000 {
            keep(&mut prefixes, &own, &tokens(number, 4), now);
            assert!(prefixes.entries.len() <= 20 && prefixes.by_use.len() == prefixes.entries.len());
            assert_eq!(prefixes.bytes, prefixes.entries.len() as u64 * entry);
        }
        assert_eq!(found(&mut prefixes, 1, &own, &tokens(9_999, 4), now), 4);
        assert_eq!(found(&mut prefixes, 1, &own, &tokens(9_996, 4), now), 4);
        assert_eq!(found(&mut prefixes, 1, &own, &tokens(9_995, 4), now), 0);
        assert_eq!(found(&mut prefixes, 1, &stranger, &tokens(1, 4), now), 4, "a flood evicts its own");
        // Under many names a customer gets half of all.
        for name in 3..50 {
            keep(&mut prefixes, &asker(1, name), &tokens(1, 4), now);
        }
        assert_eq!(prefixes.entries.len(), 36);
        assert_eq!(found(&mut prefixes, 1, &stranger, &tokens(1, 4), now), 4);
    }

    #[test]
    fn of_a_beginning_the_last_page_goes_first_and_what_was_used_last_goes_last() {
        let (mut prefixes, now, own) = (Prefixes::new(1 << 30), Instant::now(), asker(1, 1));
        keep(&mut prefixes, &own, &tokens(1, 3), now);
        keep(&mut prefixes, &own, &tokens(2, 3), now);
        assert_eq!(found(&mut prefixes, 1, &own, &tokens(1, 2), now), 2);
        let entry = bytes_of(&page());
        let mut left = |entries: u64| {
            prefixes.shrink(entries * entry);
            // Only the first pages differ in their tokens; the others are told by the entry before.
            let first = |number| prefixes.entries.iter().find(|(key, _)| key.tokens.first() == Some(&number));
            [1, 2].map(|number| {
                let mut last = first(number).map(|(_, entry)| entry.id);
                std::iter::from_fn(|| {
                    let this = last?;
                    last = prefixes.entries.iter().find(|(key, _)| key.before == this).map(|(_, entry)| entry.id);
                    Some(())
                })
                .count()
            })
        };
        assert_eq!([left(5), left(4), left(3), left(2), left(1)], [[2, 3], [2, 2], [2, 1], [2, 0], [1, 0]]);
    }

    #[test]
    fn an_evicted_page_is_wiped_when_nobody_reads_it_any_more() {
        let (mut prefixes, now, own) = (Prefixes::new(1 << 30), Instant::now(), asker(1, 1));
        let pages = keep(&mut prefixes, &own, &tokens(1, 2), now);
        let watch: Vec<_> = pages.iter().map(Arc::downgrade).collect();
        let running = Arc::clone(&pages[0]);
        drop(pages);
        prefixes.shrink(0);
        // A `KvPage` wipes itself when it is dropped; no handle left means that it was.
        assert!(watch[0].upgrade().is_some() && watch[1].upgrade().is_none());
        drop(running);
        assert!(watch[0].upgrade().is_none());
        assert!(prefixes.entries.is_empty() && prefixes.by_use.is_empty() && prefixes.bytes == 0);
    }

    #[test]
    fn nothing_that_grew_on_a_beginning_is_kept_for_longer_than_five_minutes_after_it() {
        let (mut prefixes, now, own) = (Prefixes::new(1 << 30), Instant::now(), asker(1, 1));
        let at = |seconds| now + Duration::from_secs(seconds);
        keep(&mut prefixes, &own, &tokens(1, 1), now);
        keep(&mut prefixes, &own, &tokens(2, 1), at(10));
        keep(&mut prefixes, &own, &tokens(1, 2), at(200));
        assert_eq!(found(&mut prefixes, 1, &own, &tokens(1, 2), at(299)), 2, "being used makes it no younger");
        assert_eq!(found(&mut prefixes, 1, &own, &tokens(1, 2), at(300)), 0);
        assert_eq!(prefixes.entries.len(), 1);
        prefixes.sweep(at(310));
        assert!(prefixes.entries.is_empty() && prefixes.bytes == 0, "an idle cache is emptied too");
    }

    #[test]
    fn a_model_that_is_dropped_leaves_nothing() {
        let (mut prefixes, now, own) = (Prefixes::new(1 << 30), Instant::now(), asker(1, 1));
        keep(&mut prefixes, &own, &tokens(1, 2), now);
        prefixes.remember(2, &own, (&tokens(1, 1), &[page()]), now, now);
        prefixes.forget(1);
        assert_eq!(found(&mut prefixes, 1, &own, &tokens(1, 2), now), 0);
        assert_eq!(found(&mut prefixes, 2, &own, &tokens(1, 2), now), 1);
    }
}
