//! Exit codes, and how a failure is told.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use sealing::writer::SealError;
use subrosa_client::answer::AnswerError;
use subrosa_client::aws::ConfigurationError;
use subrosa_client::client::{AskError, BuildError};
use subrosa_client::completion::CompletionError;
use subrosa_client::data_key::DataKeyError;
use subrosa_client::files::FileError;
use subrosa_client::image::file::FileError as ImageFileError;
use subrosa_client::sizing::model::ModelError;
use subrosa_client::transport::TransportError;

/// The kinds of failure that a script can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Everything else, an incomplete answer included.
    Other = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Somebody does not answer.
    Network = 3,
    /// Somebody says no: the parent, the enclave or KMS.
    Refused = 4,
    /// Attestation or measurement mismatch.
    Mismatch = 5,
    /// By Ctrl-C or SIGTERM: 128 + SIGINT, as shells have it.
    Interrupted = 130,
}

/// A failure, ready to be told.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, message: message.to_string() }
    }

    pub(crate) fn usage(message: impl Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub(crate) fn interrupted() -> Self {
        Self::new(Exit::Interrupted, "interrupted; what was printed so far is not the whole result")
    }

    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// One line on standard error, and the exit code.
    pub(crate) fn report(self) -> ExitCode {
        let Self { exit, message } = self;
        // Nothing can be done about a standard error that is closed.
        let _ = writeln!(io::stderr(), "subrosa: {message}");
        ExitCode::from(exit as u8)
    }
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Self {
        let exit = match &error {
            TransportError::Url { .. } => Exit::Usage,
            TransportError::Refused { .. } => Exit::Refused,
            TransportError::MediaType(_) | TransportError::Tls(_) => Exit::Other,
            TransportError::Connect { .. }
            | TransportError::TimedOut { .. }
            | TransportError::Cut(_)
            | TransportError::Protocol(_)
            | TransportError::TooLarge { .. } => Exit::Network,
        };
        Self::new(exit, error)
    }
}

impl From<DataKeyError> for Failure {
    fn from(error: DataKeyError) -> Self {
        let exit = match &error {
            DataKeyError::Refused { .. } => Exit::Refused,
            DataKeyError::Unreachable { .. } => Exit::Network,
            DataKeyError::Configuration { .. }
            | DataKeyError::Unexpected { .. }
            | DataKeyError::NoneOurs(_)
            | DataKeyError::Raw(_) => Exit::Other,
        };
        Self::new(exit, error)
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Key(error) => error.into(),
            error @ FileError::Seal(SealError::Context(_)) => Self::usage(format!("--context: {error}")),
            error => Self::new(Exit::Other, error),
        }
    }
}

impl From<ImageFileError> for Failure {
    fn from(error: ImageFileError) -> Self {
        Self::new(if error.is_about_signature() { Exit::Mismatch } else { Exit::Other }, error)
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        Self::new(Exit::Other, error)
    }
}

impl From<AnswerError> for Failure {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::Key(error) => error.into(),
            error @ AnswerError::Completion(CompletionError::Refused(_)) => Self::new(Exit::Refused, error),
            error => Self::new(Exit::Other, error),
        }
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Transport(error) => error.into(),
            AskError::Key(error) => error.into(),
            AskError::Answer(error) => error.into(),
            error @ (AskError::Evidence(_) | AskError::Appraisal(_) | AskError::OtherEnclave { .. }) => {
                Self::new(Exit::Mismatch, error)
            }
            error @ AskError::Request(_) => Self::usage(error),
            error @ AskError::Seal(_) => Self::new(Exit::Other, error),
        }
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Transport(error) => error.into(),
            error => Self::usage(error),
        }
    }
}

impl From<ConfigurationError> for Failure {
    fn from(error: ConfigurationError) -> Self {
        Self::usage(error)
    }
}
