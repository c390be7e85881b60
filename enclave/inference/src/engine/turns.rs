//! Whose turn it is: the customer's for whom least was computed, and of its tenants the one's for whom least was.
//!
//! Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024): who comes to work begins where the
//! least served of those at work stands, so that nobody saves up turns by staying away. As long as two have work, neither is
//! ahead of the other by more than a step.

use std::collections::BTreeMap;

use crate::asker::Asker;

/// Tokens computed for everybody who is at work.
#[derive(Default)]
pub(super) struct Turns {
    customers: BTreeMap<[u8; 32], u64>,
    /// By customer and tenant.
    tenants: BTreeMap<([u8; 32], [u8; 32]), u64>,
}

impl Turns {
    /// Takes note of who is at work, and forgets who is not.
    pub(super) fn keep<'a>(&mut self, at_work: impl Iterator<Item = &'a Asker> + Clone) {
        self.customers.retain(|customer, _| at_work.clone().any(|asker| asker.customer == *customer));
        self.tenants.retain(|(_, tenant), _| at_work.clone().any(|asker| asker.tenant == *tenant));
        for Asker { customer, tenant, .. } in at_work {
            let least = self.customers.values().min().copied().unwrap_or(0);
            self.customers.entry(*customer).or_insert(least);
            let beside = self.tenants.range((*customer, [0; 32])..=(*customer, [u8::MAX; 32]));
            let least = beside.map(|(_, served)| *served).min().unwrap_or(0);
            self.tenants.entry((*customer, *tenant)).or_insert(least);
        }
    }

    /// The smaller, the sooner it is `asker`'s turn.
    pub(super) fn of(&self, asker: &Asker) -> (u64, u64) {
        let of_customer = self.customers.get(&asker.customer).copied().unwrap_or(0);
        (of_customer, self.tenants.get(&(asker.customer, asker.tenant)).copied().unwrap_or(0))
    }

    /// So many tokens are computed for `asker`.
    pub(super) fn charge(&mut self, asker: &Asker, tokens: usize) {
        let tokens = tokens as u64;
        if let Some(served) = self.customers.get_mut(&asker.customer) {
            *served = served.saturating_add(tokens);
        }
        if let Some(served) = self.tenants.get_mut(&(asker.customer, asker.tenant)) {
            *served = served.saturating_add(tokens);
        }
    }
}
