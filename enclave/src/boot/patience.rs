//! Waiting for a parent that is not there yet: again and again, with growing pauses and a log line each.

use std::time::Duration;

use crate::log::{self, Event, Service};

/// How often something has been asked for.
pub(super) struct Patience {
    service: Service,
    attempts: u64,
    pause: Duration,
}

impl Patience {
    pub(super) fn new(service: Service) -> Self {
        Self { service, attempts: 0, pause: FIRST_PAUSE }
    }

    /// Says so, and waits.
    pub(super) async fn pause(&mut self) {
        let pause = self.next();
        let again_in_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        log::write(Event::Waiting { service: self.service, attempts: self.attempts, again_in_ms });
        tokio::time::sleep(pause).await;
    }

    fn next(&mut self) -> Duration {
        self.attempts += 1;
        let pause = self.pause;
        self.pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        pause
    }

    /// Something came: the next pause is short again.
    pub(super) fn reset(&mut self) {
        self.pause = FIRST_PAUSE;
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound_and_begin_again_when_something_came() {
        let mut patience = Patience::new(Service::Kms);
        let pauses: Vec<_> = (0..8).map(|_| patience.next().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        patience.reset();
        assert_eq!(patience.next(), FIRST_PAUSE);
    }
}
