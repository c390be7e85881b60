//! Every kind of text that a set of patterns can tell apart, with one example of each.
//!
//! Conditions compare texts with literals and wildcards. Whether a policy lets a call through depends on a text only by which of the
//! patterns it matches. So the patterns are run side by side as automata over every text, breadth first, and one text is kept for each
//! combination of matches that can occur. What is decided for these examples is decided for all texts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A pattern, as steps to match one after the other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Glob(Vec<Step>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Exactly(char),
    /// The same letter in either case.
    Letter(char),
    /// `?`; the flag: but for a colon.
    One(bool),
    /// `*`; the flag: but for colons.
    Many(bool),
}

impl Glob {
    /// This text and no other.
    pub(super) fn literal(text: &str) -> Self {
        Self(text.chars().map(Step::Exactly).collect())
    }

    /// This text in upper, lower or mixed case.
    pub(super) fn ignoring_case(text: &str) -> Self {
        Self(text.chars().map(|c| if c.is_alphabetic() { Step::Letter(lower(c)) } else { Step::Exactly(c) }).collect())
    }

    /// `*` is any run of characters, `?` any one.
    pub(super) fn wildcards(text: &str) -> Self {
        Self(steps(text, false))
    }

    /// The same for ARNs, whose first five parts are matched each for itself.
    pub(super) fn arn(text: &str) -> Self {
        let mut all = Vec::new();
        for (i, part) in text.splitn(ARN_PARTS, ':').enumerate() {
            if i > 0 {
                all.push(Step::Exactly(':'));
            }
            all.extend(steps(part, i + 1 < ARN_PARTS));
        }
        Self(all)
    }

    fn is_literal(&self) -> bool {
        self.0.iter().all(|step| matches!(step, Step::Exactly(_)))
    }
}

/// Patterns side by side: for each the set of places in it where a text may stand, as bits, all in one row of words.
struct Automata<'a> {
    patterns: Vec<(&'a Glob, usize)>,
    words: usize,
}

type State = Vec<u64>;

impl<'a> Automata<'a> {
    fn new(patterns: &'a BTreeSet<Glob>) -> Self {
        let mut words = 0;
        let mut all = Vec::new();
        for pattern in patterns {
            all.push((pattern, words));
            // A place before each step and one behind the last.
            words += (pattern.0.len() + 1).div_ceil(BITS);
        }
        Self { patterns: all, words }
    }

    fn begin(&self) -> State {
        let mut state = vec![0; self.words];
        for (pattern, offset) in &self.patterns {
            enter(&mut state, pattern, *offset, 0);
        }
        state
    }

    fn next(&self, state: &State, c: char) -> State {
        let mut after = vec![0; self.words];
        for (pattern, offset) in &self.patterns {
            let words = (pattern.0.len() + 1).div_ceil(BITS);
            for (i, word) in state.iter().skip(*offset).take(words).enumerate() {
                let mut left = *word;
                while left != 0 {
                    let place = i * BITS + usize::try_from(left.trailing_zeros()).unwrap_or(0);
                    left &= left - 1;
                    let onward = match pattern.0.get(place) {
                        Some(Step::Exactly(wanted)) => (*wanted == c).then_some(place + 1),
                        Some(Step::Letter(wanted)) => (*wanted == lower(c)).then_some(place + 1),
                        Some(Step::One(no_colon)) => (!no_colon || c != ':').then_some(place + 1),
                        Some(Step::Many(no_colon)) => (!no_colon || c != ':').then_some(place),
                        None => None,
                    };
                    if let Some(place) = onward {
                        enter(&mut after, pattern, *offset, place);
                    }
                }
            }
        }
        after
    }

    /// Which patterns match the text that led here.
    fn matched(&self, state: &State) -> Vec<bool> {
        let is_whole = |(pattern, offset): &(&Glob, usize)| {
            let end = pattern.0.len();
            state.get(offset + end / BITS).is_some_and(|word| word & (1 << (end % BITS)) != 0)
        };
        self.patterns.iter().map(is_whole).collect()
    }
}

/// Marks a place, and those that it leads to without a character: a star may also match nothing.
fn enter(state: &mut State, pattern: &Glob, offset: usize, mut place: usize) {
    loop {
        if let Some(word) = state.get_mut(offset + place / BITS) {
            *word |= 1 << (place % BITS);
        }
        if !matches!(pattern.0.get(place), Some(Step::Many(_))) {
            return;
        }
        place += 1;
    }
}

/// What texts are made of.
pub(super) enum Texts {
    /// Of any characters, and of any length.
    Any,
    /// Of these characters, and of exactly this length.
    Of(&'static str, usize),
}

/// One text for each combination of `patterns` that some text matches; `None` if that takes more than `budget` steps.
pub(super) fn examples(patterns: &BTreeSet<Glob>, texts: &Texts, budget: &mut u32) -> Option<Vec<String>> {
    let (alphabet, length): (Vec<char>, Option<usize>) = match texts {
        Texts::Of(characters, length) => (characters.chars().collect(), Some(*length)),
        Texts::Any if patterns.iter().all(Glob::is_literal) => return Some(literals(patterns)),
        Texts::Any => (alphabet(patterns), None),
    };
    let automata = Automata::new(patterns);
    let cost = u32::try_from(automata.words).unwrap_or(u32::MAX).saturating_add(1);
    let begin = automata.begin();
    // With a length, where one is in the text is part of the state.
    let mut seen = BTreeSet::from([(0, begin.clone())]);
    let mut queue = VecDeque::from([(String::new(), 0, begin)]);
    let mut found: BTreeMap<Vec<bool>, String> = BTreeMap::new();
    while let Some((text, at, state)) = queue.pop_front() {
        if length.is_none_or(|length| length == at) {
            found.entry(automata.matched(&state)).or_insert_with(|| text.clone());
        }
        // Where no pattern goes on, whatever follows leads nowhere either.
        if length == Some(at) || (length.is_none() && state.iter().all(|word| *word == 0)) {
            continue;
        }
        for c in &alphabet {
            *budget = budget.checked_sub(cost)?;
            let after = automata.next(&state, *c);
            let at = if length.is_some() { at + 1 } else { 0 };
            if seen.insert((at, after.clone())) {
                queue.push_back((format!("{text}{c}"), at, after));
            }
        }
    }
    Some(found.into_values().collect())
}

/// Each of the literals, and a text that is none of them.
fn literals(patterns: &BTreeSet<Glob>) -> Vec<String> {
    let text = |glob: &Glob| -> String {
        let character = |step: &Step| if let Step::Exactly(c) = step { Some(*c) } else { None };
        glob.0.iter().filter_map(character).collect()
    };
    let mut all: Vec<String> = patterns.iter().map(text).collect();
    let longest = all.iter().map(|text| text.chars().count()).max().unwrap_or(0);
    all.push("x".repeat(longest + 1));
    all
}

/// Every character of the patterns, in both cases where case does not count, and one that is in none of them.
fn alphabet(patterns: &BTreeSet<Glob>) -> Vec<char> {
    let mut all = BTreeSet::new();
    for step in patterns.iter().flat_map(|pattern| &pattern.0) {
        match step {
            Step::Exactly(c) => drop(all.insert(*c)),
            Step::Letter(c) => all.extend(c.to_uppercase().chain(c.to_lowercase())),
            Step::One(no_colon) | Step::Many(no_colon) => all.extend(no_colon.then_some(':')),
        }
    }
    let stranger =
        ('x'..='z').chain('!'..='w').chain('\u{100}'..).find(|c| !all.iter().any(|a| lower(*a) == lower(*c)));
    all.into_iter().chain(stranger).collect()
}

fn steps(text: &str, no_colon: bool) -> Vec<Step> {
    let step = |c| match c {
        '*' => Step::Many(no_colon),
        '?' => Step::One(no_colon),
        c => Step::Exactly(c),
    };
    text.chars().map(step).collect()
}

fn lower(c: char) -> char {
    c.to_lowercase().next().unwrap_or(c)
}

const ARN_PARTS: usize = 6;
const BITS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern;

    fn of(globs: &[Glob], texts: &Texts) -> Vec<String> {
        examples(&globs.iter().cloned().collect(), texts, &mut 1_000_000).unwrap()
    }

    #[test]
    fn every_combination_that_can_occur_has_an_example_and_no_other_has_one() {
        let written = ["a*", "*b", "a*b", "?", "ab"];
        let examples = of(&written.map(Glob::wildcards), &Texts::Any);
        let matched = |text: &str| written.map(|p| pattern::matches(p, text));
        let mut found: Vec<_> = examples.iter().map(|text| matched(text)).collect();
        found.sort_unstable();
        let mut expected: Vec<_> = ["", "a", "b", "x", "ab", "axb", "ax", "xb", "xx"].map(matched).to_vec();
        expected.sort_unstable();
        expected.dedup();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_text_in_another_case_and_a_stranger_are_examples() {
        let examples = of(&[Glob::literal("ward"), Glob::ignoring_case("ward")], &Texts::Any);
        assert_eq!(examples.len(), 3, "{examples:?}");
        assert!(examples.iter().any(|text| text != "ward" && text.to_lowercase() == "ward"), "{examples:?}");
    }

    #[test]
    fn a_star_in_an_arn_does_not_cross_a_colon() {
        let pattern = Glob::arn("arn:aws:iam::*:role/A*");
        for text in of(&[pattern, Glob::wildcards("arn:aws:iam::*:role/A*")], &Texts::Any) {
            let (strict, loose) = (
                pattern::arn_matches("arn:aws:iam::*:role/A*", &text),
                pattern::matches("arn:aws:iam::*:role/A*", &text),
            );
            assert!(loose || !strict, "{text}");
        }
    }

    #[test]
    fn registers_are_hexadecimal_and_of_their_length() {
        let examples = of(&[Glob::wildcards("ab*"), Glob::wildcards("*f")], &Texts::Of("0123456789abcdef", 96));
        assert_eq!(examples.len(), 4);
        assert!(examples.iter().all(|text| text.len() == 96));
    }

    #[test]
    fn too_many_patterns_are_given_up_within_the_budget() {
        let patterns = (0..40).map(|i| Glob::wildcards(&format!("*{}*{}*", i % 10, i / 10))).collect();
        assert_eq!(examples(&patterns, &Texts::Any, &mut 100_000), None);
    }
}
