//! A model's tokens in the order in which the grammar's library looks for them.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};

use super::watch::Watch;
use crate::tokenizer::Tokenizer;

/// Made once for a model. Special tokens are not in it, so that no form can name one.
pub(crate) struct Vocabulary {
    factory: ParserFactory,
    ordinary: SimpleVob,
    ends: Vec<u32>,
    watch: Watch,
}

impl Vocabulary {
    /// `None` if the library cannot take the vocabulary.
    pub(crate) fn new(tokenizer: &Tokenizer) -> Option<Self> {
        catch_unwind(AssertUnwindSafe(|| Self::try_new(tokenizer))).ok().flatten()
    }

    fn try_new(tokenizer: &Tokenizer) -> Option<Self> {
        let words = words(tokenizer);
        let ends: Vec<u32> = tokenizer.ends().collect();
        let size = u32::try_from(words.len()).ok().filter(|size| *size < MAX_TOKENS)?;
        if words.iter().map(Vec::len).sum::<usize>() > MAX_BYTES {
            return None;
        }
        let mut ordinary = SimpleVob::alloc(words.len());
        (0..size).zip(&words).filter(|(_, word)| !word.is_empty()).for_each(|(id, _)| ordinary.allow_token(id));
        let trie = TokTrie::from(&TokRxInfo::new(size, *ends.first()?), &words);
        let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let factory = ParserFactory::new(&tokens, InferenceCapabilities::default(), &[SLICE.to_owned()]).ok()?;
        Some(Self { factory, ordinary, ends, watch: Watch::start()? })
    }

    pub(crate) fn factory(&self) -> &ParserFactory {
        &self.factory
    }

    pub(super) fn watch(&self) -> &Watch {
        &self.watch
    }

    pub(crate) fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// Of what a parser allows: the ordinary tokens, and the ends of an answer if the text is `complete`.
    pub(crate) fn keep_ordinary(&self, allowed: &mut SimpleVob, complete: bool) {
        // Whatever the library makes of a grammar: no control token is part of an answer's text.
        allowed.and(&self.ordinary);
        if complete {
            self.ends.iter().for_each(|&end| allowed.allow_token(end));
        }
    }
}

/// The bytes of each token; none for those that no text is made of.
fn words(tokenizer: &Tokenizer) -> Vec<Vec<u8>> {
    let mut words = vec![Vec::new(); tokenizer.size()];
    let mut known = HashSet::new();
    // A vocabulary may hold a text twice: as a byte and as a letter. The letter is what the model knows.
    for bytes in [false, true] {
        for (id, word) in (0..).zip(&mut words) {
            let text = tokenizer.bytes_of(id);
            if tokenizer.is_byte(id) == bytes && text.len() <= MAX_TOKEN_BYTES && known.insert(text.to_vec()) {
                *word = text.to_vec();
            }
        }
    }
    words
}

/// What most of a JSON string consists of: where any of it may come, all of these tokens may, without a look at each.
const SLICE: &str = r#"[^"\\\x00-\x1F\x7F]+"#;
/// The library counts in 24 bits, and a node's height in ten.
const MAX_TOKENS: u32 = 1 << 23;
const MAX_TOKEN_BYTES: usize = 512;
/// And the nodes, of which there are no more than bytes, in 22.
const MAX_BYTES: usize = (1 << 22) - 1;
