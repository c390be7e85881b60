//! Embeddings: encoders of the BERT family (all-MiniLM, E5, BGE), loaded from safetensors.

mod attention;
mod forward;
mod pack;
mod weights;
mod wordpiece;

use std::io::{self, Read};

use kernels::Family;
pub use model_header::MAX_TEXT_BYTES;
use model_header::safetensors::{Header, SafetensorsError};
use model_header::{EncoderConfig, EncoderConfigError, ROWS_TOGETHER};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::generate::Cancel;
use crate::model::LoadOptions;
use crate::threads::{Threads, ThreadsError};
use forward::{Bert, Scratch};
pub use pack::{PackError, Pooling};
pub use weights::EncoderWeightsError;
use weights::Weights;
use wordpiece::WordPiece;
pub use wordpiece::{Vocabulary, VocabularyError};

/// A loaded encoder. Any number of threads may use it at once.
pub struct Encoder {
    bert: Bert,
    tokenizer: WordPiece,
    pooling: Pooling,
    max_tokens: usize,
    threads: Threads,
}

/// The files of a model beside its weights, as transformers and sentence-transformers lay them down.
#[derive(Clone, Copy)]
pub struct EncoderFiles<'a> {
    /// `config.json`.
    pub config: &'a [u8],
    /// `tokenizer.json` or `vocab.txt`.
    pub vocabulary: Vocabulary<'a>,
    /// `1_Pooling/config.json`; without it, embeddings are means.
    pub pooling: Option<&'a [u8]>,
    /// `sentence_bert_config.json`, which may say that texts have fewer tokens than the model has positions.
    pub sentence: Option<&'a [u8]>,
    /// `modules.json`: a model with other modules than are computed here is refused.
    pub modules: Option<&'a [u8]>,
}

/// Why an encoder is not loaded.
#[derive(Debug, Error)]
pub enum EncoderError {
    /// The header of the weights is malformed.
    #[error("the weights: {0}")]
    Safetensors(#[from] SafetensorsError),
    /// Architecture or hyperparameters are not supported.
    #[error(transparent)]
    Config(#[from] EncoderConfigError),
    /// The vocabulary is not supported.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyError),
    /// The settings beside the model are not supported.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// A tensor is missing, superfluous or of another shape.
    #[error(transparent)]
    Weights(#[from] EncoderWeightsError),
    /// The file of weights is not as long as its header says.
    #[error("the file of weights has {found} bytes; its header says {expected}")]
    Length {
        /// Bytes that it has.
        found: usize,
        /// Bytes that it should have.
        expected: usize,
    },
    /// No threads could be started.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
    /// The file cannot be read.
    #[error("the file of weights cannot be read: {0}")]
    Read(io::ErrorKind),
    /// Something that should not happen did.
    #[error("loading the encoder failed")]
    Panicked,
}

/// How embeddings are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbedOptions {
    /// How; as the model's files say, if not given.
    pub pooling: Option<Pooling>,
    /// Whether each embedding is divided by its length, so that their products are cosines.
    pub normalise: bool,
    /// Whether a text with too many tokens is cut at its end; else it is refused.
    pub truncate: bool,
}

impl Default for EmbedOptions {
    fn default() -> Self {
        Self { pooling: None, normalise: true, truncate: false }
    }
}

/// What a text means, as numbers. The text can be told from it: it has no `Debug`, and is wiped on drop.
pub struct Embedding {
    values: Zeroizing<Vec<f32>>,
    tokens: usize,
    cut: usize,
}

/// Why there are no embeddings. Carries no text.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum EmbedError {
    /// There are no texts.
    #[error("there are no texts")]
    NoTexts,
    /// Too many texts.
    #[error("{0} texts; at most {MAX_TEXTS} are accepted")]
    TooManyTexts(usize),
    /// So much text is not looked at.
    #[error("text {text} has {bytes} bytes; at most {MAX_TEXT_BYTES} are accepted")]
    TooManyBytes {
        /// Which, from 0 on.
        text: usize,
        /// Its length.
        bytes: usize,
    },
    /// More tokens than the model takes.
    #[error("text {text} has {tokens} tokens; the model takes {limit}: shorten it, or ask for it to be truncated")]
    TooManyTokens {
        /// Which, from 0 on.
        text: usize,
        /// Its tokens, with the two around it.
        tokens: usize,
        /// What the model takes.
        limit: usize,
    },
    /// The tokenizer failed.
    #[error("the tokenizer failed on text {text}")]
    Tokenizer {
        /// Which, from 0 on.
        text: usize,
    },
    /// The model gave something that is no number: its weights are broken.
    #[error("the model gave no numbers for text {text}")]
    NotANumber {
        /// Which, from 0 on.
        text: usize,
    },
    /// It was cancelled.
    #[error("the embeddings were cancelled")]
    Cancelled,
    /// The engine failed.
    #[error("the engine failed")]
    Engine,
}

impl Encoder {
    /// Loads an encoder whose weights (`model.safetensors`) lie in memory.
    ///
    /// # Errors
    /// As [`Encoder::read`].
    pub fn load(weights: &[u8], files: &EncoderFiles<'_>, options: &LoadOptions) -> Result<Self, EncoderError> {
        Self::read(&mut &*weights, weights.len(), files, options)
    }

    /// Loads an encoder whose weights, `bytes` bytes, are packed as they come and held once: peak memory is what
    /// [`EncoderPlan`](crate::EncoderPlan) says, and never the file as a whole.
    ///
    /// # Errors
    /// A file that is malformed, or not one that this engine computes, or that cannot be read; the message names what.
    pub fn read(
        weights: &mut (dyn Read + Send),
        bytes: usize,
        files: &EncoderFiles<'_>,
        options: &LoadOptions,
    ) -> Result<Self, EncoderError> {
        let config = EncoderConfig::read(files.config)?;
        let tokenizer = WordPiece::load(files.vocabulary, config.vocabulary)?;
        let pooling = files.pooling.map_or(Ok(Pooling::Mean), pack::pooling)?;
        let sentence = files.sentence.map(pack::sentence).transpose()?.unwrap_or_default();
        files.modules.map_or(Ok(()), pack::check_modules)?;
        if sentence.lower_case && !tokenizer.is_lower_case {
            return Err(PackError::LowerCase.into());
        }
        let header = read_header(weights, bytes)?;
        let expected = header.file_bytes();
        if expected != bytes {
            return Err(EncoderError::Length { found: bytes, expected });
        }
        let threads = Threads::start(options.threads)?;
        let load = || Weights::load(&config, &header, weights);
        let loaded = threads.run(load).map_err(|_| EncoderError::Panicked)??;
        let max_tokens = sentence.max_tokens.unwrap_or(usize::MAX).min(config.positions);
        let bert = Bert { config, weights: loaded, family: Family::best() };
        Ok(Self { bert, tokenizer, pooling, max_tokens, threads })
    }

    /// Most tokens of a text, the two around it included.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Elements of an embedding.
    #[must_use]
    pub fn width(&self) -> usize {
        self.bert.config.width
    }

    /// How embeddings are made unless the caller says otherwise.
    #[must_use]
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// Threads of the engine's pool.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.count()
    }

    /// The family of kernels that computes. All families give the same bits.
    #[must_use]
    pub fn kernel(&self) -> &'static str {
        self.bert.family.name()
    }

    /// The embeddings of `texts`, in their order, each of [`width`](Encoder::width) elements. They are computed together, and each is what it
    /// would be alone, bit for bit. Prefixes that a model was trained with ("query: ", "passage: ") are the caller's to put in front.
    ///
    /// `cancel` is seen before each text is read, and before each layer.
    ///
    /// # Errors
    /// No texts, too many, or one that is too long; all before anything is computed.
    pub fn embed(&self, texts: &[&str], options: &EmbedOptions, cancel: &Cancel) -> Result<Vec<Embedding>, EmbedError> {
        if texts.is_empty() {
            return Err(EmbedError::NoTexts);
        }
        if texts.len() > MAX_TEXTS {
            return Err(EmbedError::TooManyTexts(texts.len()));
        }
        let mut read = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            if cancel.is_cancelled() {
                return Err(EmbedError::Cancelled);
            }
            read.push(self.tokens(index, text, options.truncate)?);
        }
        let compute = || self.compute(&read, options, cancel);
        self.threads.run(compute).unwrap_or(Err(EmbedError::Engine))
    }

    /// The tokens that `text` is computed from, for comparisons with other tokenizers.
    ///
    /// # Errors
    /// A text that is too long.
    pub fn tokens_of(&self, text: &str, truncate: bool) -> Result<Zeroizing<Vec<u32>>, EmbedError> {
        self.tokens(0, text, truncate).map(|(tokens, _)| tokens)
    }

    /// With how many were cut off.
    fn tokens(&self, index: usize, text: &str, truncate: bool) -> Result<(Zeroizing<Vec<u32>>, usize), EmbedError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(EmbedError::TooManyBytes { text: index, bytes: text.len() });
        }
        let encoded = self.tokenizer.encode(text, self.max_tokens);
        let (tokens, cut) = encoded.ok_or(EmbedError::Tokenizer { text: index })?;
        if cut > 0 && !truncate {
            let (tokens, limit) = (tokens.len() + cut, self.max_tokens);
            return Err(EmbedError::TooManyTokens { text: index, tokens, limit });
        }
        Ok((tokens, cut))
    }

    fn compute(
        &self,
        texts: &[(Zeroizing<Vec<u32>>, usize)],
        options: &EmbedOptions,
        cancel: &Cancel,
    ) -> Result<Vec<Embedding>, EmbedError> {
        let mut scratch = Scratch::default();
        let mut embeddings = Vec::with_capacity(texts.len());
        let mut left = texts;
        while !left.is_empty() {
            let (group, rest) = left.split_at(together(left.iter().map(|(tokens, _)| tokens.len())));
            let tokens: Vec<&[u32]> = group.iter().map(|(tokens, _)| tokens.as_slice()).collect();
            let states = self.bert.states(&tokens, &mut scratch, &|| cancel.is_cancelled());
            let mut states = states.map_err(|_| EmbedError::Cancelled)?;
            for (tokens, cut) in group {
                let (own, others) = states.split_at(tokens.len() * self.width());
                let values = self.pool(own, options).ok_or(EmbedError::NotANumber { text: embeddings.len() })?;
                embeddings.push(Embedding { values, tokens: tokens.len(), cut: *cut });
                states = others;
            }
            left = rest;
        }
        Ok(embeddings)
    }

    /// From the states of a text's tokens to its embedding; `None` if that is no numbers.
    fn pool(&self, states: &[f32], options: &EmbedOptions) -> Option<Zeroizing<Vec<f32>>> {
        let width = self.width();
        let mut values = Zeroizing::new(states.get(..width)?.to_vec());
        if options.pooling.unwrap_or(self.pooling) == Pooling::Mean {
            states.chunks_exact(width).skip(1).for_each(|row| kernels::add(&mut values, row));
            let count = (states.len() / width) as f32;
            values.iter_mut().for_each(|x| *x /= count);
        }
        if options.normalise {
            let length = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            values.iter_mut().for_each(|x| *x = (f64::from(*x) / length.max(SHORTEST)) as f32);
        }
        values.iter().all(|x| x.is_finite()).then_some(values)
    }
}

impl Embedding {
    /// Its elements.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Tokens that it was computed from, the two around the text included.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tokens that were cut off at the end of the text.
    #[must_use]
    pub fn cut(&self) -> usize {
        self.cut
    }
}

/// How many of the next texts are computed together.
fn together(lengths: impl Iterator<Item = usize>) -> usize {
    let mut rows: usize = 0;
    let fits = lengths.take_while(|&length| {
        rows = rows.saturating_add(length);
        rows <= ROWS_TOGETHER
    });
    fits.count().max(1)
}

fn read_header(weights: &mut (dyn Read + Send), bytes: usize) -> Result<Header, EncoderError> {
    let mut start = Vec::new();
    let mut read = |start: &mut Vec<u8>, up_to: usize| {
        let more = up_to.min(bytes).saturating_sub(start.len());
        let got = (&mut *weights).take(more as u64).read_to_end(start);
        got.map_err(|error| EncoderError::Read(error.kind()))
    };
    read(&mut start, size_of::<u64>())?;
    if let Some(&length) = start.first_chunk() {
        read(&mut start, Header::bytes(length)?)?;
    }
    Ok(Header::parse(&start)?)
}

/// What an OpenAI client may send at once.
pub const MAX_TEXTS: usize = 2_048;
/// As torch's `normalize`: what nothing is divided by.
const SHORTEST: f64 = 1e-12;

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer can be computed again, and must come out the same, whatever processor the enclave has.
    #[test]
    fn embeddings_have_the_same_bits_in_every_family_of_kernels() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/encoder");
        let file = |name: &str| std::fs::read(format!("{folder}/{name}")).unwrap();
        let (config, tokenizer) = (file("config.json"), file("tokenizer.json"));
        let vocabulary = Vocabulary::Tokenizer(&tokenizer);
        let files = EncoderFiles { config: &config, vocabulary, pooling: None, sentence: None, modules: None };
        let mut encoder = Encoder::load(&file("model.safetensors"), &files, &LoadOptions { threads: 2 }).unwrap();
        // More positions than a page of attention has.
        let texts = ["a", "the quick brown fox jumps over the lazy dog ", &"word ".repeat(90), ""];
        let mut embed = |family| {
            encoder.bert.family = family;
            let found = encoder.embed(&texts, &EmbedOptions::default(), &Cancel::new()).unwrap();
            found
                .iter()
                .map(|embedding| embedding.values().iter().map(|x| x.to_bits()).collect())
                .collect::<Vec<Vec<_>>>()
        };
        let expected = embed(Family::Plain);
        for &family in Family::all() {
            assert!(embed(family) == expected, "{family:?}");
        }
    }

    #[test]
    fn texts_are_computed_together_as_far_as_they_fit() {
        for (lengths, expected) in [
            (vec![ROWS_TOGETHER, 1], 1),
            (vec![ROWS_TOGETHER + 1, 1], 1),
            (vec![ROWS_TOGETHER - 1, 1, 1], 2),
            (vec![1; 3], 3),
            (vec![usize::MAX, usize::MAX], 1),
        ] {
            assert_eq!(together(lengths.iter().copied()), expected, "{lengths:?}");
        }
    }
}
