//! The inner HTTP answer: head, then a body in OpenAI form, or a sealed refusal.

use std::collections::VecDeque;

use sealing::http::{ResponseHead, ResponseHeadReader, ResponseProgress};
use sealing::message::MessageId;

use super::AnswerError;
use crate::completion::{CompletionError, Reader, SealedRefusal, Summary};

/// How far the content was read.
pub(super) enum Content {
    /// In the head: nothing is released.
    Head(ResponseHeadReader),
    /// In the body of a good answer.
    Body { reader: Reader, left: Option<u64>, key_policy: Option<String> },
    /// In the body of a refusal.
    Refusal { status: u16, body: Vec<u8>, key_policy: Option<String> },
    /// Behind the end, or behind an error.
    Over,
}

impl Content {
    /// The content of the answer to `request`.
    pub(super) fn of(request: MessageId) -> Self {
        Self::Head(ResponseHeadReader::new(request))
    }

    pub(super) fn push(&mut self, mut bytes: &[u8], pieces: &mut VecDeque<String>) -> Result<(), AnswerError> {
        // An error leaves `Over` behind.
        *self = match std::mem::replace(self, Self::Over) {
            Self::Head(reader) => match reader.push(&mut bytes)? {
                ResponseProgress::More(reader) => Self::Head(reader),
                ResponseProgress::Done(head) => {
                    *self = Self::after(head)?;
                    return self.push(bytes, pieces);
                }
            },
            Self::Body { mut reader, left, key_policy } => {
                let left =
                    left.map(|left| left.checked_sub(bytes.len() as u64).ok_or_else(wrong_length)).transpose()?;
                let mut texts = Vec::new();
                let pushed = reader.push(bytes, &mut texts);
                pieces.extend(texts);
                pushed?;
                Self::Body { reader, left, key_policy }
            }
            Self::Refusal { status, mut body, key_policy } => {
                if body.len().saturating_add(bytes.len()) > MAX_REFUSAL {
                    return Err(AnswerError::Status(status));
                }
                body.extend_from_slice(bytes);
                Self::Refusal { status, body, key_policy }
            }
            Self::Over => Self::Over,
        };
        Ok(())
    }

    /// The message has ended here.
    ///
    /// Beside the summary: what the enclave says about the policy of the request's key.
    pub(super) fn finish(self, pieces: &mut VecDeque<String>) -> Result<(Summary, Option<String>), AnswerError> {
        match self {
            Self::Body { left: Some(1..), .. } => Err(wrong_length()),
            Self::Body { reader, left: _, key_policy } => {
                let mut texts = Vec::new();
                let summary = reader.finish(&mut texts)?;
                pieces.extend(texts);
                Ok((summary, key_policy))
            }
            Self::Refusal { status, body, key_policy } => Err(match SealedRefusal::parse(&body) {
                Some(refusal) => CompletionError::from(refusal.about(key_policy.as_deref())).into(),
                None => AnswerError::Status(status),
            }),
            Self::Head(_) | Self::Over => Err(CompletionError::Unfinished.into()),
        }
    }

    fn after(head: ResponseHead) -> Result<Self, AnswerError> {
        let ResponseHead { status, in_reply_to: _, content_type, content_length, key_policy } = head;
        if status == 200 {
            Ok(Self::Body { reader: Reader::of(&content_type)?, left: content_length, key_policy })
        } else {
            Ok(Self::Refusal { status, body: Vec::new(), key_policy })
        }
    }
}

fn wrong_length() -> AnswerError {
    CompletionError::Malformed("its length is not the one that its head states".to_owned()).into()
}

/// Code, message and one frame of padding.
const MAX_REFUSAL: usize = 64 * 1024;
