//! Appraisal of evidence: three questions, each with its own answer, and whether the keyset belongs to the document.

use std::collections::BTreeMap;
use std::time::Duration;

use attestation::chain::{self, SignatureError, SignatureVerified, TrustAnchor};
use attestation::document::{Document, ParseError, UnixMillis};
use attestation::freshness::{self, Fresh, Freshness, FreshnessError, MAX_AHEAD};
use attestation::keyset::Keyset;
use attestation::measurement::{self, Expected, Measured, MeasurementError};
use attestation::{Pcr, Verified};

use crate::evidence::Evidence;

/// What a relying party demands of evidence.
#[derive(Debug)]
pub struct Demands {
    /// The root to which the certificates must lead.
    pub anchor: TrustAnchor,
    /// The relying party's clock, or the time as of which stored evidence is judged.
    pub now: UnixMillis,
    /// Leeway on certificates: none for stored evidence, 60 s for a live enclave.
    pub leeway: Duration,
    /// How old the document may be.
    pub max_age: Option<Duration>,
    /// The nonce that it must carry.
    pub nonce: Option<Vec<u8>>,
    /// The PCR values that are accepted; empty when measurements are not asked for.
    pub pcrs: BTreeMap<u8, Vec<Pcr>>,
    /// Accept an enclave in debug mode.
    pub danger_allow_debug: bool,
    /// Whether there must be a keyset.
    pub keyset_required: bool,
}

/// The answers. A question that was not asked is `None`, and does not count against the evidence.
#[derive(Debug)]
pub struct Appraisal {
    document: Result<Document, ParseError>,
    signature: Option<Result<SignatureVerified, SignatureError>>,
    freshness: Option<Result<Fresh, FreshnessError>>,
    measurements: Option<Result<Measured, MeasurementError>>,
    keyset: Option<Result<Keyset, KeysetError>>,
}

/// One question's answer in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Asked, and the answer is yes.
    Good,
    /// Asked, and the answer is no; why.
    Failed(String),
    /// Not asked.
    NotChecked,
}

impl Appraisal {
    /// Asks every question, also when an earlier one was answered with no.
    #[must_use]
    pub fn of(evidence: &Evidence, demands: &Demands) -> Self {
        let Demands { anchor, now, leeway, max_age, nonce, pcrs, danger_allow_debug, keyset_required } = demands;
        let document = match Document::parse(&evidence.document) {
            Ok(document) => document,
            Err(error) => {
                return Self {
                    document: Err(error),
                    signature: None,
                    freshness: None,
                    measurements: None,
                    keyset: None,
                };
            }
        };
        let signature = chain::verify_signature(&document, anchor, *now, *leeway);
        let asked = max_age.is_some() || nonce.is_some();
        let demanded = Freshness { now: *now, max_age: *max_age, nonce: nonce.as_deref(), max_ahead: MAX_AHEAD };
        let freshness = match freshness::check(&document, &demanded) {
            // A document from the future is refused without being asked: there is no reading in which it is good.
            Ok(_) if !asked => None,
            answer => Some(answer),
        };
        let measurements = if pcrs.is_empty() {
            // So is debug mode, in which the parent reads the enclave's memory.
            if *danger_allow_debug { None } else { measurement::refuse_debug(&document).err().map(Err) }
        } else {
            let expected = Expected { pcrs: pcrs.clone(), danger_allow_debug: *danger_allow_debug };
            Some(measurement::check(&document, &expected))
        };
        let keyset = match &evidence.keyset {
            Some(keyset) => Some(check_keyset(keyset, &document, *now)),
            None => keyset_required.then_some(Err(KeysetError::Missing)),
        };
        Self { document: Ok(document), signature: Some(signature), freshness, measurements, keyset }
    }

    /// The document, if it has the shape of one. It proves nothing unless the verdict is good.
    #[must_use]
    pub fn document(&self) -> Option<&Document> {
        self.document.as_ref().ok()
    }

    /// Did a Nitro hypervisor sign it, and does its chain lead to the anchor?
    #[must_use]
    pub fn signature(&self) -> Outcome {
        match &self.document {
            Err(error) => Outcome::Failed(error.to_string()),
            Ok(_) => outcome(self.signature.as_ref()),
        }
    }

    /// Is it fresh, and made for this session?
    #[must_use]
    pub fn freshness(&self) -> Outcome {
        outcome(self.freshness.as_ref())
    }

    /// Is it the code that is wanted?
    #[must_use]
    pub fn measurements(&self) -> Outcome {
        outcome(self.measurements.as_ref())
    }

    /// Is the keyset the one that the document binds, and still valid?
    #[must_use]
    pub fn keyset(&self) -> Outcome {
        outcome(self.keyset.as_ref())
    }

    /// Whether nothing that was asked was answered with no. The signature is always asked for.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let Self { document, signature, freshness, measurements, keyset } = self;
        document.is_ok()
            && matches!(signature, Some(Ok(_)))
            && !matches!(freshness, Some(Err(_)))
            && !matches!(measurements, Some(Err(_)))
            && !matches!(keyset, Some(Err(_)))
    }

    /// The proof that all questions were asked and answered with yes, the keyset's included.
    ///
    /// # Errors
    /// The first answer that is no, or the first question that was not asked.
    pub fn into_verified(self) -> Result<(Verified, Keyset), AppraisalError> {
        let Self { document, signature, freshness, measurements, keyset } = self;
        let document = document?;
        let signature = signature.ok_or(AppraisalError::NotAsked("signature"))??;
        let fresh = freshness.ok_or(AppraisalError::NotAsked("freshness"))??;
        let measured = measurements.ok_or(AppraisalError::NotAsked("measurements"))??;
        let keyset = keyset.ok_or(AppraisalError::NotAsked("keyset"))??;
        let verified = Verified::new(document, signature, fresh, measured)
            .map_err(|_| AppraisalError::NotAsked("one document"))?;
        Ok((verified, keyset))
    }
}

/// Why evidence is not good.
#[derive(Debug, thiserror::Error)]
pub enum AppraisalError {
    /// Not a document of an enclave.
    #[error("the enclave's evidence is no attestation document: {0}")]
    Document(#[from] ParseError),
    /// Not signed by the hypervisor under the anchor.
    #[error("the attestation document's signature failed: {0}")]
    Signature(#[from] SignatureError),
    /// Old, or made for someone else.
    #[error("the attestation document is not fresh: {0}")]
    Freshness(#[from] FreshnessError),
    /// Other code.
    #[error("the enclave is not the expected one: {0}")]
    Measurements(#[from] MeasurementError),
    /// Another keyset.
    #[error(transparent)]
    Keyset(#[from] KeysetError),
    /// A question that this caller needs was not asked.
    #[error("the evidence was not checked for its {0}")]
    NotAsked(&'static str),
}

/// Why a keyset does not belong to a document.
#[derive(Debug, thiserror::Error)]
pub enum KeysetError {
    /// There is none.
    #[error("the evidence has no keyset; an enclave that serves publishes one beside its document")]
    Missing,
    /// It does not parse.
    #[error("the keyset is malformed: {0}")]
    Malformed(String),
    /// The document binds nothing, or something else.
    #[error("the keyset is not the one that the document binds in its user_data")]
    Foreign,
    /// Its time is over.
    #[error("the keyset's time is over since {} s", .0.as_secs())]
    Expired(Duration),
}

/// As [`attestation::keyset::of_verified`], for documents whose other questions may be open.
fn check_keyset(bytes: &[u8], document: &Document, now: UnixMillis) -> Result<Keyset, KeysetError> {
    let keyset = Keyset::parse(bytes).map_err(|error| KeysetError::Malformed(error.to_string()))?;
    // Only a document for KMS has a public key, and such a document was not made for a client.
    if document.public_key().is_some() || document.user_data() != Some(keyset.digest().as_bytes().as_slice()) {
        return Err(KeysetError::Foreign);
    }
    match now.seconds().saturating_sub(keyset.not_after) {
        0 => Ok(keyset),
        over => Err(KeysetError::Expired(Duration::from_secs(over))),
    }
}

fn outcome<T, E: std::fmt::Display>(answer: Option<&Result<T, E>>) -> Outcome {
    match answer {
        None => Outcome::NotChecked,
        Some(Ok(_)) => Outcome::Good,
        Some(Err(error)) => Outcome::Failed(error.to_string()),
    }
}
