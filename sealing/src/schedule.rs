//! The keys of one message, derived from its data key.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::error::Unspecified;
use ring::hkdf;

use crate::frame::{IV_LENGTH, TAG_LENGTH};
use crate::message::{DataKey, MessageId, Suite};

/// What a data key becomes for one message.
pub(crate) struct Schedule {
    /// Encrypts frames, and authenticates the header.
    pub(crate) content_key: LessSafeKey,
    /// Stands in the header: no other data key gives the same.
    pub(crate) commitment: [u8; COMMITMENT_LENGTH],
}

/// The "algorithm suite data" of both suites.
pub(crate) const COMMITMENT_LENGTH: usize = 32;

impl Schedule {
    /// HKDF-SHA512 with the message id as salt. The label of the content key begins with the suite's id, so that the
    /// suite cannot be exchanged under the same data key ("algorithm suite ID || DERIVEKEY", "COMMITKEY": AWS Encryption
    /// SDK specification, `framework/algorithm-suites.md` and `client-apis/encrypt.md`; checked by the third-party vectors).
    pub(crate) fn derive(suite: Suite, message: &MessageId, data_key: &DataKey) -> Result<Self, Unspecified> {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA512, message.as_bytes()).extract(data_key.expose());
        let suite = suite.id().to_be_bytes();
        let content_key = UnboundKey::from(secret.expand(&[&suite, b"DERIVEKEY"], &AES_256_GCM)?);
        let mut commitment = [0; COMMITMENT_LENGTH];
        secret.expand(&[b"COMMITKEY"], CommitmentLength)?.fill(&mut commitment)?;
        Ok(Self { content_key: LessSafeKey::new(content_key), commitment })
    }
}

/// The header's tag: AES-GCM of nothing under the content key, IV zero, the header as AAD (*Header authentication*).
pub(crate) fn header_tag(key: &LessSafeKey, header: &[u8]) -> Result<[u8; TAG_LENGTH], Unspecified> {
    let nonce = Nonce::assume_unique_for_key([0; IV_LENGTH]);
    let tag = key.seal_in_place_separate_tag(nonce, Aad::from(header), &mut [])?;
    tag.as_ref().try_into().map_err(|_| Unspecified)
}

struct CommitmentLength;

impl hkdf::KeyType for CommitmentLength {
    fn len(&self) -> usize {
        COMMITMENT_LENGTH
    }
}
