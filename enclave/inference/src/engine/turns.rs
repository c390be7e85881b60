//! Whose prompt is read next: of the customer for whom least was read, and of its tenants the one for whom least was.
//!
//! Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024): who comes with a prompt begins where
//! the least served of the others stands, so that nobody saves up turns by staying away. As long as two have prompts to be read, neither
//! is ahead of the other by more than a part.

use std::collections::BTreeMap;

use crate::asker::Asker;

/// Tokens read for everybody who has a prompt that is being read.
#[derive(Default)]
pub(super) struct Turns {
    customers: BTreeMap<[u8; 32], u64>,
    /// By customer and tenant.
    tenants: BTreeMap<([u8; 32], [u8; 32]), u64>,
}

impl Turns {
    /// Takes note of whose prompts are being read, and forgets all others.
    pub(super) fn keep<'a>(&mut self, readers: impl Iterator<Item = &'a Asker> + Clone) {
        self.customers.retain(|customer, _| readers.clone().any(|asker| asker.customer == *customer));
        self.tenants.retain(|(_, tenant), _| readers.clone().any(|asker| asker.tenant == *tenant));
        for Asker { customer, tenant, .. } in readers {
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

    /// So many tokens are read for `asker`.
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
