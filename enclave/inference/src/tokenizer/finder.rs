//! Finds tokens that stand in a text letter by letter: at each place the longest, in one pass.

use aho_corasick::{AhoCorasick, MatchKind};

use super::TokenizerError;

pub(super) struct Finder {
    automaton: Option<AhoCorasick>,
    ids: Vec<u32>,
}

/// A part of a text.
pub(super) enum Part<'t> {
    Found(u32),
    /// Not empty.
    Between(&'t str),
}

impl Finder {
    pub(super) fn new<'a>(tokens: impl Iterator<Item = (u32, &'a str)>) -> Result<Self, TokenizerError> {
        let (ids, texts): (Vec<u32>, Vec<&str>) = tokens.unzip();
        if ids.is_empty() {
            return Ok(Self { automaton: None, ids });
        }
        let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
        Ok(Self { automaton: Some(automaton.map_err(|error| TokenizerError::Library(error.to_string()))?), ids })
    }

    /// Gives the parts of `text` in order, until there are no more or `take` says `None`.
    pub(super) fn split<'t>(&self, text: &'t str, mut take: impl FnMut(Part<'t>) -> Option<()>) -> Option<()> {
        let mut rest = 0;
        for found in self.automaton.iter().flat_map(|automaton| automaton.find_iter(text)) {
            if found.start() > rest {
                take(Part::Between(text.get(rest..found.start())?))?;
            }
            take(Part::Found(*self.ids.get(found.pattern().as_usize())?))?;
            rest = found.end();
        }
        if rest < text.len() {
            take(Part::Between(text.get(rest..)?))?;
        }
        Some(())
    }
}
