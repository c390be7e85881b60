//! Who a request belongs to: the pair of the key ARN that KMS returned and the tenant of the encryption context.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use inference::{Asker, PrefixScope};
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

    /// What the engine gets to know of it. Requests of this tenant with the same `salt` may share what was computed of a common
    /// beginning: the digest is over key, name and salt, each of which ends where the next begins.
    pub fn asker(&self, salt: Option<&str>) -> Asker {
        let sha256 = |parts: &[&[u8]]| {
            let mut context = digest::Context::new(&digest::SHA256);
            parts.iter().for_each(|part| context.update(part));
            let mut out = [0; 32];
            out.copy_from_slice(context.finish().as_ref());
            out
        };
        let tenant = self.sha256();
        let scope = |salt: &str| PrefixScope(sha256(&[b"subrosa prefix v1\n", &tenant, salt.as_bytes()]));
        Asker { customer: sha256(&[self.key_arn.as_str().as_bytes()]), tenant, prefixes: salt.map(scope) }
    }
}

/// How many requests of each tenant and of each key are in work, so that one cannot take the place of all others. (Tenant
/// names are the customer's to choose; keys are not.)
#[derive(Default)]
pub struct Shares {
    in_work: Mutex<InWork>,
}

#[derive(Default)]
struct InWork {
    tenants: HashMap<Tenant, usize>,
    keys: HashMap<KeyArn, usize>,
}

/// One place of a tenant. Dropping it gives it back.
pub struct Share {
    shares: Arc<Shares>,
    tenant: Tenant,
}

impl Shares {
    /// A place for one more request of `tenant`, if it has fewer than `limit` and all tenants under its key together have
    /// fewer than three quarters of `all` places (or `limit`, if that is more).
    pub fn take(self: &Arc<Self>, tenant: &Tenant, limit: usize, all: usize) -> Option<Share> {
        let per_key = limit.max(all - all / 4);
        let mut in_work = self.in_work();
        let InWork { tenants, keys } = &mut *in_work;
        let of_tenant = tenants.get(tenant).copied().unwrap_or(0);
        let of_key = keys.get(tenant.key_arn()).copied().unwrap_or(0);
        if of_tenant >= limit || of_key >= per_key {
            return None;
        }
        tenants.insert(tenant.clone(), of_tenant + 1);
        keys.insert(tenant.key_arn().clone(), of_key + 1);
        Some(Share { shares: Arc::clone(self), tenant: tenant.clone() })
    }

    fn in_work(&self) -> MutexGuard<'_, InWork> {
        self.in_work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut in_work = self.shares.in_work();
        let InWork { tenants, keys } = &mut *in_work;
        give_back(tenants, &self.tenant);
        give_back(keys, self.tenant.key_arn());
    }
}

/// Nothing is remembered of those without requests.
fn give_back<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
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
        let held: Vec<_> = (0..2).map(|_| shares.take(&tenant("a"), 2, 8).unwrap()).collect();
        assert!(shares.take(&tenant("a"), 2, 8).is_none());
        assert!(shares.take(&tenant("b"), 2, 8).is_some());
        drop(held);
        assert!(shares.in_work().tenants.is_empty() && shares.in_work().keys.is_empty());
        assert!(shares.take(&tenant("a"), 2, 8).is_some());
    }

    #[test]
    fn many_names_under_one_key_leave_places_for_other_keys() {
        let shares = Arc::new(Shares::default());
        let named = |number: usize| Tenant::new(KeyArn::parse(ARN).unwrap(), &format!("n{number}"));
        let held: Vec<_> = (0..20).filter_map(|number| shares.take(&named(number), 2, 8)).collect();
        assert_eq!(held.len(), 6);
        let other = Tenant::new(KeyArn::parse(&format!("{ARN}0")).unwrap(), "n0");
        assert!(shares.take(&other, 2, 8).is_some());
    }

    #[test]
    fn beginnings_are_shared_by_requests_of_one_key_one_name_and_one_salt() {
        let one = Tenant::new(KeyArn::parse(ARN).unwrap(), "a");
        let others = [
            Tenant::new(KeyArn::parse(&format!("{ARN}0")).unwrap(), "a").asker(Some("s")),
            Tenant::new(KeyArn::parse(ARN).unwrap(), "as").asker(Some("")),
            Tenant::new(KeyArn::parse(ARN).unwrap(), "b").asker(Some("s")),
            one.asker(Some("t")),
            one.asker(None),
        ];
        let shared = one.asker(Some("s"));
        assert!(shared.prefixes.is_some() && shared == Tenant::clone(&one).asker(Some("s")));
        assert!(others.iter().all(|other| other.prefixes != shared.prefixes));
        let [other_key, other_name, ..] = others;
        assert!(other_key.customer != shared.customer && other_key.tenant != shared.tenant);
        assert!(other_name.customer == shared.customer && other_name.tenant != shared.tenant);
    }

    #[test]
    fn the_same_name_under_another_key_is_another_tenant() {
        let one = Tenant::new(KeyArn::parse(ARN).unwrap(), "a");
        let other = Tenant::new(KeyArn::parse(&format!("{ARN}0")).unwrap(), "a");
        assert!(one != other && one.sha256() != other.sha256());
    }
}
