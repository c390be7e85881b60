//! What was called, for tests to read.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// One call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When the request had been read; milliseconds since the epoch.
    pub at_ms: u64,
    /// `Decrypt`; the part of `X-Amz-Target` behind `TrentService.`.
    pub operation: String,
    /// The caller's ARN, once the signature was verified.
    pub principal: Option<String>,
    /// The key's ARN, once it was found.
    pub key: Option<String>,
    /// The encryption context (of the source, for `ReEncrypt`).
    pub context: BTreeMap<String, String>,
    /// Whether the call carried an attestation document that was verified.
    pub attested: bool,
    /// PCR0 of that document, in hex.
    pub pcr0: Option<String>,
    /// `ok`, or the code of the error.
    pub outcome: String,
    /// The error's message; empty if all went well.
    pub message: String,
    /// The fault that was asked for and happened, if any.
    pub fault: Option<String>,
}

/// All calls since the start or the last [`Journal::clear`].
#[derive(Default)]
pub struct Journal(Mutex<Vec<Entry>>);

impl Journal {
    /// The calls so far, oldest first.
    pub fn entries(&self) -> Vec<Entry> {
        self.lock().clone()
    }

    /// The calls of one operation, oldest first.
    pub fn of(&self, operation: &str) -> Vec<Entry> {
        self.lock().iter().filter(|entry| entry.operation == operation).cloned().collect()
    }

    /// Forgets all calls.
    pub fn clear(&self) {
        self.lock().clear();
    }

    pub(super) fn add(&self, entry: Entry) {
        let mut entries = self.lock();
        // A simulator that runs for days must not grow without end.
        if entries.len() >= MAX_ENTRIES {
            entries.drain(..MAX_ENTRIES / 2);
        }
        entries.push(entry);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const MAX_ENTRIES: usize = 100_000;
