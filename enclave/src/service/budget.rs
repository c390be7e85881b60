//! The memory that answers in the making may take together, so that long prompts are refused before they are an
//! out-of-memory kill: that would end every tenant's answer, and forget the replay set.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory;

/// Bytes that may be taken, and those that are.
pub(crate) struct Budget {
    total: u64,
    taken: AtomicU64,
}

/// Bytes that were taken. Dropping it gives them back.
pub(crate) struct Taken<'a> {
    budget: &'a Budget,
    bytes: u64,
}

/// Why bytes were not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BudgetError {
    /// Others have them now.
    Busy,
    /// There are not so many at all.
    Never,
}

impl Budget {
    /// Half of what is available now, which is after the models were loaded: the other half is for activations, for
    /// messages, and for what an estimate forgets.
    pub(crate) fn of_this_machine() -> Self {
        Self::new(memory::available() / 2)
    }

    fn new(total: u64) -> Self {
        Self { total, taken: AtomicU64::new(0) }
    }

    /// Takes so many bytes, or nothing.
    pub(crate) fn take(&self, bytes: u64) -> Result<Taken<'_>, BudgetError> {
        if bytes > self.total {
            return Err(BudgetError::Never);
        }
        let room = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= self.total);
        match self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room) {
            Ok(_) => Ok(Taken { budget: self, bytes }),
            Err(_) => Err(BudgetError::Busy),
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_given_once_and_come_back() {
        let budget = Budget::new(100);
        let first = budget.take(60).unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(budget.take(41).err(), Some(BudgetError::Busy));
        assert!(budget.take(40).is_ok());
        drop(first);
        assert!(budget.take(100).is_ok());
        assert_eq!(budget.take(101).err(), Some(BudgetError::Never));
    }
}
