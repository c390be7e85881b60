//! Continuous batching: one thread takes every request, and computes step by step for all that run.
//!
//! A step is one token of each answer that runs and a chunk of the prompts that are being read. So a long prompt stalls nobody,
//! and the weights are read once for all. What a request gets depends on its own tokens and seed alone (see [`Decoder::step`]).
//!
//! Who has least comes first: of the memory, which an answer gets as a whole before it begins ([`memory`]), and of the prompts' part in
//! each step ([`turns`]): [`schedule`].

mod guess;
mod memory;
mod prefix;
mod schedule;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, TrySendError, channel, sync_channel,
};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kernels::for_each;
use model_header::Plan;
use zeroize::Zeroizing;

pub use self::memory::KvMemory;
use self::memory::Place;
use self::turns::Turns;
use crate::asker::Asker;
use crate::constraint::{CONSTRAINT_BYTES, Course};
use crate::decoder::{Decoder, KvCache, Run, Scratch};
use crate::generate::Cancel;
use crate::logprobs::TokenLogprobs;
use crate::sample::{ChoiceError, Chosen, Sampler};
use crate::threads::{Threads, ThreadsError};
pub(crate) use guess::Tally;
use guess::{Guesser, MOST_GUESSED};

/// The thread that computes, and the way to it.
pub(crate) struct Engine {
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
    pub(crate) tally: Arc<Tally>,
    plan: Plan,
    memory: KvMemory,
    /// Its number in the memory.
    model: u64,
}

/// What is to be computed.
pub(crate) struct Wanted {
    pub(crate) asker: Asker,
    /// At least one token, all in the vocabulary.
    pub(crate) prompt: Zeroizing<Vec<u32>>,
    /// At least one; the prompt and so many tokens fit the context.
    pub(crate) max_tokens: usize,
    /// Made by who asks: what it takes to make one is not the engine's time.
    pub(crate) sampler: Sampler,
    /// Brings the form of the answer, if it is to have one, after the answer got its place: until then nothing is computed.
    pub(crate) course: Option<Receiver<Course>>,
    pub(crate) speculate: bool,
    pub(crate) cancel: Cancel,
}

/// What comes of it.
pub(crate) enum Event {
    /// It was given its place: nothing but an end comes before.
    Begun,
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

/// So much memory is not there, and will not be.
pub(crate) struct TooLarge {
    pub(crate) needed: u64,
    pub(crate) total: u64,
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
        plan: Plan,
        memory: KvMemory,
    ) -> Result<Self, ThreadsError> {
        let (requests, incoming) = channel();
        let mut driver = Driver::new(decoder, threads, Box::new(is_end), incoming, plan, memory.clone());
        let (model, tally) = (driver.model, Arc::clone(&driver.tally));
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || driver.drive());
        let thread = thread.map_err(|error| ThreadsError::new(1, &error))?;
        Ok(Self { requests: Some(requests), thread: Some(thread), tally, plan, memory, model })
    }

    /// Puts a request in the queue, unless it needs more memory than there is.
    pub(crate) fn submit(&self, wanted: Wanted) -> Result<Answer, TooLarge> {
        let (needed, total) = (wanted.bytes(&self.plan), self.memory.total());
        if needed > total {
            return Err(TooLarge { needed, total });
        }
        let (request, answer) = Request::new(wanted);
        if let Some(requests) = &self.requests {
            // If the engine has ended, the answer says so: its sender is gone.
            let _ = requests.send(request);
        }
        Ok(answer)
    }
}

impl Wanted {
    fn bytes(&self, plan: &Plan) -> u64 {
        let of_form = if self.course.is_some() { CONSTRAINT_BYTES as u64 } else { 0 };
        plan.answer_bytes(self.prompt.len().saturating_add(self.max_tokens)).saturating_add(of_form)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.memory.forget(self.model);
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

impl Request {
    fn new(wanted: Wanted) -> (Self, Answer) {
        let (reply, events) = sync_channel(EVENTS_AHEAD);
        let gone = Arc::new(AtomicBool::new(false));
        (Self { wanted, reply, gone: Arc::clone(&gone) }, Answer { events, gone })
    }
}

/// A request that has its share of every step.
struct Sequence {
    asker: Asker,
    /// The prompt, then the answer, with room for all of it.
    tokens: Zeroizing<Vec<u32>>,
    prompt_tokens: usize,
    max_tokens: usize,
    /// How many of the next tokens the step computes: a part of the prompt; or the last token, and what is guessed to follow it.
    part: usize,
    guess: Zeroizing<Vec<u32>>,
    guesser: Guesser,
    cache: KvCache,
    /// The memory that it was given, until it has ended.
    place: Option<Place>,
    sampler: Sampler,
    course: Option<Receiver<Course>>,
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
    plan: Plan,
    memory: KvMemory,
    model: u64,
    scratch: Scratch,
    waiting: VecDeque<Request>,
    running: VecDeque<Sequence>,
    tally: Arc<Tally>,
    turns: Turns,
}

impl Driver {
    fn new(
        decoder: Arc<Decoder>,
        threads: Arc<Threads>,
        is_end: Box<dyn Fn(u32) -> bool + Send + Sync>,
        incoming: Receiver<Request>,
        plan: Plan,
        memory: KvMemory,
    ) -> Self {
        let (scratch, turns, model) = (Scratch::default(), Turns::default(), memory.enrol());
        let (waiting, running, tally) = (VecDeque::new(), VecDeque::new(), Arc::default());
        Self { decoder, threads, is_end, incoming, plan, memory, model, scratch, waiting, running, tally, turns }
    }

    /// Until the engine is dropped and nothing runs any more.
    fn drive(&mut self) {
        let mut open = true;
        while open || !self.running.is_empty() || !self.waiting.is_empty() {
            open &= self.take_requests();
            self.settle();
            if self.running.iter().any(|sequence| sequence.part > 0) {
                self.step();
            } else if !self.running.is_empty() || !self.waiting.is_empty() {
                // All of them rest until somebody reads, or another model gives memory back: none of it is held meanwhile.
                self.scratch = Scratch::default();
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
            let Ok(mut rest) = decoder.step(&mut runs, scratch, &abandon) else { return };
            drop(runs);
            let mut choosing = Vec::with_capacity(taken.len());
            for (sequence, wanted) in taken.iter_mut().zip(wanted) {
                let (own, others) = rest.split_at_mut(wanted * vocabulary);
                rest = others;
                if wanted > 0 {
                    choosing.push((sequence, own));
                }
            }
            for_each(&mut choosing, |(sequence, logits)| sequence.choose(logits, vocabulary, is_end));
        });
        if done.is_err() {
            taken.into_iter().for_each(|sequence| sequence.end(Event::Failed));
        }
    }
}

impl Sequence {
    fn begin(Request { wanted, reply, gone }: Request, place: Place, cache: KvCache, tally: &Arc<Tally>) -> Self {
        let Wanted { asker, prompt, max_tokens, sampler, course, speculate, cancel } = wanted;
        let mut tokens = Zeroizing::new(Vec::with_capacity(prompt.len() + max_tokens));
        tokens.extend_from_slice(&prompt);
        let mut sequence = Self {
            asker,
            prompt_tokens: tokens.len(),
            max_tokens,
            part: 0,
            guess: Zeroizing::new(Vec::with_capacity(MOST_GUESSED + 1)),
            guesser: Guesser::new(speculate, Arc::clone(tally)),
            sampler,
            course,
            tokens,
            cache,
            place: Some(place),
            cancel,
            gone,
            reply,
            unsent: VecDeque::new(),
            has_ended: false,
        };
        sequence.send(Event::Begun);
        sequence
    }

    /// Tokens of the prompt that no step computes yet; none of one that rests.
    fn unread(&self) -> usize {
        if self.rests() { 0 } else { self.prompt_tokens.saturating_sub(self.cache.len() + self.part) }
    }

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

    /// Guesses how the answer goes on.
    fn speculate(&mut self) {
        let answered = self.tokens.len() - self.prompt_tokens;
        // The last token of an answer is chosen, but never computed with.
        let room = (self.max_tokens - answered).saturating_sub(1);
        self.guesser.guess(&self.tokens, room, &mut self.guess);
    }

    /// Takes the next token from the logits of what may follow, and the ones after it as far as the guess was right.
    fn choose(&mut self, logits: &mut [f32], vocabulary: usize, is_end: &(dyn Fn(u32) -> bool + Send + Sync)) {
        self.remember_prompt();
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
                self.guesser.learn(self.guess.len().saturating_sub(1), row);
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
        let mut cache = std::mem::replace(&mut self.cache, KvCache::new());
        // Not the last token, which is chosen, but not computed with; nor what was guessed to come after the end.
        cache.truncate(self.tokens.len().saturating_sub(1));
        self.sampler.forget();
        let is_whole = matches!(event, Event::End | Event::Length);
        let pages = if is_whole { cache.full_pages().to_vec() } else { Vec::new() };
        drop(cache);
        if let Some(place) = self.place.take() {
            place.leave(&self.tokens, pages, Instant::now());
        }
        self.send(event);
    }

    /// As soon as the prompt was read, the next one that begins alike may use it.
    fn remember_prompt(&self) {
        if self.tokens.len() == self.prompt_tokens
            && let Some(place) = &self.place
        {
            place.remember(&self.tokens, self.cache.full_pages(), Instant::now());
        }
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
        match self.course.as_ref().map(Receiver::try_recv) {
            None | Some(Err(TryRecvError::Empty)) => {}
            Some(Ok(course)) => {
                self.sampler.follow(course);
                self.course = None;
            }
            // There is no such form, and who asked for it knows.
            Some(Err(TryRecvError::Disconnected)) => self.gone.store(true, Ordering::Relaxed),
        }
        self.deliver();
    }

    fn is_over(&self) -> bool {
        self.gone.load(Ordering::Relaxed) || (self.has_ended && self.unsent.is_empty())
    }

    /// Whether it waits for its receiver, or for its form.
    fn rests(&self) -> bool {
        !self.unsent.is_empty() || self.course.is_some()
    }
}

/// Tokens that may wait for a slow receiver before its sequence rests.
const EVENTS_AHEAD: usize = 64;
/// How long the engine rests when every receiver is behind.
const REST: Duration = Duration::from_millis(1);
