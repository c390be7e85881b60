//! Who a request belongs to: the pair of the key ARN that KMS returned and the tenant of the encryption context.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::digest;

use crate::kms::arn::KeyArn;

/// A tenant. The context alone authenticates nobody: two customers may both write `subrosa:tenant=clinic`, but each has
/// its own key. Every cache, quota, replay set and log key uses the pair.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tenant {
    key_arn: KeyArn,
    name: Box<str>,
}

impl Tenant {
    /// The tenant of a message whose header names `name` and was authenticated under a data key of `key_arn`.
    pub fn new(key_arn: KeyArn, name: &str) -> Self {
        Self { key_arn, name: name.into() }
    }

    /// The key.
    pub fn key_arn(&self) -> &KeyArn {
        &self.key_arn
    }

    /// The value of `subrosa:tenant`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 over both, for the log. The parent sees both parts in every header, so the hash hides nothing from it.
    pub fn sha256(&self) -> [u8; 32] {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(self.key_arn.as_str().as_bytes());
        context.update(b"\n");
        context.update(self.name.as_bytes());
        let mut out = [0; 32];
        out.copy_from_slice(context.finish().as_ref());
        out
    }
}

/// How many requests of each tenant are in work, so that one cannot take the place of all others.
#[derive(Default)]
pub struct Shares {
    in_work: Mutex<HashMap<Tenant, usize>>,
}

/// One place of a tenant. Dropping it gives it back.
pub struct Share {
    shares: Arc<Shares>,
    tenant: Tenant,
}

impl Shares {
    /// A place for one more request of `tenant`, if it has fewer than `limit`.
    pub fn take(self: &Arc<Self>, tenant: &Tenant, limit: usize) -> Option<Share> {
        let mut in_work = self.in_work();
        let count = in_work.entry(tenant.clone()).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Share { shares: Arc::clone(self), tenant: tenant.clone() })
    }

    fn in_work(&self) -> MutexGuard<'_, HashMap<Tenant, usize>> {
        self.in_work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut in_work = self.shares.in_work();
        if let Some(count) = in_work.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                in_work.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::tests::ARN;

    #[test]
    fn a_tenant_cannot_take_more_than_its_share_and_gives_it_back() {
        let shares = Arc::new(Shares::default());
        let tenant = |name| Tenant::new(KeyArn::parse(ARN).unwrap(), name);
        let held: Vec<_> = (0..2).map(|_| shares.take(&tenant("a"), 2).unwrap()).collect();
        assert!(shares.take(&tenant("a"), 2).is_none());
        assert!(shares.take(&tenant("b"), 2).is_some());
        drop(held);
        assert!(shares.in_work().is_empty(), "nothing is remembered of tenants without requests");
        assert!(shares.take(&tenant("a"), 2).is_some());
    }

    #[test]
    fn the_same_name_under_another_key_is_another_tenant() {
        let one = Tenant::new(KeyArn::parse(ARN).unwrap(), "a");
        let other = Tenant::new(KeyArn::parse(&format!("{ARN}0")).unwrap(), "a");
        assert!(one != other && one.sha256() != other.sha256());
    }
}
