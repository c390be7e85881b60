//! What the next step computes, and who takes part in it.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use model_header::{MOST_GUESSING, PROMPT_CHUNK};

use super::memory::NoPlace;
use super::{Driver, Event, Request, Sequence};
use crate::decoder::KvCache;

impl Driver {
    /// Lets those go who have ended, those in who have room, and decides on the next step.
    pub(super) fn settle(&mut self) {
        self.running.iter_mut().for_each(Sequence::heed);
        self.running.retain(|sequence| !sequence.is_over());
        self.admit();
        self.share_out();
    }

    /// Begins what memory is there for. Who has least of it comes first, and if that one must wait, so do all others.
    fn admit(&mut self) {
        self.waiting.retain(|Request { wanted, reply, gone }| {
            let is_cancelled = wanted.cancel.is_cancelled();
            if is_cancelled {
                // Nothing was sent before: there is room.
                let _ = reply.try_send(Event::Cancelled);
            }
            !is_cancelled && !gone.load(Ordering::Relaxed)
        });
        let mut passed_over = Vec::new();
        loop {
            let in_question = self
                .waiting
                .iter()
                .enumerate()
                .filter(|(_, request)| !passed_over.contains(&request.wanted.asker.customer));
            let next = in_question.min_by_key(|(_, request)| self.memory.held_by(&request.wanted.asker));
            let Some((index, Request { wanted, .. })) = next else { return };
            let bytes = wanted.bytes(&self.plan);
            match self.memory.admit(self.model, &wanted.asker, bytes, &wanted.prompt, Instant::now()) {
                Ok((place, pages)) => {
                    let Some(request) = self.waiting.remove(index) else { return };
                    self.running.push_back(Sequence::begin(request, place, KvCache::of_pages(pages), &self.tally));
                }
                Err(NoPlace::OfCustomer) => passed_over.push(wanted.asker.customer),
                Err(NoPlace::Full) => return,
            }
        }
    }

    /// Decides what of each running sequence the next step computes: of an answer one token and what is guessed to follow, and of the
    /// prompts a chunk, which goes in small parts to whoever got least.
    fn share_out(&mut self) {
        let Self { running, turns, .. } = self;
        // So that of each tenant's each has its turn.
        if running.len() > 1 {
            running.rotate_left(1);
        }
        let first = running.front().map(|sequence| sequence.asker.customer);
        let is_shared = running.iter().any(|sequence| Some(sequence.asker.customer) != first);
        let mut answers = 0;
        let mut of_customer: HashMap<[u8; 32], usize> = HashMap::new();
        for sequence in running.iter_mut() {
            sequence.guess.clear();
            sequence.part = 0;
            let count = of_customer.entry(sequence.asker.customer).or_default();
            if !sequence.is_reading() && !sequence.rests() && (*count < ANSWERS_BESIDE_OTHERS || !is_shared) {
                *count += 1;
                answers += 1;
                sequence.part = 1;
            }
        }
        if answers <= MOST_GUESSING {
            running.iter_mut().filter(|sequence| sequence.part > 0).for_each(Sequence::speculate);
        }
        let mut left = if answers == 0 { PROMPT_CHUNK } else { CHUNK_BESIDE_ANSWERS };
        turns.keep(running.iter().filter(|sequence| sequence.unread() > 0).map(|sequence| &sequence.asker));
        while left > 0 {
            let unread = running.iter_mut().filter(|sequence| sequence.unread() > 0);
            let next = unread.min_by_key(|sequence| (turns.of(&sequence.asker), sequence.part));
            let Some(sequence) = next else { return };
            let part = SMALLEST_PART.min(left).min(sequence.unread());
            sequence.part += part;
            left -= part;
            turns.charge(&sequence.asker, part);
        }
    }
}

/// Answers of one customer in a step, if those of others run, too: a step of so many rows takes a few times as long as one of a single
/// row, and from there on its length grows with their number.
pub(super) const ANSWERS_BESIDE_OTHERS: usize = 16;
/// Tokens of prompts in a step that also computes answers: such a step takes a few times as long as one without.
pub(super) const CHUNK_BESIDE_ANSWERS: usize = 32;
/// So many tokens of a prompt at least, if there are so many: the weights are read for them anyway.
pub(super) const SMALLEST_PART: usize = 8;
