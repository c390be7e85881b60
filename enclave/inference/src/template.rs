//! The model's own chat template, which is a program from a stranger: it runs with fuel, without I/O, clock or
//! randomness, and what it writes is bounded. What it holds while it runs is not: the engine counts instructions, not
//! bytes, and a loop that doubles a text runs out of memory before it runs out of fuel. That costs availability; the
//! template is part of the file whose digest the operator's configuration names.
//!
//! It is Jinja as Hugging Face transformers has it, but for these: there is no clock (`strftime_now` is not defined:
//! templates that ask whether it is have a date of their own, so that the same messages give the same prompt), no
//! `generation` block, and no `%` on texts. Contents carry marks (see [`Tokenizer::mark`]), which a template sees if
//! it counts their characters, cuts them by place or compares them as a whole.
//!
//! [`Tokenizer::mark`]: crate::tokenizer::Tokenizer::mark

mod python;

use std::fmt;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, context};
use thiserror::Error as ThisError;
use zeroize::Zeroizing;

use crate::model::Role;

/// A compiled chat template.
pub(crate) struct Template {
    environment: Environment<'static>,
    source: Box<str>,
}

/// What a template is rendered with: contents are marked already.
pub(crate) struct Rendering<'a> {
    pub(crate) messages: &'a [(Role, Zeroizing<String>)],
    pub(crate) begin: &'a str,
    pub(crate) end: &'a str,
}

/// Why a chat template does not compile, or gives no prompt. Carries no text: a template could put the prompt there.
#[derive(Clone, Copy, Debug, ThisError, PartialEq, Eq)]
pub enum TemplateError {
    /// The template does not compile.
    #[error("the chat template does not compile: {problem} in line {line}")]
    Syntax {
        /// What kind of problem.
        problem: Problem,
        /// Where.
        line: usize,
    },
    /// The template ran out of fuel.
    #[error("the chat template takes too long")]
    Fuel,
    /// The template wrote more than a prompt may have.
    #[error("the chat template writes more than {MAX_RENDERED_BYTES} bytes")]
    TooLong,
    /// The template itself refuses the messages (`raise_exception`), for example because roles do not alternate.
    #[error("the chat template refuses these messages (line {line})")]
    Refused {
        /// Where.
        line: usize,
    },
    /// The template failed.
    #[error("the chat template fails: {problem} in line {line}")]
    Failed {
        /// What kind of problem.
        problem: Problem,
        /// Where.
        line: usize,
    },
}

/// A kind of problem, without any text of the template's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Problem(ErrorKind);

impl Template {
    pub(crate) fn compile(source: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_debug(false);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", python::tojson);
        environment.add_filter("trim", python::trim);
        environment.set_unknown_method_callback(python::method);
        // "trim_blocks=True, lstrip_blocks=True" is how Hugging Face transformers renders chat templates.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| failed(&error))?);
        let added = environment.add_template_owned(NAME, source.to_owned());
        added.map_err(|error| TemplateError::Syntax {
            problem: Problem(error.kind()),
            line: error.line().unwrap_or(0),
        })?;
        Ok(Self { environment, source: source.into() })
    }

    /// The text of the template.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    pub(crate) fn render(&self, rendering: &Rendering<'_>) -> Result<Zeroizing<String>, TemplateError> {
        let template = self.environment.get_template(NAME).map_err(|error| failed(&error))?;
        let message = |(role, content): &(Role, Zeroizing<String>)| {
            context! { role => role.name(), content => content.as_str() }
        };
        let context = context! {
            messages => Value::from_iter(rendering.messages.iter().map(message)),
            bos_token => rendering.begin,
            eos_token => rendering.end,
            add_generation_prompt => true,
            // There are none, and transformers says so: `is not none` holds for what is not defined at all.
            tools => (),
            documents => (),
        };
        let room = rendering.messages.iter().map(|(_, content)| 2 * content.len() + ROOM).sum();
        let mut rendered = Bounded { text: Zeroizing::new(Vec::with_capacity(room)), full: false };
        let outcome = template.render_captured_to(context, &mut rendered).map(|_| ());
        if rendered.full {
            return Err(TemplateError::TooLong);
        }
        outcome.map_err(|error| failed(&error))?;
        let text = std::str::from_utf8(&rendered.text).unwrap_or_default();
        Ok(Zeroizing::new(text.to_owned()))
    }
}

/// Collects what a template writes, up to the bound.
struct Bounded {
    text: Zeroizing<Vec<u8>>,
    full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > MAX_RENDERED_BYTES {
            self.full = true;
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn raise_exception(_message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, RAISED))
}

fn failed(error: &Error) -> TemplateError {
    let line = error.line().unwrap_or(0);
    match error.kind() {
        ErrorKind::OutOfFuel => TemplateError::Fuel,
        ErrorKind::InvalidOperation if error.detail() == Some(RAISED) => TemplateError::Refused { line },
        kind => TemplateError::Failed { problem: Problem(kind), line },
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

const NAME: &str = "chat";
const RAISED: &str = "raise_exception";
/// Instructions of the template engine: 256 messages take some 10,000 in the longest templates in circulation.
const FUEL: u64 = 1_000_000;
const MAX_RECURSION: usize = 32;
/// What a template writes around a message, in most cases.
const ROOM: usize = 256;
/// More than any context that the engine takes has room for.
pub(crate) const MAX_RENDERED_BYTES: usize = 16 << 20;
