//! All three questions answered, about one document.

use crate::chain::SignatureVerified;
use crate::document::Document;
use crate::freshness::Fresh;
use crate::measurement::Measured;

/// A document whose signature, freshness and measurements were checked. There is no other way to one.
#[derive(Clone, Debug)]
pub struct Verified {
    document: Document,
    signature: SignatureVerified,
}

impl Verified {
    /// Puts the three proofs together. They must be about this very document.
    pub fn new(
        document: Document,
        signature: SignatureVerified,
        fresh: Fresh,
        measured: Measured,
    ) -> Result<Self, MixedProofs> {
        let fingerprint = document.fingerprint();
        let is_same =
            [signature.document(), fresh.document(), measured.document()].iter().all(|proof| *proof == fingerprint);
        if is_same { Ok(Self { document, signature }) } else { Err(MixedProofs) }
    }

    /// The document.
    #[must_use]
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// Which root it leads to, and until when the chain is valid.
    #[must_use]
    pub fn signature(&self) -> &SignatureVerified {
        &self.signature
    }
}

/// The proofs are about different documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the proofs are about different documents")]
pub struct MixedProofs;
