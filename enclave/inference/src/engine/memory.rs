//! The memory that answers take, given out before they begin, so that nothing is ever allocated that is not there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kernels::KvPage;

use super::prefix::Prefixes;
use crate::asker::Asker;

/// Memory for keys, values and buffers of answers, shared by all models that are put [`within`](crate::Model::within) it.
///
/// An answer gets all that it may need before it begins, or waits. What no answer needs holds the beginnings of earlier requests, for
/// those who allow it (see [`Asker::prefixes`]); they give way as soon as an answer needs it.
#[derive(Clone)]
pub struct KvMemory(Arc<Mutex<Held>>);

struct Held {
    total: u64,
    /// Taken for answers.
    taken: u64,
    /// The same by customer, and by customer and tenant.
    customers: HashMap<[u8; 32], u64>,
    tenants: HashMap<[u8; 32], u64>,
    prefixes: Prefixes,
    models: u64,
}

/// Memory of one answer. Dropping it gives it back.
pub(super) struct Place {
    memory: KvMemory,
    model: u64,
    asker: Asker,
    bytes: u64,
    /// When the first page of its beginning was kept; when it began, if none was.
    since: Instant,
}

/// Why there is no place now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// What is free must stay free for others than this customer.
    OfCustomer,
    /// Others have it.
    Full,
}

impl KvMemory {
    /// So many bytes.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self::holding(bytes, bytes)
    }

    /// As much as is asked for. Without a bound to keep nothing is kept: beginnings are never used again.
    #[must_use]
    pub fn unbounded() -> Self {
        Self::holding(u64::MAX, 0)
    }

    fn holding(total: u64, prefixes: u64) -> Self {
        Self(Arc::new(Mutex::new(Held {
            total,
            taken: 0,
            customers: HashMap::new(),
            tenants: HashMap::new(),
            prefixes: Prefixes::new(prefixes),
            models: 0,
        })))
    }

    /// Wipes the beginnings of requests that were kept for long enough. To be called every few seconds, so that they go also when
    /// nobody asks for anything.
    pub fn sweep(&self, now: Instant) {
        self.held().prefixes.sweep(now);
    }

    /// All of it.
    pub(super) fn total(&self) -> u64 {
        self.held().total
    }

    /// A number for one more model.
    pub(super) fn enrol(&self) -> u64 {
        let mut held = self.held();
        held.models += 1;
        held.models
    }

    /// Forgets what was computed by a model that is no more.
    pub(super) fn forget(&self, model: u64) {
        self.held().prefixes.forget(model);
    }

    /// What `asker`'s customer and tenant have: who has less comes first.
    pub(super) fn held_by(&self, asker: &Asker) -> (u64, u64) {
        let held = self.held();
        let of = |counts: &HashMap<[u8; 32], u64>, key| counts.get(key).copied().unwrap_or(0);
        (of(&held.customers, &asker.customer), of(&held.tenants, &asker.tenant))
    }

    /// Takes `bytes` for an answer, and gives the pages that are there already of its beginning: not all of `tokens`, because the last
    /// one is computed anew to choose by.
    ///
    /// A customer who already has a place leaves a quarter to others: the first request of another, if that is enough for it, waits for
    /// the end of none of this one's answers.
    pub(super) fn admit(
        &self,
        model: u64,
        asker: &Asker,
        bytes: u64,
        tokens: &[u32],
        now: Instant,
    ) -> Result<(Place, Vec<Arc<KvPage>>), NoPlace> {
        let mut held = self.held();
        let of_customer = held.customers.get(&asker.customer).copied().unwrap_or(0);
        if of_customer > 0 && of_customer.saturating_add(bytes) > held.total - held.total / 4 {
            return Err(NoPlace::OfCustomer);
        }
        let taken = held.taken.checked_add(bytes).filter(|taken| *taken <= held.total).ok_or(NoPlace::Full)?;
        // Before others are evicted: so these were the last to be used.
        let (pages, since) = held.prefixes.recall(model, asker, tokens, now);
        held.taken = taken;
        *held.customers.entry(asker.customer).or_default() += bytes;
        *held.tenants.entry(asker.tenant).or_default() += bytes;
        held.make_room();
        Ok((Place { memory: self.clone(), model, asker: *asker, bytes, since }, pages))
    }

    /// Bytes that answers have, and bytes that are kept of earlier requests.
    #[cfg(test)]
    pub(super) fn in_use(&self) -> (u64, u64) {
        let held = self.held();
        (held.taken, held.prefixes.bytes())
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Answers come before what is only kept.
    fn make_room(&mut self) {
        let room = self.total - self.taken;
        self.prefixes.shrink(room);
    }

    fn give_back(&mut self, asker: &Asker, bytes: u64) {
        self.taken = self.taken.saturating_sub(bytes);
        for (counts, key) in [(&mut self.customers, &asker.customer), (&mut self.tenants, &asker.tenant)] {
            // Nothing is remembered of those who have nothing.
            let left = counts.get(key).map_or(0, |taken| taken.saturating_sub(bytes));
            if left == 0 {
                counts.remove(key);
            } else {
                counts.insert(*key, left);
            }
        }
    }
}

impl Place {
    /// Keeps `pages`, which hold keys and values of the first of `tokens` and are full, for requests that begin alike.
    pub(super) fn remember(&self, tokens: &[u32], pages: &[Arc<KvPage>], now: Instant) {
        let mut held = self.memory.held();
        held.prefixes.remember(self.model, &self.asker, (tokens, pages), self.since, now);
        held.make_room();
    }

    /// The same, of an answer that is at its end and needs its place no more.
    pub(super) fn leave(mut self, tokens: &[u32], pages: Vec<Arc<KvPage>>, now: Instant) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut held = self.memory.held();
        held.give_back(&self.asker, bytes);
        held.prefixes.remember(self.model, &self.asker, (tokens, &pages), self.since, now);
        held.make_room();
        // What was not kept is wiped before anybody may take its room.
        drop(pages);
        drop(held);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.memory.held().give_back(&self.asker, self.bytes);
        }
    }
}
