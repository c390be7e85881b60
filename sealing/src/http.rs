//! The one HTTP/1.1 message that a sealed message carries (`docs/PROTOCOL.md`, sections 5 and 6).
//!
//! Strict on purpose: what two parsers could read differently is refused, though what is inside a sealed message has only
//! one reader.

mod head;
pub mod padding;
mod request;
mod response;
mod sse;

pub use head::HttpError;
pub use request::{Method, Request, RequestWriter};
pub use response::{ResponseHead, ResponseHeadReader, ResponseProgress};
pub use sse::{SseError, SsePacker};

/// `Content-Length`.
pub const CONTENT_LENGTH: &str = "Content-Length";

/// `Content-Type`.
pub const CONTENT_TYPE: &str = "Content-Type";

/// In a request, required: decimal Unix seconds after which the enclave must not act on it.
pub const EXPIRES: &str = "Subrosa-Expires";

/// In a request, optional: base64 of 32 bytes, the one-time key that wraps the data key of the answer.
pub const REPLY_KEY: &str = "Subrosa-Reply-Key";

/// In a request, optional: the module id of the one enclave that may act on it.
pub const ENCLAVE: &str = "Subrosa-Enclave";

/// In a request, optional: the suite of the answer, `0478` (default) or `0578`.
pub const ANSWER_SUITE: &str = "Subrosa-Answer-Suite";

/// In requests and answers, optional: fills the head up to a length that says little.
pub const PADDING: &str = "Subrosa-Padding";

/// In an answer, required: the message id of the request, 64 hexadecimal digits.
pub const IN_REPLY_TO: &str = "In-Reply-To";

/// In an answer, optional: what the enclave saw of the policy of the key that unwrapped the request.
pub const KEY_POLICY: &str = "Subrosa-Key-Policy";

/// Bytes of a head, from its first to the end of its empty line (`docs/PROTOCOL.md`, section 5).
pub const MAX_HEAD_LENGTH: usize = 16_384;

/// Header fields of a head (`docs/PROTOCOL.md`, section 5).
pub const MAX_FIELDS: usize = 64;
