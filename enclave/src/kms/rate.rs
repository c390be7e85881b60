//! How much may be asked for: a token bucket, and the gate in front of KMS.
//!
//! Bytes that nobody has authenticated cost at most one KMS call, and not every time: for each key there is a rate and
//! a number of calls at once, in total too, and what KMS has just refused is refused here for a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::arn::KeyArn;

/// A burst, and one more after each interval.
#[derive(Debug)]
pub struct TokenBucket {
    burst: u32,
    interval: Duration,
    left: u32,
    since: Option<Instant>,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(burst: u32, interval: Duration) -> Self {
        Self { burst, interval, left: burst, since: None }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }

    /// Whether nothing has been taken for so long that a new bucket would be the same.
    fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.left == self.burst
    }

    fn refill(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let elapsed = now.saturating_duration_since(since);
        let gained = u32::try_from(elapsed.as_nanos() / self.interval.as_nanos().max(1)).unwrap_or(u32::MAX);
        if gained > 0 {
            self.left = self.left.saturating_add(gained).min(self.burst);
            // A full bucket gains nothing from the past; else the rest of an interval is kept.
            self.since = if self.left == self.burst { Some(now) } else { since.checked_add(self.interval * gained) };
        }
    }
}

/// The gate in front of KMS.
pub struct Gate {
    total: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keys: HashMap<KeyArn, PerKey>,
    refused: HashMap<[u8; 32], Instant>,
}

struct PerKey {
    bucket: TokenBucket,
    at_once: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// Leave to make one call.
#[must_use]
pub struct Pass {
    _per_key: OwnedSemaphorePermit,
    _total: OwnedSemaphorePermit,
}

impl Default for Gate {
    fn default() -> Self {
        Self { total: Arc::new(Semaphore::new(CALLS_AT_ONCE)), state: Mutex::default() }
    }
}

impl Gate {
    /// Leave for one call with this key, after waiting for calls in flight if need be.
    pub async fn pass(&self, key: &KeyArn) -> Result<Pass, GateClosed> {
        let (at_once, waiting) = self.admit(key, Instant::now())?;
        let wait = async {
            let _waiting = waiting.try_acquire_owned().ok()?;
            let per_key = at_once.acquire_owned().await.ok()?;
            let total = Arc::clone(&self.total).acquire_owned().await.ok()?;
            Some(Pass { _per_key: per_key, _total: total })
        };
        tokio::time::timeout(WAIT_MAX, wait).await.ok().flatten().ok_or(GateClosed)
    }

    /// Whether KMS has just refused this call.
    pub fn was_refused(&self, call: &[u8; 32]) -> bool {
        let now = Instant::now();
        self.state().refused.get(call).is_some_and(|until| *until > now)
    }

    /// Remembers for a short while that KMS refused this call.
    pub fn refuse(&self, call: [u8; 32]) {
        let now = Instant::now();
        let mut state = self.state();
        if state.refused.len() >= REFUSED_MAX {
            state.refused.retain(|_, until| *until > now);
        }
        // When it is full of live entries the new one is left out: it costs a call, and nothing grows.
        if state.refused.len() < REFUSED_MAX {
            state.refused.insert(call, now + REFUSED_FOR);
        }
    }

    fn admit(&self, key: &KeyArn, now: Instant) -> Result<(Arc<Semaphore>, Arc<Semaphore>), GateClosed> {
        let mut state = self.state();
        if state.keys.len() >= KEYS_MAX && !state.keys.contains_key(key) {
            state.keys.retain(|_, per_key| {
                !per_key.bucket.is_full(now) || per_key.at_once.available_permits() < CALLS_AT_ONCE_PER_KEY
            });
            if state.keys.len() >= KEYS_MAX {
                return Err(GateClosed);
            }
        }
        let per_key = state.keys.entry(key.clone()).or_insert_with(|| PerKey {
            bucket: TokenBucket::new(BURST_PER_KEY, INTERVAL_PER_KEY),
            at_once: Arc::new(Semaphore::new(CALLS_AT_ONCE_PER_KEY)),
            waiting: Arc::new(Semaphore::new(WAITING_PER_KEY)),
        });
        if !per_key.bucket.take(now) {
            return Err(GateClosed);
        }
        Ok((Arc::clone(&per_key.at_once), Arc::clone(&per_key.waiting)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Too many calls with this key, or in total.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many KMS calls with this key, or in total")]
pub struct GateClosed;

/// KMS allows 10,000 calls a second for an account and region; these bounds are what one enclave may take of that.
const CALLS_AT_ONCE: usize = 64;
const CALLS_AT_ONCE_PER_KEY: usize = 16;
const WAITING_PER_KEY: usize = 256;
const BURST_PER_KEY: u32 = 512;
const INTERVAL_PER_KEY: Duration = Duration::from_millis(5);
/// Two whole calls that fail as slowly as they may.
const WAIT_MAX: Duration = Duration::from_secs(40);
const KEYS_MAX: usize = 1024;
/// "Short": a key policy that was just corrected should not be refused for long.
const REFUSED_FOR: Duration = Duration::from_secs(5);
const REFUSED_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::tests::ARN;

    #[test]
    fn a_bucket_gives_its_burst_and_then_one_per_interval() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(2, Duration::from_secs(1));
        assert!(bucket.take(start) && bucket.take(start) && !bucket.take(start));
        assert!(!bucket.take(start + Duration::from_millis(999)));
        assert!(bucket.take(start + Duration::from_millis(1000)));
        assert!(!bucket.take(start + Duration::from_millis(1999)));
        let later = start + Duration::from_secs(100);
        assert!(bucket.take(later) && bucket.take(later) && !bucket.take(later));
    }

    #[tokio::test]
    async fn a_key_has_a_rate_of_its_own() {
        let gate = Gate::default();
        let (one, other) = (KeyArn::parse(ARN).unwrap(), KeyArn::parse(&format!("{ARN}0")).unwrap());
        let now = Instant::now();
        for _ in 0..BURST_PER_KEY {
            gate.admit(&one, now).unwrap();
        }
        assert!(gate.admit(&one, now).is_err());
        assert!(gate.admit(&other, now).is_ok());
    }

    #[tokio::test]
    async fn the_number_of_keys_that_are_remembered_is_bounded() {
        let gate = Gate::default();
        let now = Instant::now();
        for index in 0..KEYS_MAX {
            gate.admit(&KeyArn::parse(&format!("{ARN}{index}")).unwrap(), now).unwrap();
        }
        assert!(gate.admit(&KeyArn::parse(ARN).unwrap(), now).is_err());
        assert_eq!(gate.state().keys.len(), KEYS_MAX);
    }

    #[test]
    fn what_kms_refused_is_refused_for_a_while() {
        let gate = Gate::default();
        assert!(!gate.was_refused(&[1; 32]));
        gate.refuse([1; 32]);
        assert!(gate.was_refused(&[1; 32]) && !gate.was_refused(&[2; 32]));
    }
}
