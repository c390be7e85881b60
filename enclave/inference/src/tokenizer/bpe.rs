//! Byte-level BPE as GPT-2, Llama 3 and their kin have it (`tokenizer.ggml.model` = `gpt2`).

use std::cmp::Reverse;

use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};
use zeroize::Zeroizing;

use super::merging::merge;
use super::texts::{Index, Texts};
use super::{Kind, TokenizerError, texts_expected};
use crate::gguf::{GgufError, Header};

/// The words come from the library. It could join their bytes as well, but would hold the vocabulary ten times over.
pub(super) struct Bpe {
    rule: PreTokenizerWrapper,
    composes: bool,
    /// The token of each byte.
    bytes: Vec<u32>,
    merges: Merges,
    /// Of the tokens that are taken without merging.
    words: Option<Index>,
}

/// Which two tokens make a third, in order of the two.
struct Merges(Vec<Merge>);

struct Merge {
    left: u32,
    right: u32,
    /// The lowest is done first.
    rank: u32,
    token: u32,
}

impl Bpe {
    /// Also says whether texts begin with a token by default.
    pub(super) fn load(header: &Header<'_>, texts: &Texts, kinds: &[Kind]) -> Result<(Self, bool), TokenizerError> {
        let ordinary = (0..).zip(kinds).filter(|(_, kind)| **kind != Kind::Control).map(|(token, _)| token);
        let index = Index::new(texts, ordinary);
        let token = |byte| {
            let character = character_of(byte);
            let token = index.find(texts, character.encode_utf8(&mut [0; 4]));
            token.ok_or(TokenizerError::MissingByte(byte))
        };
        let bytes = (0..=u8::MAX).map(token).collect::<Result<_, _>>()?;
        let merges = Merges::load(header, texts, &index)?;
        let cut = Cut::named(header.optional_text("tokenizer.ggml.pre")?.unwrap_or("default"))?;
        let words = cut.whole_words.then_some(index);
        Ok((Self { rule: cut.rule, composes: cut.composes, bytes, merges, words }, cut.adds_begin))
    }

    /// By how much, at most, a text grows or shrinks before it is encoded.
    pub(super) fn stretch(&self) -> usize {
        if self.composes { NFC_STRETCH } else { 1 }
    }

    /// `None` if the library failed.
    pub(super) fn encode(&self, texts: &Texts, text: &str, tokens: &mut Vec<u32>) -> Option<()> {
        let mut text = NormalizedString::from(text);
        if self.composes {
            NFC.normalize(&mut text).ok()?;
        }
        let mut words = PreTokenizedString::from(text);
        self.rule.pre_tokenize(&mut words).ok()?;
        for (word, ..) in words.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            match self.words.as_ref().and_then(|index| index.find(texts, &spelling(word))) {
                Some(token) => tokens.push(token),
                None => self.encode_word(word, tokens)?,
            }
        }
        Some(())
    }

    fn encode_word(&self, word: &str, tokens: &mut Vec<u32>) -> Option<()> {
        let bytes = word.bytes().filter_map(|byte| Some((1, *self.bytes.get(usize::from(byte))?)));
        let parts = merge(word.len(), bytes, |left, right| self.merges.find(left.token, right.token))?;
        tokens.extend(parts.iter().map(|part| part.token));
        Some(())
    }
}

impl Merges {
    fn load(header: &Header<'_>, texts: &Texts, index: &Index) -> Result<Self, TokenizerError> {
        let array = header.optional_array(MERGES)?.ok_or_else(|| GgufError::Missing(MERGES.to_owned()))?;
        let mut merges = Vec::with_capacity(array.len());
        let mut both = String::new();
        for (rank, text) in (0..).zip(array.texts().ok_or_else(|| texts_expected(MERGES))?) {
            // The second half may begin with anything but a space, which byte-level text spells Ġ.
            let (left, right) = text.split_once(' ').ok_or(TokenizerError::Merge(rank as usize))?;
            both.clear();
            both.extend([left, right]);
            let [left, right, token] = [left, right, &both].map(|text| index.find(texts, text));
            // What makes a control token, or is made of one, is left out: ordinary text does not go through them.
            if let (Some(left), Some(right), Some(token)) = (left, right, token) {
                merges.push(Merge { left, right, rank, token });
            }
        }
        // Of two that are the same, the last one counts.
        merges.sort_unstable_by_key(|merge| (merge.left, merge.right, Reverse(merge.rank)));
        merges.dedup_by_key(|merge| (merge.left, merge.right));
        Ok(Self(merges))
    }

    /// Rank and token of what two tokens make.
    fn find(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let found = self.0.binary_search_by_key(&(left, right), |merge| (merge.left, merge.right));
        self.0.get(found.ok()?).map(|merge| (merge.rank, merge.token))
    }
}

/// How text is cut into words before merging (`llama_vocab::impl::load`, by `tokenizer.ggml.pre`).
struct Cut {
    rule: PreTokenizerWrapper,
    /// A word that is a token is taken without merging.
    whole_words: bool,
    adds_begin: bool,
    /// Text is brought into Unicode's form NFC first. llama.cpp leaves that out; the models were trained with it.
    composes: bool,
}

impl Cut {
    fn named(name: &str) -> Result<Self, TokenizerError> {
        let plain = |rule| Self { rule, whole_words: false, adds_begin: false, composes: false };
        let whole = |rule| Self { rule, whole_words: true, adds_begin: true, composes: false };
        Ok(match name {
            "gpt-2" | "gpt2" => plain(by_pattern(GPT2)?),
            "smollm" => plain(Sequence::new(vec![Digits::new(true).into(), by_pattern(GPT2)?]).into()),
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
    split.map(Into::into).map_err(|error| TokenizerError::Library(error.to_string()))
}

/// How the vocabulary spells a text.
fn spelling(text: &str) -> Zeroizing<String> {
    let mut spelling = Zeroizing::new(String::with_capacity(2 * text.len()));
    spelling.extend(text.bytes().map(character_of));
    spelling
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
/// `LLAMA_VOCAB_PRE_TYPE_GPT2` (llama-vocab.cpp), from GPT-2's encoder.py.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
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
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use tokenizers::models::bpe::{BPE, Vocab};
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::*;
    use crate::gguf::Value;

    /// A vocabulary of `tests/fixtures` as it is read here, and as the library has it.
    struct Both {
        texts: Texts,
        ours: Bpe,
        library: tokenizers::Tokenizer,
    }

    static VOCABULARIES: LazyLock<Vec<Both>> =
        LazyLock::new(|| ["llama3", "qwen2", "gpt2", "smollm", "tekken"].map(Both::load).into());

    impl Both {
        fn load(name: &str) -> Self {
            let path = format!("{}/tests/fixtures/vocabulary-{name}.gguf", env!("CARGO_MANIFEST_DIR"));
            let file = std::fs::read(path).unwrap();
            let header = Header::parse(&file).unwrap();
            let array = |key| header.optional_array(key).unwrap().unwrap();
            let texts = Texts::read(&array("tokenizer.ggml.tokens")).unwrap().unwrap();
            let control = |value| !matches!(value, Value::Signed(1 | 4) | Value::Unsigned(1 | 4));
            let types = array("tokenizer.ggml.token_type").values();
            let kinds: Vec<Kind> = types.map(|kind| if control(kind) { Kind::Control } else { Kind::Normal }).collect();
            let (ours, _) = Bpe::load(&header, &texts, &kinds).unwrap();
            let library = Self::library(&header, &texts, &kinds);
            Self { texts, ours, library }
        }

        fn library(header: &Header<'_>, texts: &Texts, kinds: &[Kind]) -> tokenizers::Tokenizer {
            let all = (0..).zip(texts.iter().zip(kinds)).filter(|(_, (_, kind))| **kind != Kind::Control);
            let vocabulary = all.map(|(token, (text, _))| (text.to_owned(), token)).collect::<Vocab>();
            let merges = header.optional_array(MERGES).unwrap().unwrap().texts().unwrap();
            let merges = merges.map(|merge| merge.split_once(' ').unwrap());
            let merges = merges.map(|(left, right)| (left.to_owned(), right.to_owned())).collect();
            let cut = Cut::named(header.optional_text("tokenizer.ggml.pre").unwrap().unwrap()).unwrap();
            let model = BPE::builder().vocab_and_merges(vocabulary, merges).ignore_merges(cut.whole_words).build();
            let mut library = tokenizers::Tokenizer::new(model.unwrap());
            let bytes = ByteLevel::new(false, true, false).into();
            library.with_pre_tokenizer(Some(Sequence::new(vec![cut.rule, bytes])));
            library.with_normalizer(cut.composes.then_some(NFC)).unwrap();
            library
        }
    }

    proptest! {
        #[test]
        fn a_text_has_the_tokens_that_the_library_gives_it(
            text in r"([a-z ]{0,12}|[ \n\t]{0,5}|[A-Za-zäßéÅ'’]{0,9}|\PC{0,6}|[0-9.,]{0,6}|(the | patient|'s|e\u{301}|漢字|👩‍⚕️){0,4}){0,8}",
        ) {
            for Both { texts, ours, library } in VOCABULARIES.iter() {
                let mut tokens = Vec::new();
                ours.encode(texts, &text, &mut tokens).unwrap();
                let encoding = library.encode_fast(text.as_str(), false).unwrap();
                prop_assert_eq!(tokens, encoding.get_ids());
            }
        }
    }

    #[test]
    fn every_byte_has_a_character_of_its_own_and_comes_back() {
        let characters: std::collections::BTreeSet<char> = (0..=u8::MAX).map(character_of).collect();
        assert_eq!(characters.len(), 256);
        assert!((0..=u8::MAX).all(|byte| byte_of(character_of(byte)) == Some(byte)));
        assert_eq!((character_of(b' '), character_of(b'\n'), character_of(0xAD)), ('Ġ', 'Ċ', 'Ń'));
    }
}
