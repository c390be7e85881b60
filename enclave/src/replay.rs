//! The replay set: within one enclave's life a request is acted upon once.
//!
//! The key is (tenant, message id). An id is inserted after its header has been authenticated and lives until the
//! request expires. Live ids are never evicted: a tenant whose set is full is refused, and so is everyone when the whole
//! set is full, because forgetting an id would allow its replay. An id of a request that was never acted upon is withdrawn.
//!
//! Tenant names are the customer's to choose, so there is a quota for each key as well: who has one key cannot fill the
//! set by many names.

use std::collections::HashMap;

use crate::kms::arn::KeyArn;
use crate::tenant::Tenant;

/// The ids that have been seen and could still be replayed.
pub struct ReplaySet {
    quota: Quota,
    tenants: HashMap<Tenant, HashMap<[u8; 32], u64>>,
    keys: HashMap<KeyArn, usize>,
    total: usize,
    /// When expired ids were last looked for: a full set is not searched for every refusal.
    searched: u64,
    /// The latest time seen: a clock that steps back revives nothing.
    latest: u64,
}

/// How many live ids there may be.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    /// Of one tenant.
    pub per_tenant: usize,
    /// Of all tenants under one key.
    pub per_key: usize,
    /// In total.
    pub total: usize,
}

impl Default for Quota {
    fn default() -> Self {
        Self { per_tenant: LIVE_IDS_PER_TENANT, per_key: LIVE_IDS_PER_KEY, total: LIVE_IDS_TOTAL }
    }
}

/// Proof that a message id was not seen before.
#[must_use]
#[derive(Debug)]
pub struct FirstTime {
    tenant: Tenant,
    message_id: [u8; 32],
    until: u64,
}

impl FirstTime {
    /// Until when the id is remembered (Unix seconds). A request that could live longer must not be acted upon: it could
    /// be replayed once its id is forgotten.
    pub fn until(&self) -> u64 {
        self.until
    }
}

impl ReplaySet {
    /// An empty set.
    pub fn new(quota: Quota) -> Self {
        Self { quota, tenants: HashMap::new(), keys: HashMap::new(), total: 0, searched: 0, latest: 0 }
    }

    /// Inserts an id that may live until `until` (Unix seconds): the latest expiry that its request could state.
    pub fn admit(
        &mut self,
        now: u64,
        tenant: &Tenant,
        message_id: [u8; 32],
        until: u64,
    ) -> Result<FirstTime, ReplayError> {
        let now = self.advance(now);
        if self.tenants.get(tenant).is_some_and(|ids| ids.get(&message_id).is_some_and(|until| *until >= now)) {
            return Err(ReplayError::Replayed);
        }
        if self.is_full_for(tenant) && self.searched < now {
            self.forget_expired(now);
        }
        if self.is_full_for(tenant) {
            return Err(ReplayError::Full);
        }
        if self.tenants.entry(tenant.clone()).or_default().insert(message_id, until).is_none() {
            self.total += 1;
            *self.keys.entry(tenant.key_arn().clone()).or_default() += 1;
        }
        Ok(FirstTime { tenant: tenant.clone(), message_id, until })
    }

    /// Forgets an id whose request was not acted upon, so that it may be sent again.
    pub fn withdraw(&mut self, first_time: FirstTime) {
        let FirstTime { tenant, message_id, until: _ } = first_time;
        if self.tenants.get_mut(&tenant).is_some_and(|ids| ids.remove(&message_id).is_some()) {
            self.total -= 1;
            if let Some(of_key) = self.keys.get_mut(tenant.key_arn()) {
                *of_key -= 1;
            }
        }
    }

    fn is_full_for(&self, tenant: &Tenant) -> bool {
        self.tenants.get(tenant).map_or(0, HashMap::len) >= self.quota.per_tenant
            || self.keys.get(tenant.key_arn()).is_some_and(|of_key| *of_key >= self.quota.per_key)
            || self.total >= self.quota.total
    }

    /// Shortens an id's life to the expiry that the opened request states. It is never lengthened.
    pub fn expires(&mut self, first_time: &FirstTime, expires: u64) {
        let FirstTime { tenant, message_id, until: _ } = first_time;
        if let Some(until) = self.tenants.get_mut(tenant).and_then(|ids| ids.get_mut(message_id)) {
            *until = expires.min(*until);
        }
    }

    /// The time to judge requests by: `now`, but never earlier than what was judged by before.
    pub fn advance(&mut self, now: u64) -> u64 {
        self.latest = self.latest.max(now);
        self.latest
    }

    fn forget_expired(&mut self, now: u64) {
        self.tenants.retain(|_, ids| {
            ids.retain(|_, until| *until >= now);
            !ids.is_empty()
        });
        self.keys.clear();
        for (tenant, ids) in &self.tenants {
            *self.keys.entry(tenant.key_arn().clone()).or_default() += ids.len();
        }
        self.total = self.keys.values().sum();
        self.searched = now;
    }
}

/// Why a message id is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// It has been seen.
    #[error("this message has been seen before")]
    Replayed,
    /// There is no room for another live id.
    #[error("too many live requests of this tenant, or in total")]
    Full,
}

/// 15 minutes of about nine requests a second. An entry is about 50 bytes.
const LIVE_IDS_PER_TENANT: usize = 8_192;
/// A quarter of all: no customer fills the set alone.
const LIVE_IDS_PER_KEY: usize = LIVE_IDS_TOTAL / 4;
/// About 7 MiB in all.
const LIVE_IDS_TOTAL: usize = 131_072;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::tests::ARN;
    use crate::kms::arn::KeyArn;

    fn tenant(name: &str) -> Tenant {
        Tenant::new(KeyArn::parse(ARN).unwrap(), name)
    }

    fn id(value: u8) -> [u8; 32] {
        [value; 32]
    }

    #[test]
    fn a_message_id_is_admitted_once() {
        let mut set = ReplaySet::new(Quota::default());
        let _ = set.admit(100, &tenant("a"), id(1), 200).unwrap();
        assert_eq!(set.admit(101, &tenant("a"), id(1), 201).unwrap_err(), ReplayError::Replayed);
        assert!(set.admit(101, &tenant("a"), id(2), 201).is_ok());
    }

    #[test]
    fn the_same_id_of_another_tenant_is_another_message() {
        let mut set = ReplaySet::new(Quota::default());
        let _ = set.admit(100, &tenant("a"), id(1), 200).unwrap();
        assert!(set.admit(100, &tenant("b"), id(1), 200).is_ok());
        let other_key = KeyArn::parse("arn:aws:kms:us-east-1:111122223333:key/other").unwrap();
        assert!(set.admit(100, &Tenant::new(other_key, "a"), id(1), 200).is_ok());
    }

    #[test]
    fn a_full_set_refuses_its_tenant_and_evicts_no_live_id() {
        let mut set = ReplaySet::new(Quota { per_tenant: 2, per_key: 10, total: 10 });
        let _ = set.admit(100, &tenant("a"), id(1), 200).unwrap();
        let _ = set.admit(100, &tenant("a"), id(2), 200).unwrap();
        assert_eq!(set.admit(150, &tenant("a"), id(3), 250).unwrap_err(), ReplayError::Full);
        assert_eq!(set.admit(150, &tenant("a"), id(1), 250).unwrap_err(), ReplayError::Replayed);
        assert!(set.admit(150, &tenant("b"), id(3), 250).is_ok());
        assert!(set.admit(201, &tenant("a"), id(3), 301).is_ok(), "expired ids make room");
    }

    #[test]
    fn the_total_is_bounded_too() {
        let mut set = ReplaySet::new(Quota { per_tenant: 2, per_key: 10, total: 2 });
        let _ = set.admit(100, &tenant("a"), id(1), 200).unwrap();
        let _ = set.admit(100, &tenant("b"), id(1), 200).unwrap();
        assert_eq!(set.admit(100, &tenant("c"), id(1), 200).unwrap_err(), ReplayError::Full);
    }

    #[test]
    fn one_key_cannot_fill_the_set_by_many_names() {
        let mut set = ReplaySet::new(Quota { per_tenant: 2, per_key: 2, total: 10 });
        let _ = set.admit(100, &tenant("a"), id(1), 200).unwrap();
        let _ = set.admit(100, &tenant("b"), id(1), 200).unwrap();
        assert_eq!(set.admit(100, &tenant("c"), id(1), 200).unwrap_err(), ReplayError::Full);
        let other_key = KeyArn::parse("arn:aws:kms:us-east-1:111122223333:key/other").unwrap();
        assert!(set.admit(100, &Tenant::new(other_key, "c"), id(1), 200).is_ok());
        assert!(set.admit(201, &tenant("c"), id(1), 300).is_ok(), "expired ids make room for the key too");
    }

    #[test]
    fn a_request_that_was_not_acted_upon_may_come_again_and_counts_for_nothing() {
        let mut set = ReplaySet::new(Quota { per_tenant: 1, per_key: 1, total: 1 });
        let first = set.admit(100, &tenant("a"), id(1), 200).unwrap();
        set.withdraw(first);
        let _ = set.admit(100, &tenant("a"), id(1), 200).unwrap();
        assert_eq!(set.admit(100, &tenant("a"), id(1), 200).unwrap_err(), ReplayError::Replayed);
    }

    #[test]
    fn a_clock_that_steps_back_revives_nothing() {
        let mut set = ReplaySet::new(Quota { per_tenant: 1, per_key: 10, total: 10 });
        let first = set.admit(100, &tenant("a"), id(1), 900).unwrap();
        set.expires(&first, 150);
        assert_eq!(set.admit(90, &tenant("a"), id(1), 900).unwrap_err(), ReplayError::Replayed);
        assert!(set.admit(151, &tenant("a"), id(2), 900).is_ok());
        assert_eq!(set.admit(10, &tenant("a"), id(2), 900).unwrap_err(), ReplayError::Replayed);
    }

    #[test]
    fn an_expiry_is_never_lengthened() {
        let mut set = ReplaySet::new(Quota { per_tenant: 1, per_key: 10, total: 10 });
        let first = set.admit(100, &tenant("a"), id(1), 200).unwrap();
        set.expires(&first, u64::MAX);
        assert!(set.admit(201, &tenant("a"), id(1), 900).is_ok());
    }
}
