//! Sealing and opening 64 MiB in frames of 64 KiB, against what bounds them: ring's own AES-256-GCM in place on equal
//! frames, and for the signed suite SHA-384 of the same bytes besides.
//!
//! After criterion's groups, one interleaved run prints the ratios: each round times every contender once, in turn, and the
//! medians are compared, so that a slow spell of the machine falls on all of them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use sealing::SystemRandom;
use sealing::message::{DataKey, EncryptedDataKey, EncryptionContext, Limits, Suite};
use sealing::reader::{BodyReader, HeaderReader, Progress};
use sealing::writer::{MessageWriter, SealParameters};

const SIZE: usize = 64 * 1024 * 1024;
const FRAME: usize = 64 * 1024;

/// The bar of the project: at least so much of ring's own speed.
const BAR: f64 = 0.8;

criterion_group! {
    name = groups;
    config = Criterion::default().sample_size(10);
    targets = messages
}

fn main() {
    groups();
    Criterion::default().configure_from_args().final_summary();
    // `cargo test --benches` runs this program with `--test`: there, it is enough that everything ran once.
    if std::env::args().any(|argument| argument == "--bench") {
        ratios(15);
    }
}

fn messages(criterion: &mut Criterion) {
    let plaintext = plaintext();
    let mut group = criterion.benchmark_group("message, 64 MiB in 64 KiB frames");
    group.throughput(Throughput::Bytes(SIZE as u64));
    let mut place = in_place(&plaintext);
    group.bench_function("ring in place: seal", |bench| bench.iter(|| ring_seal(&mut place)));
    for suite in [Suite::Commit, Suite::CommitSigned] {
        let message = seal_all(suite, &plaintext);
        let mut out = Vec::with_capacity(2 * FRAME);
        group.bench_function(format!("{suite:?}: seal"), |bench| bench.iter(|| seal(suite, &plaintext, &mut out)));
        group.bench_function(format!("{suite:?}: open"), |bench| bench.iter(|| open(&message)));
    }
    group.finish();
}

/// The interleaved run.
fn ratios(rounds: usize) {
    let plaintext = plaintext();
    let messages = [Suite::Commit, Suite::CommitSigned].map(|suite| (suite, seal_all(suite, &plaintext)));
    let mut place = in_place(&plaintext);
    let mut out = Vec::with_capacity(2 * FRAME);
    let mut work = Vec::with_capacity(messages[0].1.len() + 1_024);
    let mut times: [Vec<Duration>; 11] = Default::default();
    for _ in 0..rounds {
        let tags = timed(&mut times[0], || ring_seal(&mut place));
        timed(&mut times[1], || ring_open(&mut place, &tags));
        timed(&mut times[2], || sha384(&plaintext));
        for (at, (suite, message)) in messages.iter().enumerate() {
            let times = &mut times[3 + 4 * at..];
            work.clone_from(&plaintext);
            timed(&mut times[0], || seal_in_place(*suite, &mut work));
            work.clone_from(message);
            timed(&mut times[1], || open_in_place(&mut work));
            timed(&mut times[2], || seal(*suite, &plaintext, &mut out));
            timed(&mut times[3], || open(message));
        }
    }
    let median = times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64()
    });
    let [ring_seal, ring_open, sha384, unsigned @ .., _, _, _, _] = median;
    let [.., signed_1, signed_2, signed_3, signed_4] = median;
    println!("\n64 MiB in 64 KiB frames, medians of {rounds} interleaved rounds");
    let speed = |time: f64| SIZE as f64 / time / 1e9;
    println!("  ring AES-256-GCM in place     seal {:5.2} GB/s   open {:5.2} GB/s", speed(ring_seal), speed(ring_open));
    println!("  SHA-384 alone                      {:5.2} GB/s", speed(sha384));
    let names = ["seal in place", "open in place", "seal, copying", "open, copying"];
    let bounds = [ring_seal, ring_open, ring_seal, ring_open];
    for ((name, time), bound) in names.into_iter().zip(unsigned).zip(bounds) {
        let ratio = bound / time;
        let verdict = match (name.contains("in place"), ratio >= BAR) {
            (true, true) => ": reaches the bar of 80 %",
            (true, false) => ": MISSES the bar of 80 %",
            (false, _) => "",
        };
        println!("  0x0478 {name}  {:5.2} GB/s, {:5.1} % of ring in place{verdict}", speed(time), 100.0 * ratio);
    }
    let signed = [signed_1, signed_2, signed_3, signed_4];
    for ((name, time), bound) in names.into_iter().zip(signed).zip(bounds) {
        let ratio = (bound + sha384) / time;
        println!("  0x0578 {name}  {:5.2} GB/s, {:5.1} % of SHA-384, then GCM", speed(time), 100.0 * ratio);
    }
}

fn timed<T>(times: &mut Vec<Duration>, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = black_box(run());
    times.push(start.elapsed());
    result
}

fn plaintext() -> Vec<u8> {
    (0..SIZE).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn in_place(plaintext: &[u8]) -> Vec<Vec<u8>> {
    plaintext.chunks(FRAME).map(<[u8]>::to_vec).collect()
}

fn ring_key() -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[9; 32]).unwrap())
}

fn nonce(at: usize) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&(at as u64).to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// As much AAD as a frame has.
const AAD: [u8; 72] = [1; 72];

fn ring_seal(frames: &mut [Vec<u8>]) -> Vec<Tag> {
    let key = ring_key();
    let seal = |(at, frame): (usize, &mut Vec<u8>)| {
        key.seal_in_place_separate_tag(nonce(at), Aad::from(AAD), frame.as_mut_slice()).unwrap()
    };
    frames.iter_mut().enumerate().map(seal).collect()
}

fn ring_open(frames: &mut [Vec<u8>], tags: &[Tag]) {
    let key = ring_key();
    for (at, (frame, tag)) in frames.iter_mut().zip(tags).enumerate() {
        key.open_in_place_separate_tag(nonce(at), Aad::from(AAD), *tag, frame.as_mut_slice(), 0..).unwrap();
    }
}

fn sha384(bytes: &[u8]) -> aws_lc_rs::digest::Digest {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA384, bytes)
}

fn writer(suite: Suite) -> MessageWriter {
    let context = EncryptionContext::from_pairs([("subrosa:purpose", "model-pack")]).unwrap();
    let parameters = SealParameters::begin(suite, context, FRAME as u32, &mut SystemRandom::new()).unwrap();
    let key = EncryptedDataKey { provider_id: "bench".into(), provider_info: vec![], ciphertext: vec![0; 48] };
    MessageWriter::new(parameters, vec![key], &DataKey::from_bytes([9; 32])).unwrap()
}

/// As a program would that sends what it seals: a piece at a time, into one buffer.
fn seal(suite: Suite, plaintext: &[u8], out: &mut Vec<u8>) {
    let mut writer = writer(suite);
    for piece in plaintext.chunks(FRAME) {
        out.clear();
        writer.write(piece, out).unwrap();
        black_box(&out);
    }
    writer.finish(out).unwrap();
}

/// As a program would that reads a file into a buffer and may overwrite it.
fn seal_in_place(suite: Suite, plaintext: &mut [u8]) {
    let mut writer = writer(suite);
    let mut out = Vec::new();
    for frame in plaintext.chunks_exact_mut(FRAME) {
        black_box(writer.seal_in_place(frame).unwrap());
    }
    writer.finish(&mut out).unwrap();
}

fn seal_all(suite: Suite, plaintext: &[u8]) -> Vec<u8> {
    let mut writer = writer(suite);
    let mut message = writer.header().to_vec();
    writer.write(plaintext, &mut message).unwrap();
    writer.finish(&mut message).unwrap();
    message
}

fn authenticate(rest: &mut &[u8]) -> BodyReader {
    let limits = Limits { frame_length: 1..=FRAME as u32, ..Limits::file() };
    let Ok(Progress::Done(header)) = HeaderReader::new(limits).push(rest) else { unreachable!() };
    header.authenticate(&DataKey::from_bytes([9; 32])).unwrap()
}

fn open(message: &[u8]) {
    let mut rest = message;
    let mut body = authenticate(&mut rest);
    while let Some(frame) = body.push(&mut rest).unwrap() {
        black_box(frame.as_bytes());
    }
    body.finish().unwrap();
}

fn open_in_place(message: &mut [u8]) {
    let mut rest: &[u8] = message;
    let mut body = authenticate(&mut rest);
    let header = message.len() - rest.len();
    let mut rest = &mut message[header..];
    while let Some(frame) = body.push_in_place(&mut rest).unwrap() {
        black_box(frame.as_bytes());
    }
    body.finish().unwrap();
}
