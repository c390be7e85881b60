//! What the heads of requests and answers have in common.

use super::{CONTENT_LENGTH, MAX_FIELDS, MAX_HEAD_LENGTH, PADDING};
use crate::secret::SecretBytes;

/// Why an inner HTTP message is refused. Says nothing of its values: they are plaintext.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// No empty line within the limit.
    #[error("the head must end within 16384 bytes")]
    HeadLength,
    /// Too many header fields.
    #[error("at most 64 header fields are accepted")]
    TooManyFields,
    /// Not HTTP/1.1 in its one strict form.
    #[error("the head is not HTTP/1.1: {0}")]
    Syntax(&'static str),
    /// A method that is not served.
    #[error("the method must be GET or POST")]
    Method,
    /// Not origin-form.
    #[error("the request target must be in origin-form: a path, and perhaps a query")]
    Target,
    /// A field that must not be there.
    #[error("the header field {0} must not be there")]
    Forbidden(String),
    /// A field that may be there once.
    #[error("the header field {0} stands there twice")]
    Duplicate(String),
    /// A field that must be there.
    #[error("the header field {0} is missing")]
    Missing(&'static str),
    /// A value that does not parse.
    #[error("the value of the header field {0} is not well formed")]
    Value(&'static str),
    /// A body of another length.
    #[error("Content-Length says {expected}, the body has {found} bytes")]
    BodyLength {
        /// What `Content-Length` says.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// An answer to another request.
    #[error("the answer is not to this request: In-Reply-To names another message")]
    InReplyTo,
}

/// Header fields, in their order; names as they were written.
pub(super) struct Fields<'a>(pub(super) Vec<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    /// Checks what `httparse` found: `owner` decides which further names may stand once only.
    pub(super) fn check(headers: &[httparse::Header<'a>]) -> Result<Self, HttpError> {
        let mut fields: Vec<(&'a str, &'a str)> = Vec::with_capacity(headers.len());
        for header in headers {
            let name = header.name;
            // RFC 9110, 5.5: field values also allow HTAB and obs-text. No field of ours needs them.
            let value = str::from_utf8(header.value).ok().filter(|value| value.bytes().all(is_plain));
            let value = value.ok_or(HttpError::Syntax("a field value must be printable ASCII"))?;
            if FORBIDDEN.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden)) {
                return Err(HttpError::Forbidden(name.to_ascii_lowercase()));
            }
            if is_singleton(name) && fields.iter().any(|(other, _)| name.eq_ignore_ascii_case(other)) {
                return Err(HttpError::Duplicate(name.to_ascii_lowercase()));
            }
            fields.push((name, value));
        }
        Ok(Self(fields))
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(other, _)| name.eq_ignore_ascii_case(other)).map(|(_, value)| *value)
    }

    /// `Content-Length`: digits only, no sign, no needless zero.
    pub(super) fn content_length(&self) -> Result<Option<u64>, HttpError> {
        self.get(CONTENT_LENGTH).map(|value| decimal(value).ok_or(HttpError::Value(CONTENT_LENGTH))).transpose()
    }

    /// Refuses fields in our own name space that are not in `known`: an unknown wish must not be ignored silently.
    pub(super) fn only_known(&self, known: &[&str]) -> Result<(), HttpError> {
        let ours = |name: &str| name.get(..OURS.len()).is_some_and(|start| start.eq_ignore_ascii_case(OURS));
        let is_known =
            |name: &str| name.eq_ignore_ascii_case(PADDING) || known.iter().any(|k| name.eq_ignore_ascii_case(k));
        match self.0.iter().find(|(name, _)| ours(name) && !is_known(name)) {
            Some((name, _)) => Err(HttpError::Forbidden(name.to_ascii_lowercase())),
            None => Ok(()),
        }
    }
}

/// The length of the head that `bytes` begin with, up to and with its empty line; `None` while that is not there.
///
/// Refuses bare CR and LF, folded lines (RFC 9112, 5.2) and empty lines in front (RFC 9112, 2.2 lets servers skip them).
pub(super) fn head_length(bytes: &[u8]) -> Result<Option<usize>, HttpError> {
    let seen = bytes.get(..MAX_HEAD_LENGTH).unwrap_or(bytes);
    if seen.first().is_some_and(|first| !first.is_ascii_alphabetic()) {
        return Err(HttpError::Syntax("it must begin with a letter"));
    }
    let mut last = 0;
    let mut line_length = 0_usize;
    for (at, byte) in seen.iter().copied().enumerate() {
        match (last, byte) {
            (b'\r', b'\n') if line_length == 0 => return Ok(Some(at.saturating_add(1))),
            (b'\r', b'\n') => line_length = 0,
            (b'\r', _) | (_, b'\n') => return Err(HttpError::Syntax("lines must end in CR LF")),
            (b'\n', b' ' | b'\t') => return Err(HttpError::Syntax("a line must not be folded")),
            (_, b'\r') => {}
            (_, 0) => return Err(HttpError::Syntax("it must not contain NUL")),
            _ => line_length = line_length.saturating_add(1),
        }
        last = byte;
    }
    if seen.len() >= MAX_HEAD_LENGTH { Err(HttpError::HeadLength) } else { Ok(None) }
}

/// The reasons of `httparse`, in our words.
pub(super) fn syntax(error: httparse::Error) -> HttpError {
    match error {
        httparse::Error::TooManyHeaders => HttpError::TooManyFields,
        httparse::Error::HeaderName => HttpError::Syntax("a field name is not a token"),
        httparse::Error::HeaderValue => HttpError::Syntax("a field value must be printable ASCII"),
        httparse::Error::Version => HttpError::Syntax("the version must be HTTP/1.1"),
        httparse::Error::Status => HttpError::Syntax("the status must be three digits and a reason"),
        httparse::Error::NewLine => HttpError::Syntax("lines must end in CR LF"),
        httparse::Error::Token => HttpError::Syntax("the first line is not well formed"),
    }
}

/// Room for `httparse`.
pub(super) const NO_FIELDS: [httparse::Header<'_>; MAX_FIELDS] = [httparse::EMPTY_HEADER; MAX_FIELDS];

/// Decimal digits in their shortest form.
pub(super) fn decimal(text: &str) -> Option<u64> {
    let shortest = text == "0" || !text.starts_with('0');
    (shortest && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(())?;
    text.parse().ok()
}

/// Appends a header field, after checking that it is one (RFC 9110, 5.1 and 5.5).
pub(super) fn write_field(out: &mut SecretBytes, name: &str, value: &str) -> Result<(), HttpError> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(HttpError::Syntax("a field name is not a token"));
    }
    if !value.bytes().all(is_plain) || value.trim() != value {
        return Err(HttpError::Syntax("a field value must be printable ASCII"));
    }
    for part in [name, ": ", value, "\r\n"] {
        out.extend(part.as_bytes());
    }
    Ok(())
}

fn is_plain(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte)
}

fn is_singleton(name: &str) -> bool {
    SINGLETONS.iter().any(|singleton| name.eq_ignore_ascii_case(singleton))
        || name.get(..OURS.len()).is_some_and(|start| start.eq_ignore_ascii_case(OURS))
}

/// Names that begin so are this protocol's own, and stand once.
const OURS: &str = "Subrosa-";

const SINGLETONS: [&str; 4] = ["Content-Length", "Content-Type", "Host", "In-Reply-To"];

/// They change where a message ends or what follows it (`docs/PROTOCOL.md`, section 5).
const FORBIDDEN: [&str; 5] = ["Transfer-Encoding", "Upgrade", "Expect", "Trailer", "TE"];
