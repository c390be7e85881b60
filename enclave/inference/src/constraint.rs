//! Answers of a given form: which tokens may come next, by a JSON Schema or a grammar.
//!
//! The grammar's library is llguidance. A form is a customer's input, so everything about it is bounded: its size, the work of
//! making a parser of it, the work of each token, and what the parser remembers. What reaches a bound ends that answer with an
//! error, and so does a panic in the library.

mod schema;
mod vocabulary;
mod watch;
mod weight;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use llguidance::api::{GrammarInit, ParserLimits, StopReason, TopLevelGrammar};
use llguidance::earley::CGrammar;
use llguidance::toktrie::{InferenceCapabilities, SimpleVob};
use llguidance::{CancellationHandle, Logger, TokenParser};
use thiserror::Error;
use zeroize::Zeroizing;

pub(crate) use vocabulary::Vocabulary;

/// What form an answer is to have. Carries what a customer wrote: no `Debug`, wiped.
#[derive(Clone)]
pub enum Form {
    /// One JSON object (RFC 8259), of any members.
    JsonObject,
    /// JSON that is valid by this JSON Schema (draft 2020-12, unless it names another).
    JsonSchema(Zeroizing<String>),
    /// A text of this grammar: Lark, in the dialect of llguidance (its `docs/syntax.md`), with the rule `start` on top.
    Grammar(Zeroizing<String>),
}

/// Why an answer cannot have, or go on in, the form that was asked for. Carries no text of the form.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ConstraintError {
    /// The form is too long.
    #[error("the schema or grammar has {bytes} bytes; at most {limit} are accepted")]
    TooLong {
        /// Its bytes.
        bytes: usize,
        /// How many may be.
        limit: usize,
    },
    /// The schema is no JSON.
    #[error("the schema is no JSON, or nested more than 127 levels deep")]
    NotJson,
    /// A keyword is not supported at all, or not as it is used.
    #[error("the schema's keyword \"{0}\" is not supported as it is used")]
    Keyword(&'static str),
    /// The schema is malformed in another way.
    #[error(
        "the schema is no JSON Schema: an object, true or false is expected, and in it the types that its keywords ask for"
    )]
    Schema,
    /// Nothing is valid by the schema.
    #[error("the schema cannot be satisfied")]
    Unsatisfiable,
    /// The grammar is malformed.
    #[error(
        "the grammar is malformed, or names what is not supported (%json, %lark, %llguidance, special tokens, parameters, capture, stop)"
    )]
    Grammar,
    /// More work than a form may cost, when it is read or for a token.
    #[error("the schema or grammar is too complex, or allows too much at once; a simpler one is expected")]
    TooComplex,
    /// The model has no vocabulary that a form could be made ready for.
    #[error("the model's vocabulary cannot be made ready for answers of a given form")]
    Vocabulary,
    /// The library failed.
    #[error("the form of the answer could not be computed")]
    Failed,
}

/// How far an answer has come in its form.
pub(crate) struct Course {
    parser: TokenParser,
    handle: CancellationHandle,
    vocabulary: Arc<Vocabulary>,
    /// Items that the parser holds, at most.
    kept: usize,
    /// Items that it may still make.
    work_left: usize,
    /// Time that it may still take.
    time_left: Duration,
}

impl Course {
    /// At the start of an answer. Does all the work that is not done for a token.
    pub(crate) fn new(vocabulary: &Arc<Vocabulary>, form: &Form) -> Result<Self, ConstraintError> {
        let grammar = match form {
            Form::JsonObject => TopLevelGrammar::from_json_schema(schema::read(r#"{"type":"object"}"#)?),
            Form::JsonSchema(text) => TopLevelGrammar::from_json_schema(schema::read(short(text, MAX_SCHEMA_BYTES)?)?),
            Form::Grammar(text) => {
                let text = short(text, MAX_GRAMMAR_BYTES)?;
                if !weight::has_few_classes(text) {
                    return Err(ConstraintError::TooComplex);
                }
                // A schema in a grammar would not be checked as one that stands alone.
                if has_parameter(text) || REFUSED_DIRECTIVES.iter().any(|directive| text.contains(directive)) {
                    return Err(ConstraintError::Grammar);
                }
                TopLevelGrammar::from_lark(text.to_owned())
            }
        };
        let is_schema = !matches!(form, Form::Grammar(_));
        // References and rules are followed by recursion: on a stack that the longest form does not fill.
        let mut parser = std::thread::scope(|scope| {
            let work = || guarded(|| compile(vocabulary, grammar, is_schema));
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
            thread.map_err(|_| ConstraintError::Failed)?.join().unwrap_or(Err(ConstraintError::Failed))
        })?;
        let handle = parser.enable_cancellation();
        Ok(Self {
            parser,
            handle,
            vocabulary: Arc::clone(vocabulary),
            kept: 0,
            work_left: FREE_WORK,
            time_left: FREE_TIME,
        })
    }

    /// Takes every token away that may not come next; those that end the answer only may where the form is complete.
    pub(crate) fn restrict(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError> {
        let (mut allowed, complete) =
            self.guarded(|parser| Some((parser.compute_mask().ok()?, parser.is_accepting())))?;
        self.vocabulary.keep_ordinary(&mut allowed, complete);
        if allowed.is_zero() {
            // Nothing that the model can say goes on in this form. (The model is not at fault.)
            return Err(ConstraintError::Grammar);
        }
        remove(logits, &allowed);
        Ok(())
    }

    /// Goes on by a token that [`Course::restrict`] left. Gives whether the text is complete and nothing may follow.
    pub(crate) fn take(&mut self, id: u32) -> Result<bool, ConstraintError> {
        if self.vocabulary.is_end(id) {
            return Ok(true);
        }
        let made = self.made();
        let is_over = self.guarded(|parser| {
            parser.consume_token(id).ok()?;
            parser.check_stop().ok()
        })?;
        // What is tried out for a mask is forgotten; what a token brings stays.
        self.kept += self.made().saturating_sub(made);
        self.work_left += WORK_PER_TOKEN;
        if self.kept > MAX_KEPT { Err(ConstraintError::TooComplex) } else { Ok(is_over) }
    }

    fn made(&self) -> usize {
        self.parser.parser_stats().all_items
    }

    fn guarded<T>(&mut self, work: impl FnOnce(&mut TokenParser) -> Option<T>) -> Result<T, ConstraintError> {
        let made = self.made();
        let (begun, time) = (Instant::now(), (self.time_left + TIME_PER_PIECE).min(FREE_TIME));
        let Self { parser, handle, vocabulary, .. } = self;
        let done = vocabulary.watch().limit(handle, LONGEST.min(time), || {
            guarded(|| {
                let done = work(parser).ok_or(ConstraintError::Failed)?;
                // A state of the lexer is as large as there are lexemes in it, which no limit of the library's counts.
                let is_large = parser.parser.lexer_stats().num_bytes > MAX_LEXER_BYTES;
                if is_large { Err(ConstraintError::TooComplex) } else { Ok(done) }
            })
        });
        let work_left = self.work_left.checked_sub(self.made().saturating_sub(made));
        let (Some(work_left), Some(time_left)) = (work_left, time.checked_sub(begun.elapsed())) else {
            return Err(ConstraintError::TooComplex);
        };
        (self.work_left, self.time_left) = (work_left, time_left);
        done.map_err(|error| match self.parser.stop_reason() {
            StopReason::LexerTooComplex
            | StopReason::ParserTooComplex
            | StopReason::NoExtensionBias
            | StopReason::Cancelled => ConstraintError::TooComplex,
            _ => error,
        })
    }
}

fn compile(vocabulary: &Vocabulary, grammar: TopLevelGrammar, is_schema: bool) -> Result<TokenParser, ConstraintError> {
    let internal = GrammarInit::Serialized(grammar).to_internal(None, LIMITS);
    let (grammar, lexer) = internal.map_err(|error| reason(&format!("{error:#}"), is_schema))?;
    // Control tokens, which no form may name.
    if lexer.special_token_rx.is_some() {
        return Err(ConstraintError::Grammar);
    }
    if !weight::is_light(lexer.regex_builder.exprset()).ok_or(ConstraintError::Failed)? {
        return Err(ConstraintError::TooComplex);
    }
    let init = GrammarInit::Internal(grammar, lexer);
    // No logs: they would quote the form and the answer.
    let (logger, able) = (Logger::new(0, 0), InferenceCapabilities::default());
    let parser = vocabulary.factory().create_parser_from_init_ext(init, logger, able, LIMITS);
    let mut parser = parser.map_err(|error| reason(&format!("{error:#}"), is_schema))?;
    if !is_schema && !is_plain(parser.parser.grammar()) {
        return Err(ConstraintError::Grammar);
    }
    parser.start_without_prompt();
    // What can be known now is known before the model works.
    parser.compute_mask().map_err(|_| ConstraintError::TooComplex)?;
    Ok(parser)
}

/// Whether a grammar keeps no text and takes none back: what is captured is kept again each time that it may end, and `stop` ends a
/// rule with text that is not part of it, but of the answer.
fn is_plain(grammar: &CGrammar) -> bool {
    let (mut seen, mut left) = (HashSet::from([grammar.start()]), vec![grammar.start()]);
    while let Some(symbol) = left.pop() {
        let props = &grammar.sym_data(symbol).props;
        if props.capture_name.is_some() || props.stop_capture_name.is_some() {
            return false;
        }
        let parts = grammar.rules_of(symbol).iter().flat_map(|rule| grammar.rule_rhs(*rule).0);
        left.extend(parts.filter(|part| seen.insert(**part)));
    }
    !grammar.lexer_spec().has_stop
}

/// Whether a rule has a parameter: `name::_`. A row of the parser may then have as many items as there are numbers of 64 bits, and the
/// first one is made where nothing can stop it.
fn has_parameter(grammar: &str) -> bool {
    grammar.split("::").skip(1).any(|rest| rest.trim_start().starts_with('_'))
}

/// What the library's message is about. Nothing else of the message leaves here: it quotes the form.
fn reason(message: &str, is_schema: bool) -> ConstraintError {
    let says = |part: &str| message.contains(part);
    if ["fuel", "too large", "too complex", "stack level", "limit"].iter().any(|part| says(part)) {
        ConstraintError::TooComplex
    } else if !is_schema {
        ConstraintError::Grammar
    } else if says("Unsatisfiable") {
        ConstraintError::Unsatisfiable
    } else {
        schema::keyword_in(message).map_or(ConstraintError::Schema, ConstraintError::Keyword)
    }
}

/// A panic in the library ends this piece of work only.
fn guarded<T>(work: impl FnOnce() -> Result<T, ConstraintError>) -> Result<T, ConstraintError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(ConstraintError::Failed))
}

/// A logit of minus infinity is never chosen.
fn remove(logits: &mut [f32], allowed: &SimpleVob) {
    let words = allowed.as_slice().iter().copied().chain(std::iter::repeat(0));
    for (logits, word) in logits.chunks_mut(32).zip(words) {
        for (bit, logit) in logits.iter_mut().enumerate() {
            if word >> bit & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

fn short(text: &str, limit: usize) -> Result<&str, ConstraintError> {
    let bytes = text.len();
    if bytes > limit { Err(ConstraintError::TooLong { bytes, limit }) } else { Ok(text) }
}

/// Bytes of a schema: three times the longest that the OpenAI API's limits leave in practice.
pub const MAX_SCHEMA_BYTES: usize = 64 << 10;
/// Bytes of a grammar: more than that of a programming language has.
pub const MAX_GRAMMAR_BYTES: usize = 32 << 10;
/// Bytes of memory that a form and an answer in it take, at most (`tests/constrained_limits.rs` holds it).
pub const CONSTRAINT_BYTES: usize = 64 << 20;
/// Virtual memory, of which a form of the usual kind touches a few pages.
const STACK_BYTES: usize = 64 << 20;
const REFUSED_DIRECTIVES: [&str; 3] = ["%json", "%lark", "%llguidance"];
/// What the library says that its lexer has come to take for one answer.
const MAX_LEXER_BYTES: usize = 24 << 20;
/// Items of 24 bytes that the parser may come to hold for one answer.
const MAX_KEPT: usize = 1 << 20;
/// Items that it may make for one answer, most of them to try tokens out: so many, and so many more with each token. A row of them takes
/// the square of their number.
const FREE_WORK: usize = 500_000;
const WORK_PER_TOKEN: usize = 8_000;
/// A piece of work for a token, while which others wait, may take so long; and pieces of an answer that follow one another so long together,
/// of which each gives so much back. One of the usual kind takes less than a millisecond.
const LONGEST: Duration = Duration::from_millis(100);
const FREE_TIME: Duration = Duration::from_millis(500);
const TIME_PER_PIECE: Duration = Duration::from_millis(5);
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2_000,
    // 6 ms ("50k/ms").
    initial_lexer_fuel: 300_000,
    // 14 ms ("14k/ms"), and only where the lexer comes to states it has not been in.
    step_lexer_fuel: 200_000,
    // 2.5 ms ("20k/ms").
    step_max_items: 50_000,
    // "~1-2kB of memory per state".
    max_lexer_states: 20_000,
    max_grammar_size: 100_000,
    precompute_large_lexemes: true,
    // They would quote the form and the answer.
    verbose_errors: false,
};

#[cfg(test)]
#[path = "../tests/making/mod.rs"]
#[allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "as in the tests that share it"
)]
mod making;

#[cfg(test)]
mod tests {
    use super::making::{Shape, random_model};
    use super::*;
    use crate::gguf::Header;
    use crate::tokenizer::Tokenizer;

    /// How many bytes of `text` the form allows.
    fn allowed(form: &Form, text: &str) -> usize {
        let file = random_model(&Shape::TINY, 1).to_bytes();
        let tokenizer = Tokenizer::load(&Header::parse(&file).unwrap()).unwrap();
        let vocabulary = Arc::new(Vocabulary::new(&tokenizer).unwrap());
        let mut course = Course::new(&vocabulary, form).unwrap();
        let mut is_allowed = |byte: u8| {
            let (mut logits, id) = ([0.0; 300], 4 + u32::from(byte));
            course.restrict(&mut logits).unwrap();
            logits[id as usize] == 0.0 && course.take(id).is_ok()
        };
        text.bytes().take_while(|byte| is_allowed(*byte)).count()
    }

    /// Else the answer could give a member another value than its schema allows, under a name that only a reader of JSON sees through.
    #[test]
    fn a_name_has_one_spelling() {
        let text = r#"{"properties":{"a":{"type":"boolean"}},"required":["a"]}"#;
        let schema = Form::JsonSchema(Zeroizing::new(text.to_owned()));
        let text = r#"{"a":true,"b\n":1}"#;
        assert_eq!(allowed(&schema, text), text.len());
        assert_eq!(allowed(&schema, r#"{"a":true,"a":1}"#), r#"{"a":true,"a"#.len());
        assert_eq!(allowed(&schema, r#"{"a":true,"\u0061":1}"#), r#"{"a":true,"\"#.len());
    }

    #[test]
    fn white_space_between_the_parts_of_json_comes_to_an_end() {
        let text = format!("{{{}", " ".repeat(100));
        assert_eq!(allowed(&Form::JsonObject, &text), 65);
    }

    #[test]
    fn pieces_of_work_that_are_each_short_enough_may_be_too_long_together() {
        let file = random_model(&Shape::TINY, 1).to_bytes();
        let tokenizer = Tokenizer::load(&Header::parse(&file).unwrap()).unwrap();
        let mut course = Course::new(&Arc::new(Vocabulary::new(&tokenizer).unwrap()), &Form::JsonObject).unwrap();
        let mut piece = |millis| {
            course.guarded(|_| {
                std::thread::sleep(Duration::from_millis(millis));
                Some(())
            })
        };
        let done = (0..20).take_while(|_| piece(60).is_ok()).count();
        assert!((1..=9).contains(&done), "{done} pieces of 60 ms");
        assert_eq!(piece(60), Err(ConstraintError::TooComplex));
    }

    #[test]
    fn a_panic_in_the_library_is_an_error_and_no_more() {
        let panics = || -> Result<(), ConstraintError> { panic!("in the library") };
        assert_eq!(guarded(panics), Err(ConstraintError::Failed));
    }

    #[test]
    fn what_is_not_allowed_is_removed_and_what_has_no_bit_is_not_allowed() {
        let mut allowed = SimpleVob::alloc(40);
        [0, 33].into_iter().for_each(|id| allowed.allow_token(id));
        let mut logits = [1.0; 80];
        remove(&mut logits, &allowed);
        let left: Vec<usize> = (0..80).filter(|&id| logits[id] == 1.0).collect();
        assert_eq!(left, [0, 33]);
    }

    #[test]
    fn a_reason_quotes_nothing_of_the_form() {
        assert_eq!(reason("Unknown format: my secret type", true), ConstraintError::Keyword("format"));
        assert_eq!(reason("Expected string for 'pattern', got 5", true), ConstraintError::Keyword("pattern"));
        assert_eq!(reason("my secret", true), ConstraintError::Schema);
        assert_eq!(reason("rule \"my secret\" not found", false), ConstraintError::Grammar);
        assert_eq!(reason("DNF too large, fuel exhausted", true), ConstraintError::TooComplex);
    }
}
