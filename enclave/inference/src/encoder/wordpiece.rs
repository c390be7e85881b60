//! From text to tokens by WordPiece, as BERT has it.
//!
//! Unlike in a chat, tokens like `[SEP]` are found in a text, too: nobody is steered by an embedding but who asked for it, and it must
//! be the one that the same model gives elsewhere, or it finds nothing in an index that was made there.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Deserialize;
use serde::de::IgnoredAny;
use thiserror::Error;
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece as Model;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, Tokenizer as Library};
use zeroize::Zeroizing;

/// Where the tokens stand.
#[derive(Clone, Copy)]
pub enum Vocabulary<'a> {
    /// `tokenizer.json`.
    Tokenizer(&'a [u8]),
    /// `vocab.txt`, one token a line; the rest is as BERT has it.
    List {
        /// The file.
        tokens: &'a [u8],
        /// Whether capitals and accents are dropped: "do_lower_case" in `tokenizer_config.json`.
        lower_case: bool,
    },
}

/// Why a vocabulary is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum VocabularyError {
    /// More than any model's.
    #[error("the vocabulary's file has {0} bytes; at most {MAX_BYTES} are accepted")]
    TooLong(usize),
    /// No tokenizer.json.
    #[error(
        "line {line}, column {column} of tokenizer.json: expected what the tokenizers library writes for WordPiece"
    )]
    Malformed {
        /// Line in the file.
        line: usize,
        /// Column in it.
        column: usize,
    },
    /// A list that is no text.
    #[error("vocab.txt is not UTF-8")]
    NotUtf8,
    /// A part of another kind.
    #[error("{part} \"{kind}\" of tokenizer.json is not supported; \"{expected}\" is")]
    Kind {
        /// Which part.
        part: &'static str,
        /// What it is.
        kind: String,
        /// What would be read.
        expected: &'static str,
    },
    /// Tokens are put around a text in another way.
    #[error("tokenizer.json does not put one token before a text and one after it, as BERT does")]
    Frame,
    /// A word longer than is looked at.
    #[error("\"max_input_chars_per_word\" is {0}; a number from 1 to {MAX_WORD} is expected")]
    Word(usize),
    /// A mark of pieces within a word, or a token for unknown words, that is longer than any model's.
    #[error("\"{member}\" has {bytes} bytes; at most {MAX_MARK} are accepted")]
    Mark {
        /// Which.
        member: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// A token that must be there is not, or has another number.
    #[error("token \"{0}\" is not in the vocabulary, or not where the file says")]
    Missing(String),
    /// A token that is found in a way that is not computed.
    #[error("token \"{0}\" takes white space or only whole words with it, which is not supported")]
    Greedy(String),
    /// A token without an embedding.
    #[error("token {token} is in the vocabulary's file; the model has {vocabulary}")]
    OutOfRange {
        /// The token's number.
        token: u32,
        /// Tokens of the model.
        vocabulary: usize,
    },
    /// A library refused the vocabulary.
    #[error("the vocabulary is refused")]
    Library,
}

pub(super) struct WordPiece {
    library: Library,
    before: u32,
    after: u32,
    pub(super) is_lower_case: bool,
}

impl WordPiece {
    /// Of a model with `size` tokens.
    pub(super) fn load(vocabulary: Vocabulary<'_>, size: usize) -> Result<Self, VocabularyError> {
        let (Vocabulary::Tokenizer(bytes) | Vocabulary::List { tokens: bytes, .. }) = vocabulary;
        if bytes.len() > MAX_BYTES {
            return Err(VocabularyError::TooLong(bytes.len()));
        }
        let parts = match vocabulary {
            Vocabulary::Tokenizer(json) => Parts::of_tokenizer(json)?,
            Vocabulary::List { tokens, lower_case } => Parts::of_list(tokens, lower_case)?,
        };
        catch_unwind(|| Self::build(parts, size)).unwrap_or(Err(VocabularyError::Library))
    }

    fn build(parts: Parts, size: usize) -> Result<Self, VocabularyError> {
        let Parts { model, normalizer, special, frame } = parts;
        let in_range = |token: u32| {
            let fits = usize::try_from(token).is_ok_and(|token| token < size);
            if fits { Ok(()) } else { Err(VocabularyError::OutOfRange { token, vocabulary: size }) }
        };
        model.vocab.values().try_for_each(|&token| in_range(token))?;
        if !(1..=MAX_WORD).contains(&model.max_input_chars_per_word) {
            return Err(VocabularyError::Word(model.max_input_chars_per_word));
        }
        let marks = [("continuing_subword_prefix", &model.continuing_subword_prefix), ("unk_token", &model.unk_token)];
        for (member, bytes) in marks.map(|(member, mark)| (member, mark.len())) {
            if bytes > MAX_MARK {
                return Err(VocabularyError::Mark { member, bytes });
            }
        }
        let missing = |text: &str| VocabularyError::Missing(text.chars().take(60).collect());
        if !model.vocab.contains_key(&model.unk_token) {
            return Err(missing(&model.unk_token));
        }
        let wordpiece = Model::builder()
            .vocab(model.vocab.into_iter().collect::<Vocab>())
            .unk_token(model.unk_token)
            .continuing_subword_prefix(model.continuing_subword_prefix)
            .max_input_chars_per_word(model.max_input_chars_per_word)
            .build()
            .map_err(|_| VocabularyError::Library)?;
        let NormalizerPart { clean_text, handle_chinese_chars, strip_accents, lowercase } = normalizer;
        let mut library = Library::new(wordpiece);
        let normalizer = BertNormalizer::new(clean_text, handle_chinese_chars, strip_accents, lowercase);
        library.with_normalizer(Some(normalizer)).map_err(|_| VocabularyError::Library)?;
        library.with_pre_tokenizer(Some(BertPreTokenizer));
        let tokens = special
            .iter()
            .map(|added| AddedToken::from(added.content.as_str(), added.special).normalized(added.normalized));
        library.add_tokens(tokens).map_err(|_| VocabularyError::Library)?;
        for added in &special {
            if library.token_to_id(&added.content) != Some(added.id) {
                return Err(missing(&added.content));
            }
            if added.single_word || added.lstrip || added.rstrip {
                return Err(VocabularyError::Greedy(added.content.chars().take(60).collect()));
            }
            in_range(added.id)?;
        }
        let (before, after) = frame;
        in_range(before)?;
        in_range(after)?;
        Ok(Self { library, before, after, is_lower_case: lowercase })
    }

    /// The tokens of `text`: at most `limit`, and how many were cut off at its end for that. `None` if the library failed.
    pub(super) fn encode(&self, text: &str, limit: usize) -> Option<(Zeroizing<Vec<u32>>, usize)> {
        let encode = || self.library.encode_fast(text, false).ok();
        let encoding = catch_unwind(AssertUnwindSafe(encode)).ok().flatten()?;
        let found = encoding.get_ids();
        let kept = found.get(..limit.saturating_sub(FRAME).min(found.len()))?;
        let mut tokens = Zeroizing::new(Vec::with_capacity(kept.len() + FRAME));
        tokens.push(self.before);
        tokens.extend_from_slice(kept);
        tokens.push(self.after);
        Some((tokens, found.len() - kept.len()))
    }
}

/// What a tokenizer is made of, from either file.
struct Parts {
    model: ModelPart,
    normalizer: NormalizerPart,
    special: Vec<Added>,
    frame: (u32, u32),
}

impl Parts {
    fn of_tokenizer(json: &[u8]) -> Result<Self, VocabularyError> {
        // Of what kind the parts are, first: what another kind holds is not read as ours.
        let kinds: Kinds = read(json)?;
        expect("model", &kinds.model, &["WordPiece"])?;
        expect("normalizer", &kinds.normalizer, &["BertNormalizer"])?;
        expect("pre-tokenizer", &kinds.pre_tokenizer, &["BertPreTokenizer"])?;
        expect("post-processor", &kinds.post_processor, &["TemplateProcessing", "BertProcessing"])?;
        let File { added_tokens, normalizer, post_processor, model } = read(json)?;
        let frame = post_processor.frame().ok_or(VocabularyError::Frame)?;
        Ok(Self { model, normalizer, special: added_tokens, frame })
    }

    fn of_list(tokens: &[u8], lower_case: bool) -> Result<Self, VocabularyError> {
        let text = std::str::from_utf8(tokens).map_err(|_| VocabularyError::NotUtf8)?;
        let vocab: HashMap<String, u32> = text.lines().map(|line| line.trim_end().to_owned()).zip(0..).collect();
        let id = |text: &str| vocab.get(text).copied().ok_or_else(|| VocabularyError::Missing(text.to_owned()));
        let frame = (id("[CLS]")?, id("[SEP]")?);
        let special = SPECIAL.iter().map(|&text| Ok(Added::special(text, id(text)?))).collect::<Result<_, _>>()?;
        let normalizer =
            NormalizerPart { clean_text: true, handle_chinese_chars: true, strip_accents: None, lowercase: lower_case };
        let model = ModelPart {
            unk_token: "[UNK]".to_owned(),
            continuing_subword_prefix: "##".to_owned(),
            max_input_chars_per_word: 100,
            vocab,
        };
        Ok(Self { model, normalizer, special, frame })
    }
}

fn read<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, VocabularyError> {
    let malformed =
        |error: serde_json::Error| VocabularyError::Malformed { line: error.line(), column: error.column() };
    serde_json::from_slice(json).map_err(malformed)
}

fn expect(part: &'static str, found: &Option<Kind>, known: &[&'static str]) -> Result<(), VocabularyError> {
    let kind = found.as_ref().map_or("none", |found| found.kind.as_str());
    if known.contains(&kind) {
        return Ok(());
    }
    let (kind, expected) = (kind.chars().take(60).collect(), known.first().copied().unwrap_or_default());
    Err(VocabularyError::Kind { part, kind, expected })
}

#[derive(Deserialize)]
struct Kinds {
    normalizer: Option<Kind>,
    pre_tokenizer: Option<Kind>,
    post_processor: Option<Kind>,
    model: Option<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type", default)]
    kind: String,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: NormalizerPart,
    post_processor: PostProcessor,
    model: ModelPart,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

impl Added {
    fn special(text: &str, id: u32) -> Self {
        let content = text.to_owned();
        Self { id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true }
    }
}

#[derive(Deserialize)]
struct NormalizerPart {
    clean_text: bool,
    handle_chinese_chars: bool,
    strip_accents: Option<bool>,
    lowercase: bool,
}

#[derive(Deserialize)]
struct ModelPart {
    unk_token: String,
    continuing_subword_prefix: String,
    max_input_chars_per_word: usize,
    vocab: HashMap<String, u32>,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PostProcessor {
    TemplateProcessing { single: Vec<Piece>, special_tokens: HashMap<String, Special> },
    BertProcessing { sep: (IgnoredAny, u32), cls: (IgnoredAny, u32) },
}

#[derive(Deserialize)]
enum Piece {
    SpecialToken { id: String, type_id: u32 },
    Sequence { id: String, type_id: u32 },
}

#[derive(Deserialize)]
struct Special {
    ids: Vec<u32>,
}

impl PostProcessor {
    /// The token before a text, and the one after it.
    fn frame(&self) -> Option<(u32, u32)> {
        match self {
            Self::BertProcessing { sep: (_, sep), cls: (_, cls) } => Some((*cls, *sep)),
            Self::TemplateProcessing { single, special_tokens } => {
                let [
                    Piece::SpecialToken { id: before, type_id: 0 },
                    Piece::Sequence { id: text, type_id: 0 },
                    Piece::SpecialToken { id: after, type_id: 0 },
                ] = single.as_slice()
                else {
                    return None;
                };
                let id = |name: &str| match special_tokens.get(name)?.ids.as_slice() {
                    &[id] => Some(id),
                    _ => None,
                };
                if text == "A" { Some((id(before)?, id(after)?)) } else { None }
            }
        }
    }
}

/// Tokens around a text; every model has room for one more.
const FRAME: usize = 2;
/// BERT's, and no vocabulary has a longer word; the time that a word takes goes with its square.
const MAX_WORD: usize = 100;
/// BERT's are "##" and "[UNK]". The library copies one for each piece of a word that it looks up, some thousand for a long word, and the
/// other for each word that it does not know.
const MAX_MARK: usize = 16;
/// Multilingual BERT's 120,000 tokens take 3 MB.
const MAX_BYTES: usize = 16 << 20;
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
