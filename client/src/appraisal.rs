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
    /// The lowest release of the keyset that is accepted. Says nothing where there is no keyset.
    pub min_release: Option<u64>,
}

/// The answers. A question that was not asked is `None`, and does not count against the evidence.
#[derive(Debug)]
pub struct Appraisal {
    document: Result<Document, ParseError>,
    signature: Option<Result<SignatureVerified, SignatureError>>,
    freshness: Option<Result<Fresh, FreshnessError>>,
    measurements: Option<Result<Measured, MeasurementError>>,
    keyset: Option<Result<Keyset, KeysetError>>,
    image_asked: bool,
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
        let Demands { anchor, now, leeway, max_age, nonce, pcrs, danger_allow_debug, keyset_required, min_release } =
            demands;
        let image_asked = pcrs.contains_key(&IMAGE);
        let document = match Document::parse(&evidence.document) {
            Ok(document) => document,
            Err(error) => {
                return Self {
                    document: Err(error),
                    signature: None,
                    freshness: None,
                    measurements: None,
                    keyset: None,
                    image_asked,
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
            Some(keyset) => Some(check_keyset(keyset, &document, *now, *min_release)),
            None => keyset_required.then_some(Err(KeysetError::Missing)),
        };
        Self { document: Ok(document), signature: Some(signature), freshness, measurements, keyset, image_asked }
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

    /// Whether the measurements were asked for and are good, PCR0 was among them, and it names an image: in debug mode
    /// it is zero, whatever runs.
    #[must_use]
    pub fn is_image_pinned(&self) -> bool {
        self.image_asked
            && matches!(self.measurements, Some(Ok(_)))
            && self.document().is_some_and(|document| !document.is_debug())
    }

    /// Is the keyset the one that the document binds, and still valid?
    #[must_use]
    pub fn keyset(&self) -> Outcome {
        outcome(self.keyset.as_ref())
    }

    /// What the keyset says, if the document that binds it is signed and the keyset itself is good.
    #[must_use]
    pub fn good_keyset(&self) -> Option<&Keyset> {
        match (&self.signature, &self.keyset) {
            (Some(Ok(_)), Some(Ok(keyset))) => Some(keyset),
            _ => None,
        }
    }

    /// Whether nothing that was asked was answered with no. The signature is always asked for.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let Self { document, signature, freshness, measurements, keyset, image_asked: _ } = self;
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
        let Self { document, signature, freshness, measurements, keyset, image_asked: _ } = self;
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
    /// An older release than is accepted: perhaps one with a known fault, brought back by whoever runs the parent.
    #[error("the enclave is of release {found}, accepted is {floor} and above")]
    Release {
        /// The keyset's.
        found: u64,
        /// The lowest that is accepted.
        floor: u64,
    },
}

/// As [`attestation::keyset::of_verified`], for documents whose other questions may be open.
fn check_keyset(
    bytes: &[u8],
    document: &Document,
    now: UnixMillis,
    min_release: Option<u64>,
) -> Result<Keyset, KeysetError> {
    let keyset = Keyset::parse(bytes).map_err(|error| KeysetError::Malformed(error.to_string()))?;
    // Only a document for KMS has a public key, and such a document was not made for a client.
    if document.public_key().is_some() || document.user_data() != Some(keyset.digest().as_bytes().as_slice()) {
        return Err(KeysetError::Foreign);
    }
    check_still_good(&keyset, now, min_release)?;
    Ok(keyset)
}

/// A keyset's time and release.
fn check_still_good(keyset: &Keyset, now: UnixMillis, min_release: Option<u64>) -> Result<(), KeysetError> {
    let over = now.seconds().saturating_sub(keyset.not_after);
    if over > 0 {
        return Err(KeysetError::Expired(Duration::from_secs(over)));
    }
    match min_release {
        Some(floor) if keyset.release < floor => Err(KeysetError::Release { found: keyset.release, floor }),
        _ => Ok(()),
    }
}

fn outcome<T, E: std::fmt::Display>(answer: Option<&Result<T, E>>) -> Outcome {
    match answer {
        None => Outcome::NotChecked,
        Some(Ok(_)) => Outcome::Good,
        Some(Err(error)) => Outcome::Failed(error.to_string()),
    }
}

/// PCR0 measures the whole image. Every other register says something about an image, and nothing without it.
pub(crate) const IMAGE: u8 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    fn keyset(release: u64) -> Keyset {
        Keyset {
            version: 1,
            ohttp_key_configuration: None,
            receipt_key: None,
            models: BTreeMap::new(),
            guardrails: None,
            configuration: [7; 48],
            release,
            model_key_policy: None,
            not_after: 1000,
        }
    }

    #[test]
    fn a_release_below_the_floor_is_refused_and_the_floor_itself_is_not() {
        let at = UnixMillis(1_000_000);
        let error = check_still_good(&keyset(4), at, Some(5)).unwrap_err();
        assert!(matches!(error, KeysetError::Release { found: 4, floor: 5 }), "{error}");
        for (release, floor) in [(5, Some(5)), (6, Some(5)), (0, None)] {
            assert!(check_still_good(&keyset(release), at, floor).is_ok(), "{release} {floor:?}");
        }
    }

    #[test]
    fn a_new_release_does_not_outlive_its_time() {
        let error = check_still_good(&keyset(9), UnixMillis(1_001_000), Some(5)).unwrap_err();
        assert!(matches!(error, KeysetError::Expired(over) if over.as_secs() == 1), "{error}");
    }
}
