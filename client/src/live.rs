//! Evidence of a live enclave: asked for with a nonce of one's own, and appraised at once.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attestation::Pcr;
use attestation::chain::{LIVE_LEEWAY, TrustAnchor};
use attestation::document::UnixMillis;
use attestation::freshness::LIVE_MAX_AGE;
use sealing::{Random, RandomError, SystemRandom};

use crate::appraisal::{Appraisal, Demands};
use crate::evidence::{Evidence, EvidenceError};
use crate::transport::{Transport, TransportError};

/// What is demanded of a live enclave.
#[derive(Clone, Debug)]
pub struct Verification {
    /// The root to which the certificates must lead.
    pub anchor: TrustAnchor,
    /// The PCR values that are accepted. A [`crate::Client`] demands PCR0 among them.
    pub pcrs: BTreeMap<u8, Vec<Pcr>>,
    /// How old the document may be: at most, and by default, 300 s.
    pub max_age: Duration,
    /// Accept an enclave in debug mode.
    pub danger_allow_debug: bool,
    /// The lowest release that is accepted, as the verified keyset names it: against going back to an old image whose
    /// measurements are still accepted.
    pub min_release: Option<u64>,
}

impl Verification {
    /// AWS's root, these PCR values, 300 s, any release.
    #[must_use]
    pub fn of(pcrs: BTreeMap<u8, Vec<Pcr>>) -> Self {
        Self { anchor: TrustAnchor::aws(), pcrs, max_age: LIVE_MAX_AGE, danger_allow_debug: false, min_release: None }
    }
}

/// Asks for a document with a fresh nonce, and appraises it.
///
/// # Errors
/// When no evidence could be had. That the evidence is not good is no error, but what the [`Appraisal`] says.
pub async fn appraise(transport: &Transport, verification: &Verification) -> Result<Appraisal, LiveError> {
    let Verification { anchor, pcrs, max_age, danger_allow_debug, min_release } = verification.clone();
    let mut nonce = [0; NONCE];
    SystemRandom::new().fill(&mut nonce)?;
    let evidence = Evidence::read(&transport.attestation(&nonce).await?)?;
    let demands = Demands {
        anchor,
        now: now(),
        leeway: LIVE_LEEWAY,
        max_age: Some(max_age.min(LIVE_MAX_AGE)),
        nonce: Some(nonce.to_vec()),
        pcrs,
        danger_allow_debug,
        keyset_required: true,
        min_release,
    };
    Ok(Appraisal::of(&evidence, &demands))
}

/// This machine's clock.
#[must_use]
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The parent did not give any.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// What it gave is none.
    #[error("what the parent gave is no evidence: {0}")]
    Evidence(#[from] EvidenceError),
    /// No nonce could be made.
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// docs/PROTOCOL.md section 2 takes 16 to 64 bytes.
const NONCE: usize = 32;
