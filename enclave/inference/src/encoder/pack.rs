//! What a model in the form of sentence-transformers says beside weights, hyperparameters and vocabulary.

use serde_json::{Map, Value};
use thiserror::Error;

/// How the states of a text's tokens become one embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean: MiniLM, E5.
    Mean,
    /// That of the first token: BGE.
    Cls,
}

/// Why the settings beside a model are refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PackError {
    /// More than any model's.
    #[error("{file} has {bytes} bytes; at most {MAX_BYTES} are accepted")]
    TooLong {
        /// Which file.
        file: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// Not the JSON that it should be.
    #[error("{file} is not {expected}")]
    Malformed {
        /// Which file.
        file: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// Another way to make an embedding.
    #[error("pooling by {0} is not supported; by \"mean\" and by \"cls\" are (1_Pooling/config.json)")]
    Pooling(String),
    /// Something is computed after the embedding that is not computed here.
    #[error("module {0} is not supported; Transformer, Pooling and Normalize are (modules.json)")]
    Module(String),
    /// The tokenizer does not do what is asked of it.
    #[error("sentence_bert_config.json asks for lower case, but the tokenizer keeps capitals")]
    LowerCase,
    /// No number of tokens.
    #[error("\"max_seq_length\" in sentence_bert_config.json is {0}; a number from 3 on is expected")]
    MaxTokens(String),
}

/// What `sentence_bert_config.json` says.
#[derive(Clone, Copy, Default)]
pub(super) struct Sentence {
    pub(super) max_tokens: Option<usize>,
    pub(super) lower_case: bool,
}

/// Reads `1_Pooling/config.json`, in its older form (a flag for each way) or its newer one.
pub(super) fn pooling(json: &[u8]) -> Result<Pooling, PackError> {
    let map = object("1_Pooling/config.json", json)?;
    let ways: Vec<&str> = match map.get("pooling_mode") {
        Some(Value::String(way)) => vec![way],
        Some(Value::Array(ways)) => ways.iter().map(|way| way.as_str().unwrap_or("something unnamed")).collect(),
        Some(_) => vec!["something unnamed"],
        None => {
            let flags = map.iter().filter(|(_, is_on)| *is_on == &Value::Bool(true));
            flags.filter_map(|(key, _)| key.strip_prefix("pooling_mode_")).collect()
        }
    };
    match ways.as_slice() {
        // As sentence-transformers.
        [] | ["mean" | "mean_tokens"] => Ok(Pooling::Mean),
        ["cls" | "cls_token"] => Ok(Pooling::Cls),
        others => Err(PackError::Pooling(shown(&others.join(" and ")))),
    }
}

/// Reads `sentence_bert_config.json`.
pub(super) fn sentence(json: &[u8]) -> Result<Sentence, PackError> {
    let map = object("sentence_bert_config.json", json)?;
    let max_tokens = match map.get("max_seq_length").filter(|value| !value.is_null()) {
        None => None,
        Some(value) => {
            let number = value.as_u64().and_then(|number| usize::try_from(number).ok()).filter(|&number| number >= 3);
            Some(number.ok_or_else(|| PackError::MaxTokens(shown(&value.to_string())))?)
        }
    };
    Ok(Sentence { max_tokens, lower_case: map.get("do_lower_case") == Some(&Value::Bool(true)) })
}

/// Looks whether `modules.json` lists what is computed here and nothing else.
pub(super) fn check_modules(json: &[u8]) -> Result<(), PackError> {
    let malformed =
        PackError::Malformed { file: "modules.json", expected: "a JSON array of modules, each with \"type\"" };
    let modules: Vec<Map<String, Value>> =
        serde_json::from_slice(bounded("modules.json", json)?).map_err(|_| malformed.clone())?;
    for module in &modules {
        let path = module.get("type").and_then(Value::as_str).ok_or_else(|| malformed.clone())?;
        let name = path.rsplit('.').next().unwrap_or(path);
        if !["Transformer", "Pooling", "Normalize"].contains(&name) {
            return Err(PackError::Module(shown(name)));
        }
    }
    Ok(())
}

fn object(file: &'static str, json: &[u8]) -> Result<Map<String, Value>, PackError> {
    serde_json::from_slice(bounded(file, json)?).map_err(|_| PackError::Malformed { file, expected: "a JSON object" })
}

fn bounded<'a>(file: &'static str, json: &'a [u8]) -> Result<&'a [u8], PackError> {
    if json.len() > MAX_BYTES { Err(PackError::TooLong { file, bytes: json.len() }) } else { Ok(json) }
}

/// For a message: what a stranger wrote may be long.
fn shown(text: &str) -> String {
    format!("\"{}\"", text.chars().take(60).collect::<String>())
}

/// They have a few hundred.
const MAX_BYTES: usize = 64 << 10;
