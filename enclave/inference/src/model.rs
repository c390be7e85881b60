//! A loaded model: tokenizer, chat template and weights.

use std::io::{self, Read};
use std::sync::Arc;

use model_header::{Config, ConfigError, KV_PAGE, PROMPT_CHUNK};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::constraint::{Constraint, ConstraintError, Form, Vocabulary};
use crate::decoder::{Decoder, KvCache, Run, Scratch, WeightsError};
use crate::engine::Engine;
use crate::gguf::{GgufError, Header, TensorInfo};
use crate::template::{Rendering, Template, TemplateError};
use crate::threads::{Threads, ThreadsError};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// A loaded model. Any number of threads may use it at once; each answer has a KV cache of its own.
pub struct Model {
    name: String,
    decoder: Arc<Decoder>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// `None` if it is too large for answers of a given form.
    pub(crate) vocabulary: Option<Arc<Vocabulary>>,
    threads: Arc<Threads>,
    pub(crate) engine: Engine,
    template: Option<Template>,
}

/// How a model is loaded.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// Threads of the engine's pool; 0, the default, stands for one per core.
    pub threads: usize,
}

/// Why a file is not loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The header is malformed.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Architecture or hyperparameters are not supported.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The vocabulary is not supported.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template does not compile.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A tensor is missing, superfluous or of another shape.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// No threads could be started.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
    /// The file cannot be read.
    #[error("the model's file cannot be read: {0}")]
    Read(io::ErrorKind),
}

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions that stand above the conversation.
    System,
    /// The person who asks.
    User,
    /// The model.
    Assistant,
}

/// One message of a conversation.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    /// Who says it.
    pub role: Role,
    /// What is said. Control tokens in it are plain text.
    pub content: &'a str,
}

/// A conversation as tokens, which fits the model's context.
pub struct Prompt {
    tokens: Zeroizing<Vec<u32>>,
}

/// Why messages do not become a prompt. Carries no text of theirs.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PromptError {
    /// There are none.
    #[error("there are no messages")]
    Empty,
    /// Too many messages.
    #[error("{0} messages; at most {MAX_MESSAGES} are accepted")]
    TooManyMessages(usize),
    /// So much text fits no context.
    #[error("{bytes} bytes of text; at most {limit} can fit the context of {context_length} tokens")]
    TooManyBytes {
        /// Bytes of all messages.
        bytes: usize,
        /// How many could fit.
        limit: usize,
        /// The model's context.
        context_length: usize,
    },
    /// More tokens than the context has, or as many: no room for an answer.
    #[error("the prompt has {tokens} tokens; the context has {context_length}, and the answer needs at least one")]
    TooManyTokens {
        /// Tokens of the prompt.
        tokens: usize,
        /// The model's context.
        context_length: usize,
    },
    /// A token that the model does not have.
    #[error("token {0} is not in the vocabulary")]
    UnknownToken(u32),
    /// The model has no chat template.
    #[error("the model has no chat template: \"tokenizer.chat_template\" is missing from its file")]
    NoTemplate,
    /// The chat template gives no prompt.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer failed.
    #[error("the tokenizer failed on this text")]
    Tokenizer,
}

/// The logits could not be computed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the engine failed")]
pub struct EngineError;

impl Model {
    /// Loads a GGUF file that lies in memory.
    ///
    /// # Errors
    /// As [`Model::read`].
    pub fn load(gguf: &[u8], options: &LoadOptions) -> Result<Self, LoadError> {
        Self::read(&mut &*gguf, gguf.len(), options)
    }

    /// Loads a GGUF file of `bytes` bytes as it comes. Its weights are packed meanwhile and held once: peak memory is what
    /// [`Plan`](crate::Plan) says, and never the file as a whole.
    ///
    /// # Errors
    /// A file that is malformed, or not one that this engine computes, or that cannot be read; the message names what.
    pub fn read(file: &mut (dyn Read + Send), bytes: usize, options: &LoadOptions) -> Result<Self, LoadError> {
        let mut start = Vec::new();
        let header = loop {
            let more = (start.len().max(FIRST_READ) as u64).min((bytes - start.len()) as u64);
            let before = start.len();
            (&mut *file).take(more).read_to_end(&mut start).map_err(|error| LoadError::Read(error.kind()))?;
            match Header::parse(&start) {
                Err(GgufError::Truncated { .. }) if start.len() > before && start.len() < bytes => {
                    if start.len() >= MAX_HEADER {
                        let (what, limit) = ("bytes of the header", MAX_HEADER as u64);
                        return Err(GgufError::TooMany { what, count: limit + 1, limit }.into());
                    }
                }
                Err(error) => return Err(error.into()),
                Ok(_) => break Header::parse(&start)?,
            }
        };
        if header.file_bytes() > bytes {
            let past = |(_, info): &(&str, &TensorInfo)| {
                header.data_offset().saturating_add(info.offset).saturating_add(info.bytes) > bytes
            };
            let name = header.tensors().find(past).map_or_else(String::new, |(name, _)| name.to_owned());
            return Err(GgufError::TensorPastEnd { tensor: name }.into());
        }
        let config = Config::read(&header)?;
        let tokenizer = Arc::new(Tokenizer::load(&header)?);
        let vocabulary = Vocabulary::new(&tokenizer).map(Arc::new);
        let template = header.optional_text("tokenizer.chat_template")?.map(Template::compile).transpose()?;
        let threads = Arc::new(Threads::start(options.threads)?);
        // Between header and tensors may lie a few bytes that are not read yet.
        let begun = start.get(header.data_offset()..).unwrap_or_default();
        let gap = header.data_offset().saturating_sub(start.len());
        io::copy(&mut (&mut *file).take(gap as u64), &mut io::sink()).map_err(|error| LoadError::Read(error.kind()))?;
        let mut data = begun.chain(file);
        let load = || Decoder::load(config, &header, &mut data);
        let decoder = Arc::new(threads.run(load).unwrap_or_else(|_| Err(WeightsError::Panicked))?);
        let is_end = Arc::clone(&tokenizer);
        let engine = Engine::start(Arc::clone(&decoder), Arc::clone(&threads), move |id| is_end.is_end(id))?;
        let name = header.optional_text("general.name")?.unwrap_or_default().to_owned();
        Ok(Self { name, decoder, tokenizer, vocabulary, threads, engine, template })
    }

    /// The name that the file gives itself; empty if it gives none.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Most tokens of prompt and answer together.
    #[must_use]
    pub fn context_length(&self) -> usize {
        self.decoder.config.context_length
    }

    /// Number of tokens in the vocabulary.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.decoder.config.vocabulary
    }

    /// Bytes of memory that a sequence of `tokens` (prompt and answer) takes when it has come to its end.
    #[must_use]
    pub fn sequence_bytes(&self, tokens: usize) -> usize {
        let pages = tokens.div_ceil(KV_PAGE);
        pages.saturating_mul(KV_PAGE * self.decoder.config.kv_bytes_per_token())
    }

    /// Threads of the engine's pool.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.count()
    }

    /// The family of kernels that computes. All families give the same bits.
    #[must_use]
    pub fn kernel(&self) -> &'static str {
        self.decoder.family.name()
    }

    /// Tokens that an answer to `prompt` may have.
    #[must_use]
    pub fn room_after(&self, prompt: &Prompt) -> usize {
        self.context_length().saturating_sub(prompt.len())
    }

    /// Makes a form ready for answers of this model, which may take a tenth of a second and, as long as an answer has it, up to
    /// [`CONSTRAINT_BYTES`](crate::CONSTRAINT_BYTES).
    ///
    /// # Errors
    /// A form that is malformed, not supported or too complex.
    pub fn constraint(&self, form: Form<'_>) -> Result<Constraint, ConstraintError> {
        Constraint::new(self.vocabulary.as_ref().ok_or(ConstraintError::Vocabulary)?, form)
    }

    /// The bytes that a token stands for: in an answer, or, if it is a control token, those of its name.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Zeroizing<Vec<u8>> {
        let bytes = self.tokenizer.bytes_of(id);
        if !bytes.is_empty() {
            return bytes;
        }
        Zeroizing::new(self.tokenizer.text(id).unwrap_or_default().as_bytes().to_vec())
    }

    /// Renders messages by the model's chat template, ready for an answer, and encodes the result.
    ///
    /// Control tokens come from the template alone: whatever a message contains is plain text.
    ///
    /// # Errors
    /// No messages, too many, more than fits the context, or a template that refuses them.
    pub fn prompt(&self, messages: &[Message<'_>]) -> Result<Prompt, PromptError> {
        let template = self.template.as_ref().ok_or(PromptError::NoTemplate)?;
        self.check_sizes(messages)?;
        let taken = |mark: &char| {
            messages.iter().map(|message| message.content).chain([template.source()]).any(|text| text.contains(*mark))
        };
        let mark = MARKS.clone().find(|mark| !taken(mark)).ok_or(PromptError::Tokenizer)?;
        let marked: Vec<(Role, Zeroizing<String>)> =
            messages.iter().map(|message| (message.role, self.tokenizer.mark(message.content, mark))).collect();
        let rendered = template.render(&Rendering {
            messages: &marked,
            begin: self.tokenizer.begin_text().unwrap_or_default(),
            end: self.tokenizer.end_text().unwrap_or_default(),
        })?;
        self.fitting(self.tokenizer.encode(&rendered, mark).ok_or(PromptError::Tokenizer)?)
    }

    /// A prompt of given tokens, for benchmarks and comparisons with other engines.
    ///
    /// # Errors
    /// No tokens, more than fit the context, or one that is not in the vocabulary.
    pub fn prompt_of_tokens(&self, tokens: &[u32]) -> Result<Prompt, PromptError> {
        if let Some(&unknown) = tokens.iter().find(|&&token| token as usize >= self.vocabulary()) {
            return Err(PromptError::UnknownToken(unknown));
        }
        self.fitting(Zeroizing::new(tokens.to_vec()))
    }

    /// The logits of what may follow `prompt`: one for each token of the vocabulary.
    ///
    /// # Errors
    /// The engine failed, which no prompt should bring about.
    pub fn logits(&self, prompt: &Prompt) -> Result<Vec<f32>, EngineError> {
        let compute = || {
            let mut cache = KvCache::new();
            let (mut scratch, mut last) = (Scratch::default(), Zeroizing::new(Vec::new()));
            let mut chunks = prompt.tokens().chunks(PROMPT_CHUNK).peekable();
            while let Some(tokens) = chunks.next() {
                let run = Run { cache: &mut cache, tokens, wants_logits: usize::from(chunks.peek().is_none()) };
                last = self.decoder.step(&mut [run], &mut scratch, &|| false).map_err(|_| EngineError)?;
            }
            Ok(last.to_vec())
        };
        self.threads.run(compute).unwrap_or(Err(EngineError))
    }

    fn check_sizes(&self, messages: &[Message<'_>]) -> Result<(), PromptError> {
        if messages.is_empty() {
            return Err(PromptError::Empty);
        }
        if messages.len() > MAX_MESSAGES {
            return Err(PromptError::TooManyMessages(messages.len()));
        }
        let context_length = self.context_length();
        let bytes = messages.iter().map(|message| message.content.len()).fold(0, usize::saturating_add);
        let limit = context_length.saturating_mul(self.tokenizer.longest_token_bytes()).min(MAX_CONTENT_BYTES);
        if bytes > limit {
            return Err(PromptError::TooManyBytes { bytes, limit, context_length });
        }
        Ok(())
    }

    fn fitting(&self, tokens: Zeroizing<Vec<u32>>) -> Result<Prompt, PromptError> {
        let context_length = self.context_length();
        if tokens.is_empty() {
            return Err(PromptError::Empty);
        }
        if tokens.len() >= context_length {
            return Err(PromptError::TooManyTokens { tokens: tokens.len(), context_length });
        }
        Ok(Prompt { tokens })
    }
}

impl Prompt {
    /// Number of tokens.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a prompt without tokens is not made")]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The tokens.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
}

impl Role {
    /// The name that chat templates know it by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// Ten times the header of a model with a vocabulary of a quarter million.
const MAX_HEADER: usize = 256 << 20;
/// Most headers are longer, because they hold a vocabulary: what is read is doubled until the header is whole.
const FIRST_READ: usize = 1 << 20;
/// More than a conversation has, few enough that a template stays within its fuel.
pub const MAX_MESSAGES: usize = 256;
/// Text of all messages: far more than the largest contexts hold.
pub const MAX_CONTENT_BYTES: usize = 4 << 20;
/// Noncharacters, "intended for process-internal use" (Unicode 16, section 23.7): texts do not contain them.
const MARKS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';
