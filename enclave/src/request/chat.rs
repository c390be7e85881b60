//! The chat request of the OpenAI API: parsed once, valid afterwards.
//!
//! Members that we do not know are passed over, because clients send many that change nothing; what would change the
//! answer and is not done here (tools, several choices) is refused, and so are wrong types. The reasons
//! are fixed texts: nothing of the request is in them.

use inference::{MAX_BIASES, MAX_STOP_BYTES, MAX_STOPS, MAX_TOP_LOGPROBS, Role, Sampling};
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use zeroize::Zeroizing;

use super::form::{self, ResponseFormat, StructuredOutputs};

/// A valid chat request. No `Debug`: it holds a prompt.
pub(super) struct ChatRequest {
    pub(super) model: String,
    pub(super) messages: Vec<(Role, Zeroizing<String>)>,
    pub(super) sampling: Sampling,
    pub(super) max_tokens: Option<usize>,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    /// Requests of this tenant that give the same may use what was computed of a common beginning; none: nothing is kept.
    pub(super) cache_salt: Option<Zeroizing<String>>,
}

impl ChatRequest {
    /// Reads a body.
    pub(super) fn parse(body: &[u8]) -> Result<Self, &'static str> {
        let wire: Wire<'_> = serde_json::from_slice(body).map_err(|_| "the body is no chat request in JSON")?;
        let Wire {
            model,
            messages,
            max_tokens,
            max_completion_tokens,
            temperature,
            top_p,
            top_k,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            speculation,
            cache_salt,
            seed,
            stop,
            stream,
            stream_options,
            n,
            tools,
            functions,
            response_format,
            structured_outputs,
            guided_json,
            guided_regex,
            guided_choice,
            guided_grammar,
            grammar,
            logprobs,
            top_logprobs,
        } = wire;
        if messages.is_empty() {
            return Err("messages must not be empty");
        }
        if n.is_some_and(|n| n != 1) {
            return Err("n must be 1");
        }
        if tools.is_some_and(|tools| !tools.is_empty()) || functions.is_some_and(|functions| !functions.is_empty()) {
            return Err("tools are not supported");
        }
        if [guided_json, guided_regex, guided_choice, guided_grammar, grammar].iter().any(Option::is_some) {
            return Err("a form of the answer goes to response_format, a grammar to structured_outputs.grammar");
        }
        let cache_salt = cache_salt.map(|Text(salt)| salt);
        if cache_salt.as_ref().is_some_and(|salt| salt.is_empty() || salt.len() > MAX_SALT_BYTES) {
            return Err("cache_salt must be a text of 1 to 256 bytes");
        }
        let logprobs = match (logprobs, top_logprobs) {
            (Some(true), None) => Some(0),
            (Some(true), Some(top)) if top <= MAX_TOP_LOGPROBS as u64 => usize::try_from(top).ok(),
            (_, None | Some(0)) => None,
            (Some(true), Some(_)) => return Err("top_logprobs must lie between 0 and 20"),
            (_, Some(_)) => return Err("top_logprobs are given with logprobs alone"),
        };
        let stream = stream.unwrap_or(false);
        let max_tokens = match max_completion_tokens.or(max_tokens) {
            None => None,
            Some(0) => return Err("max_tokens must be at least 1"),
            Some(tokens) => Some(usize::try_from(tokens).unwrap_or(usize::MAX)),
        };
        Ok(Self {
            model,
            messages: messages.into_iter().map(|message| (message.role.into(), message.content.0)).collect(),
            sampling: Sampling {
                top_k: top_k.map_or(0, |tokens| usize::try_from(tokens).unwrap_or(usize::MAX)),
                min_p: within(min_p, 0.0, 0.0, 1.0, "min_p must lie between 0 and 1")?,
                repetition_penalty: within(
                    repetition_penalty,
                    1.0,
                    0.01,
                    100.0,
                    "repetition_penalty must lie between 0.01 and 100",
                )?,
                presence_penalty: within(
                    presence_penalty,
                    0.0,
                    -2.0,
                    2.0,
                    "presence_penalty must lie between -2 and 2",
                )?,
                frequency_penalty: within(
                    frequency_penalty,
                    0.0,
                    -2.0,
                    2.0,
                    "frequency_penalty must lie between -2 and 2",
                )?,
                logit_bias: biases(logit_bias.unwrap_or_default())?,
                speculate: speculation.unwrap_or(false),
                logprobs,
                form: form::read(response_format, structured_outputs)?,
                ..sampling(temperature, top_p, seed, stop)?
            },
            max_tokens,
            stream,
            include_usage: stream && stream_options.is_some_and(|options| options.include_usage == Some(true)),
            cache_salt,
        })
    }
}

fn sampling(
    temperature: Option<f64>,
    top_p: Option<f64>,
    seed: Option<i64>,
    stop: Option<Stop>,
) -> Result<Sampling, &'static str> {
    let temperature = temperature.unwrap_or(1.0);
    if !(0.0..=2.0).contains(&temperature) {
        return Err("temperature must lie between 0 and 2");
    }
    let top_p = top_p.unwrap_or(1.0);
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err("top_p must be above 0 and at most 1");
    }
    let stops = match stop {
        None => Vec::new(),
        Some(Stop(stops)) => stops,
    };
    if stops.len() > MAX_STOPS || stops.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
        return Err("stop must be a few short texts");
    }
    let seed = match seed {
        Some(seed) => u64::from_le_bytes(seed.to_le_bytes()),
        None => random_seed()?,
    };
    #[expect(clippy::cast_possible_truncation, reason = "both lie between 0 and 2")]
    let (temperature, top_p) = (temperature as f32, (top_p as f32).max(f32::MIN_POSITIVE));
    Ok(Sampling { temperature, top_p, seed, stops, ..Sampling::greedy() })
}

fn within(given: Option<f64>, default: f32, least: f64, most: f64, wrong: &'static str) -> Result<f32, &'static str> {
    match given {
        None => Ok(default),
        #[expect(clippy::cast_possible_truncation, reason = "the bounds are small")]
        Some(number) if (least..=most).contains(&number) => Ok(number as f32),
        Some(_) => Err(wrong),
    }
}

/// "Maps tokens (specified by their token ID in the tokenizer) to an associated bias value from -100 to 100" (OpenAI API reference).
fn biases(given: BTreeMap<String, f64>) -> Result<Vec<(u32, f32)>, &'static str> {
    const WRONG: &str = "logit_bias must map token ids to numbers from -100 to 100";
    if given.len() > MAX_BIASES {
        return Err(WRONG);
    }
    let one = |(id, bias): (String, f64)| {
        let token: u32 = id.parse().map_err(|_| WRONG)?;
        // "007" beside "7" would be the same token twice.
        if token.to_string() != id {
            return Err(WRONG);
        }
        Ok((token, within(Some(bias), 0.0, -100.0, 100.0, WRONG)?))
    };
    given.into_iter().map(one).collect()
}

/// Who gives no seed wants another answer each time.
fn random_seed() -> Result<u64, &'static str> {
    let mut seed = [0; 8];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut seed)
        .map_err(|_| "there is no randomness")?;
    Ok(u64::from_le_bytes(seed))
}

/// Long enough for 256 random bits in any encoding.
const MAX_SALT_BYTES: usize = 256;

#[derive(Deserialize)]
struct Wire<'a> {
    model: String,
    messages: Vec<WireMessage>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<u64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    logit_bias: Option<BTreeMap<String, f64>>,
    /// Ours: whether the pace of the answer may show how far it copies its prompt.
    speculation: Option<bool>,
    /// As vLLM names it: keys and values of a common beginning are shared by requests that give the same.
    cache_salt: Option<Text>,
    seed: Option<i64>,
    stop: Option<Stop>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<u64>,
    tools: Option<Vec<IgnoredAny>>,
    functions: Option<Vec<IgnoredAny>>,
    #[serde(borrow)]
    response_format: Option<ResponseFormat<'a>>,
    structured_outputs: Option<StructuredOutputs>,
    /// What other servers take for a form.
    guided_json: Option<IgnoredAny>,
    guided_regex: Option<IgnoredAny>,
    guided_choice: Option<IgnoredAny>,
    guided_grammar: Option<IgnoredAny>,
    grammar: Option<IgnoredAny>,
    logprobs: Option<bool>,
    top_logprobs: Option<u64>,
}

#[derive(Deserialize)]
struct WireMessage {
    role: WireRole,
    content: Content,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum WireRole {
    System,
    /// The newer name of `system`.
    Developer,
    User,
    Assistant,
}

impl From<WireRole> for Role {
    fn from(role: WireRole) -> Self {
        match role {
            WireRole::System | WireRole::Developer => Self::System,
            WireRole::User => Self::User,
            WireRole::Assistant => Self::Assistant,
        }
    }
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// A text, or an array of text parts, which is their concatenation. Wiped.
struct Content(Zeroizing<String>);

/// One text or several. Wiped.
struct Stop(Vec<Zeroizing<String>>);

/// A text that is copied once, into memory that is wiped.
pub(super) struct Text(pub(super) Zeroizing<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneText;
        impl Visitor<'_> for OneText {
            type Value = Text;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text(Zeroizing::new(text.to_owned())))
            }
        }
        deserializer.deserialize_str(OneText)
    }
}

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<Text>,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrParts;
        impl<'de> Visitor<'de> for TextOrParts {
            type Value = Content;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a text or an array of text parts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content(Zeroizing::new(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Content, A::Error> {
                let mut texts = Vec::new();
                while let Some(Part { kind, text }) = parts.next_element()? {
                    match text {
                        Some(Text(text)) if kind == "text" => texts.push(text),
                        _ => return Err(de::Error::custom("only text parts are supported")),
                    }
                }
                // Reserved at once: a buffer that grows would leave copies behind.
                let mut whole = Zeroizing::new(String::with_capacity(texts.iter().map(|text| text.len()).sum()));
                texts.iter().for_each(|text| whole.push_str(text));
                Ok(Content(whole))
            }
        }
        deserializer.deserialize_any(TextOrParts)
    }
}

impl<'de> Deserialize<'de> for Stop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrSeveral;
        impl<'de> Visitor<'de> for OneOrSeveral {
            type Value = Stop;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a text or an array of texts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Stop, E> {
                Ok(Stop(vec![Zeroizing::new(text.to_owned())]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut texts: A) -> Result<Stop, A::Error> {
                let mut stops = Vec::new();
                while let Some(Text(text)) = texts.next_element()? {
                    stops.push(text);
                }
                Ok(Stop(stops))
            }
        }
        deserializer.deserialize_any(OneOrSeveral)
    }
}

#[cfg(test)]
mod tests {
    use inference::Form;

    use super::*;

    fn parse(members: &str) -> Result<ChatRequest, &'static str> {
        ChatRequest::parse(
            format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}]{members}}}"#).as_bytes(),
        )
    }

    #[test]
    fn what_openai_clients_send_is_read() {
        let request = parse(
            r#","max_tokens":5,"max_completion_tokens":7,"temperature":0,"top_p":0.5,"seed":-1,"stop":["a","b"],
            "stream":true,"stream_options":{"include_usage":true},"user":"u","metadata":{"a":1},"tools":[],"n":1,
            "response_format":{"type":"text"},"logprobs":false,"parallel_tool_calls":true"#,
        )
        .unwrap();
        assert_eq!(request.model, "m");
        assert_eq!(request.max_tokens, Some(7));
        assert!(request.stream && request.include_usage);
        assert_eq!(request.sampling.seed, u64::MAX);
        assert_eq!(request.sampling.stops.len(), 2);
        assert!(request.sampling.temperature.abs() < f32::EPSILON);
    }

    #[test]
    fn what_chooses_tokens_is_read() {
        let request = parse(
            r#","top_k":40,"min_p":0.05,"repetition_penalty":1.1,"presence_penalty":-2,"frequency_penalty":0.5,
            "logit_bias":{"7":-100,"50256":3},"speculation":true"#,
        );
        let sampling = request.unwrap().sampling;
        assert_eq!((sampling.top_k, sampling.min_p, sampling.repetition_penalty), (40, 0.05, 1.1));
        assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (-2.0, 0.5));
        assert_eq!(sampling.logit_bias, [(50256, 3.0), (7, -100.0)]);
        assert!(sampling.speculate && !parse("").unwrap().sampling.speculate);
    }

    #[test]
    fn nothing_is_kept_of_a_prompt_unless_the_request_gives_a_salt() {
        let salt = |members| parse(members).unwrap().cache_salt;
        assert!(salt("").is_none() && salt(r#","cache_salt":null"#).is_none());
        assert!(salt(r#","prompt_cache_key":"k","user":"u""#).is_none(), "what clients send unasked turns nothing on");
        assert_eq!(*salt(r#","cache_salt":"aä""#).unwrap(), "a\u{e4}");
    }

    #[test]
    fn forms_and_log_probabilities_are_read() {
        let form = |members: &str| parse(members).unwrap().sampling.form;
        let schema = r#","response_format":{"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":{ "a":[1] }}}"#;
        assert!(matches!(form(schema), Some(Form::JsonSchema(text)) if text.as_str() == r#"{ "a":[1] }"#));
        assert!(matches!(form(r#","response_format":{"type":"json_object"}"#), Some(Form::JsonObject)));
        let grammar = r#","structured_outputs":{"grammar":"start: \"a\"","json":null}"#;
        assert!(matches!(form(grammar), Some(Form::Grammar(text)) if text.as_str() == r#"start: "a""#));
        assert!(form(r#","response_format":{"type":"text"},"structured_outputs":null,"guided_json":null"#).is_none());
        let logprobs = |members: &str| parse(members).unwrap().sampling.logprobs;
        assert_eq!(logprobs(""), None);
        assert_eq!(logprobs(r#","logprobs":false,"top_logprobs":0"#), None);
        assert_eq!(logprobs(r#","logprobs":true"#), Some(0));
        assert_eq!(logprobs(r#","logprobs":true,"top_logprobs":20"#), Some(20));
    }

    #[test]
    fn nulls_stand_for_absent_members() {
        let request = parse(r#","max_tokens":null,"stop":null,"stream":null,"temperature":null,"tools":null"#).unwrap();
        assert!(request.max_tokens.is_none() && !request.stream && request.sampling.stops.is_empty());
    }

    #[test]
    fn content_may_be_text_parts_and_roles_are_four() {
        let body = br#"{"model":"m","messages":[{"role":"developer","content":"a"},{"role":"assistant","content":"b"},
            {"role":"user","content":[{"type":"text","text":"c"},{"type":"text","text":"\u00e4\n"}],"name":"x"}]}"#;
        let messages = ChatRequest::parse(body).ok().unwrap().messages;
        let texts: Vec<_> = messages.iter().map(|(role, text)| (*role, text.as_str())).collect();
        assert_eq!(texts, [(Role::System, "a"), (Role::Assistant, "b"), (Role::User, "c\u{e4}\n")]);
    }

    #[test]
    fn wrong_types_and_what_would_change_the_answer_are_refused() {
        for members in [
            r#","stream":"yes""#,
            r#","max_tokens":"5""#,
            r#","max_tokens":0"#,
            r#","max_tokens":-1"#,
            r#","temperature":2.1"#,
            r#","temperature":"hot""#,
            r#","top_p":0"#,
            r#","min_p":1.5"#,
            r#","top_k":-1"#,
            r#","presence_penalty":2.5"#,
            r#","frequency_penalty":-3"#,
            r#","repetition_penalty":0"#,
            r#","logit_bias":{"1":101}"#,
            r#","logit_bias":{"one":1}"#,
            r#","logit_bias":{"07":1}"#,
            r#","speculation":"yes""#,
            r#","cache_salt":"""#,
            r#","cache_salt":true"#,
            &format!(r#","cache_salt":"{}""#, "s".repeat(257)),
            r#","stop":[1]"#,
            r#","stop":["a","b","c","d","e"]"#,
            r#","stop":"""#,
            r#","n":2"#,
            r#","tools":[{"type":"function"}]"#,
            r#","response_format":{"type":"xml"}"#,
            r#","response_format":{"type":"json_schema"}"#,
            r#","response_format":{"type":"json_schema","json_schema":{"name":"n"}}"#,
            r#","response_format":{"type":"json_object","schema":{}}"#,
            r#","response_format":{"type":"text","json_schema":{"schema":{}}}"#,
            r#","response_format":{"type":"json_object"},"structured_outputs":{"grammar":"g"}"#,
            r#","structured_outputs":{"grammar":5}"#,
            r#","structured_outputs":{"regex":"a"}"#,
            r#","guided_json":{}"#,
            r#","grammar":"root ::= x""#,
            r#","logprobs":1"#,
            r#","logprobs":true,"top_logprobs":21"#,
            r#","logprobs":true,"top_logprobs":-1"#,
            r#","top_logprobs":2"#,
            r#","model":"twice""#,
        ] {
            assert!(parse(members).is_err(), "{members}");
        }
        for body in [
            r#"{"model":"m","messages":[]}"#,
            r#"{"model":"m"}"#,
            r#"{"model":"m","messages":[{"role":"user"}]}"#,
            r#"{"model":"m","messages":[{"role":"tool","content":"x"}]}"#,
            r#"{"model":"m","messages":[{"role":"user","content":5}]}"#,
            r#"{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]}"#,
            r#"[]"#,
            "",
            "{",
        ] {
            assert!(ChatRequest::parse(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn no_refusal_quotes_the_request() {
        let secret = r#","stream":"a very secret prompt""#;
        let Err(reason) = parse(secret) else { panic!("refused") };
        assert!(!reason.contains("secret"));
    }

    #[test]
    fn without_a_seed_there_is_a_fresh_one() {
        assert_ne!(parse("").ok().unwrap().sampling.seed, parse("").ok().unwrap().sampling.seed);
    }
}
