//! Prompt lookup (Saxena 2023): what followed the last tokens before may follow them again. A step computes a guess along
//! with the last token, for less than as many steps would take, and what was guessed wrongly is forgotten: the answer
//! is the same, sooner.
//!
//! Rows that were computed in vain cost time, so a sequence guesses as much as has come true lately: a guess that is
//! right doubles the next one, one that is wrong halves it, and after two in a row that were wrong from the start it
//! rests, twice as long each time. An answer that its prompt leads astray at every step loses a few per cent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What one sequence guesses. Depends on its own tokens alone.
pub(super) struct Guesser {
    wanted: bool,
    /// Tokens to guess next, at most.
    most: usize,
    /// Guesses in a row that were wrong from the start.
    misses: u32,
    /// Steps without a guess that are left.
    rest: u32,
    tally: Arc<Tally>,
}

/// Tokens guessed, by all sequences of an engine.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) made: AtomicU64,
    pub(crate) right: AtomicU64,
}

impl Guesser {
    pub(super) fn new(wanted: bool, tally: Arc<Tally>) -> Self {
        Self { wanted, most: FIRST, misses: 0, rest: 0, tally }
    }

    /// Puts into `guess` the last of `tokens` and what may follow it, `room` tokens at most; nothing if nothing is
    /// guessed. Called once for each step.
    pub(super) fn guess(&mut self, tokens: &[u32], room: usize, guess: &mut Vec<u32>) {
        let most = self.most.min(room);
        if !self.wanted || most == 0 {
            return;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return;
        }
        let Some((last, before)) = tokens.split_last() else { return };
        let follows = PATTERNS.into_iter().find_map(|length| {
            let pattern = tokens.get(tokens.len().checked_sub(length)?..)?;
            let at = before.windows(length).rposition(|window| window == pattern)?;
            tokens.get(at + length..)
        });
        if let Some(follows) = follows {
            guess.push(*last);
            guess.extend(follows.iter().take(most));
        }
    }

    /// Takes to heart how many of the `made` tokens of a guess came true, from the first on.
    pub(super) fn learn(&mut self, made: usize, right: usize) {
        if made == 0 {
            return;
        }
        self.tally.made.fetch_add(made as u64, Ordering::Relaxed);
        self.tally.right.fetch_add(right as u64, Ordering::Relaxed);
        if right > 0 {
            self.misses = 0;
            self.most = if right == made { (2 * self.most).min(MOST_GUESSED) } else { right + 1 };
        } else {
            self.misses = self.misses.saturating_add(1);
            self.most = (self.most / 2).max(1);
            self.rest =
                if self.misses == 1 { 0 } else { LONGEST_REST.min(1_u32.checked_shl(self.misses).unwrap_or(u32::MAX)) };
        }
    }
}

/// Tokens that are guessed at most. Eight rows take little more than twice the time of one.
pub(super) const MOST_GUESSED: usize = 7;
/// Tokens of the first guess: half as much time again, and three tokens if it is right.
const FIRST: usize = 3;
/// Steps without a guess after many that were wrong.
const LONGEST_REST: u32 = 64;
/// So many last tokens must have stood together before: three, or else two.
const PATTERNS: [usize; 2] = [3, 2];

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps, and tokens guessed in vain, until `answer` is said after `prompt`.
    fn said(prompt: &[u32], answer: &[u32]) -> (usize, usize) {
        let tally = Arc::new(Tally::default());
        let mut guesser = Guesser::new(true, Arc::clone(&tally));
        let mut tokens = prompt.to_vec();
        let mut steps = 0;
        while tokens.len() < prompt.len() + answer.len() {
            let rest = &answer[tokens.len() - prompt.len()..];
            let mut guess = Vec::new();
            guesser.guess(&tokens, rest.len() - 1, &mut guess);
            let guessed = guess.get(1..).unwrap_or_default();
            let right = guessed.iter().zip(rest).take_while(|(guessed, true_one)| guessed == true_one).count();
            guesser.learn(guessed.len(), right);
            tokens.extend(&rest[..=right]);
            steps += 1;
        }
        let [made, right] = [&tally.made, &tally.right].map(|count| count.load(Ordering::Relaxed) as usize);
        (steps, made - right)
    }

    #[test]
    fn what_is_copied_is_said_eight_tokens_a_step() {
        let passage: Vec<u32> = (0..200).collect();
        let prompt = [&passage[..], &[0, 1]].concat();
        let (steps, in_vain) = said(&prompt, &passage[2..]);
        assert!(steps <= 198 / 8 + 3, "{steps} steps");
        assert_eq!(in_vain, 0);
    }

    #[test]
    fn a_prompt_that_leads_astray_at_every_step_costs_one_row_in_twenty() {
        let answer: Vec<u32> = (0..400).collect();
        let mut prompt: Vec<u32> = answer.windows(2).flat_map(|pair| [pair[0], pair[1], 1000 + pair[0]]).collect();
        prompt.extend([0, 1]);
        let (steps, in_vain) = said(&prompt, &answer[2..]);
        assert_eq!(steps, 398);
        assert!((3..=20).contains(&in_vain), "{in_vain} rows in vain");
    }

    #[test]
    fn a_guesser_that_has_rested_notices_that_copying_begins() {
        let astray: Vec<u32> = (0..100).collect();
        let passage: Vec<u32> = (2000..2200).collect();
        let mut prompt: Vec<u32> = astray.windows(2).flat_map(|pair| [pair[0], pair[1], 1000 + pair[0]]).collect();
        prompt.extend(&passage);
        prompt.extend([0, 1]);
        let answer = [&astray[2..], &passage[..]].concat();
        let (steps, _) = said(&prompt, &answer);
        assert!(steps < 98 + 64 + (200 - 64) / 8 + 8, "{steps} steps");
    }

    #[test]
    fn who_does_not_want_guesses_gets_none() {
        let mut guess = Vec::new();
        Guesser::new(false, Arc::default()).guess(&[1, 2, 3, 1, 2], 7, &mut guess);
        assert!(guess.is_empty());
    }
}
