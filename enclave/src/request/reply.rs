//! The key of the answer: under the request's own reply key, or under the customer's KMS key.

use std::sync::Arc;
use std::time::Instant;

use sealing::SystemRandom;
use sealing::message::{DataKey, EncryptionContext, Suite};
use sealing::raw_aes::{Keyring, WrappingKey};
use sealing::writer::{MessageWriter, SealParameters};

use super::open::refusal;
use crate::cache::{CacheKey, CachedKey};
use crate::log::Refusal;
use crate::service::Service;
use crate::tenant::Tenant;

/// A writer for the answer to `tenant`: a message of its own, purpose `answer`, the same tenant.
///
/// This comes before the outer answer begins, so that what cannot be sealed is refused and not cut short.
pub(super) async fn begin(
    service: &Service,
    tenant: &Tenant,
    reply_key: Option<WrappingKey>,
    suite: Suite,
    frame_length: u32,
) -> Result<MessageWriter, Refusal> {
    let mut random = SystemRandom::new();
    let context = [("subrosa:purpose", "answer"), ("subrosa:tenant", tenant.name())];
    let context = EncryptionContext::from_pairs(context).map_err(|_| Refusal::NotReady)?;
    let parameters = SealParameters::begin(suite, context, frame_length, &mut random).map_err(|_| Refusal::NotReady)?;
    let (encrypted, key) = match reply_key {
        // The reply key is a wrapping key only: every answer has a fresh random data key.
        Some(reply_key) => {
            let data_key = DataKey::generate(&mut random).map_err(|_| Refusal::NotReady)?;
            let encrypted = Keyring::reply(reply_key)
                .wrap(&data_key, parameters.context(), &mut random)
                .map_err(|_| Refusal::NotReady)?;
            (encrypted.clone(), Arc::new(CachedKey { data_key, encrypted }))
        }
        None => {
            let key = customer_key(service, tenant, parameters.context(), suite).await?;
            (key.encrypted.clone(), key)
        }
    };
    MessageWriter::new(parameters, vec![encrypted], &key.data_key).map_err(|_| Refusal::NotReady)
}

/// A data key from `GenerateDataKey`, only ever on the key ARN that has just unwrapped the request.
async fn customer_key(
    service: &Service,
    tenant: &Tenant,
    context: &EncryptionContext,
    suite: Suite,
) -> Result<Arc<CachedKey>, Refusal> {
    // Under 0x0578 the context holds a new signature key each time, so nothing would ever be found again.
    let cache_key = (!suite.is_signed()).then(|| CacheKey::seal(tenant, context, suite));
    if let Some(cache_key) = &cache_key
        && let Some(key) = service.cache().get(Instant::now(), cache_key, ANSWER_BYTES)
    {
        return Ok(key);
    }
    let (data_key, encrypted) = service.kms.generate_data_key(tenant.key_arn(), context).await.map_err(refusal)?;
    let key = Arc::new(CachedKey { data_key, encrypted });
    if let Some(cache_key) = cache_key {
        service.cache().insert(Instant::now(), cache_key, Arc::clone(&key), ANSWER_BYTES);
    }
    Ok(key)
}

/// What one answer is counted as: 32,768 tokens of one 512-byte frame would be 16 MiB; most have less than one.
const ANSWER_BYTES: u64 = 1 << 20;
