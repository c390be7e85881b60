//! The texts of a vocabulary, and which token a text is. There are a hundred thousand and more of them, of a few bytes
//! each: held one by one, and again as the keys of a map, they would take ten times the bytes that they have.

use std::hash::{BuildHasher, RandomState};

use super::TokenizerError;
use crate::gguf::{Array, GgufError};

/// The texts of all tokens, end to end.
pub(super) struct Texts {
    all: String,
    /// Where each text ends.
    ends: Vec<u32>,
}

impl Texts {
    /// `None` if `array` is not one of texts.
    pub(super) fn read(array: &Array<'_>) -> Result<Option<Self>, TokenizerError> {
        let (Some(texts), Some(lengths)) = (array.texts(), array.texts()) else { return Ok(None) };
        let mut all = String::with_capacity(lengths.map(str::len).sum());
        let mut ends = Vec::with_capacity(array.len());
        for text in texts {
            all.push_str(text);
            ends.push(u32::try_from(all.len()).map_err(|_| too_long(all.len()))?);
        }
        Ok(Some(Self { all, ends }))
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn get(&self, token: u32) -> Option<&str> {
        let token = token as usize;
        let start = token.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())?;
        self.all.get(start as usize..*self.ends.get(token)? as usize)
    }

    /// In the order of the tokens.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> + Clone {
        (0..).map_while(|token| self.get(token))
    }
}

/// Finds tokens by their texts: a hash table of tokens, whose keys are the texts where they lie.
pub(super) struct Index {
    /// Each token at the place that its text's hash says, or at the next that was free.
    slots: Vec<u32>,
    hasher: RandomState,
}

impl Index {
    /// Of tokens with the same text, the last one is found.
    pub(super) fn new(texts: &Texts, tokens: impl Iterator<Item = u32>) -> Self {
        // A third stays free: so the next free place is near, and there is always one.
        let slots = vec![FREE; texts.len() + texts.len() / 2 + 1];
        let mut index = Self { slots, hasher: RandomState::new() };
        for token in tokens {
            let place = texts.get(token).and_then(|text| index.place(texts, text));
            if let Some(slot) = place.and_then(|place| index.slots.get_mut(place)) {
                *slot = token;
            }
        }
        index
    }

    pub(super) fn find(&self, texts: &Texts, text: &str) -> Option<u32> {
        let token = self.slots.get(self.place(texts, text)?);
        token.copied().filter(|&token| token != FREE)
    }

    /// Where the token of `text` stands, or would stand.
    fn place(&self, texts: &Texts, text: &str) -> Option<usize> {
        let places = self.slots.len();
        let first = usize::try_from(self.hasher.hash_one(text) % places as u64).ok()?;
        let is_it = |place: &usize| {
            let token = self.slots.get(*place).copied().unwrap_or(FREE);
            token == FREE || texts.get(token) == Some(text)
        };
        (first..places).chain(0..first).find(is_it)
    }
}

fn too_long(bytes: usize) -> GgufError {
    GgufError::TooMany { what: "bytes of the vocabulary", count: bytes as u64, limit: u64::from(u32::MAX) }
}

/// No token: vocabularies are smaller.
const FREE: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(of: &[String]) -> Texts {
        let end = |count: usize| u32::try_from(of[..=count].concat().len()).unwrap();
        Texts { all: of.concat(), ends: (0..of.len()).map(end).collect() }
    }

    #[test]
    fn every_token_has_its_text_and_is_found_by_it() {
        let of: Vec<String> = (0..150).map(|token| "é".repeat(token % 7) + &token.to_string()).collect();
        // So many tables that places at the end of some are taken, where the next free one is at the beginning.
        for count in 1..=of.len() {
            let of = &of[..count];
            let texts = texts(of);
            let index = Index::new(&texts, 0..u32::try_from(count).unwrap());
            assert!(texts.iter().eq(of) && texts.len() == count);
            for (token, text) in (0..).zip(of) {
                assert_eq!(index.find(&texts, text), Some(token));
            }
            assert_eq!(index.find(&texts, "é"), None);
        }
    }

    #[test]
    fn only_what_was_put_in_is_found_and_of_tokens_with_one_text_the_last() {
        let texts = texts(&["a", "", "b", "a", "a"].map(str::to_owned));
        let index = Index::new(&texts, 0..4);
        let found = ["a", "", "b", "c"].map(|text| index.find(&texts, text));
        assert_eq!(found, [Some(3), Some(1), Some(2), None]);
        let without = Index::new(&texts, 1..3);
        assert_eq!(without.find(&texts, "a"), None);
    }
}
