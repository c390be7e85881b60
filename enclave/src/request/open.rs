//! From bytes to a whole, authentic plaintext that is here for the first time.
//!
//! Nothing of it is acted upon before the true end. One code for every refusal that says something about the message;
//! the others say something about us (`busy`, `timeout`), which the parent could count itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use sealing::message::{EncryptedDataKey, EncryptionContext, Limits, MessageId, SIGNATURE_KEY, Suite};
use sealing::reader::{BodyReader, HeaderReader, Held, Plaintext, Progress, UnverifiedHeader};
use tokio::time::timeout;

use crate::cache::{CacheKey, CachedKey};
use crate::configuration::{Configuration, is_context_value};
use crate::kms::arn::KeyArn;
use crate::kms::{KmsError, PROVIDER};
use crate::log::Refusal;
use crate::replay::{FirstTime, ReplayError};
use crate::service::Service;
use crate::tenant::Tenant;

/// A message that was opened to its true end.
pub(super) struct Opened {
    /// The inner request.
    pub(super) plaintext: Plaintext,
    /// Whose it is.
    pub(super) tenant: Tenant,
    /// Its message id.
    pub(super) message_id: MessageId,
    /// Its place in the replay set.
    pub(super) admitted: Admitted,
}

/// The message id's place in the replay set. Unless the request is acted upon, dropping this withdraws the id: a message
/// whose upload broke off may be sent again.
pub(super) struct Admitted {
    service: Arc<Service>,
    first_time: Option<FirstTime>,
}

impl Admitted {
    /// Until when the id is remembered.
    pub(super) fn until(&self) -> u64 {
        self.first_time.as_ref().map_or(0, FirstTime::until)
    }

    /// Forgets the id when the request expires.
    pub(super) fn expires(&self, expires: u64) {
        if let Some(first_time) = &self.first_time {
            self.service.replays().expires(first_time, expires);
        }
    }

    /// From now on the request is acted upon, and its id stays.
    pub(super) fn commit(mut self) {
        self.first_time = None;
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(first_time) = self.first_time.take() {
            self.service.replays().withdraw(first_time);
        }
    }
}

/// Reads, authenticates and collects one message.
pub(super) async fn open(service: &Arc<Service>, body: Incoming) -> Result<Opened, Refusal> {
    let limit = service.configuration.limits.sealed_request_bytes;
    let mut inbound = Inbound { body, left: limit };
    let (header, mut piece, rest_at) =
        timeout(HEADER_DEADLINE, read_header(&mut inbound)).await.map_err(|_| Refusal::SlowRequest)??;
    let tenant_name = request_tenant(header.context(), header.suite()).ok_or(Refusal::CannotOpen)?;
    let (key_arn, encrypted) =
        acceptable_key(header.encrypted_data_keys(), &service.configuration).ok_or(Refusal::CannotOpen)?;
    let tenant = Tenant::new(key_arn, tenant_name);

    let cache_key = CacheKey::open(&tenant, encrypted, header.context(), header.suite());
    let cached = service.cache().get(Instant::now(), &cache_key, limit as u64);
    let (key, is_new) = match cached {
        Some(key) => (key, false),
        None => {
            let data_key = service.kms.decrypt(tenant.key_arn(), encrypted, header.context()).await.map_err(refusal)?;
            (Arc::new(CachedKey { data_key, encrypted: encrypted.clone() }), true)
        }
    };
    let message_id = *header.message_id();
    let mut reader = header.authenticate(&key.data_key).map_err(|_| Refusal::CannotOpen)?;
    if is_new {
        service.cache().insert(Instant::now(), cache_key, key, limit as u64);
    }
    let admitted = admit(service, &tenant, &message_id)?;

    let mut held = Held::new(&reader, limit);
    take_frames(&mut reader, piece.get(rest_at..).unwrap_or_default(), &mut held)?;
    while let Some(next) = inbound.next().await? {
        piece = next;
        take_frames(&mut reader, &piece, &mut held)?;
    }
    let end = reader.finish().map_err(|_| Refusal::CannotOpen)?;
    let plaintext = held.confirm(&end).map_err(|_| Refusal::CannotOpen)?;
    Ok(Opened { plaintext, tenant, message_id, admitted })
}

/// The outer body: bounded in bytes, and each piece in time.
struct Inbound {
    body: Incoming,
    left: usize,
}

impl Inbound {
    async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        loop {
            let frame = timeout(PIECE_DEADLINE, self.body.frame()).await.map_err(|_| Refusal::SlowRequest)?;
            let Some(frame) = frame else { return Ok(None) };
            // The client went away, or broke HTTP.
            let frame = frame.map_err(|_| Refusal::BadRequest)?;
            let Ok(piece) = frame.into_data() else { continue };
            self.left = self.left.checked_sub(piece.len()).ok_or(Refusal::TooLarge)?;
            return Ok(Some(piece));
        }
    }
}

/// The header, the piece that it ended in, and where in that piece the body begins.
async fn read_header(inbound: &mut Inbound) -> Result<(UnverifiedHeader, Bytes, usize), Refusal> {
    let mut reader = HeaderReader::new(Limits::request());
    while let Some(piece) = inbound.next().await? {
        let mut rest: &[u8] = &piece;
        match reader.push(&mut rest).map_err(|_| Refusal::CannotOpen)? {
            Progress::More(more) => reader = more,
            Progress::Done(header) => {
                let at = piece.len() - rest.len();
                return Ok((header, piece, at));
            }
        }
    }
    Err(Refusal::CannotOpen)
}

/// docs/PROTOCOL.md, section 4: exactly `subrosa:tenant` and `subrosa:purpose=inference`, and under 0x0578 the signature
/// key. "Anything else, a case variant included, is refused." Returns the tenant.
fn request_tenant(context: &EncryptionContext, suite: Suite) -> Option<&str> {
    let tenant = context.get("subrosa:tenant").filter(|tenant| is_context_value(tenant))?;
    let signature_keys = usize::from(suite.is_signed());
    let is_exact = context.len() == 2 + signature_keys
        && context.get("subrosa:purpose") == Some("inference")
        && context.get(SIGNATURE_KEY).is_some() == suite.is_signed();
    is_exact.then_some(tenant)
}

/// "The first acceptable one is used; no fallback on denial."
fn acceptable_key<'a>(
    keys: &'a [EncryptedDataKey],
    configuration: &Configuration,
) -> Option<(KeyArn, &'a EncryptedDataKey)> {
    keys.iter().filter(|encrypted| encrypted.provider_id == PROVIDER).find_map(|encrypted| {
        let arn = KeyArn::parse(std::str::from_utf8(&encrypted.provider_info).ok()?).ok()?;
        let is_ours = arn.region() == &configuration.region && configuration.allows(arn.account());
        is_ours.then_some((arn, encrypted))
    })
}

/// Before the request is open its expiry is not known, so its id lives as long as any expiry could be ahead.
fn admit(service: &Arc<Service>, tenant: &Tenant, message_id: &MessageId) -> Result<Admitted, Refusal> {
    let mut replays = service.replays();
    let now = replays.advance(service.clock.unix_seconds());
    let until = now.saturating_add(EXPIRES_AHEAD_SECONDS_MAX);
    let first_time = replays.admit(now, tenant, *message_id.as_bytes(), until).map_err(|error| match error {
        ReplayError::Replayed => Refusal::CannotOpen,
        ReplayError::Full => Refusal::Busy,
    })?;
    Ok(Admitted { service: Arc::clone(service), first_time: Some(first_time) })
}

fn take_frames(reader: &mut BodyReader, mut bytes: &[u8], held: &mut Held) -> Result<(), Refusal> {
    while let Some(frame) = reader.push(&mut bytes).map_err(|_| Refusal::CannotOpen)? {
        held.add(&frame).map_err(|_| Refusal::TooLarge)?;
    }
    Ok(())
}

/// What KMS said about the message is `cannot-open`; that KMS could not be asked is no secret from the parent, whose
/// tunnel it is.
pub(super) fn refusal(error: KmsError) -> Refusal {
    match error {
        KmsError::Refused { .. } | KmsError::RuleBroken(_) => Refusal::CannotOpen,
        KmsError::Busy => Refusal::Busy,
        KmsError::Timeout => Refusal::Timeout,
        KmsError::Impostor | KmsError::Unreachable | KmsError::CredentialsExpired | KmsError::Module => {
            Refusal::NotReady
        }
    }
}

/// For the whole header of a message, which is what an unauthenticated sender can make us wait for.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// Between two pieces of a request.
const PIECE_DEADLINE: Duration = Duration::from_secs(15);
/// docs/PROTOCOL.md, section 5: "decimal Unix seconds, at most 900 ahead".
const EXPIRES_AHEAD_SECONDS_MAX: u64 = 900;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::tests::{ARN, document};

    fn context(pairs: &[(&str, &str)]) -> EncryptionContext {
        EncryptionContext::from_pairs(pairs.iter().copied()).unwrap()
    }

    const TENANT: (&str, &str) = ("subrosa:tenant", "clinic");
    const PURPOSE: (&str, &str) = ("subrosa:purpose", "inference");

    #[test]
    fn the_context_must_be_exactly_the_protocols() {
        assert_eq!(request_tenant(&context(&[TENANT, PURPOSE]), Suite::Commit), Some("clinic"));
        let signed = context(&[TENANT, PURPOSE, (SIGNATURE_KEY, "x")]);
        assert_eq!(request_tenant(&signed, Suite::CommitSigned), Some("clinic"));
        for (pairs, suite) in [
            (vec![TENANT], Suite::Commit),
            (vec![PURPOSE], Suite::Commit),
            (vec![TENANT, ("subrosa:purpose", "answer")], Suite::Commit),
            (vec![TENANT, ("subrosa:purpose", "Inference")], Suite::Commit),
            (vec![TENANT, ("Subrosa:purpose", "inference")], Suite::Commit),
            (vec![("subrosa:tenant", "a b"), PURPOSE], Suite::Commit),
            (vec![("subrosa:tenant", ""), PURPOSE], Suite::Commit),
            (vec![TENANT, PURPOSE, ("subrosa:model", "m")], Suite::Commit),
            (vec![TENANT, PURPOSE, (SIGNATURE_KEY, "x")], Suite::Commit),
            (vec![TENANT, PURPOSE, ("other", "x")], Suite::CommitSigned),
            (vec![TENANT, PURPOSE], Suite::CommitSigned),
        ] {
            assert_eq!(request_tenant(&context(&pairs), suite), None, "{pairs:?}");
        }
    }

    fn key(provider_id: &str, info: &str) -> EncryptedDataKey {
        EncryptedDataKey { provider_id: provider_id.into(), provider_info: info.into(), ciphertext: vec![1] }
    }

    #[test]
    fn only_a_full_key_arn_of_our_region_and_accounts_is_asked_for() {
        let text = document(r#","accounts":["111122223333"]"#);
        let configuration = Configuration::parse(text.as_bytes()).unwrap();
        let good = key("aws-kms", ARN);
        let bad = [
            key("subrosa", "reply"),
            key("aws-kms", "arn:aws:kms:us-east-1:111122223333:alias/prompts"),
            key("aws-kms", "arn:aws:kms:eu-west-1:111122223333:key/a"),
            key("aws-kms", "arn:aws:kms:us-east-1:444455556666:key/a"),
            key("aws-kms-mrk", ARN),
        ];
        assert!(acceptable_key(&bad, &configuration).is_none());
        let keys: Vec<_> = bad.into_iter().chain([good, key("aws-kms", &format!("{ARN}0"))]).collect();
        let (arn, _) = acceptable_key(&keys, &configuration).unwrap();
        assert_eq!(arn.as_str(), ARN, "the first acceptable one");
    }
}
