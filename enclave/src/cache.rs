//! Data keys that KMS has just given: kept for a short while, under everything that they were given for.
//!
//! An entry is found only under the same key ARN, encrypted data key, whole canonical context, suite and direction. It
//! lives at most five minutes (this is how late a revoked key policy takes effect) and serves a bounded number of
//! messages and bytes; entries are bounded per tenant and in total. What is evicted is wiped as soon as nobody uses it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sealing::message::{DataKey, EncryptedDataKey, EncryptionContext, Suite};

use crate::tenant::Tenant;

/// The cache. Time is an argument.
pub struct DataKeyCache {
    limits: CacheLimits,
    entries: HashMap<CacheKey, Entry>,
}

/// What a data key was given for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CacheKey {
    tenant: Tenant,
    purpose: Purpose,
    context: Vec<u8>,
    suite: Suite,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Purpose {
    /// Opening: the encrypted data key is given.
    Open { ciphertext: Vec<u8> },
    /// Sealing: it is ours to choose.
    Seal,
}

impl CacheKey {
    /// For opening messages of this encrypted data key.
    pub fn open(tenant: &Tenant, encrypted: &EncryptedDataKey, context: &EncryptionContext, suite: Suite) -> Self {
        let purpose = Purpose::Open { ciphertext: encrypted.ciphertext.clone() };
        Self { tenant: tenant.clone(), purpose, context: context.to_bytes(), suite }
    }

    /// For sealing messages of this context.
    pub fn seal(tenant: &Tenant, context: &EncryptionContext, suite: Suite) -> Self {
        Self { tenant: tenant.clone(), purpose: Purpose::Seal, context: context.to_bytes(), suite }
    }
}

/// How long an entry serves, and how many there are.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// Messages under one data key.
    pub uses: u32,
    /// Bytes under one data key.
    pub bytes: u64,
    /// From the answer of KMS on.
    pub age: Duration,
    /// Entries of one tenant.
    pub per_tenant: usize,
    /// Entries in all.
    pub total: usize,
}

/// A data key with the encrypted form that stands in headers.
pub struct CachedKey {
    /// The data key.
    pub data_key: DataKey,
    /// The same, encrypted.
    pub encrypted: EncryptedDataKey,
}

struct Entry {
    key: Arc<CachedKey>,
    since: Instant,
    uses: u32,
    bytes: u64,
}

impl DataKeyCache {
    /// An empty cache. An age above five minutes is lowered to it.
    pub fn new(limits: CacheLimits) -> Self {
        let limits = CacheLimits { age: limits.age.min(AGE_MAX), ..limits };
        Self { limits, entries: HashMap::new() }
    }

    /// The data key, for one more message of at most `bytes` bytes.
    pub fn get(&mut self, now: Instant, key: &CacheKey, bytes: u64) -> Option<Arc<CachedKey>> {
        let limits = self.limits;
        let entry = self.entries.get_mut(key)?;
        entry.uses = entry.uses.saturating_add(1);
        entry.bytes = entry.bytes.saturating_add(bytes);
        let serves = entry.uses <= limits.uses && entry.bytes <= limits.bytes && age(entry, now) < limits.age;
        if serves {
            return Some(Arc::clone(&entry.key));
        }
        self.entries.remove(key);
        None
    }

    /// Keeps a data key whose message was authenticated (opening) or which KMS has just made (sealing), and which has
    /// served one message of `bytes` bytes. The oldest entry makes room: of the same tenant first.
    pub fn insert(&mut self, now: Instant, key: CacheKey, value: Arc<CachedKey>, bytes: u64) {
        self.sweep(now);
        let of_tenant = self.entries.keys().filter(|other| other.tenant == key.tenant).count();
        if !self.entries.contains_key(&key) {
            if of_tenant >= self.limits.per_tenant {
                self.evict_oldest(|other| other.tenant == key.tenant);
            } else if self.of_key(&key) >= self.limits.total / 4 {
                // Names are the customer's to choose: many of them under one key push out no other key's entries.
                self.evict_oldest(|other| other.tenant.key_arn() == key.tenant.key_arn());
            } else if self.entries.len() >= self.limits.total {
                self.evict_oldest(|_| true);
            }
        }
        self.entries.insert(key, Entry { key: value, since: now, uses: 1, bytes });
    }

    /// Forgets what is too old. Called on every insertion and by a timer, so that an idle service holds no keys.
    pub fn sweep(&mut self, now: Instant) {
        let limit = self.limits.age;
        self.entries.retain(|_, entry| age(entry, now) < limit);
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn of_key(&self, key: &CacheKey) -> usize {
        self.entries.keys().filter(|other| other.tenant.key_arn() == key.tenant.key_arn()).count()
    }

    fn evict_oldest(&mut self, among: impl Fn(&CacheKey) -> bool) {
        let oldest = self.entries.iter().filter(|(key, _)| among(key)).min_by_key(|(_, entry)| entry.since);
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            self.entries.remove(&key);
        }
    }
}

fn age(entry: &Entry, now: Instant) -> Duration {
    now.saturating_duration_since(entry.since)
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self { uses: 1000, bytes: 1 << 30, age: AGE_MAX, per_tenant: 64, total: 1024 }
    }
}

/// DESIGN: "age (at most 5 minutes: this is how late a revoked key policy takes effect)".
const AGE_MAX: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::tests::ARN;
    use crate::kms::arn::KeyArn;

    fn tenant(name: &str) -> Tenant {
        Tenant::new(KeyArn::parse(ARN).unwrap(), name)
    }

    fn encrypted(byte: u8) -> EncryptedDataKey {
        EncryptedDataKey { provider_id: "aws-kms".into(), provider_info: ARN.into(), ciphertext: vec![byte; 100] }
    }

    fn context(tenant: &str) -> EncryptionContext {
        EncryptionContext::from_pairs([("subrosa:purpose", "inference"), ("subrosa:tenant", tenant)]).unwrap()
    }

    fn key(name: &str, byte: u8) -> CacheKey {
        CacheKey::open(&tenant(name), &encrypted(byte), &context(name), Suite::Commit)
    }

    fn cached(byte: u8) -> Arc<CachedKey> {
        Arc::new(CachedKey { data_key: DataKey::from_bytes([byte; 32]), encrypted: encrypted(byte) })
    }

    fn cache(limits: CacheLimits) -> (DataKeyCache, Instant) {
        (DataKeyCache::new(limits), Instant::now())
    }

    #[test]
    fn one_encrypted_data_key_under_two_contexts_does_not_hit() {
        let (mut cache, now) = cache(CacheLimits::default());
        cache.insert(now, key("a", 1), cached(1), 0);
        assert!(cache.get(now, &key("a", 1), 0).is_some());
        assert!(cache.get(now, &key("b", 1), 0).is_none(), "another tenant");
        let other_context = CacheKey::open(&tenant("a"), &encrypted(1), &context("b"), Suite::Commit);
        assert!(cache.get(now, &other_context, 0).is_none(), "another context");
        let other_suite = CacheKey::open(&tenant("a"), &encrypted(1), &context("a"), Suite::CommitSigned);
        assert!(cache.get(now, &other_suite, 0).is_none(), "another suite");
        let other_key = Tenant::new(KeyArn::parse(&format!("{ARN}0")).unwrap(), "a");
        let other_key = CacheKey::open(&other_key, &encrypted(1), &context("a"), Suite::Commit);
        assert!(cache.get(now, &other_key, 0).is_none(), "another key");
        let sealing = CacheKey::seal(&tenant("a"), &context("a"), Suite::Commit);
        assert!(cache.get(now, &sealing, 0).is_none(), "the other direction");
    }

    #[test]
    fn an_evicted_key_is_wiped_when_nobody_uses_it() {
        let (mut cache, now) = cache(CacheLimits { per_tenant: 1, ..CacheLimits::default() });
        let first = cached(1);
        let watch = Arc::downgrade(&first);
        cache.insert(now, key("a", 1), first, 0);
        assert!(watch.upgrade().is_some());
        // `DataKey` wipes itself when it is dropped; no handle left means that it was.
        cache.insert(now, key("a", 2), cached(2), 0);
        assert!(watch.upgrade().is_none());
        assert_eq!(cache.len(), 1);
    }

    #[test]
    fn nothing_serves_for_longer_than_five_minutes() {
        let (mut cache, now) = cache(CacheLimits { age: Duration::from_secs(4000), ..CacheLimits::default() });
        cache.insert(now, key("a", 1), cached(1), 0);
        cache.insert(now, key("a", 2), cached(2), 0);
        assert!(cache.get(now + Duration::from_secs(299), &key("a", 1), 0).is_some());
        assert!(cache.get(now + Duration::from_secs(300), &key("a", 1), 0).is_none());
        cache.sweep(now + Duration::from_secs(300));
        assert!(cache.is_empty(), "an idle cache is emptied too");
    }

    #[test]
    fn uses_and_bytes_are_bounded() {
        let (mut cache, now) = cache(CacheLimits { uses: 2, bytes: 100, ..CacheLimits::default() });
        cache.insert(now, key("a", 1), cached(1), 10);
        assert!(cache.get(now, &key("a", 1), 10).is_some());
        assert!(cache.get(now, &key("a", 1), 10).is_none(), "a third use");
        cache.insert(now, key("a", 2), cached(2), 60);
        assert!(cache.get(now, &key("a", 2), 60).is_none(), "more than 100 bytes");
    }

    #[test]
    fn a_greedy_tenant_evicts_its_own_keys() {
        let (mut cache, now) = cache(CacheLimits { per_tenant: 2, total: 12, ..CacheLimits::default() });
        let later = |seconds| now + Duration::from_secs(seconds);
        cache.insert(now, key("b", 9), cached(9), 0);
        for (seconds, byte) in [(1, 1), (2, 2), (3, 3), (4, 4)] {
            cache.insert(later(seconds), key("a", byte), cached(byte), 0);
        }
        assert!(cache.get(later(5), &key("b", 9), 0).is_some());
        assert!(cache.get(later(5), &key("a", 3), 0).is_some() && cache.get(later(5), &key("a", 4), 0).is_some());
        assert_eq!(cache.len(), 3);
    }

    #[test]
    fn one_key_cannot_push_out_anothers_entries_by_many_names() {
        let (mut cache, now) = cache(CacheLimits { per_tenant: 2, total: 8, ..CacheLimits::default() });
        let other = Tenant::new(KeyArn::parse(&format!("{ARN}0")).unwrap(), "b");
        let other = CacheKey::open(&other, &encrypted(9), &context("b"), Suite::Commit);
        cache.insert(now, other.clone(), cached(9), 0);
        for name in ["n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8", "n9"] {
            cache.insert(now + Duration::from_secs(1), key(name, 1), cached(1), 0);
        }
        assert!(cache.get(now + Duration::from_secs(2), &other, 0).is_some());
        assert_eq!(cache.len(), 3, "a quarter of all entries, and the other key's");
    }
}
