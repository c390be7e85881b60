//! A bound in time on each piece of a grammar's work that others wait for.
//!
//! The library counts its work, and what it counts is bounded; but not all of it takes as long as it is counted. What takes too long is
//! told to stop, which ends its answer with an error: no token depends on the time.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use llguidance::CancellationHandle;

/// A thread that sleeps while no grammar works.
pub(super) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What works now: its number, until when it may, and how it is told to stop.
    working: Vec<(u64, Instant, CancellationHandle)>,
    next: u64,
    is_closed: bool,
}

impl Watch {
    /// `None` if there is no thread to be had.
    pub(super) fn start() -> Option<Self> {
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(move || own.watch()).ok()?;
        Some(Self { shared, thread: Some(thread) })
    }

    /// Does `work`, which ends soon when `handle` is cancelled, as it is after `limit`.
    pub(super) fn limit<R>(&self, handle: &CancellationHandle, limit: Duration, work: impl FnOnce() -> R) -> R {
        let own = {
            let mut state = self.shared.lock();
            let until = Instant::now() + limit;
            // It sleeps until the first of them is late.
            if state.working.iter().all(|(_, other, _)| *other > until) {
                self.shared.changed.notify_one();
            }
            state.add(until, handle.clone())
        };
        let done = work();
        self.shared.lock().working.retain(|(number, ..)| *number != own);
        done
    }
}

impl State {
    fn add(&mut self, until: Instant, handle: CancellationHandle) -> u64 {
        self.next += 1;
        self.working.push((self.next, until, handle));
        self.next
    }
}

impl Shared {
    fn watch(&self) {
        let mut state = self.lock();
        while !state.is_closed {
            let Some(next) = state.working.iter().map(|(_, until, _)| *until).min() else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.working.retain(|(_, until, handle)| {
                    let is_late = *until <= next;
                    if is_late {
                        handle.cancel();
                    }
                    !is_late
                });
            } else {
                state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_takes_too_long_is_cancelled_and_other_work_is_not() {
        let watch = Watch::start().unwrap();
        let (slow, fast) = (CancellationHandle::default(), CancellationHandle::default());
        let begun = Instant::now();
        watch.limit(&slow, Duration::from_millis(20), || {
            watch.limit(&fast, Duration::from_secs(60), || {
                while !slow.is_cancelled() && begun.elapsed() < Duration::from_secs(30) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        });
        assert!(slow.is_cancelled() && !fast.is_cancelled());
        watch.limit(&fast, Duration::from_millis(20), || ());
        std::thread::sleep(Duration::from_millis(60));
        assert!(!fast.is_cancelled());
    }
}
