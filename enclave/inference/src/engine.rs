//! Continuous batching: one thread takes every request, and computes step by step for all that run.
//!
//! A step is one token of each answer that runs and a chunk of the prompts that are being read. So a long prompt stalls nobody,
//! and the weights are read once for all. What a request gets depends on its own tokens and seed alone (see [`Decoder::step`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, TrySendError, channel, sync_channel,
};
use std::thread::JoinHandle;
use std::time::Duration;

use model_header::{MOST_GUESSING, PROMPT_CHUNK};
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use zeroize::Zeroizing;

use crate::decoder::{Decoder, KvCache, Run, Scratch};
use crate::generate::Cancel;
use crate::logprobs::TokenLogprobs;
use crate::sample::{ChoiceError, Chosen, Sampler};
use crate::threads::{Threads, ThreadsError};

/// The thread that computes, and the way to it.
pub(crate) struct Engine {
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

/// What is to be computed.
pub(crate) struct Wanted {
    /// At least one token, all in the vocabulary.
    pub(crate) prompt: Zeroizing<Vec<u32>>,
    /// At least one; the prompt and so many tokens fit the context.
    pub(crate) max_tokens: usize,
    /// Made by who asks: what it takes to make one is not the engine's time.
    pub(crate) sampler: Sampler,
    pub(crate) speculate: bool,
    pub(crate) cancel: Cancel,
}

/// What comes of it.
pub(crate) enum Event {
    Token(u32, Option<TokenLogprobs>),
    /// The model ended the answer, or its form did.
    End,
    /// The answer has as many tokens as were asked for.
    Length,
    Cancelled,
    /// There is no next token.
    NoChoice(ChoiceError),
    /// The engine failed.
    Failed,
}

/// An answer while it is computed. Dropping it ends it.
pub(crate) struct Answer {
    events: Receiver<Event>,
    gone: Arc<AtomicBool>,
}

impl Engine {
    pub(crate) fn start(
        decoder: Arc<Decoder>,
        threads: Arc<Threads>,
        is_end: impl Fn(u32) -> bool + Send + Sync + 'static,
    ) -> Result<Self, ThreadsError> {
        let (requests, incoming) = channel();
        let mut driver = Driver {
            decoder,
            threads,
            is_end: Box::new(is_end),
            incoming,
            scratch: Scratch::default(),
            waiting: VecDeque::new(),
            running: VecDeque::new(),
        };
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || driver.drive());
        let thread = thread.map_err(|error| ThreadsError::new(1, &error))?;
        Ok(Self { requests: Some(requests), thread: Some(thread) })
    }

    /// Puts a request in the queue.
    pub(crate) fn submit(&self, wanted: Wanted) -> Answer {
        let (reply, events) = sync_channel(EVENTS_AHEAD);
        let gone = Arc::new(AtomicBool::new(false));
        let request = Request { wanted, reply, gone: Arc::clone(&gone) };
        if let Some(requests) = &self.requests {
            // If the engine has ended, the answer says so: its sender is gone.
            let _ = requests.send(request);
        }
        Answer { events, gone }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Answer {
    /// Waits for what comes next.
    pub(crate) fn next(&self) -> Event {
        self.events.recv().unwrap_or(Event::Failed)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

struct Request {
    wanted: Wanted,
    reply: SyncSender<Event>,
    gone: Arc<AtomicBool>,
}

/// A request that has its share of every step.
struct Sequence {
    /// The prompt, then the answer, with room for all of it.
    tokens: Zeroizing<Vec<u32>>,
    prompt_tokens: usize,
    max_tokens: usize,
    /// How many of the next tokens the step computes: a part of the prompt; or the last token, and what is guessed to follow it.
    part: usize,
    guess: Zeroizing<Vec<u32>>,
    speculates: bool,
    cache: KvCache,
    sampler: Sampler,
    cancel: Cancel,
    gone: Arc<AtomicBool>,
    reply: SyncSender<Event>,
    /// What the receiver had no room for. Until it has, the sequence rests.
    unsent: VecDeque<Event>,
    has_ended: bool,
}

struct Driver {
    decoder: Arc<Decoder>,
    threads: Arc<Threads>,
    is_end: Box<dyn Fn(u32) -> bool + Send + Sync>,
    incoming: Receiver<Request>,
    scratch: Scratch,
    waiting: VecDeque<Request>,
    running: VecDeque<Sequence>,
}

impl Driver {
    /// Until the engine is dropped and nothing runs any more.
    fn drive(&mut self) {
        let mut open = true;
        while open || !self.running.is_empty() || !self.waiting.is_empty() {
            open &= self.take_requests();
            self.admit();
            self.running.iter_mut().for_each(Sequence::heed);
            self.running.retain(|sequence| !sequence.is_over());
            self.share_out();
            if self.running.iter().any(|sequence| sequence.part > 0) {
                self.step();
            } else if !self.running.is_empty() {
                // All of them rest until somebody reads.
                match self.incoming.recv_timeout(REST) {
                    Ok(request) => self.waiting.push_back(request),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => std::thread::sleep(REST),
                }
            }
        }
    }

    /// Gives whether more may come.
    fn take_requests(&mut self) -> bool {
        if self.running.is_empty() && self.waiting.is_empty() {
            // Nothing of what was computed stays while nobody asks.
            self.scratch = Scratch::default();
            match self.incoming.recv() {
                Ok(request) => self.waiting.push_back(request),
                Err(_) => return false,
            }
        }
        loop {
            match self.incoming.try_recv() {
                Ok(request) => self.waiting.push_back(request),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn admit(&mut self) {
        self.waiting.retain(|Request { wanted, reply, gone }| {
            let is_cancelled = wanted.cancel.is_cancelled();
            if is_cancelled {
                // Nothing was sent before: there is room.
                let _ = reply.try_send(Event::Cancelled);
            }
            !is_cancelled && !gone.load(Ordering::Relaxed)
        });
        while self.running.len() < MAX_RUNNING
            && let Some(Request { wanted, reply, gone }) = self.waiting.pop_front()
        {
            let Wanted { prompt, max_tokens, sampler, speculate, cancel } = wanted;
            let mut tokens = Zeroizing::new(Vec::with_capacity(prompt.len() + max_tokens));
            tokens.extend_from_slice(&prompt);
            self.running.push_back(Sequence {
                prompt_tokens: tokens.len(),
                max_tokens,
                part: 0,
                guess: Zeroizing::new(Vec::with_capacity(MOST_GUESSED + 1)),
                speculates: speculate,
                sampler,
                tokens,
                cache: KvCache::new(),
                cancel,
                gone,
                reply,
                unsent: VecDeque::new(),
                has_ended: false,
            });
        }
    }

    /// Decides what of each running sequence the next step computes: of an answer one token and what is guessed to follow, and of the
    /// prompts a chunk, which is shared in turn.
    fn share_out(&mut self) {
        let answers = self.running.iter().filter(|sequence| !sequence.is_reading() && !sequence.rests()).count();
        let readers = self.running.iter().filter(|sequence| sequence.is_reading() && !sequence.rests()).count();
        let mut left = if answers == 0 { PROMPT_CHUNK } else { CHUNK_BESIDE_ANSWERS };
        let fair = left.div_ceil(readers.max(1)).max(SMALLEST_PART);
        // Who was served goes behind, so that with more readers than parts each has its turn.
        if readers > 1 {
            self.running.rotate_left(1);
        }
        for sequence in &mut self.running {
            sequence.guess.clear();
            sequence.part = if sequence.rests() {
                0
            } else if sequence.is_reading() {
                fair.min(left).min(sequence.prompt_tokens - sequence.cache.len())
            } else {
                1
            };
            if sequence.is_reading() {
                left -= sequence.part;
            } else if answers as u64 <= MOST_GUESSING && sequence.part > 0 {
                sequence.speculate();
            }
        }
    }

    fn step(&mut self) {
        let Self { decoder, threads, is_end, scratch, running, .. } = self;
        let mut taken: Vec<&mut Sequence> = running.iter_mut().filter(|sequence| sequence.part > 0).collect();
        let cancels: Vec<(Cancel, Arc<AtomicBool>)> =
            taken.iter().map(|sequence| (sequence.cancel.clone(), Arc::clone(&sequence.gone))).collect();
        let abandon = || cancels.iter().all(|(cancel, gone)| cancel.is_cancelled() || gone.load(Ordering::Relaxed));
        let vocabulary = decoder.config.vocabulary;
        let done = threads.run(|| {
            let mut runs: Vec<Run<'_>> = taken.iter_mut().map(|sequence| sequence.run()).collect();
            let wanted: Vec<usize> = runs.iter().map(|run| run.wants_logits).collect();
            let Ok(mut logits) = decoder.step(&mut runs, scratch, &abandon) else { return };
            drop(runs);
            let mut rest: &mut [f32] = &mut logits;
            let mut choosing = Vec::with_capacity(taken.len());
            for (sequence, wanted) in taken.iter_mut().zip(wanted) {
                let (own, others) = rest.split_at_mut(wanted * vocabulary);
                rest = others;
                if wanted > 0 {
                    choosing.push((sequence, own));
                }
            }
            choosing.into_par_iter().for_each(|(sequence, logits)| sequence.choose(logits, vocabulary, is_end));
        });
        if done.is_err() {
            taken.into_iter().for_each(|sequence| sequence.end(Event::Failed));
        }
    }
}

impl Sequence {
    /// Whether the prompt is not all in the cache yet.
    fn is_reading(&self) -> bool {
        self.cache.len() < self.prompt_tokens
    }

    /// What it appends in this step.
    fn run(&mut self) -> Run<'_> {
        let first = self.cache.len();
        if first < self.prompt_tokens {
            let tokens = self.tokens.get(first..first + self.part).unwrap_or_default();
            Run { cache: &mut self.cache, tokens, wants_logits: usize::from(first + self.part == self.prompt_tokens) }
        } else if self.guess.is_empty() {
            let tokens = self.tokens.get(first..).unwrap_or_default();
            Run { cache: &mut self.cache, tokens, wants_logits: tokens.len() }
        } else {
            Run { cache: &mut self.cache, tokens: &self.guess, wants_logits: self.guess.len() }
        }
    }

    /// Guesses that what followed the last tokens before will follow them again (prompt lookup, Saxena 2023). The step computes the
    /// guess along with the last token, for little more than that alone takes, and what was guessed wrongly is forgotten.
    fn speculate(&mut self) {
        let answered = self.tokens.len() - self.prompt_tokens;
        // The last token of an answer is chosen, but never computed with.
        let most = MOST_GUESSED.min((self.max_tokens - answered).saturating_sub(1));
        if !self.speculates || most == 0 {
            return;
        }
        let Some((&last, before)) = self.tokens.split_last() else { return };
        for length in GUESSED_BY {
            let Some(pattern) = self.tokens.len().checked_sub(length).and_then(|from| self.tokens.get(from..)) else {
                continue;
            };
            let found = before.windows(length).rposition(|window| window == pattern);
            if let Some(follows) = found.and_then(|at| self.tokens.get(at + length..)) {
                self.guess.push(last);
                self.guess.extend(follows.iter().take(most));
                return;
            }
        }
    }

    /// Takes the next token from the logits of what may follow, and the ones after it as far as the guess was right.
    fn choose(&mut self, logits: &mut [f32], vocabulary: usize, is_end: &(dyn Fn(u32) -> bool + Send + Sync)) {
        for (row, logits) in logits.chunks_exact_mut(vocabulary).enumerate() {
            let Chosen { id, logprobs, is_last } = match self.sampler.choose(logits) {
                Ok(chosen) => chosen,
                Err(error) => return self.end(Event::NoChoice(error)),
            };
            if is_end(id) {
                return self.end(Event::End);
            }
            self.tokens.push(id);
            self.send(Event::Token(id, logprobs));
            if is_last {
                return self.end(Event::End);
            }
            if self.tokens.len() - self.prompt_tokens == self.max_tokens {
                return self.end(Event::Length);
            }
            if self.guess.get(row + 1) != Some(&id) {
                break;
            }
        }
        // All but the last token are in the cache, and nothing that was guessed wrongly.
        self.cache.truncate(self.tokens.len() - 1);
    }

    /// Sends, now or when there is room again.
    fn send(&mut self, event: Event) {
        self.unsent.push_back(event);
        self.deliver();
    }

    fn end(&mut self, event: Event) {
        self.has_ended = true;
        // However long its reader takes.
        self.cache = KvCache::new();
        self.send(event);
    }

    fn deliver(&mut self) {
        while let Some(event) = self.unsent.pop_front() {
            match self.reply.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(event)) => return self.unsent.push_front(event),
                Err(TrySendError::Disconnected(_)) => return self.gone.store(true, Ordering::Relaxed),
            }
        }
    }

    /// Ends an answer that is not wanted any more.
    fn heed(&mut self) {
        if self.cancel.is_cancelled() && !self.has_ended {
            self.unsent.clear();
            self.end(Event::Cancelled);
        }
        self.deliver();
    }

    fn is_over(&self) -> bool {
        self.gone.load(Ordering::Relaxed) || (self.has_ended && self.unsent.is_empty())
    }

    /// Whether it waits for its receiver.
    fn rests(&self) -> bool {
        !self.unsent.is_empty()
    }
}

/// Tokens that may wait for a slow receiver before its sequence rests.
const EVENTS_AHEAD: usize = 64;
/// Sequences of a step; more wait for one to end.
const MAX_RUNNING: usize = 64;
/// Tokens of prompts in a step that also computes answers: such a step takes a few times as long as one without.
const CHUNK_BESIDE_ANSWERS: usize = 32;
/// So many tokens of a prompt at least, if there are so many: the weights are read for them anyway.
const SMALLEST_PART: usize = 8;
/// Tokens that are guessed at most. Eight rows take little longer than one, because reading the weights takes longest.
const MOST_GUESSED: usize = 7;
/// So many last tokens must have stood together before: three, or else two.
const GUESSED_BY: [usize; 2] = [3, 2];
/// How long the engine rests when every receiver is behind.
const REST: Duration = Duration::from_millis(1);
