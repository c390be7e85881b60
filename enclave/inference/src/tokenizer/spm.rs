//! SentencePiece BPE as Llama 2 and Mistral have it (`tokenizer.ggml.model` = `llama`): of all neighbours that make a
//! token, those with the highest score are joined first (`llm_tokenizer_spm`, llama-vocab.cpp).

use zeroize::Zeroizing;

use super::merging::merge;
use super::texts::{Index, Texts};
use super::{Kind, TokenizerError};
use crate::gguf::{GgufError, Header, Value};

pub(super) struct Spm {
    /// Of the tokens that ordinary text may be made of.
    index: Index,
    /// The place of each token's score among all scores, from the highest on.
    ranks: Vec<u32>,
    bytes: Vec<u32>,
    space_in_front: bool,
}

impl Spm {
    pub(super) fn load(header: &Header<'_>, texts: &Texts, kinds: &[Kind]) -> Result<Self, TokenizerError> {
        let scores = header.optional_array(SCORES)?.ok_or_else(|| GgufError::Missing(SCORES.to_owned()))?;
        if scores.len() != texts.len() {
            return Err(TokenizerError::Length { key: SCORES, tokens: texts.len(), length: scores.len() });
        }
        let scores = scores.values().map(|value| if let Value::Float(score) = value { score } else { f64::MIN });
        let mut bytes = vec![None; 256];
        for (token, (text, _)) in (0..).zip(texts.iter().zip(kinds)).filter(|(_, (_, kind))| **kind == Kind::Byte) {
            if let Some(place) = byte_of(text).and_then(|byte| bytes.get_mut(usize::from(byte))) {
                *place = Some(token);
            }
        }
        let ordinary = (0..).zip(kinds).filter(|(_, kind)| matches!(kind, Kind::Normal | Kind::UserDefined));
        let missing = |byte: usize| TokenizerError::MissingByte(u8::try_from(byte).unwrap_or(u8::MAX));
        let bytes = bytes.into_iter().enumerate().map(|(byte, id)| id.ok_or_else(|| missing(byte)));
        Ok(Self {
            index: Index::new(texts, ordinary.map(|(token, _)| token)),
            ranks: ranks(&scores.collect::<Vec<f64>>()),
            bytes: bytes.collect::<Result<_, _>>()?,
            space_in_front: header.optional_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true),
        })
    }

    /// Whether a space is put in front of a text, which its tokens bring back.
    pub(super) fn space_in_front(&self) -> bool {
        self.space_in_front
    }

    /// `None` for a text of 4 GiB.
    pub(super) fn encode(&self, texts: &Texts, text: &str, after_special: bool, tokens: &mut Vec<u32>) -> Option<()> {
        let mut spaced = Zeroizing::new(String::with_capacity(3 * (text.len() + 1)));
        if self.space_in_front && after_special {
            spaced.push(SPACE);
        }
        spaced.extend(text.chars().map(|character| if character == ' ' { SPACE } else { character }));
        let between = |start: u32, end: u32| spaced.get(start as usize..end as usize).unwrap_or_default();
        let characters = spaced.chars().map(|character| {
            let token = self.index.find(texts, character.encode_utf8(&mut [0; 4]));
            (character.len_utf8(), token.unwrap_or(NONE))
        });
        let parts = merge(spaced.chars().count(), characters, |left, right| {
            let token = self.index.find(texts, between(left.start, right.start + right.length))?;
            Some((*self.ranks.get(token as usize)?, token))
        })?;
        for part in parts.iter() {
            if part.token == NONE {
                let bytes = between(part.start, part.start + part.length).bytes();
                tokens.extend(bytes.filter_map(|byte| self.bytes.get(usize::from(byte))));
            } else {
                tokens.push(part.token);
            }
        }
        Some(())
    }
}

/// For each score, how many others there are above it.
fn ranks(scores: &[f64]) -> Vec<u32> {
    let mut distinct = scores.to_vec();
    distinct.sort_unstable_by(|one, other| other.total_cmp(one));
    distinct.dedup_by(|one, other| one.total_cmp(other).is_eq());
    let above = |score: &f64| distinct.partition_point(|other| other.total_cmp(score).is_gt());
    scores.iter().map(|score| u32::try_from(above(score)).unwrap_or(u32::MAX)).collect()
}

/// `<0x0A>` stands for byte 10.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
}

/// "▁", U+2581, is how SentencePiece spells a space.
pub(super) const SPACE: char = '\u{2581}';
const SCORES: &str = "tokenizer.ggml.scores";
/// A character that is no token.
const NONE: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_score_has_the_lowest_rank_and_equal_ones_share_it() {
        assert_eq!(ranks(&[-2.5, 0.0, -1.0, -2.5, -1.0, f64::MIN]), [2, 0, 1, 2, 1, 3]);
    }
}
