//! Asking: verify if that is demanded, seal, send, read the answer.

use std::time::Duration;

use bytes::Bytes;
use sealing::message::{ContextError, EncryptionContext, Suite};
use sealing::raw_aes::{Keyring, WrappingKey};
use sealing::writer::{MessageWriter, SealError, SealParameters};
use sealing::{RandomError, SystemRandom};

use crate::answer::{Answer, AnswerError, Expected, INFERENCE, Opener, PURPOSE, TENANT};
use crate::appraisal::{AppraisalError, IMAGE};
use crate::data_key::{DataKeyError, KmsKey};
use crate::evidence::EvidenceError;
use crate::live::{self, LiveError, Verification};
use crate::request::{AnswerUnder, InnerFields, Request, RequestError};
use crate::transport::{Deadlines, Transport, TransportError};

/// Seals questions of one tenant under one KMS key, and opens the answers.
#[derive(Debug)]
pub struct Client {
    transport: Transport,
    key: KmsKey,
    tenant: String,
    suite: Suite,
    answer_suite: Suite,
    answer_under: AnswerUnder,
    enclave: Option<String>,
    verification: Option<Verification>,
    lifetime: Duration,
    most: usize,
}

/// What a [`Client`] needs. URL, KMS client, key and tenant are required.
#[derive(Debug)]
pub struct ClientBuilder {
    url: String,
    kms: Option<aws_sdk_kms::Client>,
    key: Option<String>,
    tenant: Option<String>,
    suite: Suite,
    answer_suite: Suite,
    answer_under: AnswerUnder,
    enclave: Option<String>,
    verification: Option<Verification>,
    deadlines: Deadlines,
    http2: bool,
    most: usize,
}

impl Client {
    /// Begins a client for the parent at this URL.
    #[must_use]
    pub fn builder(url: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            url: url.into(),
            kms: None,
            key: None,
            tenant: None,
            suite: Suite::Commit,
            answer_suite: Suite::Commit,
            answer_under: AnswerUnder::default(),
            enclave: None,
            verification: None,
            deadlines: Deadlines::default(),
            http2: false,
            most: MAX_ANSWER,
        }
    }

    /// Asks. Returns as soon as the header of the answer is known to be the expected one.
    ///
    /// With a [`Verification`] the enclave is verified first, and nothing is sealed for another one. A request is sent
    /// once: whether one that failed was run, nobody but the enclave knows.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(&self, request: Request) -> Result<Answer, AskError> {
        let enclave = self.verified_enclave().await?;
        let mut random = SystemRandom::new();
        let context = EncryptionContext::from_pairs([(TENANT, self.tenant.as_str()), (PURPOSE, INFERENCE)])?;
        let parameters = SealParameters::begin(self.suite, context, FRAME_LENGTH, &mut random)?;
        let reply_key = match self.answer_under {
            AnswerUnder::ReplyKey => Some(WrappingKey::generate(&mut random)?),
            AnswerUnder::Kms => None,
        };
        let content = request.to_http(&InnerFields {
            expires: live::now().seconds().saturating_add(self.lifetime.as_secs()),
            reply_key: reply_key.as_ref(),
            enclave: enclave.as_deref(),
            answer_suite: self.answer_suite,
        })?;
        let (data_key, wrapped) = self.key.generate(parameters.context()).await?;
        let arn = String::from_utf8(wrapped.provider_info.clone()).unwrap_or_default();
        let mut writer = MessageWriter::new(parameters, vec![wrapped], &data_key)?;
        let id = *writer.message_id();
        let mut message = writer.header().to_vec();
        writer.write(content.as_bytes(), &mut message)?;
        writer.finish(&mut message)?;
        drop((data_key, content));

        let body = self.transport.post_sealed(Bytes::from(message)).await?;
        let opener = match reply_key {
            Some(key) => Opener::Reply(Keyring::reply(key)),
            None => Opener::Kms { key: self.key.clone(), arn },
        };
        let expected = Expected { request: id, tenant: self.tenant.clone(), suite: self.answer_suite, opener };
        Ok(Answer::begin(body, expected, self.most).await?)
    }

    /// The module id that the request names: of the enclave that was verified just now, or the pinned one.
    async fn verified_enclave(&self) -> Result<Option<String>, AskError> {
        let Some(verification) = &self.verification else { return Ok(self.enclave.clone()) };
        let (verified, _keyset) = live::appraise(&self.transport, verification).await?.into_verified()?;
        let found = verified.document().module_id();
        match &self.enclave {
            Some(pinned) if pinned != found => {
                Err(AskError::OtherEnclave { pinned: pinned.clone(), found: found.to_owned() })
            }
            _ => Ok(Some(found.to_owned())),
        }
    }
}

impl ClientBuilder {
    /// The KMS client, for example [`crate::aws::kms_client`].
    #[must_use]
    pub fn kms(mut self, client: aws_sdk_kms::Client) -> Self {
        self.kms = Some(client);
        self
    }

    /// The KMS key: full key ARN, or an alias of it.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The tenant: `[A-Za-z0-9._-]{1,64}`; the parent and CloudTrail see it.
    #[must_use]
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = Some(tenant.into());
        self
    }

    /// The suite of requests: 0x0478 unless told.
    #[must_use]
    pub fn suite(mut self, suite: Suite) -> Self {
        self.suite = suite;
        self
    }

    /// The suite of answers: 0x0478 unless told. Under 0x0578 the first piece comes when the signature is verified.
    #[must_use]
    pub fn answer_suite(mut self, suite: Suite) -> Self {
        self.answer_suite = suite;
        self
    }

    /// Under which key answers are sealed: a one-time reply key unless told.
    #[must_use]
    pub fn answer_under(mut self, answer_under: AnswerUnder) -> Self {
        self.answer_under = answer_under;
        self
    }

    /// The one enclave, by its module id, that may act on requests.
    #[must_use]
    pub fn enclave(mut self, module_id: impl Into<String>) -> Self {
        self.enclave = Some(module_id.into());
        self
    }

    /// Verifies the enclave before each request is sealed, and lets that enclave alone act on it.
    #[must_use]
    pub fn verification(mut self, verification: Verification) -> Self {
        self.verification = Some(verification);
        self
    }

    /// How long to wait for what.
    #[must_use]
    pub fn deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// Speaks HTTP/2 without negotiation on `http://`.
    #[must_use]
    pub fn http2(mut self, http2: bool) -> Self {
        self.http2 = http2;
        self
    }

    /// Most bytes of a sealed answer: 16 MiB unless told.
    #[must_use]
    pub fn most_answer_bytes(mut self, most: usize) -> Self {
        self.most = most;
        self
    }

    /// The client.
    ///
    /// # Errors
    /// When something required is missing or cannot be.
    pub fn build(self) -> Result<Client, BuildError> {
        let Self {
            url,
            kms,
            key,
            tenant,
            suite,
            answer_suite,
            answer_under,
            enclave,
            verification,
            deadlines,
            http2,
            most,
        } = self;
        let tenant = tenant.ok_or(BuildError::Missing("tenant"))?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if !(1..=64).contains(&tenant.len()) || !tenant.bytes().all(plain) {
            return Err(BuildError::Tenant(tenant));
        }
        if let Some(Verification { pcrs, .. }) = &verification
            && !pcrs.contains_key(&IMAGE)
        {
            return Err(if pcrs.is_empty() { BuildError::NothingPinned } else { BuildError::ImageNotPinned });
        }
        let key = KmsKey::new(kms.ok_or(BuildError::Missing("KMS client"))?, key.ok_or(BuildError::Missing("key"))?);
        let transport = Transport::new(&url, deadlines, http2)?;
        let lifetime = deadlines.total.clamp(MIN_LIFETIME, MAX_LIFETIME);
        Ok(Client { transport, key, tenant, suite, answer_suite, answer_under, enclave, verification, lifetime, most })
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Something required was not given.
    #[error("the client needs a {0}")]
    Missing(&'static str),
    /// Not a tenant.
    #[error("`{0}` cannot be a tenant: 1 to 64 of A-Z a-z 0-9 . _ -")]
    Tenant(String),
    /// A verification that would accept any code.
    #[error("a verification needs at least one PCR value: without one any enclave would do")]
    NothingPinned,
    /// A verification that would accept any code whose other registers are right. An enclave extends PCR16 and up itself, to
    /// whatever it likes, and PCR3 and PCR4 only name a role and an instance.
    #[error("PCR0 is the image; without it no code is pinned: give PCR0 among the expected values")]
    ImageNotPinned,
    /// The URL cannot be used.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Between here and the parent.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// KMS.
    #[error(transparent)]
    Key(#[from] DataKeyError),
    /// The request itself.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// It could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// What was given as evidence is none.
    #[error("the enclave could not be verified, and nothing was sent: what the parent gave is no evidence: {0}")]
    Evidence(#[from] EvidenceError),
    /// The evidence is not good.
    #[error("the enclave could not be verified, and nothing was sent: {0}")]
    Appraisal(#[from] AppraisalError),
    /// The enclave is a good one, but not the pinned one.
    #[error("the enclave is {found}, pinned is {pinned}; nothing was sent")]
    OtherEnclave {
        /// The module id that was demanded.
        pinned: String,
        /// The module id that was found.
        found: String,
    },
    /// The answer.
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

impl From<LiveError> for AskError {
    fn from(error: LiveError) -> Self {
        match error {
            LiveError::Transport(error) => error.into(),
            LiveError::Evidence(error) => error.into(),
            LiveError::Random(error) => error.into(),
        }
    }
}

impl From<RandomError> for AskError {
    fn from(error: RandomError) -> Self {
        Self::Seal(error.into())
    }
}

impl From<ContextError> for AskError {
    fn from(error: ContextError) -> Self {
        Self::Seal(error.into())
    }
}

/// What the stock SDKs choose, inside docs/PROTOCOL.md section 4's 128..65,536.
const FRAME_LENGTH: u32 = 4096;
const MAX_ANSWER: usize = 16 << 20;
/// docs/PROTOCOL.md section 5: at most 900 s ahead. A minute is left for clocks that differ.
const MAX_LIFETIME: Duration = Duration::from_secs(840);
const MIN_LIFETIME: Duration = Duration::from_secs(60);
