//! The threads that compute: one team for products, attention and everything else, as large as the caller says.

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};

use kernels::Team;
use thiserror::Error;

/// The operating system gave no threads.
#[derive(Debug, Error)]
#[error("no engine with {wanted} threads could be started: {reason}")]
pub struct ThreadsError {
    wanted: usize,
    reason: String,
}

impl ThreadsError {
    pub(crate) fn new(wanted: usize, reason: &dyn std::fmt::Display) -> Self {
        Self { wanted, reason: reason.to_string() }
    }
}

/// Something that should not happen did, on one of the engine's threads.
pub(crate) struct Panicked;

pub(crate) struct Threads(Team);

impl Threads {
    /// `count` threads; 0 stands for one per core.
    pub(crate) fn start(count: usize) -> Result<Self, ThreadsError> {
        let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
        let count = if count == 0 { cores() } else { count };
        Team::new(count).map(Self).map_err(|error| ThreadsError::new(count, &error))
    }

    pub(crate) fn count(&self) -> usize {
        self.0.threads()
    }

    /// Does `work` on this thread, and what it divides on all of them. A panic in it ends this piece of work only.
    pub(crate) fn run<R>(&self, work: impl FnOnce() -> R) -> Result<R, Panicked> {
        catch_unwind(AssertUnwindSafe(|| self.0.run(work))).map_err(|_| Panicked)
    }
}
