//! The threads that compute.
//!
//! Two pools take part. *The engine's own* (rayon) has as many threads as [`LoadOptions::threads`] says; attention and
//! all products of f32 weights run on it. *candle's* pool for products of quantised blocks exists once per process and
//! cannot be given a size: candle makes it at first use with one thread per physical core, or as many as
//! `CANDLE_NUM_THREADS` says in the environment that the process was started with. A caller that wants fewer starts
//! the process with that variable set (see [`BLOCK_THREADS_VARIABLE`]); models small enough to be held as f32 never
//! touch that pool.
//!
//! [`LoadOptions::threads`]: crate::LoadOptions::threads

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rayon::{ThreadPool, ThreadPoolBuilder};
use thiserror::Error;

/// The environment variable from which candle takes the number of threads for products of quantised blocks.
pub const BLOCK_THREADS_VARIABLE: &str = "CANDLE_NUM_THREADS";

/// The operating system gave no threads.
#[derive(Debug, Error)]
#[error("no engine with {wanted} threads could be started: {reason}")]
pub struct ThreadsError {
    wanted: usize,
    reason: String,
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
        pool.map(Self).map_err(|error| ThreadsError { wanted: count, reason: error.to_string() })
    }

    pub(crate) fn count(&self) -> usize {
        self.0.current_num_threads()
    }

    /// Runs `work` on one of the threads, and what it divides on the others; waits for it. A panic in it, in candle or
    /// below, ends this piece of work only.
    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R, Panicked> {
        catch_unwind(AssertUnwindSafe(|| self.0.install(work))).map_err(|_| Panicked)
    }
}
