//! Log-probabilities as the OpenAI API writes them: `choices[].logprobs.content[]`.

use inference::{Model, TokenLogprobs};
use sealing::SecretBytes;
use serde::Serialize;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

/// `logprobs` of a choice.
#[derive(Serialize)]
pub(super) struct Logprobs<'a> {
    content: &'a RawValue,
    refusal: Option<()>,
}

/// The entries of an answer, or of a part of it, as a JSON array in the making. Wiped.
pub(super) struct Entries {
    json: SecretBytes,
    count: usize,
}

impl Entries {
    pub(super) fn new() -> Self {
        Self { json: SecretBytes::from_vec(b"[".to_vec()), count: 0 }
    }

    /// `None` if one cannot be written as JSON.
    pub(super) fn extend(&mut self, model: &Model, tokens: &[TokenLogprobs]) -> Option<()> {
        for TokenLogprobs { id, logprob, top } in tokens {
            let bytes = model.token_bytes(*id);
            let others: Vec<_> = top.iter().map(|(id, logprob)| (model.token_bytes(*id), *logprob)).collect();
            let entry = Entry {
                token: Likely::new(&bytes, *logprob),
                top_logprobs: others.iter().map(|(bytes, logprob)| Likely::new(bytes, *logprob)).collect(),
            };
            let entry = Zeroizing::new(serde_json::to_vec(&entry).ok()?);
            if self.count > 0 {
                self.json.extend(b",");
            }
            self.json.extend(&entry);
            self.count += 1;
        }
        Some(())
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Ends the array.
    pub(super) fn finish(&mut self) -> Option<Logprobs<'_>> {
        self.json.extend(b"]");
        let content = serde_json::from_slice(self.json.as_bytes()).ok()?;
        Some(Logprobs { content, refusal: None })
    }

    pub(super) fn len(&self) -> usize {
        self.json.len()
    }
}

/// Bytes that entries of `top` alternatives take, but for rare ones. What is sealed is padded to so much for each token, so that
/// its size does not show how long the tokens are.
pub(super) fn room(top: usize) -> usize {
    top.saturating_mul(ROOM)
}

#[derive(Serialize)]
struct Entry<'a> {
    #[serde(flatten)]
    token: Likely<'a>,
    top_logprobs: Vec<Likely<'a>>,
}

#[derive(Serialize)]
struct Likely<'a> {
    token: std::borrow::Cow<'a, str>,
    logprob: f32,
    bytes: &'a [u8],
}

impl<'a> Likely<'a> {
    fn new(bytes: &'a [u8], logprob: f32) -> Self {
        // "Otherwise, the value -9999.0 is used to signify that the token is very unlikely" (OpenAI API reference).
        let logprob = if logprob.is_finite() { logprob.max(UNLIKELY) } else { UNLIKELY };
        Self { token: String::from_utf8_lossy(bytes), logprob, bytes }
    }
}

/// Bytes of the entries of one document; a stream may have any number.
pub(super) const MAX_ENTRIES_BYTES: usize = 4 << 20;
const UNLIKELY: f32 = -9999.0;
/// `{"token":"","logprob":-12.345678,"bytes":[]},` has 45; five for each byte of a token.
const ROOM: usize = 96;
