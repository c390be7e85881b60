//! From text to tokens, with the vocabulary of the model's file.
//!
//! Control tokens (`<|end|>`, `</s>`, ...) steer the model, so only the chat template may write them. They are looked
//! for in the rendered template alone, where what a user wrote carries a [`mark`](Tokenizer::mark) inside everything
//! that could become part of one; and the vocabulary that ordinary text is encoded with does not contain them at all.

mod bpe;
mod finder;
mod merging;
mod spm;
mod texts;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use crate::gguf::{GgufError, Header, Value};
use bpe::Bpe;
use finder::Finder;
use spm::Spm;
use texts::Texts;

/// Vocabulary, and what its special tokens mean.
pub(crate) struct Tokenizer {
    encoder: Encoder,
    texts: Texts,
    kinds: Vec<Kind>,
    control: Finder,
    user_defined: Finder,
    /// Characters with which a control token begins, and ends.
    control_edges: (BTreeSet<char>, BTreeSet<char>),
    /// User-defined tokens that the template looks for in messages.
    tags: Vec<Box<str>>,
    begin: Option<u32>,
    add_begin: bool,
    end: Option<u32>,
    ends: BTreeSet<u32>,
    longest: usize,
}

enum Encoder {
    Bpe(Box<Bpe>),
    Spm(Box<Spm>),
}

/// `llama_token_type` (llama.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal,
    /// Unknown, control, unused: never made from ordinary text.
    Control,
    UserDefined,
    Byte,
}

/// Why the tokenizer of a file is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TokenizerError {
    /// More than any vocabulary has.
    #[error("the control and user-defined tokens have more than {MAX_SPECIAL_BYTES} bytes of text")]
    Special,
    /// The metadata is malformed.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Another kind of vocabulary than the two that are read.
    #[error("tokenizer model \"{0}\" is not supported; \"gpt2\" and \"llama\" are")]
    Model(String),
    /// The rule by which text is cut before it is encoded is not known.
    #[error("pre-tokenizer \"{0}\" is not supported; gpt-2, llama-bpe, llama3, qwen2, smollm and tekken are")]
    PreTokenizer(String),
    /// Two lists of the vocabulary should be of one length.
    #[error("the vocabulary has {tokens} tokens, but \"{key}\" has {length} entries")]
    Length {
        /// The metadata key of the other list.
        key: &'static str,
        /// Number of tokens.
        tokens: usize,
        /// Length of the other list.
        length: usize,
    },
    /// A token has a type that is not known.
    #[error("token {token} has type {kind}; 1 to 6 are known")]
    TokenType {
        /// The token.
        token: usize,
        /// Its type.
        kind: i64,
    },
    /// A special token lies outside the vocabulary.
    #[error("\"{key}\" is {token}, which is not in the vocabulary")]
    NotInVocabulary {
        /// The metadata key.
        key: &'static str,
        /// The token.
        token: u64,
    },
    /// No token for a byte: some text could not be encoded.
    #[error("the vocabulary has no token for byte {0:#04x}")]
    MissingByte(u8),
    /// A merge is not two tokens.
    #[error("merge {0} is not two tokens of the vocabulary that make a third")]
    Merge(usize),
    /// No token ends an answer.
    #[error("no token ends an answer: \"tokenizer.ggml.eos_token_id\" is missing")]
    NoEnd,
    /// A library refused the vocabulary.
    #[error("the vocabulary is refused: {0}")]
    Library(String),
}

impl Tokenizer {
    pub(crate) fn load(header: &Header<'_>) -> Result<Self, TokenizerError> {
        let tokens = header.optional_array(TOKENS)?.ok_or_else(|| GgufError::Missing(TOKENS.to_owned()))?;
        let texts = Texts::read(&tokens)?.ok_or_else(|| texts_expected(TOKENS))?;
        let mut kinds = kinds(header, texts.len())?;
        let special = |key| special(header, key, texts.len());

        let begin = special("tokenizer.ggml.bos_token_id")?;
        let end = special("tokenizer.ggml.eos_token_id")?;
        let mut ends = BTreeSet::from_iter(end);
        for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            ends.extend(special(key)?);
        }
        // Some converters write the marks of a chat as user-defined tokens, which are found in any text, a user's too.
        let template = header.optional_text("tokenizer.chat_template")?.unwrap_or_default();
        // Each of their bytes becomes a state of the finder, and each is looked for in the template.
        let listed = texts.iter().zip(&kinds).filter(|(_, kind)| matches!(kind, Kind::Control | Kind::UserDefined));
        if listed.map(|(text, _)| text.len()).sum::<usize>() > MAX_SPECIAL_BYTES {
            return Err(TokenizerError::Special);
        }
        for (text, kind) in texts.iter().zip(&mut kinds).filter(|(_, kind)| **kind == Kind::UserDefined) {
            let is_mark = text.len() > 1 && (END_TEXTS.contains(&text) || template.contains(text));
            if is_mark && !TAGS.contains(&text) {
                *kind = Kind::Control;
            }
        }
        for (id, (text, kind)) in (0..).zip(texts.iter().zip(&kinds)) {
            if *kind == Kind::Control && END_TEXTS.contains(&text) {
                ends.insert(id);
            }
        }
        if ends.is_empty() {
            return Err(TokenizerError::NoEnd);
        }
        // Whatever type the file gives them: tokens that begin or end a text are never made from ordinary text.
        for id in ends.iter().copied().chain(begin) {
            if let Some(kind) = usize::try_from(id).ok().and_then(|id| kinds.get_mut(id)) {
                *kind = Kind::Control;
            }
        }

        let model = header.text("tokenizer.ggml.model")?;
        let (encoder, adds_begin) = match model {
            "gpt2" => {
                let (bpe, adds_begin) = Bpe::load(header, &texts, &kinds)?;
                (Encoder::Bpe(Box::new(bpe)), adds_begin)
            }
            "llama" => (Encoder::Spm(Box::new(Spm::load(header, &texts, &kinds)?)), true),
            other => return Err(TokenizerError::Model(other.to_owned())),
        };
        let of_kind = |wanted| {
            let tokens = (0..).zip(texts.iter().zip(&kinds)).filter(move |(_, (_, kind))| **kind == wanted);
            tokens.map(|(id, (text, _))| (id, text))
        };
        // A control token of a single character could not be told from that character in a user's text.
        let control: Vec<(u32, &str)> =
            of_kind(Kind::Control).filter(|(_, text)| text.chars().nth(1).is_some()).collect();
        let control_edges = (
            control.iter().filter_map(|(_, text)| text.chars().next()).collect(),
            control.iter().filter_map(|(_, text)| text.chars().next_back()).collect(),
        );
        let user_defined: BTreeSet<&str> = of_kind(Kind::UserDefined).map(|(_, text)| text).collect();
        let tags = TAGS.iter().copied().filter(|tag| {
            let apart = |(_, other): &(u32, &str)| are_apart(tag, other);
            user_defined.contains(tag) && template.contains(tag) && control.iter().all(apart)
        });
        Ok(Self {
            encoder,
            tags: tags.map(Box::from).collect(),
            control: Finder::new(control.iter().copied())?,
            user_defined: Finder::new(of_kind(Kind::UserDefined).filter(|(_, text)| !text.is_empty()))?,
            control_edges,
            begin,
            add_begin: header.optional_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_begin),
            end,
            ends,
            longest: texts.iter().map(str::len).max().unwrap_or(1),
            texts,
            kinds,
        })
    }

    /// The text of the token that begins a text.
    pub(crate) fn begin_text(&self) -> Option<&str> {
        self.begin.and_then(|id| self.text(id))
    }

    /// The text of the token that ends a text.
    pub(crate) fn end_text(&self) -> Option<&str> {
        self.end.and_then(|id| self.text(id))
    }

    /// Whether an answer ends with this token.
    pub(crate) fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// The tokens with which an answer ends.
    pub(crate) fn ends(&self) -> impl Iterator<Item = u32> {
        self.ends.iter().copied()
    }

    /// Number of tokens.
    pub(crate) fn size(&self) -> usize {
        self.texts.len()
    }

    /// Whether a token stands for a byte that no other stands for.
    pub(crate) fn is_byte(&self, id: u32) -> bool {
        usize::try_from(id).is_ok_and(|id| self.kinds.get(id) == Some(&Kind::Byte))
    }

    /// No token stands for more bytes of a text than this.
    pub(crate) fn longest_token_bytes(&self) -> usize {
        self.longest.saturating_mul(self.stretch())
    }

    /// Whether the first space of an answer is not part of it: one is put in front of each text that is encoded.
    pub(crate) fn begins_with_space(&self) -> bool {
        matches!(&self.encoder, Encoder::Spm(spm) if spm.space_in_front())
    }

    fn stretch(&self) -> usize {
        match &self.encoder {
            Encoder::Bpe(bpe) => bpe.stretch(),
            Encoder::Spm(_) => 1,
        }
    }

    /// Writes `content`, which a user wrote, so that no control token can come of it, alone or together with what a
    /// template puts around it. [`Tokenizer::encode`] takes the `mark`s out again.
    ///
    /// A mark stands after each character with which a control token begins, before each with which one ends, and
    /// before the first character that is not white space. So no text that contains any character of `content` is a
    /// control token, whatever the template adds, and `trim` still trims.
    ///
    /// Within a tag there is no mark, so that the template finds it. As a whole it is no part of a control token.
    pub(crate) fn mark(&self, content: &str, mark: char) -> Zeroizing<String> {
        // Grown at once: a string that grows leaves its former self behind, and that would not be wiped.
        let mut marked = Zeroizing::new(String::with_capacity(content.len() * (1 + 2 * mark.len_utf8())));
        let (first, last) = &self.control_edges;
        let mut begun = false;
        let mut rest = content;
        while let Some(character) = rest.chars().next() {
            if let Some(tag) = self.tags.iter().find(|tag| rest.starts_with(tag.as_ref())) {
                marked.push_str(tag);
                rest = rest.get(tag.len()..).unwrap_or_default();
                // What follows may be all that the template takes.
                begun = false;
                continue;
            }
            rest = rest.get(character.len_utf8()..).unwrap_or_default();
            let begins = !begun && !character.is_whitespace();
            begun |= begins;
            if begins || last.contains(&character) {
                marked.push(mark);
            }
            marked.push(character);
            if first.contains(&character) {
                marked.push(mark);
            }
        }
        marked
    }

    /// The tokens of a rendered template; `mark` is what [`Tokenizer::mark`] was given.
    ///
    /// `None` if a library below failed.
    pub(crate) fn encode(&self, rendered: &str, mark: char) -> Option<Zeroizing<Vec<u32>>> {
        catch_unwind(AssertUnwindSafe(|| self.encode_parts(rendered, mark))).ok().flatten()
    }

    fn encode_parts(&self, rendered: &str, mark: char) -> Option<Zeroizing<Vec<u32>>> {
        // No text gives more tokens than it has bytes when it is encoded; one more for the beginning. A space in front
        // of a text may be one more, and so may each after a token that stands in the text, which has two bytes or more.
        let mut tokens = Zeroizing::new(Vec::with_capacity(rendered.len().saturating_mul(self.stretch()) + 2));
        let mut after_special = true;
        self.control.split(rendered, |part| {
            match part {
                finder::Part::Found(id) => {
                    tokens.push(id);
                    after_special = true;
                }
                finder::Part::Between(text) => {
                    let mut text = Zeroizing::new(text.replace(mark, ""));
                    self.encode_ordinary(&text, &mut after_special, &mut tokens)?;
                    text.zeroize();
                }
            }
            Some(())
        })?;
        if let Some(begin) = self.begin.filter(|begin| self.add_begin && tokens.first() != Some(begin)) {
            tokens.insert(0, begin);
        }
        Some(tokens)
    }

    fn encode_ordinary(&self, text: &str, after_special: &mut bool, tokens: &mut Vec<u32>) -> Option<()> {
        self.user_defined.split(text, |part| {
            match part {
                finder::Part::Found(id) => {
                    tokens.push(id);
                    *after_special = true;
                }
                finder::Part::Between(text) => {
                    match &self.encoder {
                        Encoder::Bpe(bpe) => bpe.encode(&self.texts, text, tokens)?,
                        Encoder::Spm(spm) => spm.encode(&self.texts, text, *after_special, tokens)?,
                    }
                    *after_special = false;
                }
            }
            Some(())
        })
    }

    /// The bytes that a token stands for in an answer; a control token stands for none.
    pub(crate) fn bytes_of(&self, id: u32) -> Zeroizing<Vec<u8>> {
        let kind = usize::try_from(id).ok().and_then(|id| self.kinds.get(id));
        let (Some(text), Some(kind)) = (self.text(id), kind) else { return Zeroizing::default() };
        Zeroizing::new(match (kind, &self.encoder) {
            (Kind::Control, _) => Vec::new(),
            (Kind::UserDefined, _) => text.as_bytes().to_vec(),
            (_, Encoder::Bpe(_)) => bpe::bytes_of(text),
            (Kind::Byte, Encoder::Spm(_)) => spm::byte_of(text).into_iter().collect(),
            (Kind::Normal, Encoder::Spm(_)) => text.replace(spm::SPACE, " ").into_bytes(),
        })
    }

    /// How the vocabulary spells a token.
    pub(crate) fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id)
    }
}

/// Whether two texts do not share a character, however they stand in a third: neither is within the other, or begins
/// with what the other ends with.
fn are_apart(one: &str, other: &str) -> bool {
    let overlap = |left: &str, right: &str| {
        left.char_indices().any(|(at, _)| left.get(at..).is_some_and(|end| right.starts_with(end)))
    };
    !one.contains(other) && !other.contains(one) && !overlap(one, other) && !overlap(other, one)
}

fn kinds(header: &Header<'_>, tokens: usize) -> Result<Vec<Kind>, TokenizerError> {
    let Some(types) = header.optional_array(TOKEN_TYPES)? else { return Ok(vec![Kind::Normal; tokens]) };
    if types.len() != tokens {
        return Err(TokenizerError::Length { key: TOKEN_TYPES, tokens, length: types.len() });
    }
    let kind = |(token, value)| {
        let number = match value {
            Value::Signed(number) => number,
            Value::Unsigned(number) => i64::try_from(number).unwrap_or(i64::MAX),
            _ => -1,
        };
        match number {
            1 => Ok(Kind::Normal),
            2 | 3 | 5 => Ok(Kind::Control),
            4 => Ok(Kind::UserDefined),
            6 => Ok(Kind::Byte),
            kind => Err(TokenizerError::TokenType { token, kind }),
        }
    };
    types.values().enumerate().map(kind).collect()
}

fn special(header: &Header<'_>, key: &'static str, tokens: usize) -> Result<Option<u32>, TokenizerError> {
    let Some(token) = header.optional_number(key)? else { return Ok(None) };
    match u32::try_from(token) {
        Ok(id) if token < tokens as u64 => Ok(Some(id)),
        _ => Err(TokenizerError::NotInVocabulary { key, token }),
    }
}

fn texts_expected(key: &str) -> TokenizerError {
    GgufError::Unexpected { key: key.to_owned(), expected: "an array of texts" }.into()
}

const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
/// Bytes of all tokens that are looked for as a whole: the largest vocabularies have some 100,000.
const MAX_SPECIAL_BYTES: usize = 4 << 20;
/// User-defined tokens that stand in messages, a user's too, and that templates look for there: what Qwen's
/// tokenizer_config.json calls not special. That they stand in the template does not make them control tokens.
const TAGS: &[&str] = &["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"];
/// Control tokens that end an answer whether or not the file says so; the list of llama.cpp (`special_eog_ids`).
const END_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "<|end_of_text|>",
];
