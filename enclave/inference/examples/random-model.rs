//! Makes a GGUF file of random weights: `cargo run --release -p inference --example random-model -- --shape 0.5b -o FILE`.
//! Its speed and memory are those of a real model of the shape; what it says is noise.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "a tool of the workshop: it may stop at the first thing that is wrong"
)]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use candle_core::quantized::GgmlDType;
use clap::{Parser, ValueEnum};

#[path = "../tests/making/mod.rs"]
mod making;

/// Makes a GGUF file of random weights.
#[derive(Parser)]
struct Arguments {
    /// tiny (0.1 M weights), 0.5b or 1b.
    #[arg(long, value_parser = making::Shape::NAMES)]
    shape: String,
    /// Block format of the matrices.
    #[arg(long = "type", value_enum, default_value_t = Kind::Q8_0)]
    kind: Kind,
    /// Tokens of context; the shape's own, if not given.
    #[arg(long)]
    context: Option<usize>,
    /// Seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// File to write.
    #[arg(short)]
    out: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "lower")]
enum Kind {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
    #[value(name = "q4_k")]
    Q4K,
    #[value(name = "q5_k")]
    Q5K,
    #[value(name = "q6_k")]
    Q6K,
}

fn main() -> std::io::Result<()> {
    let arguments = Arguments::parse();
    let kind = match arguments.kind {
        Kind::F32 => GgmlDType::F32,
        Kind::F16 => GgmlDType::F16,
        Kind::Bf16 => GgmlDType::BF16,
        Kind::Q8_0 => GgmlDType::Q8_0,
        Kind::Q4_0 => GgmlDType::Q4_0,
        Kind::Q4K => GgmlDType::Q4K,
        Kind::Q5K => GgmlDType::Q5K,
        Kind::Q6K => GgmlDType::Q6K,
    };
    let mut shape = making::Shape { kind, ..making::Shape::named(&arguments.shape).expect("clap knows the names") };
    shape.context = arguments.context.unwrap_or(shape.context);
    let model = making::random_model(&shape, arguments.seed);
    let mut file = BufWriter::with_capacity(1 << 20, File::create(&arguments.out)?);
    model.write(&mut file)?;
    file.flush()?;
    let weights: usize = model.tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    eprintln!(
        "{}: {:.2} B weights, {} MiB",
        arguments.out.display(),
        weights as f64 / 1e9,
        file.get_ref().metadata()?.len() >> 20
    );
    Ok(())
}
