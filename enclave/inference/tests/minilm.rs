//! all-MiniLM-L6-v2: every text of `fixtures/minilm.json` gets the tokens and the embedding that sentence-transformers gave it.
//!
//! The model's folder is `$SUBROSA_MINILM`, else the cache of `fixtures/minilm.sh`, which fetches it. Where it is not there the
//! trials are ignored, and a line says so; with `CI=true` it is fetched.
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

#[path = "encoding/mod.rs"]
mod encoding;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use encoding::{Case, Files, cases};
use inference::{Cancel, EmbedOptions, Encoder, EncoderPlan};
use libtest_mimic::{Arguments, Failed, Trial};

const CUT: EmbedOptions = EmbedOptions { pooling: None, normalise: true, truncate: true };

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let cases = cases("minilm.json");
    let Some(folder) = folder() else {
        println!("NOT RUN: all-MiniLM-L6-v2 (bash enclave/inference/tests/fixtures/minilm.sh fetches it: 84 MB)");
        let absent = |case: Case| Trial::test(name(&case), || Err("it is not here".into())).with_ignored_flag(true);
        return libtest_mimic::run(&arguments, cases.into_iter().map(absent).collect()).exit_code();
    };
    let files = read(&folder);
    let encoder = Arc::new(files.load(0).unwrap());
    let mut trials = vec![
        Trial::test("the plan is what is loaded", {
            let encoder = Arc::clone(&encoder);
            move || plan(&files, &encoder)
        }),
        Trial::test("texts together get what they get alone, bit for bit", {
            let encoder = Arc::clone(&encoder);
            move || together(&encoder)
        }),
    ];
    trials.extend(cases.into_iter().map(|case| {
        let encoder = Arc::clone(&encoder);
        Trial::test(name(&case), move || agrees(&encoder, &case))
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("SUBROSA_MINILM") {
        return Some(PathBuf::from(folder));
    }
    let in_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/minilm.sh");
    let found = Command::new("bash").arg(script).args((!in_ci).then_some("--cached")).output().unwrap();
    if found.status.code() == Some(2) && !in_ci {
        return None;
    }
    assert!(found.status.success(), "{script}: {}", String::from_utf8_lossy(&found.stderr));
    Some(PathBuf::from(String::from_utf8(found.stdout).unwrap().trim_end()))
}

fn read(folder: &Path) -> Files {
    let read =
        |name| std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{}/{name}: {error}", folder.display()));
    Files {
        weights: read("model.safetensors"),
        config: read("config.json"),
        tokenizer: read("tokenizer.json"),
        pooling: Some(read("1_Pooling/config.json")),
        sentence: Some(read("sentence_bert_config.json")),
        modules: Some(read("modules.json")),
    }
}

fn name(case: &Case) -> String {
    let start: String = case.text.chars().take(30).collect();
    format!("{start:?} ({} tokens)", case.tokens.len() + case.cut)
}

fn agrees(encoder: &Encoder, case: &Case) -> Result<(), Failed> {
    assert_eq!(*encoder.tokens_of(&case.text, true).unwrap(), case.tokens);
    let found = encoder.embed(&[&case.text], &CUT, &Cancel::new()).unwrap().remove(0);
    assert_eq!((found.tokens(), found.cut()), (case.tokens.len(), case.cut));
    let expected = case.embedding("embedding");
    assert_eq!(found.values().len(), expected.len());
    let far = found.values().iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    // An embedding is one long: its 384 elements are some 0.05.
    if far <= 2e-6 { Ok(()) } else { Err(format!("{far} away").into()) }
}

fn plan(files: &Files, encoder: &Encoder) -> Result<(), Failed> {
    // The header alone is enough.
    let plan = EncoderPlan::from_header(&files.weights[..16 << 10], &files.config).unwrap();
    assert_eq!((plan.file_bytes, plan.width), (files.weights.len(), encoder.width()));
    assert!(plan.weights_bytes as f64 <= 1.1 * plan.file_bytes as f64, "{} bytes", plan.weights_bytes);
    Ok(())
}

fn together(encoder: &Encoder) -> Result<(), Failed> {
    let cases = cases("minilm.json");
    let texts: Vec<&str> = cases.iter().map(|case| case.text.as_str()).collect();
    for (text, found) in texts.iter().zip(encoder.embed(&texts, &CUT, &Cancel::new()).unwrap()) {
        let alone = encoder.embed(&[text], &CUT, &Cancel::new()).unwrap().remove(0);
        assert!(alone.values() == found.values(), "{text:?}");
    }
    Ok(())
}
