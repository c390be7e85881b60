//! A loaded model: tokenizer, chat template and weights.

use std::io::{self, Read};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use model_header::{Config, ConfigError, PROMPT_CHUNK, Plan, PlanError};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::constraint::{ConstraintError, Vocabulary};
use crate::decoder::{Decoder, KvCache, Run, Scratch, WeightsError};
use crate::engine::{Engine, KvMemory, Tally};
use crate::gguf::{GgufError, Header};
use crate::opened::Opened;
use crate::template::{Rendering, Template, TemplateError};
use crate::threads::{Threads, ThreadsError};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// A loaded model. Any number of threads may use it at once; each answer has a KV cache of its own.
pub struct Model {
    name: String,
    decoder: Arc<Decoder>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Made for the first answer of a given form; most models never have one.
    form_vocabulary: OnceLock<Option<Arc<Vocabulary>>>,
    threads: Arc<Threads>,
    pub(crate) engine: Engine,
    plan: Plan,
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

impl From<PlanError> for LoadError {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Gguf(error) => Self::Gguf(error),
            PlanError::Config(error) => Self::Config(error),
        }
    }
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
        Opened::read(file, bytes)?.load(options)
    }

    /// Makes what `header` announces; `data` begins where the header ends.
    pub(crate) fn assemble(
        header: &Header<'_>,
        data: &mut (dyn Read + Send),
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let config = Config::read(header)?;
        let tokenizer = Arc::new(Tokenizer::load(header)?);
        let template = header.optional_text("tokenizer.chat_template")?.map(Template::compile).transpose()?;
        let threads = Arc::new(Threads::start(options.threads)?);
        let load = || Decoder::load(config, header, data);
        let decoder = Arc::new(threads.run(load).unwrap_or_else(|_| Err(WeightsError::Panicked))?);
        let plan = Plan::of(header)?;
        let engine = start_engine(&decoder, &threads, &tokenizer, plan, KvMemory::unbounded())?;
        let name = header.optional_text("general.name")?.unwrap_or_default().to_owned();
        let form_vocabulary = OnceLock::new();
        Ok(Self { name, decoder, tokenizer, form_vocabulary, threads, engine, plan, template })
    }

    /// Answers within `memory`, which other models may share. Until this is called, nothing bounds what answers take together.
    ///
    /// # Errors
    /// The engine's thread could not be started.
    pub fn within(self, memory: &KvMemory) -> Result<Self, ThreadsError> {
        let engine = start_engine(&self.decoder, &self.threads, &self.tokenizer, self.plan, memory.clone())?;
        Ok(Self { engine, ..self })
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

    /// Tokens that were guessed in all answers so far, and how many of them rightly (see [`Sampling::speculate`]).
    ///
    /// [`Sampling::speculate`]: crate::Sampling::speculate
    #[must_use]
    pub fn guesses(&self) -> (u64, u64) {
        let Tally { made, right } = &*self.engine.tally;
        (made.load(Ordering::Relaxed), right.load(Ordering::Relaxed))
    }

    /// Tokens that an answer to `prompt` may have.
    #[must_use]
    pub fn room_after(&self, prompt: &Prompt) -> usize {
        self.context_length().saturating_sub(prompt.len())
    }

    /// Bytes that the first answer of a given form takes, at most, for all that follow it.
    #[must_use]
    pub fn form_bytes(&self) -> u64 {
        self.plan.form_bytes as u64
    }

    pub(crate) fn form_vocabulary(&self) -> Result<&Arc<Vocabulary>, ConstraintError> {
        let make = || Vocabulary::new(&self.tokenizer).map(Arc::new);
        self.form_vocabulary.get_or_init(make).as_ref().ok_or(ConstraintError::Vocabulary)
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
            let (mut scratch, mut last) = (Scratch::default(), Vec::new());
            let mut chunks = prompt.tokens().chunks(PROMPT_CHUNK).peekable();
            while let Some(tokens) = chunks.next() {
                let run = Run { cache: &mut cache, tokens, wants_logits: usize::from(chunks.peek().is_none()) };
                last = self.decoder.step(&mut [run], &mut scratch, &|| false).map_err(|_| EngineError)?.to_vec();
            }
            Ok(last)
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

fn start_engine(
    decoder: &Arc<Decoder>,
    threads: &Arc<Threads>,
    tokenizer: &Arc<Tokenizer>,
    plan: Plan,
    memory: KvMemory,
) -> Result<Engine, ThreadsError> {
    let tokenizer = Arc::clone(tokenizer);
    Engine::start(Arc::clone(decoder), Arc::clone(threads), move |id| tokenizer.is_end(id), plan, memory)
}

/// More than a conversation has, few enough that a template stays within its fuel.
pub const MAX_MESSAGES: usize = 256;
/// Text of all messages: far more than the largest contexts hold.
pub const MAX_CONTENT_BYTES: usize = 4 << 20;
/// Noncharacters, "intended for process-internal use" (Unicode 16, section 23.7): texts do not contain them.
pub(crate) const MARKS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';
