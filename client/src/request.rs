//! A question, and the inner HTTP request that carries it (docs/PROTOCOL.md section 5).

use sealing::SecretBytes;
use sealing::http::padding::missing;
use sealing::http::{HttpError, Method, PADDING, RequestWriter};
use sealing::message::Suite;
use sealing::raw_aes::WrappingKey;
use serde::Serialize;
use zeroize::Zeroizing;

/// A chat completion to ask for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The model, by the name that the service's configuration gives it; `None` means [`DEFAULT_MODEL`].
    pub model: Option<String>,
    /// The conversation.
    pub messages: Vec<Message>,
    /// Most tokens of the answer.
    pub max_tokens: Option<u32>,
    /// Sampling temperature, 0 to 2; 0 takes the likeliest token.
    pub temperature: Option<f32>,
    /// Nucleus sampling.
    pub top_p: Option<f32>,
    /// Seed of the sampling.
    pub seed: Option<i64>,
    /// Texts at which to stop.
    pub stop: Vec<String>,
    /// Whether the answer comes token by token.
    pub stream: bool,
}

/// One message of a conversation.
#[derive(Clone, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// Under which key the answer is sealed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnswerUnder {
    /// A one-time key inside the request: readable by this client alone.
    #[default]
    ReplyKey,
    /// The KMS key of the request: readable by whoever may `Decrypt` with purpose `answer`.
    Kms,
}

impl Request {
    /// One question of a user, streamed.
    #[must_use]
    pub fn user(text: impl Into<String>) -> Self {
        Self {
            model: None,
            messages: vec![Message { role: "user".to_owned(), content: text.into() }],
            max_tokens: None,
            temperature: None,
            top_p: None,
            seed: None,
            stop: Vec::new(),
            stream: true,
        }
    }

    /// The same, for this model.
    #[must_use]
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }

    /// The inner request, filled up to a whole number of [`SIZE_CLASS`] bytes: the parent learns the class, not the length.
    pub(crate) fn to_http(&self, fields: &InnerFields<'_>) -> Result<SecretBytes, RequestError> {
        let mut body = Zeroizing::new(Vec::with_capacity(self.room()));
        serde_json::to_writer(&mut *body, &self.wire()).map_err(|_| RequestError::Json)?;
        let bare = fields.write(&body, 1)?;
        let whole = fields.write(&body, 1 + missing(bare.len(), SIZE_CLASS))?;
        if whole.len() > MAX_REQUEST { Err(RequestError::TooLong { length: whole.len() }) } else { Ok(whole) }
    }

    fn wire(&self) -> Wire<'_> {
        let Self { model, messages, max_tokens, temperature, top_p, seed, stop, stream } = self;
        Wire {
            model: model.as_deref().unwrap_or(DEFAULT_MODEL),
            messages,
            max_tokens: *max_tokens,
            temperature: *temperature,
            top_p: *top_p,
            seed: *seed,
            stop,
            stream: *stream,
            stream_options: stream.then_some(StreamOptions { include_usage: true }),
        }
    }

    /// Bytes that the JSON takes at most, so that it is never moved: a control character becomes six.
    fn room(&self) -> usize {
        let text: usize = self.messages.iter().map(|message| message.content.len() + message.role.len() + 64).sum();
        let stop: usize = self.stop.iter().map(|text| text.len() + 8).sum();
        (text + stop + self.model.as_ref().map_or(0, String::len)).saturating_mul(6).saturating_add(512)
    }
}

/// The body (OpenAI API reference, *Create chat completion*).
#[derive(Serialize)]
struct Wire<'a> {
    model: &'a str,
    messages: &'a [Message],
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<i64>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

/// No text in a log by accident.
impl std::fmt::Debug for Message {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Message({}, {} bytes)", self.role, self.content.len())
    }
}

/// The header fields of an inner request.
pub(crate) struct InnerFields<'a> {
    pub(crate) expires: u64,
    pub(crate) reply_key: Option<&'a WrappingKey>,
    pub(crate) enclave: Option<&'a str>,
    pub(crate) answer_suite: Suite,
}

impl InnerFields<'_> {
    fn write(&self, body: &[u8], padding: usize) -> Result<SecretBytes, HttpError> {
        let Self { expires, reply_key, enclave, answer_suite } = self;
        let mut writer = RequestWriter::new(Method::Post, PATH, *expires)?
            .content_type("application/json")?
            .answer_suite(*answer_suite)?
            .header(PADDING, &"0".repeat(padding))?;
        if let Some(key) = reply_key {
            writer = writer.reply_key(key)?;
        }
        if let Some(enclave) = enclave {
            writer = writer.enclave(enclave)?;
        }
        writer.finish(body)
    }
}

/// Why a request cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// More than the service takes.
    #[error("the request has {length} bytes, the service takes at most {MAX_REQUEST}: shorten the text")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// Something that JSON cannot say.
    #[error("the request cannot be written as JSON")]
    Json,
    /// Something that no header field can say.
    #[error("the request cannot be written: {0}")]
    Http(#[from] HttpError),
}

/// The model of the demonstration: what a request asks for that names none.
pub const DEFAULT_MODEL: &str = "subrosa-intake";
const PATH: &str = "/v1/chat/completions";
/// Of requests: what the parent sees of a prompt's length.
pub const SIZE_CLASS: usize = 512;
/// docs/PROTOCOL.md section 4: 1 MiB sealed, of which header, frame heads and tags take a part.
const MAX_REQUEST: usize = 1_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(key: &WrappingKey) -> InnerFields<'_> {
        InnerFields {
            expires: 1_800_000_000,
            reply_key: Some(key),
            enclave: Some("i-0123456789abcdef0-enc0123456789abcdef"),
            answer_suite: Suite::Commit,
        }
    }

    proptest! {
        #[test]
        fn every_request_is_a_whole_number_of_size_classes_and_reads_back(text in ".{0,900}", system in ".{0,90}") {
            let key = WrappingKey::from_bytes([7; 32]);
            let mut request = Request::user(text.clone()).model("subrosa-intake");
            request.messages.insert(0, Message { role: "system".into(), content: system });
            let bytes = request.to_http(&fields(&key)).unwrap();
            prop_assert_eq!(bytes.len() % SIZE_CLASS, 0);
            let parsed = sealing::http::Request::parse(bytes.as_bytes()).unwrap();
            let body: serde_json::Value = serde_json::from_slice(parsed.body()).unwrap();
            prop_assert_eq!(body["messages"][1]["content"].as_str(), Some(text.as_str()));
            prop_assert_eq!(parsed.expires(), 1_800_000_000);
        }
    }

    #[test]
    fn text_is_not_shown_by_debug() {
        let shown = format!("{:?}", Request::user("a secret"));
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn a_request_longer_than_the_service_takes_is_refused_before_it_is_sealed() {
        let key = WrappingKey::from_bytes([7; 32]);
        let request = Request::user("x".repeat(MAX_REQUEST));
        assert!(matches!(request.to_http(&fields(&key)), Err(RequestError::TooLong { .. })));
    }
}
