//! Answers of a given form: by schemas that another crate reads, by grammars, and together with everything else that chooses tokens.
//! The models are random: what makes their answers valid is the constraint alone.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "in a test, the first thing that is wrong ends it"
)]

#[path = "making/mod.rs"]
mod making;

use std::ops::ControlFlow;

use inference::{Cancel, ConstraintError, FinishReason, Form, GenerateError, LoadOptions, Model, Sampling, Token};
use making::{Gguf, Meta, Shape, random_model};
use serde_json::Value;
use zeroize::Zeroizing;

const SHAPE: Shape = Shape { context: 2048, layers: 1, ..Shape::TINY };

fn load(file: &Gguf) -> Model {
    Model::load(&file.to_bytes(), &LoadOptions { threads: 2 }).unwrap()
}

/// Byte-level BPE, where every byte is a token.
fn bpe() -> Model {
    load(&random_model(&SHAPE, 1))
}

/// SentencePiece: some pieces, some of them also there as bytes; bytes for the rest; an end of another name.
fn sentence_pieces() -> Model {
    let mut file = random_model(&SHAPE, 2);
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>")));
    let mut types = vec![2, 3, 3];
    types.extend([6; 256]);
    let pieces =
        ["\u{2581}", "\"", "\":", "\u{2581}\"", "{\"", "\"}", "}", ",", "a", "ab", "\u{e9}", "1", "12", "true", "null"];
    tokens.extend(pieces.map(str::to_owned));
    types.extend([1; 15]);
    tokens.resize_with(300, || "unused".to_owned());
    types.resize(300, 5);
    let scores = (0..300).map(|id| -(id as f32)).collect();
    for (key, value) in [
        ("model", Meta::Text("llama".to_owned())),
        ("tokens", Meta::Texts(tokens)),
        ("token_type", Meta::Numbers(types)),
        ("scores", Meta::Floats(scores)),
        ("bos_token_id", Meta::Number(1)),
        ("eos_token_id", Meta::Number(2)),
    ] {
        file.set(&format!("tokenizer.ggml.{key}"), value);
    }
    file.remove("tokenizer.ggml.merges");
    load(&file)
}

struct Answer {
    text: String,
    ids: Vec<u32>,
    end: Result<FinishReason, GenerateError>,
}

fn answer(model: &Model, sampling: &Sampling, max_tokens: usize) -> Answer {
    let prompt = model.prompt_of_tokens(&(0..30).map(|id| 40 + id % 9).collect::<Vec<u32>>()).unwrap();
    let (mut text, mut ids) = (String::new(), Vec::new());
    let mut take = |token: Token<'_>| {
        text.push_str(token.text);
        ids.truncate(token.count - 1);
        ids.push(token.id);
        ControlFlow::Continue(())
    };
    let finished = model.generate(&prompt, sampling, max_tokens, &Cancel::new(), &mut take);
    Answer { text, ids, end: finished.map(|finished| finished.reason) }
}

fn by_schema(text: &str) -> Form {
    Form::JsonSchema(Zeroizing::new(text.to_owned()))
}

fn by_grammar(text: &str) -> Form {
    Form::Grammar(Zeroizing::new(text.to_owned()))
}

fn sampled(seed: u64, form: Option<Form>) -> Sampling {
    Sampling { temperature: 1.0, seed, form, ..Sampling::greedy() }
}

/// What clients send: the kinds of schema that their libraries write.
const SCHEMAS: [&str; 14] = [
    r#"{"type":"object","properties":{"name":{"type":"string","maxLength":5},"age":{"type":"integer","minimum":0,"maximum":130}},
        "required":["name","age"],"additionalProperties":false}"#,
    r##"{"$ref":"#/$defs/Node","$defs":{"Node":{"type":"object","properties":{"value":{"type":"integer","minimum":-5,"maximum":5},
        "next":{"anyOf":[{"$ref":"#/$defs/Node"},{"type":"null"}]}},"required":["value","next"],"additionalProperties":false}}}"##,
    r#"{"anyOf":[{"type":"string","minLength":2,"maxLength":4},{"type":"null"},{"type":"boolean"}]}"#,
    r#"{"type":"number","minimum":-1.5,"maximum":2.25}"#,
    r#"{"type":"number","exclusiveMinimum":0,"exclusiveMaximum":1}"#,
    r#"{"type":"integer","exclusiveMinimum":9,"maximum":1200,"multipleOf":5}"#,
    r#"{"type":"string","minLength":3,"maxLength":3}"#,
    r#"{"type":"array","minItems":2,"maxItems":3,"items":{"type":"array","maxItems":2,"items":{"enum":["a","b\"\\","\u00e9\n",1,2.5,null,true,[1],{"k":"v"}]}}}"#,
    r#"{"const":{"a":[1,"x",null],"b":{"c":false}}}"#,
    r#"{"type":"array","prefixItems":[{"type":"boolean"},{"const":7}],"minItems":2,"items":false}"#,
    r#"{"type":["object","null"],"properties":{"a":{"type":"boolean"}},"required":["a","b"],"additionalProperties":{"type":"integer","minimum":0,"maximum":9},"maxProperties":3}"#,
    r#"{"type":"string","pattern":"^[a-f]{2,4}-[0-9]+$","maxLength":9}"#,
    r#"{"type":"string","format":"date"}"#,
    r#"{"oneOf":[{"type":"object","properties":{"kind":{"const":"x"}},"required":["kind"],"additionalProperties":false},
        {"type":"object","properties":{"kind":{"const":"y"},"n":{"type":"integer","maximum":3,"minimum":1}},"required":["kind","n"],"additionalProperties":false}]}"#,
];

#[test]
fn an_answer_that_ended_is_valid_by_its_schema_for_any_vocabulary_seed_and_temperature() {
    for (model, quote) in [(bpe(), 4 + u32::from(b'"')), (sentence_pieces(), 260)] {
        for schema in SCHEMAS {
            let oracle = jsonschema::validator_for(&serde_json::from_str(schema).unwrap()).unwrap();
            let form = Some(by_schema(schema));
            let mut ended = 0;
            for seed in 0..40 {
                let temperature = if seed % 2 == 0 { 1.0 } else { 2.0 };
                // Somewhat more strings that end than one token of three hundred brings about.
                let logit_bias = vec![(quote, 2.0)];
                let sampling = Sampling { temperature, logit_bias, ..sampled(seed, form.clone()) };
                let Answer { text, ids, end } = answer(&model, &sampling, 300);
                match end.unwrap() {
                    FinishReason::End => ended += 1,
                    FinishReason::Length => {
                        assert_eq!(ids.len(), 300);
                        continue;
                    }
                    other => panic!("{other:?}"),
                }
                let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                assert!(oracle.is_valid(&value), "{schema}: {text}");
            }
            assert!(ended > 20, "{ended} of 40 by {schema}");
        }
    }
}

/// As a client's schema has it where nothing forbids what it does not name: names are free but for those that are taken, however
/// they are spelt.
#[test]
fn what_a_schema_does_not_name_does_not_break_what_it_names() {
    let schema = r#"{"type":"object","properties":{"a":{"type":"boolean"}},"required":["a"]}"#;
    let oracle = jsonschema::validator_for(&serde_json::from_str(schema).unwrap()).unwrap();
    let model = bpe();
    let form = Some(by_schema(schema));
    // Quotes, braces, letters of an escape.
    let likely = r#""":{}\u0061,1"#.bytes().map(|byte| (4 + u32::from(byte), 5.0));
    let logit_bias: Vec<(u32, f32)> = likely.collect();
    let mut ended = 0;
    for seed in 0..60 {
        let sampling = Sampling { logit_bias: logit_bias.clone(), ..sampled(seed, form.clone()) };
        let Answer { text, end, .. } = answer(&model, &sampling, 400);
        if end.unwrap() == FinishReason::End {
            ended += 1;
            let Ok(value) = serde_json::from_str::<Value>(&text) else {
                // JSON has numbers of any size; this reader does not.
                assert!(text.contains(['e', 'E']), "{text}");
                continue;
            };
            assert!(oracle.is_valid(&value), "{text}");
        }
    }
    assert!(ended > 20, "{ended} of 60");
}

#[test]
fn an_object_is_an_object_and_its_end_is_taken_where_it_may_be() {
    for model in [bpe(), sentence_pieces()] {
        let form = Some(Form::JsonObject);
        // Control tokens and the end by far the likeliest.
        let logit_bias = vec![(0, 100.0), (1, 100.0), (2, 100.0)];
        for seed in 0..20 {
            let sampling = Sampling { logit_bias: logit_bias.clone(), ..sampled(seed, form.clone()) };
            let Answer { text, ids, end } = answer(&model, &sampling, 1000);
            assert!(ids.iter().all(|id| *id > 2), "{ids:?}");
            if end.unwrap() == FinishReason::End && !text.contains(['e', 'E']) {
                assert!(serde_json::from_str::<Value>(&text).unwrap().is_object(), "{text}");
            }
        }
        let free = Sampling { logit_bias, ..sampled(1, None) };
        assert!(answer(&model, &free, 10).text.is_empty(), "unbound, they are taken at once");
    }
}

#[test]
fn a_grammar_is_followed_to_the_byte() {
    for model in [bpe(), sentence_pieces()] {
        // U+20AC has no token of its own.
        let fixed = Some(by_grammar("start: \"caf\u{e9} 12 \u{20ac}\\n\""));
        let Answer { text, end, .. } = answer(&model, &sampled(3, fixed), 50);
        assert_eq!((text.as_str(), end.unwrap()), ("caf\u{e9} 12 \u{20ac}\n", FinishReason::End));
        let sum = Some(by_grammar("start: NUMBER (\"+\" NUMBER)*\nNUMBER: /[1-9][0-9]{0,2}/"));
        for seed in 0..20 {
            let Answer { text, end, .. } = answer(&model, &sampled(seed, sum.clone()), 60);
            let mut numbers: Vec<&str> = text.split('+').collect();
            if end.unwrap() == FinishReason::Length {
                numbers.pop();
            }
            for number in numbers {
                let value: u32 = number.parse().unwrap();
                assert!((1..1000).contains(&value) && value.to_string() == number, "{text}");
            }
        }
    }
}

#[test]
fn the_last_token_that_was_asked_for_may_be_the_last_of_the_form() {
    let model = bpe();
    let fixed = Some(by_grammar(r#"start: "0123""#));
    for (most, text, reason) in [(4, "0123", FinishReason::End), (3, "012", FinishReason::Length)] {
        let answer = answer(&model, &sampled(1, fixed.clone()), most);
        assert_eq!((answer.text.as_str(), answer.end), (text, Ok(reason)));
    }
}

#[test]
fn guesses_batches_and_seeds_change_no_token_of_a_bound_answer() {
    let model = bpe();
    let forms = [
        None,
        Some(by_schema(SCHEMAS[0])),
        Some(by_schema(SCHEMAS[1])),
        Some(by_schema(SCHEMAS[7])),
        Some(by_grammar("start: \"a\" (\"ab\" | \"abc\" | \"b\")* \"z\"")),
    ];
    let asked: Vec<Sampling> = (0..30)
        .map(|index| {
            let most = sampled(index, forms[index as usize % forms.len()].clone());
            match index % 4 {
                0 => Sampling { temperature: 0.0, ..most },
                1 => Sampling { frequency_penalty: 0.5, repetition_penalty: 1.2, ..most },
                2 => Sampling { top_k: 3, top_p: 0.9, min_p: 0.01, ..most },
                _ => Sampling { stops: vec![Zeroizing::new("ab".to_owned())], ..most },
            }
        })
        .collect();
    let alone: Vec<Vec<u32>> = asked.iter().map(|sampling| answer(&model, sampling, 120).ids).collect();
    assert!(alone.iter().any(|ids| ids.len() > 20));
    for speculate in [false, true] {
        let together: Vec<Vec<u32>> = std::thread::scope(|scope| {
            let model = &model;
            let run = |sampling: &Sampling| {
                let sampling = Sampling { speculate, ..sampling.clone() };
                scope.spawn(move || answer(model, &sampling, 120).ids)
            };
            let answers: Vec<_> = asked.iter().map(run).collect();
            answers.into_iter().map(|answer| answer.join().unwrap()).collect()
        });
        assert_eq!(alone, together);
    }
}

#[test]
fn forms_that_cannot_be_followed_are_refused_by_name_before_any_work() {
    let model = bpe();
    let refused = |form| match answer(&model, &sampled(1, Some(form)), 5) {
        Answer { ids, end: Err(GenerateError::Constraint(error)), .. } if ids.is_empty() => Some(error),
        _ => None,
    };
    for (schema, error) in [
        (r#"{"type":"array","items":{"type":"string"},"uniqueItems":true}"#, ConstraintError::Keyword("uniqueItems")),
        (r#"{"type":"string","format":"a very secret format"}"#, ConstraintError::Keyword("format")),
        (r#"{"oneOf":[{"type":"integer"},{"type":"integer","minimum":3}]}"#, ConstraintError::Keyword("oneOf")),
        (r#"{"type":"string","minLength":"one"}"#, ConstraintError::Keyword("minLength")),
        (r##"{"$ref":"#/$defs/missing"}"##, ConstraintError::Keyword("$ref")),
        (r#"{"$ref":"https://example.com/schema"}"#, ConstraintError::Keyword("$ref")),
        (r#"{"type":"integer","minimum":3,"maximum":2}"#, ConstraintError::Unsatisfiable),
        ("false", ConstraintError::Unsatisfiable),
        (r#"{"type":"secret"}"#, ConstraintError::Keyword("type")),
        ("no JSON", ConstraintError::NotJson),
    ] {
        assert_eq!(refused(by_schema(schema)), Some(error), "{schema}");
    }
    for grammar in [
        "",
        "start: missing",
        "start: <|end|>",
        "start: %json {\"type\":\"object\"}",
        "start: /(/",
        "start: @other",
        "%llguidance {}\nstart: \"a\"",
        // One of these has more items at its beginning than memory would hold, and the next would keep the square of its text.
        "start: a::0\na::_: b a::incr(_) | \"x\"\nb: \"\" | \"y\"",
        "start: a\na[capture]: a \"x\" | \"x\"",
        "start: a \"!\"\na[stop=/x/]: /[a-z]*/",
        "start: a \"!\"\na[stop=\"x\", stop_capture=\"y\"]: /[a-z]*/",
    ] {
        assert_eq!(refused(by_grammar(grammar)), Some(ConstraintError::Grammar), "{grammar}");
    }
    let long = " ".repeat(70_000);
    assert_eq!(refused(by_schema(&long)), Some(ConstraintError::TooLong { bytes: 70_000, limit: 64 << 10 }));
    assert_eq!(refused(by_grammar(&long)), Some(ConstraintError::TooLong { bytes: 70_000, limit: 32 << 10 }));
}

/// A grammar may name tokens by their numbers: control tokens it gets none.
#[test]
fn a_control_token_is_not_in_any_form() {
    let model = bpe();
    let form = by_grammar("start: \"a\" <[0-2]> \"b\"");
    let Answer { ids, end, .. } = answer(&model, &sampled(1, Some(form)), 10);
    assert!(ids.iter().all(|id| *id > 2), "{ids:?}");
    assert_eq!(end, Err(GenerateError::Constraint(ConstraintError::Grammar)));
}
