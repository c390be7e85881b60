//! How likely the tokens of an answer were.
//!
//! As vLLM counts by default (`raw_logprobs`): by the model's own logits, before temperature, penalties, biases and the form of the
//! answer, and before anything is cut off.

use std::collections::VecDeque;

use zeroize::Zeroizing;

use crate::sample::MAX_STOP_BYTES;

/// A token of an answer, and how likely it was. No `Debug`: it is part of the answer.
pub struct TokenLogprobs {
    /// The token.
    pub id: u32,
    /// The natural logarithm of its probability.
    pub logprob: f32,
    /// The likeliest tokens at its place and the logarithms of their probabilities, in falling order: as many as were asked for.
    pub top: Zeroizing<Vec<(u32, f32)>>,
}

impl TokenLogprobs {
    /// For the token `id`, chosen by `logits` as the model gave them.
    pub(crate) fn new(logits: &[f32], id: u32, top: usize) -> Self {
        let numbers = || (0..).zip(logits.iter().copied()).filter(|(_, logit)| !logit.is_nan());
        let largest = numbers().map(|(_, logit)| logit).fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = numbers().map(|(_, logit)| f64::from(logit - largest).exp()).sum();
        let log = |logit: f32| (f64::from(logit - largest) - total.ln()) as f32;
        let mut likeliest: Zeroizing<Vec<(u32, f32)>> = Zeroizing::new(Vec::with_capacity(top + 1));
        for (id, logit) in numbers() {
            // Of equal ones the first.
            let place = likeliest.partition_point(|(_, other)| *other >= logit);
            if place < top {
                likeliest.insert(place, (id, logit));
                likeliest.truncate(top);
            }
        }
        likeliest.iter_mut().for_each(|(_, logit)| *logit = log(*logit));
        let logprob = logits.get(id as usize).map_or(f32::NEG_INFINITY, |logit| log(*logit));
        Self { id, logprob, top: likeliest }
    }
}

/// What is known of tokens whose text is still held back: it must not come out before their text, nor at all where that does not.
#[derive(Default)]
pub(crate) struct Withheld {
    /// Each with the length that the text has where the token ends.
    entries: VecDeque<(usize, TokenLogprobs)>,
}

impl Withheld {
    /// `end`: bytes of text up to the end of this token, held back ones and unfinished characters included. Where more tokens wait than a
    /// stop text can hold back, they have no text, and are not told of.
    pub(crate) fn push(&mut self, end: usize, entry: Option<TokenLogprobs>) {
        self.entries.extend(entry.filter(|_| self.entries.len() < MAX_WITHHELD).map(|entry| (end, entry)));
    }

    /// Those whose text is out when `released` bytes of it are.
    pub(crate) fn release(&mut self, released: usize) -> Vec<TokenLogprobs> {
        let count = self.entries.partition_point(|(end, _)| *end <= released);
        self.entries.drain(..count).map(|(_, entry)| entry).collect()
    }
}

/// Twice as many as a stop text has bytes.
const MAX_WITHHELD: usize = 2 * MAX_STOP_BYTES;
/// "top_logprobs: An integer between 0 and 20" (OpenAI API reference).
pub const MAX_TOP_LOGPROBS: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_the_softmax_and_the_likeliest_come_first() {
        let logits = [1.0_f32.ln(), 4.0_f32.ln(), f32::NAN, 4.0_f32.ln(), 1.0_f32.ln()];
        let TokenLogprobs { id, logprob, top } = TokenLogprobs::new(&logits, 4, 3);
        assert_eq!(id, 4);
        assert!((logprob - 0.1_f32.ln()).abs() < 1e-6);
        assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 0]);
        assert!(top.iter().zip([0.4_f32, 0.4, 0.1]).all(|((_, log), expected)| (log - expected.ln()).abs() < 1e-6));
        assert!(TokenLogprobs::new(&logits, 0, 0).top.is_empty());
    }

    #[test]
    fn what_waits_for_text_that_is_held_back_is_bounded() {
        let mut withheld = Withheld::default();
        for id in 0..10_000 {
            withheld.push(5, Some(TokenLogprobs { id, logprob: 0.0, top: Zeroizing::default() }));
        }
        let released: Vec<u32> = withheld.release(5).iter().map(|entry| entry.id).collect();
        assert_eq!(released, (0..512).collect::<Vec<_>>());
    }

    #[test]
    fn an_entry_comes_with_its_text_and_not_before() {
        let entry = |id| Some(TokenLogprobs { id, logprob: 0.0, top: Zeroizing::default() });
        let mut withheld = Withheld::default();
        withheld.push(2, entry(1));
        withheld.push(5, entry(2));
        let mut released = |length| withheld.release(length).iter().map(|entry| entry.id).collect::<Vec<_>>();
        assert!(released(1).is_empty());
        assert_eq!(released(4), [1]);
        assert_eq!(released(5), [2]);
    }
}
