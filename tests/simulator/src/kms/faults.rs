//! What shall go wrong: asked for by a test, through the handle or the control interface.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A fault that happens to the next calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What happens.
    pub kind: FaultKind,
    /// To how many calls; 1 if not said.
    #[serde(default = "once")]
    pub times: u32,
    /// To calls of this operation only, for example `Decrypt`.
    #[serde(default)]
    pub operation: Option<String>,
}

/// What can go wrong. In JSON: `"throttle"`, `{"delay": {"millis": 200}}`, `{"lie": "plaintext"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// `ThrottlingException`.
    Throttle,
    /// `KMSInternalException`, status 500.
    Internal,
    /// `KeyUnavailableException`, status 500.
    Unavailable,
    /// The connection ends without an answer.
    Drop,
    /// The answer comes later.
    Delay {
        /// By how much.
        millis: u64,
    },
    /// The answer to `Decrypt` or `GenerateDataKey` is not true.
    Lie(Lie),
}

/// How an answer is not true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lie {
    /// `Plaintext` instead of `CiphertextForRecipient`, as services answer that do not know `Recipient`.
    Plaintext,
    /// `Plaintext` beside `CiphertextForRecipient`.
    PlaintextBeside,
    /// The ARN of another key.
    OtherKeyId,
    /// Another key's bytes, properly enveloped.
    OtherPlaintext,
    /// An envelope of random bytes.
    GarbageEnvelope,
    /// Neither `Plaintext` nor `CiphertextForRecipient`.
    Nothing,
}

/// In which of its two BER layouts `CiphertextForRecipient` is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// One after the other.
    #[default]
    Alternate,
    /// The content constructed, in several OCTET STRINGs.
    Constructed,
    /// The content primitive, in one piece.
    Primitive,
}

/// The faults in force and the settings that bend the truth.
#[derive(Default)]
pub struct Faults(Mutex<State>);

#[derive(Default)]
struct State {
    pending: Vec<Fault>,
    layout: Layout,
    envelopes: u64,
    attestation_clock_ahead: Duration,
}

impl Faults {
    /// Asks for a fault.
    pub fn push(&self, fault: Fault) {
        self.lock().pending.push(fault);
    }

    /// Throttles the next calls.
    pub fn throttle_next(&self, times: u32) {
        self.push(Fault { kind: FaultKind::Throttle, times, operation: None });
    }

    /// Fails the next calls with an internal error.
    pub fn fail_next(&self, times: u32) {
        self.push(Fault { kind: FaultKind::Internal, times, operation: None });
    }

    /// Ends the connections of the next calls without an answer.
    pub fn drop_next(&self, times: u32) {
        self.push(Fault { kind: FaultKind::Drop, times, operation: None });
    }

    /// Delays the next calls.
    pub fn delay_next(&self, times: u32, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.push(Fault { kind: FaultKind::Delay { millis }, times, operation: None });
    }

    /// Lies in the next answers to this operation.
    pub fn lie_next(&self, times: u32, operation: &str, lie: Lie) {
        self.push(Fault { kind: FaultKind::Lie(lie), times, operation: Some(operation.to_owned()) });
    }

    /// Forgets all faults that have not happened, and sets layout and clock back.
    pub fn clear(&self) {
        *self.lock() = State::default();
    }

    /// What has been asked for and has not happened yet.
    pub fn pending(&self) -> Vec<Fault> {
        self.lock().pending.clone()
    }

    /// Chooses the layout of `CiphertextForRecipient`.
    pub fn set_layout(&self, layout: Layout) {
        self.lock().layout = layout;
    }

    /// Lets the clock by which attestation documents are judged (not the one of request signatures) run ahead, so that a fresh document
    /// is a stale one.
    pub fn set_attestation_clock_ahead(&self, by: Duration) {
        self.lock().attestation_clock_ahead = by;
    }

    pub(super) fn attestation_clock_ahead(&self) -> Duration {
        self.lock().attestation_clock_ahead
    }

    /// The layout of the next envelope; never [`Layout::Alternate`].
    pub(super) fn next_layout(&self) -> Layout {
        let mut state = self.lock();
        state.envelopes = state.envelopes.wrapping_add(1);
        match (state.layout, state.envelopes % 2) {
            (Layout::Alternate, 1) => Layout::Constructed,
            (Layout::Alternate, _) => Layout::Primitive,
            (chosen, _) => chosen,
        }
    }

    /// What happens to this call: every delay that is due, and the first of the other faults.
    pub(super) fn take(&self, operation: &str) -> (Duration, Option<FaultKind>) {
        let mut state = self.lock();
        let (mut delay, mut other) = (Duration::ZERO, None);
        for fault in &mut state.pending {
            if fault.operation.as_deref().is_some_and(|only| only != operation) {
                continue;
            }
            match &fault.kind {
                FaultKind::Delay { millis } => delay = delay.saturating_add(Duration::from_millis(*millis)),
                kind if other.is_none() => other = Some(kind.clone()),
                _ => continue,
            }
            fault.times = fault.times.saturating_sub(1);
        }
        state.pending.retain(|fault| fault.times > 0);
        (delay, other)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn once() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_happen_as_often_as_asked_and_to_whom() {
        let faults = Faults::default();
        faults.throttle_next(1);
        faults.lie_next(1, "Decrypt", Lie::OtherKeyId);
        faults.delay_next(2, Duration::from_millis(5));
        assert_eq!(faults.take("Encrypt"), (Duration::from_millis(5), Some(FaultKind::Throttle)));
        assert_eq!(faults.take("Encrypt"), (Duration::from_millis(5), None));
        assert_eq!(faults.take("Decrypt"), (Duration::ZERO, Some(FaultKind::Lie(Lie::OtherKeyId))));
        assert_eq!(faults.take("Decrypt"), (Duration::ZERO, None));
    }

    #[test]
    fn layouts_alternate_unless_chosen() {
        let faults = Faults::default();
        assert_eq!(
            [faults.next_layout(), faults.next_layout(), faults.next_layout()],
            [Layout::Constructed, Layout::Primitive, Layout::Constructed]
        );
        faults.set_layout(Layout::Primitive);
        assert_eq!([faults.next_layout(), faults.next_layout()], [Layout::Primitive, Layout::Primitive]);
    }
}
