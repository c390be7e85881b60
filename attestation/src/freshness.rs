//! Is it fresh, and for this session?

use std::time::Duration;

use subtle::ConstantTimeEq;

use crate::document::{Document, Fingerprint, UnixMillis};

/// What a relying party demands.
#[derive(Clone, Copy, Debug)]
pub struct Freshness<'a> {
    /// The relying party's clock. For a live enclave never the document's own timestamp.
    pub now: UnixMillis,
    /// How old the document may be; `None` for stored evidence.
    pub max_age: Option<Duration>,
    /// The nonce that the relying party made for this session.
    pub nonce: Option<&'a [u8]>,
    /// How far the document's timestamp may lie ahead of `now`: [`MAX_AHEAD`] unless there is a reason.
    pub max_ahead: Duration,
}

/// Proof that a document was fresh when it was checked.
#[derive(Clone, Debug)]
pub struct Fresh {
    document: Fingerprint,
    nonce_matched: bool,
}

impl Fresh {
    /// Whether a nonce was demanded (and then matched).
    #[must_use]
    pub fn nonce_matched(&self) -> bool {
        self.nonce_matched
    }

    pub(crate) fn document(&self) -> Fingerprint {
        self.document
    }
}

/// Checks timestamp and nonce of a document.
pub fn check(document: &Document, demanded: &Freshness<'_>) -> Result<Fresh, FreshnessError> {
    let Freshness { now, max_age, nonce, max_ahead } = *demanded;
    let timestamp = document.timestamp();
    let ahead = Duration::from_millis(timestamp.0.saturating_sub(now.0));
    if ahead > max_ahead {
        return Err(FreshnessError::AheadOfClock { by: ahead, at_most: max_ahead });
    }
    let age = Duration::from_millis(now.0.saturating_sub(timestamp.0));
    if let Some(at_most) = max_age
        && age > at_most
    {
        return Err(FreshnessError::Stale { age, at_most });
    }
    if let Some(expected) = nonce {
        let found = document.nonce().ok_or(FreshnessError::NoNonce)?;
        // In constant time, although a nonce is no secret: nobody needs to argue about it.
        if !bool::from(expected.ct_eq(found)) {
            return Err(FreshnessError::ForeignNonce);
        }
    }
    Ok(Fresh { document: document.fingerprint(), nonce_matched: nonce.is_some() })
}

/// Why a document is not fresh enough.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FreshnessError {
    /// Older than allowed.
    #[error("the document is {} s old, at most {} s are allowed: ask for a new one, or check the clock", age.as_secs(), at_most.as_secs())]
    Stale {
        /// Its age.
        age: Duration,
        /// The limit.
        at_most: Duration,
    },
    /// Signed in the future.
    #[error("the document's timestamp lies {} s ahead of this clock, at most {} s are allowed: check the clock", by.as_secs(), at_most.as_secs())]
    AheadOfClock {
        /// How far.
        by: Duration,
        /// The limit.
        at_most: Duration,
    },
    /// A nonce was demanded and there is none.
    #[error("the document has no nonce")]
    NoNonce,
    /// The nonce is somebody else's.
    #[error("the document's nonce is not the expected one: it was made for another session")]
    ForeignNonce,
}

/// Clocks differ; a document may be this far ahead of the relying party's.
pub const MAX_AHEAD: Duration = Duration::from_secs(60);
/// The age up to which a live enclave's document is taken, `docs/PROTOCOL.md` section 7.
pub const LIVE_MAX_AGE: Duration = Duration::from_secs(300);
