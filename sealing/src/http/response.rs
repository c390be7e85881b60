//! The head of the inner answer.

use super::head::{Fields, HttpError, NO_FIELDS, head_length, syntax, write_field};
use super::{CONTENT_LENGTH, CONTENT_TYPE, IN_REPLY_TO, KEY_POLICY, MAX_HEAD_LENGTH, PADDING};
use crate::message::MessageId;
use crate::secret::SecretBytes;

/// The head of an answer. What follows is its body, up to the end of the message.
pub struct ResponseHead {
    /// The HTTP status.
    pub status: u16,
    /// The request that this answers.
    pub in_reply_to: MessageId,
    /// What the body is.
    pub content_type: String,
    /// The length of the body, padding included, where it is known beforehand.
    pub content_length: Option<u64>,
    /// What the enclave saw of the policy of the request's key: JSON in visible ASCII.
    pub key_policy: Option<String>,
}

impl ResponseHead {
    /// The head, padded to a whole number of frames by `Subrosa-Padding` (`docs/PROTOCOL.md`, section 6).
    ///
    /// # Errors
    /// [`HttpError::Syntax`] for a status outside 100..=999 or a content type that is no field value,
    /// [`HttpError::HeadLength`] when no whole number of frames fits a head.
    pub fn to_frames(&self, frame_length: usize) -> Result<SecretBytes, HttpError> {
        let Self { status, in_reply_to, content_type, content_length, key_policy } = self;
        if !(100..=999).contains(status) {
            return Err(HttpError::Syntax("the status must be three digits and a reason"));
        }
        let mut head = SecretBytes::with_capacity(1_024);
        head.extend(format!("HTTP/1.1 {status} {}\r\n", reason(*status)).as_bytes());
        write_field(&mut head, IN_REPLY_TO, &in_reply_to.to_string())?;
        write_field(&mut head, CONTENT_TYPE, content_type)?;
        if let Some(length) = content_length {
            write_field(&mut head, CONTENT_LENGTH, &length.to_string())?;
        }
        if let Some(verdict) = key_policy {
            write_field(&mut head, KEY_POLICY, verdict)?;
        }
        let least = head.len().saturating_add(LEAST_PADDING_FIELD).saturating_add(2);
        let whole = least.checked_next_multiple_of(frame_length).ok_or(HttpError::HeadLength)?;
        if whole > MAX_HEAD_LENGTH {
            return Err(HttpError::HeadLength);
        }
        head.extend(PADDING.as_bytes());
        head.extend(b": ");
        head.extend_with(b'0', whole.saturating_sub(least).saturating_add(1));
        head.extend(b"\r\n\r\n");
        Ok(head)
    }

    /// Reads a whole head, with its empty line and nothing after it.
    ///
    /// # Errors
    /// [`HttpError`] for anything else, [`HttpError::InReplyTo`] for the answer to another request.
    fn parse(head: &[u8], request: &MessageId) -> Result<Self, HttpError> {
        let mut fields = NO_FIELDS;
        let mut parsed = httparse::Response::new(&mut fields);
        match parsed.parse(head).map_err(syntax)? {
            httparse::Status::Complete(length) if length == head.len() => {}
            _ => return Err(HttpError::Syntax("the empty line does not end it")),
        }
        if parsed.version != Some(1) {
            return Err(HttpError::Syntax("the version must be HTTP/1.1"));
        }
        let status = parsed.code.ok_or(HttpError::Syntax("the status must be three digits and a reason"))?;
        let fields = Fields::check(parsed.headers)?;
        let in_reply_to = fields.get(IN_REPLY_TO).ok_or(HttpError::Missing(IN_REPLY_TO))?;
        if in_reply_to != request.to_string() {
            return Err(HttpError::InReplyTo);
        }
        let content_type = fields.get(CONTENT_TYPE).ok_or(HttpError::Missing(CONTENT_TYPE))?.to_owned();
        let content_length = fields.content_length()?;
        let key_policy = fields.get(KEY_POLICY).map(str::to_owned);
        Ok(Self { status, in_reply_to: *request, content_type, content_length, key_policy })
    }
}

/// Collects the head of the answer to one request; releases nothing of an answer to another.
pub struct ResponseHeadReader {
    request: MessageId,
    arrived: SecretBytes,
}

/// Whether the head of an answer is whole.
pub enum ResponseProgress {
    /// It is not; all that was given has been taken.
    More(ResponseHeadReader),
    /// It is, and it answers the request; the body has been left in the input.
    Done(ResponseHead),
}

impl ResponseHeadReader {
    /// Waits for the answer to `request`.
    #[must_use]
    pub fn new(request: MessageId) -> Self {
        Self { request, arrived: SecretBytes::new() }
    }

    /// Takes bytes of the head off `input`; what comes after the head stays there.
    ///
    /// # Errors
    /// [`HttpError`], as soon as what arrived cannot become the head of an answer to the request.
    pub fn push(mut self, input: &mut &[u8]) -> Result<ResponseProgress, HttpError> {
        let before = self.arrived.len();
        let room = MAX_HEAD_LENGTH.saturating_sub(before);
        self.arrived.extend(input.get(..room).unwrap_or(input));
        let Some(length) = head_length(self.arrived.as_bytes())? else {
            *input = &[];
            return Ok(ResponseProgress::More(self));
        };
        *input = input.get(length.saturating_sub(before)..).unwrap_or_default();
        let head = self.arrived.as_bytes().get(..length).unwrap_or_default();
        ResponseHead::parse(head, &self.request).map(ResponseProgress::Done)
    }
}

/// The reason phrases of the statuses that `docs/PROTOCOL.md`, section 8, names.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        409 => "Conflict",
        410 => "Gone",
        413 => "Content Too Large",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        504 => "Gateway Timeout",
        _ => "Answer",
    }
}

/// `Subrosa-Padding: `, one byte of value, CR LF.
const LEAST_PADDING_FIELD: usize = PADDING.len() + 2 + 1 + 2;
