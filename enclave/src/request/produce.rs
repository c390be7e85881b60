//! Making the answer, on a blocking thread: content first, padded to whole frames, then sealed, then handed over.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use inference::{Begun, Cancel, FinishReason, Finished, GenerateError, Message, PromptError, Queued, Token};
use sealing::SecretBytes;
use sealing::http::{ResponseHead, SsePacker, padding};
use sealing::message::MessageId;
use sealing::writer::MessageWriter;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use zeroize::Zeroizing;

use super::inner::{Chat, InnerError, Task};
use super::likely::{Entries, Logprobs, MAX_ENTRIES_BYTES, room};
use crate::service::{Piece, PieceSender, Service};

/// A sealed answer in the making.
pub(super) struct Production {
    pub(super) writer: MessageWriter,
    pub(super) sender: PieceSender,
    pub(super) in_reply_to: MessageId,
    pub(super) frame_length: usize,
    /// What the answer says about the policy of the request's key.
    pub(super) key_policy: String,
    /// Frames handed over so far.
    pub(super) frames: u64,
}

/// Until when an answer may be made.
pub(super) struct Terms {
    /// Set when nobody reads any more, and when it is late.
    pub(super) cancel: Cancel,
    /// The deadline has passed.
    pub(super) late: Arc<AtomicBool>,
    /// Unix seconds; nothing is begun after it.
    pub(super) expires: u64,
}

/// The answer cannot go on: nobody reads it, or it cannot be sealed. It is dropped, and the stream is reset.
struct Gone;

impl Production {
    /// Makes the whole answer. Returns its number of frames; `None` when it was given up.
    pub(super) fn run(
        self,
        service: &Service,
        task: Result<Task, InnerError>,
        terms: &Terms,
        preparing: Option<OwnedSemaphorePermit>,
    ) -> Option<u64> {
        match task {
            Err(error) => self.error(error),
            Ok(Task::Models) => self.models(service),
            Ok(Task::Chat(chat)) => self.chat(service, &chat, terms, preparing),
        }
    }

    /// `{"error":{"code","message"}}` (docs/PROTOCOL.md, section 8).
    pub(super) fn error(self, error: InnerError) -> Option<u64> {
        self.json(error.status(), &ErrorBody::of(error), 0).ok()
    }

    fn models(self, service: &Service) -> Option<u64> {
        let data = service
            .models
            .keys()
            .map(|id| ModelEntry { id, object: "model", created: 0, owned_by: "subrosa" })
            .collect();
        self.json(200, &ModelList { object: "list", data }, 0).ok()
    }

    fn chat(
        self,
        service: &Service,
        chat: &Chat,
        terms: &Terms,
        preparing: Option<OwnedSemaphorePermit>,
    ) -> Option<u64> {
        let Chat { model, request, asker } = chat;
        let messages: Vec<Message<'_>> =
            request.messages.iter().map(|(role, content)| Message { role: *role, content }).collect();
        let prompt = match model.prompt(&messages) {
            Ok(prompt) => prompt,
            Err(error) => return self.error(prompt_error(error)),
        };
        let most = service.configuration.limits.max_tokens;
        let mut max_tokens = request.max_tokens.unwrap_or(most).min(most).min(model.room_after(&prompt));
        if let (false, Some(top)) = (request.stream, request.sampling.logprobs) {
            // One document is held as a whole.
            max_tokens = max_tokens.min(MAX_ENTRIES_BYTES / room(top + 1));
        }
        let queued = model.submit(asker, &prompt, &request.sampling, max_tokens, &terms.cancel);
        drop(preparing);
        let begun = match queued.and_then(Queued::begin) {
            Ok(Some(begun)) => begun,
            Ok(None) if terms.late.load(Ordering::Relaxed) => return self.error(InnerError::Timeout),
            Ok(None) => return None,
            Err(error) => return self.error(generate_error(error)),
        };
        // The wait, too, must end before the customer's own limit.
        if service.clock.unix_seconds() >= terms.expires {
            return self.error(InnerError::Expired);
        }
        let answering = Answering {
            chat,
            max_tokens,
            late: &terms.late,
            id: format!("chatcmpl-{:.24}", self.writer.message_id().to_string()),
            created: service.clock.unix_seconds(),
        };
        let made = if request.stream { answering.stream(begun, self) } else { answering.whole(begun, self) };
        made.ok()
    }

    /// One JSON document: padded by trailing spaces, `more` of them beyond what whole frames need; its length stated.
    fn json(mut self, status: u16, value: &impl Serialize, more: usize) -> Result<u64, Gone> {
        let mut body = SecretBytes::from_vec(to_json(value)?);
        body.extend_with(b' ', more);
        padding::json(&mut body, self.frame_length);
        self.head(status, "application/json", Some(body.len() as u64))?;
        for frames in body.as_bytes().chunks(self.frame_length * FRAMES_AT_ONCE) {
            self.frames(frames)?;
        }
        self.end()
    }

    /// The header of the message, and the head of the answer in whole frames.
    fn head(&mut self, status: u16, content_type: &str, content_length: Option<u64>) -> Result<(), Gone> {
        let in_reply_to = self.in_reply_to;
        let key_policy = Some(self.key_policy.clone());
        let head =
            ResponseHead { status, in_reply_to, content_type: content_type.to_owned(), content_length, key_policy };
        let head = head.to_frames(self.frame_length).map_err(|_| Gone)?;
        let header = self.writer.header().to_vec();
        self.seal(header, head.as_bytes())
    }

    /// Whole frames.
    fn frames(&mut self, plaintext: &[u8]) -> Result<(), Gone> {
        self.seal(Vec::new(), plaintext)
    }

    fn seal(&mut self, mut out: Vec<u8>, plaintext: &[u8]) -> Result<(), Gone> {
        self.writer.write(plaintext, &mut out).map_err(|_| Gone)?;
        self.frames += (plaintext.len() / self.frame_length) as u64;
        self.sender.send(Piece::Bytes(Bytes::from(out))).map_err(|_| Gone)
    }

    /// The final frame, which marks the true end.
    fn end(self) -> Result<u64, Gone> {
        let Self { writer, sender, in_reply_to: _, frame_length: _, key_policy: _, frames } = self;
        let mut out = Vec::new();
        writer.finish(&mut out).map_err(|_| Gone)?;
        sender.send(Piece::Bytes(Bytes::from(out))).map_err(|_| Gone)?;
        sender.send(Piece::End).map_err(|_| Gone)?;
        Ok(frames + 1)
    }
}

/// Everything about one chat answer but where it goes.
struct Answering<'a> {
    chat: &'a Chat,
    max_tokens: usize,
    late: &'a AtomicBool,
    id: String,
    created: u64,
}

impl Answering<'_> {
    /// Server-Sent Events: one token, one frame; with likely alternatives to it, a few more, however long they are.
    fn stream(&self, begun: Begun<'_>, mut to: Production) -> Result<u64, Gone> {
        let mut packer = SsePacker::new(to.frame_length).map_err(|_| Gone)?;
        to.head(200, "text/event-stream", None)?;
        self.event(&mut packer, &self.chunk(Delta { role: Some("assistant"), content: Some("") }, None))?;
        to.frames(packer.frame().as_bytes())?;
        let frames = 1 + self.logprobs().map_or(0, |top| room(top).div_ceil(to.frame_length));
        let mut gone = false;
        let finished = begun.receive(&mut |token| {
            // A token whose text is held back still takes its frames: how many go out does not depend on lengths.
            let event = self.token(&mut packer, &token);
            let sent = event.and_then(|()| (0..frames).try_for_each(|_| to.frames(packer.frame().as_bytes())));
            gone = sent.is_err();
            if gone { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if gone {
            return Err(Gone);
        }
        match self.reason(finished) {
            Ok((finished, reason)) => {
                self.event(&mut packer, &self.chunk(Delta { role: None, content: None }, Some(reason)))?;
                if self.chat.request.include_usage {
                    self.event(
                        &mut packer,
                        &Chunk { choices: Vec::new(), usage: Some(usage(finished)), ..self.empty() },
                    )?;
                }
                packer.push_event("[DONE]").map_err(|_| Gone)?;
            }
            Err(Fault::Gone) => return Err(Gone),
            Err(Fault::Inner(error)) => self.event(&mut packer, &ErrorBody::of(error))?,
        }
        while !packer.is_empty() {
            to.frames(packer.frame().as_bytes())?;
        }
        to.end()
    }

    /// What a token brings: nothing, if its text is held back.
    fn token(&self, packer: &mut SsePacker, token: &Token<'_>) -> Result<(), Gone> {
        if token.text.is_empty() && token.logprobs.is_empty() {
            return Ok(());
        }
        let mut entries = Entries::new();
        let logprobs = if token.logprobs.is_empty() {
            None
        } else {
            entries.extend(&self.chat.model, token.logprobs).ok_or(Gone)?;
            Some(entries.finish().ok_or(Gone)?)
        };
        let delta = Delta { role: None, content: Some(token.text) };
        self.event(
            packer,
            &Chunk { choices: vec![ChunkChoice { index: 0, delta, logprobs, finish_reason: None }], ..self.empty() },
        )
    }

    /// One JSON document.
    fn whole(&self, begun: Begun<'_>, to: Production) -> Result<u64, Gone> {
        let mut text = SecretBytes::with_capacity(self.max_tokens.min(4096) * 8);
        let mut entries = Entries::new();
        let mut broken = false;
        let finished = begun.receive(&mut |token| {
            text.extend(token.text.as_bytes());
            broken = entries.extend(&self.chat.model, token.logprobs).is_none();
            if broken || to.sender.is_closed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let (finished, reason) = match self.reason(finished) {
            Ok(finished) => finished,
            Err(Fault::Gone) => return Err(Gone),
            Err(Fault::Inner(error)) => return to.json(error.status(), &ErrorBody::of(error), 0),
        };
        // As long as the entries are, but for rare ones: how long the tokens are does not show.
        let room = self.logprobs().map_or(0, |top| entries.count().saturating_mul(room(top + 1)));
        let more = room.saturating_sub(entries.len());
        let logprobs = self.logprobs().map(|_| entries.finish().ok_or(Gone)).transpose()?;
        let content = std::str::from_utf8(text.as_bytes()).map_err(|_| Gone)?;
        to.json(
            200,
            &Completion {
                id: &self.id,
                object: "chat.completion",
                created: self.created,
                model: &self.chat.request.model,
                choices: [Choice {
                    index: 0,
                    message: AnswerMessage { role: "assistant", content },
                    logprobs,
                    finish_reason: reason,
                }],
                usage: usage(finished),
            },
            more,
        )
    }

    fn logprobs(&self) -> Option<usize> {
        self.chat.request.sampling.logprobs
    }

    /// How it ended, in the words of the API.
    fn reason(&self, finished: Result<Finished, GenerateError>) -> Result<(Finished, &'static str), Fault> {
        let finished = finished.map_err(|error| Fault::Inner(generate_error(error)))?;
        match finished.reason {
            FinishReason::End | FinishReason::Stop => Ok((finished, "stop")),
            FinishReason::Length => Ok((finished, "length")),
            FinishReason::Cancelled if self.late.load(Ordering::Relaxed) => Err(Fault::Inner(InnerError::Timeout)),
            FinishReason::Cancelled | FinishReason::Receiver => Err(Fault::Gone),
        }
    }

    fn event(&self, packer: &mut SsePacker, value: &impl Serialize) -> Result<(), Gone> {
        let json = Zeroizing::new(to_json(value)?);
        packer.push_event(std::str::from_utf8(&json).map_err(|_| Gone)?).map_err(|_| Gone)
    }

    fn empty(&self) -> Chunk<'_> {
        Chunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.chat.request.model,
            choices: Vec::new(),
            usage: None,
        }
    }

    fn chunk<'a>(&'a self, delta: Delta<'a>, finish_reason: Option<&'static str>) -> Chunk<'a> {
        Chunk { choices: vec![ChunkChoice { index: 0, delta, logprobs: None, finish_reason }], ..self.empty() }
    }
}

enum Fault {
    Gone,
    Inner(InnerError),
}

fn generate_error(error: GenerateError) -> InnerError {
    match error {
        GenerateError::ContextTooLong { .. } | GenerateError::Memory { .. } => InnerError::ContextTooLong,
        GenerateError::Sampling(_) | GenerateError::NoTokens => {
            InnerError::InvalidRequest("a sampling parameter is out of range")
        }
        GenerateError::Constraint(error) => error.into(),
        GenerateError::ForeignPrompt | GenerateError::NotANumber | GenerateError::Engine => InnerError::Internal,
    }
}

fn prompt_error(error: PromptError) -> InnerError {
    match error {
        PromptError::TooManyBytes { .. } | PromptError::TooManyTokens { .. } => InnerError::ContextTooLong,
        PromptError::Empty | PromptError::TooManyMessages(_) => {
            InnerError::InvalidRequest("too few or too many messages")
        }
        PromptError::Template(_) => InnerError::InvalidRequest("the model's chat template refuses these messages"),
        PromptError::UnknownToken(_) | PromptError::NoTemplate | PromptError::Tokenizer => InnerError::Internal,
    }
}

/// JSON in a buffer that does not grow for the usual sizes, so that no copies are left behind.
fn to_json(value: &impl Serialize) -> Result<Vec<u8>, Gone> {
    struct Wiping(SecretBytes);
    impl std::io::Write for Wiping {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut out = Wiping(SecretBytes::with_capacity(1024));
    serde_json::to_writer(&mut out, value).map_err(|_| Gone)?;
    Ok(out.0.as_bytes().to_vec())
}

fn usage(finished: Finished) -> Usage {
    let Finished { reason: _, prompt_tokens, completion_tokens } = finished;
    Usage { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
}

#[derive(Serialize)]
struct ErrorBody {
    error: ErrorMembers,
}

#[derive(Serialize)]
struct ErrorMembers {
    code: &'static str,
    message: String,
}

impl ErrorBody {
    fn of(error: InnerError) -> Self {
        Self { error: ErrorMembers { code: error.code(), message: error.to_string() } }
    }
}

#[derive(Serialize)]
struct ModelList<'a> {
    object: &'static str,
    data: Vec<ModelEntry<'a>>,
}

#[derive(Serialize)]
struct ModelEntry<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
}

#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: [Choice<'a>; 1],
    usage: Usage,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    message: AnswerMessage<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Logprobs<'a>>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct AnswerMessage<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<ChunkChoice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    delta: Delta<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Logprobs<'a>>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

#[derive(Clone, Copy, Serialize)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

/// Frames that are handed over in one piece where the whole answer is known.
const FRAMES_AT_ONCE: usize = 4;
