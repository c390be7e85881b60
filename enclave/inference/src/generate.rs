//! An answer, token by token.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;
use zeroize::Zeroizing;

use crate::constraint::ConstraintError;
use crate::engine::{Event, Wanted};
use crate::logprobs::{TokenLogprobs, Withheld};
use crate::model::{Model, Prompt};
use crate::sample::{ChoiceError, Sampler, Sampling, SamplingError};
use crate::stream::TextStream;

/// Ends an answer from another thread: set once, seen before each step, and before each layer of one that computes for nobody else.
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
        self.check(prompt, sampling, max_tokens)?;
        let course = match (&sampling.constraint, &self.vocabulary) {
            (None, _) => None,
            (Some(constraint), Some(vocabulary)) => Some(constraint.start(vocabulary)?),
            (Some(_), None) => return Err(ConstraintError::Foreign.into()),
        };
        let answer = self.engine.submit(Wanted {
            prompt: Zeroizing::new(prompt.tokens().to_vec()),
            max_tokens,
            sampler: Sampler::new(sampling.clone(), prompt.tokens(), course),
            speculate: sampling.speculate,
            cancel: cancel.clone(),
        });
        let mut stream = TextStream::new(&sampling.stops);
        let mut last = None;
        let (mut count, mut released) = (0, 0);
        let mut withheld = Withheld::default();
        let finished = |reason, count| Finished { reason, prompt_tokens: prompt.len(), completion_tokens: count };

        let reason = loop {
            let (id, logprobs) = match answer.next() {
                Event::Token(id, logprobs) => (id, logprobs),
                Event::End => break FinishReason::End,
                Event::Length => break FinishReason::Length,
                Event::Cancelled => return Ok(finished(FinishReason::Cancelled, count)),
                Event::NoChoice(ChoiceError::NotANumber) => return Err(GenerateError::NotANumber),
                Event::NoChoice(ChoiceError::Constraint(error)) => return Err(error.into()),
                Event::Failed => return Err(GenerateError::Engine),
            };
            last = Some(id);
            count += 1;
            let piece = stream.push(&self.tokenizer.bytes_of(id));
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
