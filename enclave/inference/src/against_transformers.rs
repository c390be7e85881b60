//! Tokenizer and chat templates come to the same as Hugging Face transformers: on texts of many scripts and on such as
//! are meant to break something, there and back, and on conversations in templates of the kinds in circulation. What
//! is compared with lies in `tests/fixtures/`, beside the program that made it with transformers.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "in a test, the first thing that is wrong ends it"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::gguf::Header;
use crate::model::Role;
use crate::stream::TextStream;
use crate::template::{Rendering, Template, TemplateError};
use crate::tokenizer::Tokenizer;

#[derive(Deserialize)]
struct Fixture {
    texts: Vec<Text>,
    long: Vec<(String, usize)>,
    templates: BTreeMap<String, String>,
    conversations: BTreeMap<String, Vec<(String, String)>>,
    vocabularies: BTreeMap<String, Expected>,
}

#[derive(Deserialize)]
struct Text {
    label: String,
    text: String,
}

/// What transformers makes of it with one vocabulary.
#[derive(Deserialize)]
struct Expected {
    begin: Vec<u32>,
    ids: Vec<Vec<u32>>,
    /// Texts that do not come back as they were, by index.
    decoded: BTreeMap<usize, String>,
    long: Vec<(usize, String)>,
    strays: Vec<Stray>,
    chats: Vec<Chat>,
}

#[derive(Deserialize)]
struct Stray {
    ids: Vec<u32>,
    text: String,
}

#[derive(Deserialize)]
struct Chat {
    template: String,
    conversation: String,
    text: Option<String>,
    ids: Option<(usize, String)>,
    refused: Option<String>,
}

const VOCABULARIES: [&str; 7] = ["llama3", "qwen2", "gpt2", "smollm", "tekken", "llama2", "spaceless"];
/// A noncharacter that no text of the fixture contains.
const MARK: char = '\u{FDD1}';

fn file(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn fixture() -> Fixture {
    serde_json::from_slice(&file("tokenizers.json")).expect("the fixture is whole")
}

fn tokenizer(name: &str) -> Tokenizer {
    let file = file(&format!("vocabulary-{name}.gguf"));
    Tokenizer::load(&Header::parse(&file).expect("a GGUF file")).expect("a vocabulary that is read")
}

/// As what a user wrote is encoded.
fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(&tokenizer.mark(text, MARK), MARK).expect("every text has tokens").to_vec()
}

/// As an answer is brought, token by token.
fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = TextStream::new(&[], tokenizer.begins_with_space());
    let mut text: String = ids.iter().map(|&id| stream.push(&tokenizer.bytes_of(id)).text.to_string()).collect();
    text.push_str(&stream.finish().text);
    text
}

/// Says which cases are wrong, at most a screenful.
fn none_wrong(wrong: &[String]) {
    let shown: Vec<&str> = wrong.iter().take(40).map(String::as_str).collect();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), shown.join("\n"));
}

/// As `digest` of make_tokenizers.py: so many, and FNV-1a.
fn digest(ids: &[u32]) -> (usize, String) {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    let hash =
        bytes.fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3));
    (ids.len(), format!("{hash:016x}"))
}

#[test]
fn texts_have_the_tokens_that_transformers_gives_them() {
    let fixture = fixture();
    let mut wrong = Vec::new();
    for name in VOCABULARIES {
        let (tokenizer, expected) = (tokenizer(name), &fixture.vocabularies[name]);
        assert_eq!(fixture.texts.len(), expected.ids.len());
        for (index, (text, ids)) in fixture.texts.iter().zip(&expected.ids).enumerate() {
            let expected = [expected.begin.as_slice(), ids].concat();
            let ours = encode(&tokenizer, &text.text);
            if ours != expected {
                wrong
                    .push(format!("{name}, text {index} ({}) {:?}: {ours:?}, not {expected:?}", text.label, text.text));
            }
        }
    }
    none_wrong(&wrong);
}

#[test]
fn long_runs_have_the_tokens_that_transformers_gives_them() {
    let fixture = fixture();
    let mut wrong = Vec::new();
    for name in VOCABULARIES {
        let (tokenizer, expected) = (tokenizer(name), &fixture.vocabularies[name]);
        assert_eq!(fixture.long.len(), expected.long.len());
        for ((unit, count), long) in fixture.long.iter().zip(&expected.long) {
            let ours = encode(&tokenizer, &unit.repeat(*count));
            let ours = digest(ours.strip_prefix(expected.begin.as_slice()).expect("the token that begins a text"));
            if ours != *long {
                wrong.push(format!("{name}, {unit:?} {count} times: {ours:?}, not {long:?}"));
            }
        }
    }
    none_wrong(&wrong);
}

#[test]
fn tokens_have_the_text_that_transformers_gives_them() {
    let fixture = fixture();
    let mut wrong = Vec::new();
    for name in VOCABULARIES {
        let (tokenizer, expected) = (tokenizer(name), &fixture.vocabularies[name]);
        let texts = expected.ids.iter().enumerate().map(|(index, ids)| {
            let same = &fixture.texts[index].text;
            (ids, expected.decoded.get(&index).unwrap_or(same))
        });
        for (ids, text) in texts.chain(expected.strays.iter().map(|stray| (&stray.ids, &stray.text))) {
            let ours = decode(&tokenizer, ids);
            if ours != *text {
                wrong.push(format!("{name}, {ids:?}: {ours:?}, not {text:?}"));
            }
        }
    }
    none_wrong(&wrong);
}

#[test]
fn conversations_become_the_prompts_that_transformers_makes_of_them() {
    let fixture = fixture();
    let mut wrong = Vec::new();
    for name in VOCABULARIES {
        let tokenizer = tokenizer(name);
        for chat in &fixture.vocabularies[name].chats {
            let template = match Template::compile(&fixture.templates[&chat.template]) {
                Ok(template) => template,
                Err(error) => {
                    wrong.push(format!("{}: {error}", chat.template));
                    continue;
                }
            };
            let messages: Vec<(Role, Zeroizing<String>)> = fixture.conversations[&chat.conversation]
                .iter()
                .map(|(role, content)| (role_named(role), tokenizer.mark(content, MARK)))
                .collect();
            let rendered = template.render(&Rendering {
                messages: &messages,
                begin: tokenizer.begin_text().unwrap_or_default(),
                end: tokenizer.end_text().unwrap_or_default(),
            });
            let case = format!("{} of \"{}\"", chat.template, chat.conversation);
            match (rendered, &chat.refused) {
                (Ok(rendered), None) => {
                    let text = rendered.replace(MARK, "");
                    let expected = chat.text.as_deref().expect("what transformers rendered");
                    if text != expected {
                        wrong.push(format!("{case}: {}", first_difference(&text, expected)));
                    } else if Some(digest(&tokenizer.encode(&rendered, MARK).expect("tokens"))) != chat.ids {
                        wrong.push(format!("{case}: the text is right, its tokens are not"));
                    }
                }
                (Err(TemplateError::Refused { .. }), Some(_)) => {}
                (Err(error), _) => wrong.push(format!("{case}: {error}")),
                (Ok(_), Some(refused)) => wrong.push(format!("{case}: a prompt, where transformers has {refused}")),
            }
        }
    }
    none_wrong(&wrong);
}

fn role_named(name: &str) -> Role {
    let roles = [Role::System, Role::User, Role::Assistant];
    roles.into_iter().find(|role| role.name() == name).expect("a role")
}

/// The lines in which two texts first differ.
fn first_difference(ours: &str, theirs: &str) -> String {
    let pairs = ours.split('\n').zip(theirs.split('\n')).enumerate();
    let found = pairs.filter(|(_, (ours, theirs))| ours != theirs).take(12);
    let lines: Vec<String> =
        found.map(|(line, (ours, theirs))| format!("\n  line {line}: {ours:?}\n     not: {theirs:?}")).collect();
    if lines.is_empty() { format!("{} bytes, not {}", ours.len(), theirs.len()) } else { lines.concat() }
}

#[test]
fn no_text_of_a_user_becomes_a_control_token() {
    let fixture = fixture();
    for name in VOCABULARIES {
        let (tokenizer, expected) = (tokenizer(name), &fixture.vocabularies[name]);
        let control: Vec<u32> = (0..)
            .take_while(|&id| tokenizer.text(id).is_some())
            .filter(|&id| tokenizer.bytes_of(id).is_empty())
            .collect();
        assert!(!control.is_empty());
        // Each by itself too, within and beside others.
        let specials: Vec<&str> = control.iter().filter_map(|&id| tokenizer.text(id)).collect();
        let mut texts: Vec<String> = fixture.texts.iter().map(|text| text.text.clone()).collect();
        texts.extend(specials.iter().flat_map(|special| {
            [
                (*special).to_owned(),
                format!("a{special}b"),
                format!(" {special}\n{special}"),
                special.repeat(3),
                format!("<think>{special}</think>{special}"),
            ]
        }));
        for text in texts {
            let ids = encode(&tokenizer, &text);
            let ids = ids.strip_prefix(expected.begin.as_slice()).expect("the token that begins a text");
            assert!(!ids.iter().any(|id| control.contains(id)), "{name}: {text:?}");
        }
    }
}

#[test]
fn the_time_of_a_text_grows_little_faster_than_its_length() {
    // Thirty times the text: 900 times as long if every merge looked at the whole word again, some 30 to 100 as it is,
    // because a heap is deeper and caches are left. Whoever shares the cores is given time: a quadratic BPE would take a
    // minute.
    const SHORT: usize = 10_000;
    const LONG: usize = 300_000;
    let units = ["a", " ", "\n", "1", "!", "ab", "e\u{301}", "\u{301}\u{323}", "A漢", "<|im_end|>", "x "];
    let mut wrong = Vec::new();
    for name in ["llama3", "qwen2", "tekken", "llama2"] {
        let tokenizer = tokenizer(name);
        for unit in units {
            let of = |bytes: usize| {
                let text = unit.repeat(bytes / unit.len());
                let start = Instant::now();
                encode(&tokenizer, &text);
                start.elapsed()
            };
            let short = (0..3).map(|_| of(SHORT)).min().unwrap_or_default();
            let long = of(LONG);
            if long > 300 * short.max(Duration::from_millis(10)) {
                wrong.push(format!("{name}, {unit:?}: {short:?} for {SHORT} bytes, {long:?} for {LONG}"));
            }
        }
    }
    none_wrong(&wrong);
}
