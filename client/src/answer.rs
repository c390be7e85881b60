//! The answer: opened as it comes, released only as far as it is known to be the answer to this request.

mod content;
mod expected;

use std::collections::VecDeque;

use sealing::http::HttpError;
use sealing::message::{Limits, MessageId};
use sealing::reader::{BodyReader, HeaderReader, Held, OpenError, Progress};

use crate::completion::{CompletionError, Summary, Usage};
use crate::data_key::DataKeyError;
use crate::key_policy::KeyPolicyVerdict;
use crate::transport::{Body, TransportError};

use content::Content;
pub(crate) use expected::{Expected, INFERENCE, Opener, PURPOSE, TENANT};

/// An answer that is being read.
///
/// Pieces are authentic, but until [`finish`](Self::finish) returns [`Complete`] nobody knows whether they are the whole
/// answer. An answer that was asked for under 0x0578 gives its first piece only when its signature is verified.
pub struct Answer {
    body: Body,
    /// `None` once the end was reached, or something was wrong.
    reader: Option<BodyReader>,
    held: Option<Held>,
    content: Content,
    pieces: VecDeque<String>,
    received: usize,
    most: usize,
    message_id: MessageId,
    failure: Option<AnswerError>,
    complete: Option<Complete>,
}

/// The next words of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Text, as the model wrote it.
    pub text: String,
}

/// Proof that an answer was read to its true end.
#[derive(Clone, Debug)]
pub struct Complete {
    summary: Summary,
    key_policy: Option<KeyPolicyVerdict>,
    message_id: MessageId,
}

impl Answer {
    /// Reads the header and unwraps the data key. Nothing is released before the header is the expected one.
    pub(crate) async fn begin(mut body: Body, expected: Expected, most: usize) -> Result<Self, AnswerError> {
        let mut reader = HeaderReader::new(Limits::answer());
        let (header, rest) = loop {
            let bytes = body.next().await.map_err(incomplete)?.ok_or_else(|| incomplete("it has no end"))?;
            let mut rest: &[u8] = &bytes;
            match reader.push(&mut rest).map_err(OpenError::from)? {
                Progress::More(more) => reader = more,
                Progress::Done(header) => break (header, bytes.slice_ref(rest)),
            }
        };
        let Expected { request, opener, .. } = expected.check(&header)?;
        let key = opener.unwrap(header.encrypted_data_keys(), header.context()).await?;
        let reader = header.authenticate(&key)?;
        let held = reader.header().suite().is_signed().then(|| Held::new(&reader, most));
        let mut answer = Self {
            body,
            message_id: *reader.header().message_id(),
            reader: Some(reader),
            held,
            content: Content::of(request),
            pieces: VecDeque::new(),
            received: rest.len(),
            most,
            failure: None,
            complete: None,
        };
        answer.take(&rest);
        Ok(answer)
    }

    /// The next piece; `None` at the end, true or not: [`finish`](Self::finish) knows which.
    ///
    /// # Errors
    /// The first thing that is wrong. No piece follows it.
    pub async fn next(&mut self) -> Option<Result<Piece, AnswerError>> {
        loop {
            if let Some(text) = self.pieces.pop_front() {
                return Some(Ok(Piece { text }));
            }
            if let Some(failure) = self.failure.take() {
                return Some(Err(failure));
            }
            self.reader.as_ref()?;
            match self.body.next().await {
                Ok(Some(bytes)) => self.receive(&bytes),
                Ok(None) => self.end(None),
                Err(error) => self.end(Some(error)),
            }
        }
    }

    /// Reads what is left, and proves that it was everything.
    ///
    /// # Errors
    /// When the answer is not whole, or anything is wrong with it.
    pub async fn finish(mut self) -> Result<Complete, AnswerError> {
        while let Some(piece) = self.next().await {
            piece?;
        }
        self.complete.ok_or_else(|| incomplete("an error was reported before"))
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.received = self.received.saturating_add(bytes.len());
        if self.received > self.most {
            self.fail(AnswerError::TooLarge { limit: self.most });
        } else {
            self.take(bytes);
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        if let Err(error) = self.try_take(bytes) {
            self.fail(error);
        }
    }

    fn try_take(&mut self, mut bytes: &[u8]) -> Result<(), AnswerError> {
        let Some(reader) = &mut self.reader else { return Ok(()) };
        while let Some(frame) = reader.push(&mut bytes)? {
            match &mut self.held {
                Some(held) => held.add(&frame)?,
                None => self.content.push(frame.as_bytes(), &mut self.pieces)?,
            }
        }
        Ok(())
    }

    /// No more bytes will come. Whether the answer is whole, the message says, not the connection.
    fn end(&mut self, cause: Option<TransportError>) {
        let Some(reader) = self.reader.take() else { return };
        match self.try_end(reader) {
            Ok((summary, key_policy)) => {
                let key_policy = key_policy.as_deref().map(KeyPolicyVerdict::read);
                self.complete = Some(Complete { summary, key_policy, message_id: self.message_id });
            }
            Err(AnswerError::Open(OpenError::Incomplete)) => {
                self.fail(incomplete(
                    cause.map_or_else(|| "the connection ended".to_owned(), |error| error.to_string()),
                ));
            }
            Err(error) => self.fail(error),
        }
    }

    fn try_end(&mut self, reader: BodyReader) -> Result<(Summary, Option<String>), AnswerError> {
        let end = reader.finish()?;
        if let Some(held) = self.held.take() {
            self.content.push(held.confirm(&end)?.as_bytes(), &mut self.pieces)?;
        }
        std::mem::replace(&mut self.content, Content::Over).finish(&mut self.pieces)
    }

    fn fail(&mut self, error: AnswerError) {
        self.reader = None;
        self.failure = Some(error);
    }
}

impl Complete {
    /// Why the model stopped: `stop`, `length`.
    #[must_use]
    pub fn finish_reason(&self) -> Option<&str> {
        self.summary.finish_reason.as_deref()
    }

    /// The tokens it cost.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        self.summary.usage
    }

    /// The model that answered.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        self.summary.model.as_deref()
    }

    /// What the enclave saw of the policy of the key under which the question was sealed.
    #[must_use]
    pub fn key_policy(&self) -> Option<&KeyPolicyVerdict> {
        self.key_policy.as_ref()
    }

    /// The message id of the answer.
    #[must_use]
    pub fn message_id(&self) -> &MessageId {
        &self.message_id
    }
}

/// Why there is no answer, or not all of one.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Its true end did not come.
    #[error("the answer is INCOMPLETE: {0}; what came so far is authentic, but not all of it")]
    Incomplete(String),
    /// It is not what was asked for.
    #[error(
        "refused an answer that is not to this request: {0}; someone between here and the enclave changed or swapped it"
    )]
    NotOurs(String),
    /// It was changed, or was never a good message.
    #[error("the answer does not open: {0}")]
    Open(#[from] OpenError),
    /// Its data key cannot be had.
    #[error("the answer cannot be opened: {0}")]
    Key(#[from] DataKeyError),
    /// It opens, and is no HTTP answer.
    #[error("the opened answer is not an HTTP answer: {0}")]
    Head(HttpError),
    /// It opens, and is no completion; or the enclave refused.
    #[error(transparent)]
    Completion(#[from] CompletionError),
    /// The enclave refused, and did not say how.
    #[error("the enclave refused the request with status {0} inside the answer")]
    Status(u16),
    /// Longer than the limit.
    #[error("the answer is longer than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
}

impl AnswerError {
    /// Whether the end is missing, rather than something being wrong.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        matches!(self, Self::Incomplete(_))
    }
}

impl From<HttpError> for AnswerError {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::InReplyTo | HttpError::Missing(sealing::http::IN_REPLY_TO) => Self::NotOurs(error.to_string()),
            error => Self::Head(error),
        }
    }
}

fn incomplete(cause: impl std::fmt::Display) -> AnswerError {
    AnswerError::Incomplete(cause.to_string())
}
