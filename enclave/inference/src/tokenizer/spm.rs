//! SentencePiece BPE as Llama 2 and Mistral have it (`tokenizer.ggml.model` = `llama`): of all neighbours that make a
//! token, those with the highest score are joined first (`llm_tokenizer_spm`, llama-vocab.cpp).

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use zeroize::Zeroizing;

use super::{Kind, TokenizerError};
use crate::gguf::{GgufError, Header, Value};

pub(super) struct Spm {
    /// Token and score of each text that ordinary text may be made of.
    tokens: HashMap<Box<str>, (u32, f64)>,
    bytes: Vec<u32>,
    space_in_front: bool,
}

/// Two neighbours that make a token.
struct Pair {
    score: f64,
    left: usize,
    right: usize,
    /// Length of both together: a pair whose halves have grown since is out of date.
    length: usize,
}

/// A part of the text, chained to its neighbours. One of length 0 has been joined to its left neighbour.
struct Symbol {
    start: usize,
    length: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

impl Spm {
    pub(super) fn load(header: &Header<'_>, texts: &[Box<str>], kinds: &[Kind]) -> Result<Self, TokenizerError> {
        let scores = header.optional_array(SCORES)?.ok_or_else(|| GgufError::Missing(SCORES.to_owned()))?;
        if scores.len() != texts.len() {
            return Err(TokenizerError::Length { key: SCORES, tokens: texts.len(), length: scores.len() });
        }
        let scores = scores.values().map(|value| if let Value::Float(score) = value { score } else { f64::MIN });
        let mut tokens = HashMap::new();
        let mut bytes = vec![None; 256];
        for (id, ((text, kind), score)) in (0..).zip(texts.iter().zip(kinds).zip(scores)) {
            match kind {
                Kind::Byte => {
                    if let Some(place) = byte_of(text).and_then(|byte| bytes.get_mut(usize::from(byte))) {
                        *place = Some(id);
                    }
                }
                Kind::Control => {}
                Kind::Normal | Kind::UserDefined => {
                    tokens.insert(text.clone(), (id, score));
                }
            }
        }
        let missing = |byte: usize| TokenizerError::MissingByte(u8::try_from(byte).unwrap_or(u8::MAX));
        let bytes = bytes.into_iter().enumerate().map(|(byte, id)| id.ok_or_else(|| missing(byte)));
        Ok(Self {
            tokens,
            bytes: bytes.collect::<Result<_, _>>()?,
            space_in_front: header.optional_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true),
        })
    }

    /// Whether a space is put in front of a text, which its tokens bring back.
    pub(super) fn space_in_front(&self) -> bool {
        self.space_in_front
    }

    pub(super) fn encode(&self, text: &str, after_special: bool, tokens: &mut Vec<u32>) {
        let mut spaced = Zeroizing::new(String::with_capacity(3 * (text.len() + 1)));
        if self.space_in_front && after_special {
            spaced.push(SPACE);
        }
        spaced.extend(text.chars().map(|character| if character == ' ' { SPACE } else { character }));
        for symbol in self.join(&spaced) {
            let text = spaced.get(symbol.start..symbol.start + symbol.length).unwrap_or_default();
            match self.tokens.get(text) {
                Some((id, _)) => tokens.push(*id),
                None => tokens.extend(text.bytes().filter_map(|byte| self.bytes.get(usize::from(byte)))),
            }
        }
    }

    fn join(&self, text: &str) -> impl Iterator<Item = Symbol> + use<> {
        let count = text.chars().count();
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, character))| Symbol {
                start,
                length: character.len_utf8(),
                previous: index.checked_sub(1),
                next: Some(index + 1).filter(|&next| next < count),
            })
            .collect();
        let mut pairs: BinaryHeap<Pair> =
            (1..count).filter_map(|right| self.pair(text, &symbols, right - 1, right)).collect();
        while let Some(pair) = pairs.pop() {
            if let Some((previous, next)) = joined(&mut symbols, &pair) {
                pairs.extend(previous.and_then(|previous| self.pair(text, &symbols, previous, pair.left)));
                pairs.extend(next.and_then(|next| self.pair(text, &symbols, pair.left, next)));
            }
        }
        symbols.into_iter().filter(|symbol| symbol.length > 0)
    }

    fn pair(&self, text: &str, symbols: &[Symbol], left: usize, right: usize) -> Option<Pair> {
        let (first, second) = (symbols.get(left)?, symbols.get(right)?);
        let length = first.length + second.length;
        let (_, score) = self.tokens.get(text.get(first.start..first.start + length)?)?;
        Some(Pair { score: *score, left, right, length })
    }
}

/// Joins a pair, unless it is out of date; gives the neighbours.
fn joined(symbols: &mut [Symbol], pair: &Pair) -> Option<(Option<usize>, Option<usize>)> {
    let (left, right) = (symbols.get(pair.left)?, symbols.get(pair.right)?);
    if left.length == 0 || right.length == 0 || left.length + right.length != pair.length {
        return None;
    }
    let (previous, next) = (left.previous, right.next);
    let right = symbols.get_mut(pair.right)?;
    right.length = 0;
    let left = symbols.get_mut(pair.left)?;
    left.length = pair.length;
    left.next = next;
    if let Some(after) = next.and_then(|next| symbols.get_mut(next)) {
        after.previous = Some(pair.left);
    }
    Some((previous, next))
}

/// `<0x0A>` stands for byte 10.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
}

impl Ord for Pair {
    /// The highest score first; of equal ones the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

/// "▁", U+2581, is how SentencePiece spells a space.
pub(super) const SPACE: char = '\u{2581}';
const SCORES: &str = "tokenizer.ggml.scores";
