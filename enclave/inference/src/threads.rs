//! The threads that compute: one pool for products, attention and everything else, as large as the caller says.

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rayon::{ThreadPool, ThreadPoolBuilder};
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

pub(crate) struct Threads(ThreadPool);

impl Threads {
    /// `count` threads; 0 stands for one per core.
    pub(crate) fn start(count: usize) -> Result<Self, ThreadsError> {
        // Not left to rayon, which would ask the environment.
        let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
        let count = if count == 0 { cores() } else { count };
        let pool = ThreadPoolBuilder::new().num_threads(count).thread_name(|index| format!("engine-{index}")).build();
        pool.map(Self).map_err(|error| ThreadsError::new(count, &error))
    }

    pub(crate) fn count(&self) -> usize {
        self.0.current_num_threads()
    }

    /// Runs `work` on one of the threads, and what it divides on the others; waits for it. A panic in it ends
    /// this piece of work only.
    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R, Panicked> {
        catch_unwind(AssertUnwindSafe(|| self.0.install(work))).map_err(|_| Panicked)
    }
}
