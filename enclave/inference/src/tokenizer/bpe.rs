//! Byte-level BPE as GPT-2, Llama 3 and their kin have it (`tokenizer.ggml.model` = `gpt2`).

use tokenizers::Tokenizer as Library;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use super::{TokenizerError, texts_expected};
use crate::gguf::{GgufError, Header};

pub(super) struct Bpe {
    library: Library,
    composes: bool,
}

impl Bpe {
    /// `ordinary` are the tokens that may come of text. Also says whether texts begin with a token by default.
    pub(super) fn load(header: &Header<'_>, ordinary: &[(u32, &str)]) -> Result<(Self, bool), TokenizerError> {
        let vocabulary: Vocab = ordinary.iter().map(|&(id, text)| (text.to_owned(), id)).collect();
        if let Some(byte) =
            (0..=u8::MAX).find(|&byte| !vocabulary.contains_key(character_of(byte).to_string().as_str()))
        {
            return Err(TokenizerError::MissingByte(byte));
        }
        let merges = merges(header, &vocabulary)?;
        let pre = PreTokenizer::named(header.optional_text("tokenizer.ggml.pre")?.unwrap_or("default"))?;
        let model = BPE::builder()
            .vocab_and_merges(vocabulary, merges)
            .ignore_merges(pre.whole_words)
            // The cache would keep words of one customer for the next to be served faster by.
            .cache_capacity(0)
            .build()
            .map_err(|error| TokenizerError::Library(error.to_string()))?;
        let mut library = Library::new(model);
        library.with_pre_tokenizer(Some(pre.rule));
        let composed = library.with_normalizer(pre.composes.then_some(NFC));
        composed.map_err(|error| TokenizerError::Library(error.to_string()))?;
        Ok((Self { library, composes: pre.composes }, pre.adds_begin))
    }

    /// By how much, at most, a text grows or shrinks before it is encoded.
    pub(super) fn stretch(&self) -> usize {
        if self.composes { NFC_STRETCH } else { 1 }
    }

    /// `None` if the library failed.
    pub(super) fn encode(&self, text: &str, tokens: &mut Vec<u32>) -> Option<()> {
        let encoding = self.library.encode_fast(text, false).ok()?;
        tokens.extend_from_slice(encoding.get_ids());
        Some(())
    }
}

/// How text is cut into words before merging (`llama_vocab::impl::load`, by `tokenizer.ggml.pre`).
struct PreTokenizer {
    rule: PreTokenizerWrapper,
    /// A word that is a token is taken without merging.
    whole_words: bool,
    adds_begin: bool,
    /// Text is brought into Unicode's form NFC first. llama.cpp leaves that out; the models were trained with it.
    composes: bool,
}

impl PreTokenizer {
    fn named(name: &str) -> Result<Self, TokenizerError> {
        let gpt2 = || ByteLevel::new(false, true, true).into();
        let plain = |rule| Self { rule, whole_words: false, adds_begin: false, composes: false };
        let whole = |rule| Self { rule, whole_words: true, adds_begin: true, composes: false };
        Ok(match name {
            "gpt-2" | "gpt2" => plain(gpt2()),
            "smollm" => plain(Sequence::new(vec![Digits::new(true).into(), gpt2()]).into()),
            "qwen2" => Self { composes: true, ..plain(by_pattern(QWEN2)?) },
            "llama-bpe" | "llama3" | "llama-v3" => whole(by_pattern(LLAMA3)?),
            "tekken" => whole(by_pattern(TEKKEN)?),
            other => return Err(TokenizerError::PreTokenizer(other.to_owned())),
        })
    }
}

fn by_pattern(pattern: &str) -> Result<PreTokenizerWrapper, TokenizerError> {
    let pattern = SplitPattern::Regex(pattern.to_owned());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
    let split = split.map_err(|error| TokenizerError::Library(error.to_string()))?;
    Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()]).into())
}

fn merges(header: &Header<'_>, vocabulary: &Vocab) -> Result<Merges, TokenizerError> {
    let array = header.optional_array(MERGES)?.ok_or_else(|| GgufError::Missing(MERGES.to_owned()))?;
    let mut merges = Merges::with_capacity(array.len());
    for (index, merge) in array.texts().ok_or_else(|| texts_expected(MERGES))?.enumerate() {
        // The second half may begin with anything but a space, which byte-level text spells Ġ.
        let (left, right) = merge.split_once(' ').ok_or(TokenizerError::Merge(index))?;
        let result = format!("{left}{right}");
        // What makes a control token, or is made of one, is left out: ordinary text does not go through them.
        if [left, right, result.as_str()].iter().all(|text| vocabulary.contains_key(*text)) {
            merges.push((left.to_owned(), right.to_owned()));
        }
    }
    Ok(merges)
}

/// The bytes of a token's text. Characters that stand for no byte stand for themselves.
pub(super) fn bytes_of(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        match byte_of(character) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// GPT-2's `bytes_to_unicode`: printable Latin-1 stands for itself, the 68 other bytes for U+0100 onward, in order.
fn character_of(byte: u8) -> char {
    match byte {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
        0x00..=0x20 => shifted(u32::from(byte)),
        0x7F..=0xA0 => shifted(u32::from(byte) - 0x7F + 0x21),
        0xAD => shifted(0x43),
    }
}

fn shifted(place: u32) -> char {
    char::from_u32(0x100 + place).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    let byte = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// UTF-8 text becomes at most three times as long in form NFC (UAX 15, section 13.1: "Maximum Expansion Factors"), and
/// at most three times shorter: a syllable of three Hangul letters, 9 bytes, becomes one character of 3.
const NFC_STRETCH: usize = 3;
const MERGES: &str = "tokenizer.ggml.merges";
/// `LLAMA_VOCAB_PRE_TYPE_LLAMA3` (llama-vocab.cpp), from Llama 3's tokenizer.json.
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// `LLAMA_VOCAB_PRE_TYPE_QWEN2` (llama-vocab.cpp): as Llama 3's, but digit by digit.
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// `LLAMA_VOCAB_PRE_TYPE_TEKKEN` (llama-vocab.cpp), as it stands in the tokenizer.json of Mistral Nemo.
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own_and_comes_back() {
        let characters: std::collections::BTreeSet<char> = (0..=u8::MAX).map(character_of).collect();
        assert_eq!(characters.len(), 256);
        assert!((0..=u8::MAX).all(|byte| byte_of(character_of(byte)) == Some(byte)));
        assert_eq!((character_of(b' '), character_of(b'\n'), character_of(0xAD)), ('Ġ', 'Ċ', 'Ń'));
    }
}
