//! An answer, token by token.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use thiserror::Error;
use zeroize::Zeroizing;

use crate::asker::Asker;
use crate::constraint::{ConstraintError, Course, Form};
use crate::engine::{Answer, Event, TooLarge, Wanted};
use crate::logprobs::{TokenLogprobs, Withheld};
use crate::model::{Model, Prompt};
use crate::sample::{ChoiceError, Sampler, Sampling, SamplingError};
use crate::stream::TextStream;

/// Ends an answer from another thread: set once, seen before each token is given out, before each step, and before each layer of one
/// that computes for nobody else.
#[derive(Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

/// What a token adds to the answer.
pub struct Token<'a> {
    /// Text that is certain now: whole characters, no part of a stop text. May be empty, while more must come before
    /// anything is certain. The last call of an answer may repeat `id` and `count`: it brings what was held back.
    pub text: &'a str,
    /// The token.
    pub id: u32,
    /// Tokens of the answer so far, this one included.
    pub count: usize,
    /// If [`Sampling::logprobs`] asks for it: how likely those tokens were whose text ends in `text`. A token of whose text a part
    /// never comes, because a stop text begins in it, has no entry.
    pub logprobs: &'a [TokenLogprobs],
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer, the one that ended it not included.
    pub completion_tokens: usize,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or it has the form that it was to have and nothing may follow.
    End,
    /// One of the stop texts came.
    Stop,
    /// It has as many tokens as were asked for.
    Length,
    /// It was cancelled; text held back is not brought.
    Cancelled,
    /// The receiver wants no more; text held back is not brought.
    Receiver,
}

/// A request in the engine's queue. Dropping it takes it back.
pub struct Queued<'a> {
    begun: Begun<'a>,
    form: Option<(Form, SyncSender<Course>)>,
}

/// An answer that the engine computes. Dropping it ends it.
pub struct Begun<'a> {
    model: &'a Model,
    answer: Answer,
    stops: Vec<Zeroizing<String>>,
    /// Whether a space that the text begins with is left out.
    drops_space: bool,
    prompt_tokens: usize,
    cancel: Cancel,
}

/// Why there is no answer. Carries no text.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
pub enum GenerateError {
    /// Sampling parameters out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// No token was asked for.
    #[error("an answer of no tokens was asked for")]
    NoTokens,
    /// The answer might not fit.
    #[error(
        "the prompt has {prompt_tokens} tokens and the answer may have {max_tokens}; the context has {context_length}"
    )]
    ContextTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens that were asked for.
        max_tokens: usize,
        /// The model's context.
        context_length: usize,
    },
    /// The answer would take more memory than all answers together have.
    #[error("the answer needs {needed} bytes of memory; for all answers together there are {total}")]
    Memory {
        /// Bytes for keys, values and buffers of prompt and answer.
        needed: u64,
        /// Bytes of the model's [`KvMemory`](crate::KvMemory).
        total: u64,
    },
    /// The prompt was made by another model.
    #[error("the prompt does not fit this model's vocabulary")]
    ForeignPrompt,
    /// The model gave no number to choose by: its weights are broken.
    #[error("the model gave no number to choose a token by")]
    NotANumber,
    /// The answer cannot go on in its form.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// The engine failed.
    #[error("the engine failed")]
    Engine,
}

impl Model {
    /// Answers `prompt` with at most `max_tokens` tokens (see [`Model::room_after`]). Blocks the calling thread, on
    /// which `on_token` is called, until the answer ends. Answers that run at the same time share the engine's steps; each gets what
    /// it would get alone.
    ///
    /// # Errors
    /// Parameters out of range and an answer that might not fit are refused before any work.
    pub fn generate(
        &self,
        prompt: &Prompt,
        sampling: &Sampling,
        max_tokens: usize,
        cancel: &Cancel,
        on_token: &mut dyn FnMut(Token<'_>) -> ControlFlow<()>,
    ) -> Result<Finished, GenerateError> {
        match self.submit(&Asker::NOBODY, prompt, sampling, max_tokens, cancel)?.begin()? {
            Some(begun) => begun.receive(on_token),
            None => {
                let (reason, prompt_tokens) = (FinishReason::Cancelled, prompt.len());
                Ok(Finished { reason, prompt_tokens, completion_tokens: 0 })
            }
        }
    }

    /// As [`Model::generate`], for somebody: puts the request in the queue. Who has least of the memory begins first.
    ///
    /// # Errors
    /// As [`Model::generate`]; an answer for which there is not enough memory at all is refused with the numbers.
    pub fn submit(
        &self,
        asker: &Asker,
        prompt: &Prompt,
        sampling: &Sampling,
        max_tokens: usize,
        cancel: &Cancel,
    ) -> Result<Queued<'_>, GenerateError> {
        self.check(prompt, sampling, max_tokens)?;
        let (form, course) = match &sampling.form {
            Some(form) => {
                let (sender, receiver) = sync_channel(1);
                (Some((form.clone(), sender)), Some(receiver))
            }
            None => (None, None),
        };
        let wanted = Wanted {
            asker: *asker,
            prompt: Zeroizing::new(prompt.tokens().to_vec()),
            max_tokens,
            sampler: Sampler::new(sampling.clone(), prompt.tokens()),
            course,
            speculate: sampling.speculate,
            cancel: cancel.clone(),
        };
        let answer = self.engine.submit(wanted);
        let answer = answer.map_err(|TooLarge { needed, total }| GenerateError::Memory { needed, total })?;
        // A form counts every byte.
        let drops_space = form.is_none() && self.tokenizer.begins_with_space();
        let (stops, prompt_tokens) = (sampling.stops.clone(), prompt.len());
        Ok(Queued {
            begun: Begun { model: self, answer, stops, drops_space, prompt_tokens, cancel: cancel.clone() },
            form,
        })
    }

    fn check(&self, prompt: &Prompt, sampling: &Sampling, max_tokens: usize) -> Result<(), GenerateError> {
        sampling.check()?;
        if max_tokens == 0 {
            return Err(GenerateError::NoTokens);
        }
        let (prompt_tokens, context_length) = (prompt.len(), self.context_length());
        if prompt_tokens.checked_add(max_tokens).is_none_or(|tokens| tokens > context_length) {
            return Err(GenerateError::ContextTooLong { prompt_tokens, max_tokens, context_length });
        }
        if prompt.tokens().iter().any(|&token| token as usize >= self.vocabulary()) {
            return Err(GenerateError::ForeignPrompt);
        }
        Ok(())
    }
}

impl<'a> Queued<'a> {
    /// Blocks until the answer has its place, and until its form, if it is to have one, is ready: that may take some tenths of a second,
    /// and with the first form of a model about a second more. None if it was cancelled before.
    ///
    /// # Errors
    /// A form that is malformed, not supported or too complex; the engine failed.
    pub fn begin(self) -> Result<Option<Begun<'a>>, GenerateError> {
        let Self { begun, form } = self;
        match begun.answer.next() {
            Event::Begun => {}
            Event::Cancelled => return Ok(None),
            Event::Token(..) | Event::End | Event::Length | Event::NoChoice(_) | Event::Failed => {
                return Err(GenerateError::Engine);
            }
        }
        if let Some((form, sender)) = form {
            // Not before: what it takes is part of the place.
            let course = Course::new(begun.model.form_vocabulary()?, &form)?;
            if sender.send(course).is_err() {
                // The engine has given it up meanwhile.
                return if begun.cancel.is_cancelled() { Ok(None) } else { Err(GenerateError::Engine) };
            }
        }
        Ok(Some(begun))
    }
}

impl Begun<'_> {
    /// Blocks the calling thread, on which `on_token` is called, until the answer ends.
    ///
    /// # Errors
    /// The model gives no numbers, the answer cannot go on in its form, or the engine failed.
    pub fn receive(self, on_token: &mut dyn FnMut(Token<'_>) -> ControlFlow<()>) -> Result<Finished, GenerateError> {
        let Self { model, answer, stops, drops_space, prompt_tokens, cancel } = self;
        let mut stream = TextStream::new(&stops, drops_space);
        let mut last = None;
        let (mut count, mut released) = (0, 0);
        let mut withheld = Withheld::default();
        let finished = |reason, count| Finished { reason, prompt_tokens, completion_tokens: count };

        let reason = loop {
            let event = answer.next();
            // The engine may be some tokens ahead.
            if cancel.is_cancelled() {
                return Ok(finished(FinishReason::Cancelled, count));
            }
            let (id, logprobs) = match event {
                Event::Token(id, logprobs) => (id, logprobs),
                Event::End => break FinishReason::End,
                Event::Length => break FinishReason::Length,
                Event::Cancelled => return Ok(finished(FinishReason::Cancelled, count)),
                Event::NoChoice(ChoiceError::NotANumber) => return Err(GenerateError::NotANumber),
                Event::NoChoice(ChoiceError::Constraint(error)) => return Err(error.into()),
                Event::Begun | Event::Failed => return Err(GenerateError::Engine),
            };
            last = Some(id);
            count += 1;
            let piece = stream.push(&model.tokenizer.bytes_of(id));
            released += piece.text.len();
            withheld.push(released + piece.held, logprobs);
            let logprobs = &withheld.release(released);
            if on_token(Token { text: &piece.text, id, count, logprobs }).is_break() {
                return Ok(finished(FinishReason::Receiver, count));
            }
            if piece.stopped {
                return Ok(finished(FinishReason::Stop, count));
            }
        };
        let rest = stream.finish();
        let logprobs = &withheld.release(released + rest.text.len());
        if let Some(id) = last.filter(|_| !rest.text.is_empty() || !logprobs.is_empty())
            && on_token(Token { text: &rest.text, id, count, logprobs }).is_break()
        {
            return Ok(finished(FinishReason::Receiver, count));
        }
        Ok(finished(if rest.stopped { FinishReason::Stop } else { reason }, count))
    }
}

impl Cancel {
    /// Not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the answers that hold a clone of this.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`Cancel::cancel`] was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
