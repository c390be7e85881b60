//! Embeds texts by hand: `cargo run --release -p inference --example embed -- --model FOLDER --text "a text" --json`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command for people to try")]

use std::error::Error;
use std::fs::File;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use inference::{Cancel, EmbedOptions, Encoder, EncoderFiles, LoadOptions, Pooling, Vocabulary};

/// Prints the embeddings of texts: one line of numbers each, to be compared by their cosine.
#[derive(Parser)]
#[command(after_help = "\
FOLDER is a model of the BERT family as sentence-transformers lays it down:
  model.safetensors, config.json, tokenizer.json (or vocab.txt), and where they
  are there 1_Pooling/config.json, sentence_bert_config.json, modules.json.
all-MiniLM-L6-v2 is fetched, and its folder printed, by
  bash enclave/inference/tests/fixtures/minilm.sh

E5 wants \"query: \" or \"passage: \" in front of each text, BGE a sentence in
front of queries: see the model's own page.

Two embeddings, and their cosine:
  embed --model FOLDER --text 'chest pain' --text 'Brustschmerzen'
One JSON object for each line of a file:
  embed --model FOLDER --lines --json < texts.txt")]
struct Arguments {
    /// Folder of the model.
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// A text; may be given several times.
    #[arg(long, required_unless_present = "lines")]
    text: Vec<String>,
    /// Texts from standard input, too, one a line.
    #[arg(long)]
    lines: bool,
    /// How the states of a text's tokens become one; as the model's files say, if not given.
    #[arg(long, value_enum)]
    pooling: Option<Pool>,
    /// Cut texts that are too long, instead of refusing them.
    #[arg(long)]
    truncate: bool,
    /// Leave embeddings at the length that the model gave them.
    #[arg(long)]
    raw: bool,
    /// One JSON object a line: `embedding`, `tokens`, and `cut`, the tokens that were cut off.
    #[arg(long)]
    json: bool,
    /// Threads of the engine; 0 for one per core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Compute them so many times, and say on standard error how fast the last time was.
    #[arg(long, default_value_t = 1)]
    repeat: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Pool {
    Mean,
    Cls,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("embed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let mut texts = arguments.text.clone();
    if arguments.lines {
        for line in std::io::stdin().lock().lines() {
            texts.push(line?);
        }
    }
    let encoder = load(&arguments.model, arguments.threads)?;
    let pooling = arguments.pooling.map(|pool| match pool {
        Pool::Mean => Pooling::Mean,
        Pool::Cls => Pooling::Cls,
    });
    let options = EmbedOptions { pooling, normalise: !arguments.raw, truncate: arguments.truncate };
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut embeddings = Vec::new();
    for run in 1..=arguments.repeat.max(1) {
        let start = Instant::now();
        embeddings = encoder.embed(&texts, &options, &Cancel::new())?;
        if run > 1 {
            let (seconds, tokens) =
                (start.elapsed().as_secs_f64(), embeddings.iter().map(|e| e.tokens()).sum::<usize>());
            let (texts, threads, kernel) = (texts.len() as f64, encoder.threads(), encoder.kernel());
            eprintln!(
                "[{:.1} texts/s, {:.0} tokens/s, {threads} threads, {kernel}]",
                texts / seconds,
                tokens as f64 / seconds
            );
        }
    }
    for embedding in &embeddings {
        if arguments.json {
            let (values, tokens, cut) = (embedding.values(), embedding.tokens(), embedding.cut());
            println!("{}", serde_json::json!({ "embedding": values, "tokens": tokens, "cut": cut }));
        } else {
            let shown: Vec<String> = embedding.values().iter().map(|x| format!("{x:.6}")).collect();
            println!("{}", shown.join(" "));
        }
    }
    if let ([first, second], false) = (embeddings.as_slice(), arguments.json) {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let (a, b) = (first.values(), second.values());
        eprintln!("[cosine {:.4}]", dot(a, b) / (dot(a, a) * dot(b, b)).sqrt());
    }
    Ok(())
}

fn load(folder: &Path, threads: usize) -> Result<Encoder, Box<dyn Error>> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let optional = |name: &str| if folder.join(name).exists() { read(name).map(Some) } else { Ok(None) };
    let (tokenizer, tokens) = (optional("tokenizer.json")?, optional("vocab.txt")?);
    let vocabulary = match (&tokenizer, &tokens) {
        (Some(json), _) => Vocabulary::Tokenizer(json),
        // As BERT's tokenizer, where nothing else is said.
        (None, Some(tokens)) => Vocabulary::List { tokens, lower_case: true },
        (None, None) => return Err(format!("{}: no tokenizer.json, no vocab.txt", folder.display()).into()),
    };
    let (config, pooling) = (read("config.json")?, optional("1_Pooling/config.json")?);
    let (sentence, modules) = (optional("sentence_bert_config.json")?, optional("modules.json")?);
    let files = EncoderFiles {
        config: &config,
        vocabulary,
        pooling: pooling.as_deref(),
        sentence: sentence.as_deref(),
        modules: modules.as_deref(),
    };
    let path = folder.join("model.safetensors");
    let mut weights = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let bytes = usize::try_from(weights.metadata()?.len())?;
    Ok(Encoder::read(&mut weights, bytes, &files, &LoadOptions { threads })?)
}
