//! The memory that answers in the making may take together, so that long prompts are refused before they are an
//! out-of-memory kill: that would end every tenant's answer, and forget the replay set.

use std::sync::atomic::{AtomicU64, Ordering};

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
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self::new(available(&meminfo).unwrap_or(FALLBACK) / 2)
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

/// `MemAvailable` of proc(5), in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Where the kernel does not say: 1 GiB.
const FALLBACK: u64 = 1 << 30;

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

    #[test]
    fn the_kernels_figure_is_read() {
        assert_eq!(available("MemTotal:  9 kB\nMemAvailable:    2048 kB\n"), Some(2 << 20));
        assert_eq!(available("nothing"), None);
    }
}
