//! The body of an opened answer, in OpenAI form: Server-Sent Events as they come, or one JSON object at the end.
//!
//! Everything here has been authenticated before it arrives; the bounds guard against a wrong model, not against the parent.

use serde::{Deserialize, Serialize};

use crate::key_policy::KeyPolicyVerdict;

/// Tokens that a request cost, counted by the enclave.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Of the prompt.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Of the answer.
    #[serde(default)]
    pub completion_tokens: u64,
    /// Both.
    #[serde(default)]
    pub total_tokens: u64,
}

/// What is known of the completion besides its text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) model: Option<String>,
    pub(crate) finish_reason: Option<String>,
    pub(crate) usage: Option<Usage>,
}

/// Reads a body piece by piece.
#[derive(Debug)]
pub(crate) enum Reader {
    Events(Events),
    Object(Vec<u8>),
}

#[derive(Debug, Default)]
pub(crate) struct Events {
    line: Vec<u8>,
    data: Vec<u8>,
    summary: Summary,
    done: bool,
}

impl Reader {
    /// A reader for the body that a media type announces.
    pub(crate) fn of(media_type: &str) -> Result<Self, CompletionError> {
        match media_type.split(';').next().unwrap_or_default().trim() {
            "text/event-stream" => Ok(Self::Events(Events::default())),
            "application/json" => Ok(Self::Object(Vec::new())),
            other => Err(CompletionError::MediaType(other.chars().take(60).collect())),
        }
    }

    /// Takes bytes and appends the text they bring to `pieces`.
    pub(crate) fn push(&mut self, bytes: &[u8], pieces: &mut Vec<String>) -> Result<(), CompletionError> {
        match self {
            Self::Events(events) => events.push(bytes, pieces),
            Self::Object(body) => {
                if body.len().saturating_add(bytes.len()) > MAX_OBJECT {
                    return Err(CompletionError::TooLarge { limit: MAX_OBJECT });
                }
                body.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// Ends the body: only a whole one has a summary.
    pub(crate) fn finish(self, pieces: &mut Vec<String>) -> Result<Summary, CompletionError> {
        match self {
            Self::Events(events) => events.finish(),
            Self::Object(body) => read_object(&body, pieces),
        }
    }
}

/// A refusal that was sealed inside an answer: the enclave's own word.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, thiserror::Error)]
#[error("the enclave refused the request: `{code}`: {message}")]
pub struct SealedRefusal {
    /// The code of docs/PROTOCOL.md section 8.
    pub code: String,
    /// For people.
    pub message: String,
}

impl SealedRefusal {
    /// With what the enclave saw of the key's policy, where that is what it refuses for.
    pub(crate) fn about(mut self, key_policy: Option<&str>) -> Self {
        if let (KEY_POLICY_OPEN, Some(verdict)) = (self.code.as_str(), key_policy) {
            self.message = format!("{}: {}", self.message, KeyPolicyVerdict::read(verdict).to_line());
        }
        self
    }

    /// Reads `{"error":{"code","message"}}`, with what could steer a terminal taken out.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Body {
            error: SealedRefusal,
        }
        serde_json::from_slice::<Body>(body).ok().map(|body| body.error.printable())
    }

    fn printable(self) -> Self {
        let clean =
            |text: &str, limit: usize| text.chars().filter(|character| !character.is_control()).take(limit).collect();
        Self { code: clean(&self.code, 40), message: clean(&self.message, 500) }
    }
}

/// Why an opened answer is not a completion.
#[derive(Debug, thiserror::Error)]
pub enum CompletionError {
    /// Neither events nor JSON.
    #[error("the opened answer has the media type `{0}`, which this client does not read")]
    MediaType(String),
    /// The content does not parse.
    #[error("the opened answer is not a chat completion ({0})")]
    Malformed(String),
    /// More than the limit.
    #[error("a part of the opened answer is longer than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// The message ended, the completion had not.
    #[error("the enclave ended the answer before the completion was whole")]
    Unfinished,
    /// The enclave refused, perhaps in the middle.
    #[error(transparent)]
    Refused(#[from] SealedRefusal),
}

impl Events {
    fn push(&mut self, bytes: &[u8], pieces: &mut Vec<String>) -> Result<(), CompletionError> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len().saturating_add(part.len()) > MAX_LINE {
                return Err(CompletionError::TooLarge { limit: MAX_LINE });
            }
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                let line = line.strip_suffix(b"\n").unwrap_or(&line);
                self.take_line(line.strip_suffix(b"\r").unwrap_or(line), pieces)?;
            }
        }
        Ok(())
    }

    /// HTML Living Standard 9.2.6: an empty line dispatches the event, a line that begins with a colon is a comment
    /// (our padding), `data` lines are joined by a line feed.
    fn take_line(&mut self, line: &[u8], pieces: &mut Vec<String>) -> Result<(), CompletionError> {
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            return if data.is_empty() { Ok(()) } else { self.event(&data, pieces) };
        }
        if let Some(value) = line.strip_prefix(b"data:") {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            if self.data.len().saturating_add(value.len()) > MAX_LINE {
                return Err(CompletionError::TooLarge { limit: MAX_LINE });
            }
            if !self.data.is_empty() {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value);
        }
        Ok(())
    }

    fn event(&mut self, data: &[u8], pieces: &mut Vec<String>) -> Result<(), CompletionError> {
        if self.done {
            return Err(CompletionError::Malformed("an event after [DONE]".to_owned()));
        }
        if data == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        let Chunk { model, choices, usage, error } = parse(data)?;
        if let Some(refusal) = error {
            return Err(refusal.printable().into());
        }
        self.summary.model = model.or(self.summary.model.take());
        self.summary.usage = usage.or(self.summary.usage);
        for Choice { delta, message, finish_reason } in choices {
            self.summary.finish_reason = finish_reason.or(self.summary.finish_reason.take());
            let text = delta.or(message).and_then(|content| content.content).unwrap_or_default();
            if !text.is_empty() {
                pieces.push(text);
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Summary, CompletionError> {
        let Self { line, data, summary, done } = self;
        let rest_is_padding = data.is_empty() && (line.is_empty() || line.starts_with(b":"));
        if done && rest_is_padding { Ok(summary) } else { Err(CompletionError::Unfinished) }
    }
}

fn read_object(body: &[u8], pieces: &mut Vec<String>) -> Result<Summary, CompletionError> {
    let Chunk { model, choices, usage, error } = parse(body)?;
    if let Some(refusal) = error {
        return Err(refusal.printable().into());
    }
    let mut summary = Summary { model, finish_reason: None, usage };
    for Choice { delta, message, finish_reason } in choices {
        summary.finish_reason = finish_reason.or(summary.finish_reason.take());
        pieces.extend(message.or(delta).and_then(|content| content.content));
    }
    Ok(summary)
}

fn parse(json: &[u8]) -> Result<Chunk, CompletionError> {
    // The position only: serde's own words may quote the answer.
    serde_json::from_slice(json)
        .map_err(|error| CompletionError::Malformed(format!("JSON, line {}, column {}", error.line(), error.column())))
}

/// A chunk of a stream, or a whole completion: both have these members (OpenAI API reference, chat completions).
#[derive(Deserialize)]
struct Chunk {
    model: Option<String>,
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<SealedRefusal>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Option<Content>,
    message: Option<Content>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Content {
    content: Option<String>,
}

/// docs/PROTOCOL.md, section 8.
const KEY_POLICY_OPEN: &str = "key-policy-open";
/// One event: far above one token with its frame of padding.
const MAX_LINE: usize = 256 * 1024;
/// A whole completion as one object.
const MAX_OBJECT: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn events(body: &[u8], cut: usize) -> Result<(String, Summary), CompletionError> {
        let (mut reader, mut pieces) = (Reader::of("text/event-stream; charset=utf-8")?, Vec::new());
        for part in body.chunks(cut) {
            reader.push(part, &mut pieces)?;
        }
        let summary = reader.finish(&mut pieces)?;
        Ok((pieces.concat(), summary))
    }

    const STREAM: &[u8] = b"data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"Gr\xc3\xbc\"}}]}\n\n:    \n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"\xc3\x9fe\"},\"finish_reason\":null}]}\r\n\r\n\
        data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5}}\n\n\
        data: [DONE]\n\n:      \n";

    #[test]
    fn a_stream_reads_the_same_however_it_is_cut() {
        for cut in 1..STREAM.len() {
            let (text, summary) = events(STREAM, cut).unwrap();
            assert_eq!(text, "Grüße", "cut at {cut}");
            assert_eq!(summary.finish_reason.as_deref(), Some("stop"));
            assert_eq!(summary.usage.unwrap().total_tokens, 5);
        }
    }

    #[test]
    fn a_stream_without_done_is_unfinished() {
        let cut = STREAM.len() - 20;
        assert!(matches!(events(&STREAM[..cut], 7), Err(CompletionError::Unfinished)));
    }

    #[test]
    fn an_event_after_done_is_refused() {
        let more = [STREAM, b"\ndata: {\"choices\":[]}\n\n"].concat();
        assert!(matches!(events(&more, 64), Err(CompletionError::Malformed(_))));
    }

    #[test]
    fn an_error_in_the_middle_is_the_enclaves_refusal() {
        let body = b"data: {\"error\":{\"code\":\"timeout\",\"message\":\"too\\u001b slow\"}}\n\n";
        let Err(CompletionError::Refused(refusal)) = events(body, 9) else { panic!("not refused") };
        assert_eq!(refusal, SealedRefusal { code: "timeout".into(), message: "too slow".into() });
    }

    #[test]
    fn an_object_is_read_at_its_end_with_trailing_white_space() {
        let (mut reader, mut pieces) = (Reader::of("application/json").unwrap(), Vec::new());
        let body =
            br#"{"choices":[{"message":{"content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}     "#;
        reader.push(body, &mut pieces).unwrap();
        assert!(pieces.is_empty());
        reader.finish(&mut pieces).unwrap();
        assert_eq!(pieces, ["hello"]);
    }

    #[test]
    fn a_line_without_end_is_bounded() {
        let long = vec![b'x'; MAX_LINE + 1];
        assert!(matches!(events(&long, 4096), Err(CompletionError::TooLarge { .. })));
    }

    #[test]
    fn malformed_json_is_refused_without_quoting_it() {
        let error =
            events(b"data: {\"choices\":[{\"delta\":{\"content\":\"SECRET\" oops}\n\n", 100).unwrap_err().to_string();
        assert!(!error.contains("SECRET"), "{error}");
    }
}
