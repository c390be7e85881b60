//! The inner request: strict HTTP, not expired, for this enclave, for something that is served.

use std::sync::Arc;

use inference::{Asker, ConstraintError, Model};
use sealing::http::{Method, Request};
use sealing::message::Suite;
use sealing::raw_aes::WrappingKey;

use super::chat::ChatRequest;
use super::open::Opened;
use crate::service::Service;

/// What to do, and how to seal what comes of it.
pub(super) struct Order {
    pub(super) task: Result<Task, InnerError>,
    pub(super) reply_key: Option<WrappingKey>,
    pub(super) suite: Suite,
    /// Unix seconds; nothing is begun after it.
    pub(super) expires: u64,
}

/// What can be asked for.
pub(super) enum Task {
    /// `GET /v1/models`.
    Models,
    /// `POST /v1/chat/completions`.
    Chat(Box<Chat>),
}

/// A chat request, and the model that it names.
pub(super) struct Chat {
    pub(super) model: Arc<Model>,
    pub(super) request: ChatRequest,
    pub(super) asker: Asker,
}

impl Task {
    /// Whether the answer is a stream of events.
    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Self::Chat(chat) if chat.request.stream)
    }
}

/// Reads the plaintext of an opened message. Whatever is wrong with it is said in a sealed answer.
pub(super) fn read(service: &Service, opened: &Opened) -> Order {
    let mut request = match Request::parse(opened.plaintext.as_bytes()) {
        Ok(request) => request,
        Err(_) => {
            let task = Err(InnerError::InvalidRequest("the sealed content must be one HTTP/1.1 request"));
            return Order { task, reply_key: None, suite: Suite::Commit, expires: u64::MAX };
        }
    };
    let (reply_key, suite) = (request.take_reply_key(), request.answer_suite());
    Order { task: task(service, opened, &request), reply_key, suite, expires: request.expires() }
}

fn task(service: &Service, opened: &Opened, request: &Request<'_>) -> Result<Task, InnerError> {
    let now = service.replays().advance(service.clock.unix_seconds());
    let expires = request.expires();
    is_live(expires, now, opened.admitted.until())?;
    opened.admitted.expires(expires);
    if request.enclave().is_some_and(|enclave| enclave != service.module_id) {
        return Err(InnerError::WrongEnclave);
    }
    match (request.method(), request.target()) {
        (Method::Get, "/v1/models") => Ok(Task::Models),
        (Method::Post, "/v1/chat/completions") => {
            let request = ChatRequest::parse(request.body()).map_err(InnerError::InvalidRequest)?;
            let model = service.models.get(&request.model).ok_or(InnerError::UnknownModel)?;
            let asker = opened.tenant.asker(request.cache_salt.as_deref().map(String::as_str));
            Ok(Task::Chat(Box::new(Chat { model: Arc::clone(model), request, asker })))
        }
        _ => Err(InnerError::InvalidRequest("expected POST /v1/chat/completions or GET /v1/models")),
    }
}

/// docs/PROTOCOL.md, section 5: "at most 900 ahead of the moment at which the enclave authenticated the header".
///
/// `remembered_until` is measured from that moment, as `now` is not: a body that drips in must not make room for a request
/// that lives on when its id is forgotten, and could be replayed then.
fn is_live(expires: u64, now: u64, remembered_until: u64) -> Result<(), InnerError> {
    if expires <= now {
        return Err(InnerError::Expired);
    }
    if expires > remembered_until {
        return Err(InnerError::InvalidRequest("Subrosa-Expires lies more than 900 seconds ahead"));
    }
    Ok(())
}

/// The errors of a request that is open (docs/PROTOCOL.md, section 8). Their texts are fixed: nothing of a prompt is in
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InnerError {
    /// Not a request that is served.
    #[error("{0}")]
    InvalidRequest(&'static str),
    /// The form that the answer is to have is none that it can have, or go on in.
    #[error(transparent)]
    Form(ConstraintError),
    /// A model that is not here.
    #[error("this model is not served here; GET /v1/models lists those that are")]
    UnknownModel,
    /// Pinned to another enclave, or to an earlier life of this one.
    #[error("the request names another enclave in Subrosa-Enclave")]
    WrongEnclave,
    /// Too late.
    #[error("the request has expired")]
    Expired,
    /// Too long for the model, or for the memory that answers have.
    #[error("the messages are too long for the model's context, or for the memory of all answers")]
    ContextTooLong,
    /// The verdict on the policy of the request's key is not good enough for the configuration.
    #[error(
        "the policy of the key is open to others, or could not be read as the configuration requires; see Subrosa-Key-Policy"
    )]
    KeyPolicyOpen,
    /// This tenant has as many requests in work as it may.
    #[error("too many requests of this tenant are in work; try again later")]
    Busy,
    /// Something of ours failed.
    #[error("the enclave failed to answer")]
    Internal,
    /// The time for the whole request is over.
    #[error("the answer could not be completed in time")]
    Timeout,
}

impl From<ConstraintError> for InnerError {
    fn from(error: ConstraintError) -> Self {
        match error {
            ConstraintError::Failed => Self::Internal,
            error => Self::Form(error),
        }
    }
}

impl InnerError {
    /// The HTTP status inside.
    pub(super) fn status(self) -> u16 {
        match self {
            Self::InvalidRequest(_) | Self::Form(_) => 400,
            Self::KeyPolicyOpen => 403,
            Self::UnknownModel => 404,
            Self::WrongEnclave => 409,
            Self::Expired => 410,
            Self::ContextTooLong => 413,
            Self::Busy => 429,
            Self::Internal => 500,
            Self::Timeout => 504,
        }
    }

    /// The code inside.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::InvalidRequest(_) | Self::Form(_) => "invalid-request",
            Self::KeyPolicyOpen => "key-policy-open",
            Self::UnknownModel => "unknown-model",
            Self::WrongEnclave => "wrong-enclave",
            Self::Expired => "expired",
            Self::ContextTooLong => "context-too-long",
            Self::Busy => "busy",
            Self::Internal => "internal",
            Self::Timeout => "timeout",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_would_outlive_its_place_in_the_replay_set_is_refused() {
        let header_at = 1_000;
        let until = header_at + 900;
        // Two minutes of dripping later 900 seconds ahead of now is 120 past what is remembered.
        let now = header_at + 120;
        assert!(matches!(is_live(now + 900, now, until), Err(InnerError::InvalidRequest(_))));
        assert!(matches!(is_live(until + 1, now, until), Err(InnerError::InvalidRequest(_))));
        assert_eq!(is_live(until, now, until), Ok(()));
    }

    #[test]
    fn a_request_ends_with_the_second_it_names() {
        assert_eq!(is_live(1_000, 1_000, 1_900), Err(InnerError::Expired));
        assert_eq!(is_live(1_001, 1_000, 1_900), Ok(()));
    }
}
