//! What an answer must be, from its header alone.
//!
//! "A client accepts only the provider, key, tenant and purpose `answer` that it asked for": a request that comes back as
//! its own answer, another tenant's answer, or one under a key of the parent's choosing ends here.

use sealing::message::{DataKey, EncryptedDataKey, EncryptionContext, MessageId, SIGNATURE_KEY, Suite};
use sealing::raw_aes::Keyring;
use sealing::reader::UnverifiedHeader;

use super::AnswerError;
use crate::data_key::{DataKeyError, KmsKey, PROVIDER};

/// The answer that was asked for.
pub(crate) struct Expected {
    /// The message id of the request.
    pub(crate) request: MessageId,
    pub(crate) tenant: String,
    pub(crate) suite: Suite,
    pub(crate) opener: Opener,
}

/// Who opens its data key.
pub(crate) enum Opener {
    Reply(Keyring),
    /// The key by the full ARN under which the request was sealed.
    Kms {
        key: KmsKey,
        arn: String,
    },
}

impl Expected {
    /// Checks what the header claims. The claims become true with its authentication.
    pub(crate) fn check(self, header: &UnverifiedHeader) -> Result<Self, AnswerError> {
        let Self { request, tenant, suite, opener } = &self;
        if header.message_id() == request {
            return Err(AnswerError::NotOurs("it is the request itself".to_owned()));
        }
        if header.suite() != *suite {
            let (found, asked) = (header.suite().id(), suite.id());
            return Err(AnswerError::NotOurs(format!("its suite is {found:#06x}, asked for was {asked:#06x}")));
        }
        check_context(header.context(), tenant, *suite)?;
        match header.encrypted_data_keys() {
            [key] => opener.check(key)?,
            keys => return Err(AnswerError::NotOurs(format!("it has {} encrypted data keys, expected 1", keys.len()))),
        }
        Ok(self)
    }
}

impl Opener {
    fn check(&self, key: &EncryptedDataKey) -> Result<(), AnswerError> {
        let EncryptedDataKey { provider_id, provider_info, ciphertext: _ } = key;
        let (expected, ours) = match self {
            // The keyring itself looks at the name when it unwraps.
            Self::Reply(_) => (sealing::raw_aes::REPLY_NAMESPACE, true),
            Self::Kms { arn, .. } => (PROVIDER, provider_info == arn.as_bytes()),
        };
        if provider_id != expected {
            return Err(AnswerError::NotOurs(format!("its key provider is {provider_id:?}, expected {expected:?}")));
        }
        if ours { Ok(()) } else { Err(AnswerError::NotOurs("it is sealed under another key".to_owned())) }
    }

    pub(crate) async fn unwrap(
        &self,
        keys: &[EncryptedDataKey],
        context: &EncryptionContext,
    ) -> Result<DataKey, DataKeyError> {
        match self {
            Self::Reply(keyring) => Ok(keyring.unwrap(keys, context)?),
            Self::Kms { key, arn } => key.with_arn(arn.as_str()).unwrap(keys, context).await,
        }
    }
}

/// docs/PROTOCOL.md section 4: exactly `subrosa:tenant` and `subrosa:purpose`, and under 0x0578 the signature's key.
fn check_context(context: &EncryptionContext, tenant: &str, suite: Suite) -> Result<(), AnswerError> {
    for (key, expected) in [(TENANT, tenant), (PURPOSE, ANSWER)] {
        let found = context.get(key);
        if found != Some(expected) {
            return Err(AnswerError::NotOurs(format!("its {key} is {found:?}, expected {expected:?}")));
        }
    }
    let expected = 2 + usize::from(suite.is_signed());
    match context.iter().find(|(key, _)| ![TENANT, PURPOSE, SIGNATURE_KEY].contains(key)) {
        Some((key, _)) => Err(AnswerError::NotOurs(format!("its encryption context has an unknown key {key:?}"))),
        None if context.len() != expected => Err(AnswerError::NotOurs(format!(
            "its encryption context has {} pairs, expected {expected}",
            context.len()
        ))),
        None => Ok(()),
    }
}

/// Key of the encryption context: whose message it is.
pub(crate) const TENANT: &str = "subrosa:tenant";
/// Key of the encryption context: what the message is for.
pub(crate) const PURPOSE: &str = "subrosa:purpose";
/// Purpose of a request.
pub(crate) const INFERENCE: &str = "inference";
const ANSWER: &str = "answer";
