//! The forward pass against a plain one: f32 loops over the whole sequence, without cache, chunks or candle.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "in a test, the first thing that is wrong ends it"
)]

#[path = "making/mod.rs"]
mod making;

use std::ops::ControlFlow;

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use inference::{Cancel, LoadOptions, Model, Sampling};
use making::{Data, Gguf, Random, Shape, random_model};

/// The plain forward pass.
struct Plain<'a> {
    shape: Shape,
    file: &'a Gguf,
}

impl Plain<'_> {
    fn logits(&self, tokens: &[u32]) -> Vec<f32> {
        let Shape { width, heads, kv_heads, .. } = self.shape;
        let head_width = width / heads;
        let embedding = self.tensor("token_embd.weight");
        let mut rows: Vec<Vec<f32>> =
            tokens.iter().map(|&id| embedding[id as usize * width..][..width].to_vec()).collect();
        for layer in 0..self.shape.layers {
            let weight = |part: &str| self.tensor(&format!("blk.{layer}.{part}.weight"));
            let normed = self.norm(&rows, &weight("attn_norm"));
            let queries = turned(&product(&normed, &weight("attn_q")), head_width);
            let keys = turned(&product(&normed, &weight("attn_k")), head_width);
            let values = product(&normed, &weight("attn_v"));
            let mut attended = vec![vec![0.0; width]; rows.len()];
            for (position, row) in attended.iter_mut().enumerate() {
                for head in 0..heads {
                    let kv = head * kv_heads / heads * head_width;
                    let query = &queries[position][head * head_width..][..head_width];
                    let scores: Vec<f32> = (0..=position)
                        .map(|past| dot(query, &keys[past][kv..][..head_width]) / (head_width as f32).sqrt())
                        .collect();
                    let sum: f32 = scores.iter().map(|score| score.exp()).sum();
                    for (past, score) in scores.iter().enumerate() {
                        for i in 0..head_width {
                            row[head * head_width + i] += score.exp() / sum * values[past][kv + i];
                        }
                    }
                }
            }
            add(&mut rows, &product(&attended, &weight("attn_output")));
            let normed = self.norm(&rows, &weight("ffn_norm"));
            let mut gate = product(&normed, &weight("ffn_gate"));
            let up = product(&normed, &weight("ffn_up"));
            for (gate, up) in gate.iter_mut().flatten().zip(up.iter().flatten()) {
                *gate = *gate / (1.0 + (-*gate).exp()) * up;
            }
            add(&mut rows, &product(&gate, &weight("ffn_down")));
        }
        let last = self.norm(&rows[rows.len() - 1..], &self.tensor("output_norm.weight"));
        let output = if self.shape.tied { embedding } else { self.tensor("output.weight") };
        product(&last, &output).remove(0)
    }

    fn norm(&self, rows: &[Vec<f32>], weight: &[f32]) -> Vec<Vec<f32>> {
        let normed = |row: &Vec<f32>| {
            let scale = 1.0 / (dot(row, row) / row.len() as f32 + 1e-5).sqrt();
            row.iter().zip(weight).map(|(x, weight)| x * scale * weight).collect()
        };
        rows.iter().map(normed).collect()
    }

    fn tensor(&self, name: &str) -> Vec<f32> {
        let tensor = self.file.tensors.iter().find(|tensor| tensor.name == name).unwrap();
        let bytes: Vec<u8> = match &tensor.data {
            Data::Bytes(bytes) => bytes.clone(),
            Data::Repeated(piece, length) => piece.iter().copied().cycle().take(*length).collect(),
        };
        let half = |bytes: &[u8]| half_to_float(u16::from_le_bytes([bytes[0], bytes[1]]));
        match tensor.kind {
            0 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            1 => bytes.chunks_exact(2).map(half).collect(),
            30 => bytes.chunks_exact(2).map(|b| f32::from_le_bytes([0, 0, b[0], b[1]])).collect(),
            2 => bytes.chunks_exact(18).flat_map(|block| q4_0(half(block), &block[2..])).collect(),
            8 => {
                let block = |block: &[u8]| {
                    let scale = half(block);
                    block[2..].iter().map(|&q| scale * f32::from(q as i8)).collect::<Vec<f32>>()
                };
                bytes.chunks_exact(34).flat_map(block).collect()
            }
            kind => panic!("no plain reader for type {kind}"),
        }
    }
}

fn q4_0(scale: f32, nibbles: &[u8]) -> Vec<f32> {
    let value = |nibble: u8| scale * (f32::from(nibble) - 8.0);
    nibbles.iter().map(|b| value(b & 15)).chain(nibbles.iter().map(|b| value(b >> 4))).collect()
}

fn half_to_float(half: u16) -> f32 {
    let sign = if half >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, mantissa) = (i32::from(half >> 10 & 31), f32::from(half & 1023));
    sign * if exponent == 0 {
        mantissa * 2_f32.powi(-24)
    } else {
        (1.0 + mantissa / 1024.0) * 2_f32.powi(exponent - 15)
    }
}

fn product(rows: &[Vec<f32>], weights: &[f32]) -> Vec<Vec<f32>> {
    rows.iter().map(|row| weights.chunks_exact(row.len()).map(|weights| dot(row, weights)).collect()).collect()
}

/// Element 2i turns with element 2i + 1.
fn turned(rows: &[Vec<f32>], head_width: usize) -> Vec<Vec<f32>> {
    let mut rows = rows.to_vec();
    for (position, row) in rows.iter_mut().enumerate() {
        for start in (0..row.len()).step_by(2) {
            let exponent = (start % head_width) as f64 / head_width as f64;
            let (sine, cosine) = (position as f64 / 10_000_f64.powf(exponent)).sin_cos();
            let (x, y) = (f64::from(row[start]), f64::from(row[start + 1]));
            row[start] = (x * cosine - y * sine) as f32;
            row[start + 1] = (x * sine + y * cosine) as f32;
        }
    }
    rows
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(rows: &mut [Vec<f32>], more: &[Vec<f32>]) {
    for (x, more) in rows.iter_mut().flatten().zip(more.iter().flatten()) {
        *x += more;
    }
}

/// Root mean square of the differences, over that of the expected values.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let squares: f32 = found.iter().zip(expected).map(|(a, b)| (a - b) * (a - b)).sum();
    (squares / dot(expected, expected)).sqrt()
}

fn tokens(count: usize) -> Vec<u32> {
    let mut random = Random(9);
    (0..count).map(|_| random.below(Shape::TINY.vocabulary as u64) as u32).collect()
}

/// The engine's logits, and the plain ones, after so many tokens.
fn both(shape: Shape, count: usize) -> (Vec<f32>, Vec<f32>) {
    let file = random_model(&shape, 3);
    let model = Model::load(&file.to_bytes(), &LoadOptions::default()).unwrap();
    let tokens = tokens(count);
    let found = model.logits(&model.prompt_of_tokens(&tokens).unwrap()).unwrap();
    (found, Plain { shape, file: &file }.logits(&tokens))
}

#[test]
fn weights_that_are_floats_agree_with_the_plain_pass() {
    // Beside weights of 16 bits keys and values have 16 too.
    for (kind, bound) in [(GgmlDType::F32, 1e-5), (GgmlDType::F16, 1e-3), (GgmlDType::BF16, 1e-3)] {
        let (found, expected) = both(Shape { kind, ..Shape::TINY }, 20);
        let distance = distance(&found, &expected);
        assert!(distance < bound, "{kind:?}: {distance}");
    }
}

#[test]
fn a_prompt_of_several_chunks_agrees_with_the_plain_pass() {
    let (found, expected) = both(Shape { tied: true, ..Shape::TINY }, 200);
    assert!(distance(&found, &expected) < 1e-4);
}

#[test]
fn one_token_agrees_with_the_plain_pass() {
    let (found, expected) = both(Shape::TINY, 1);
    assert!(distance(&found, &expected) < 1e-4);
}

#[test]
fn blocks_agree_with_the_plain_pass_as_far_as_eight_bit_activations_can() {
    for kind in [GgmlDType::Q8_0, GgmlDType::Q4_0] {
        for count in [1, 40] {
            let (found, expected) = both(Shape { kind, ..Shape::TINY }, count);
            let distance = distance(&found, &expected);
            assert!(distance < 0.05, "{kind:?}, {count} tokens: {distance}");
        }
    }
}

/// The same weights, read back by candle and computed with as f32.
#[test]
fn blocks_agree_with_what_candle_reads_of_them() {
    let fallbacks = [GgmlDType::Q4_1, GgmlDType::Q5_0, GgmlDType::Q5_1];
    for kind in [GgmlDType::Q4K, GgmlDType::Q5K, GgmlDType::Q6K].into_iter().chain(fallbacks) {
        let file = random_model(&Shape { kind, ..Shape::TINY }, 3);
        let logits = |file: &Gguf| {
            let model = Model::load(&file.to_bytes(), &LoadOptions::default()).unwrap();
            model.logits(&model.prompt_of_tokens(&tokens(30)).unwrap()).unwrap()
        };
        let distance = distance(&logits(&file), &logits(&dequantised(&file, kind)));
        assert!(distance > 0.0 && distance < 0.05, "{kind:?}: {distance}");
    }
}

fn dequantised(file: &Gguf, kind: GgmlDType) -> Gguf {
    let mut copy = Gguf { metadata: file.metadata.clone(), tensors: Vec::new() };
    for tensor in &file.tensors {
        let mut tensor = tensor.clone();
        if let (2, Data::Bytes(bytes)) = (tensor.shape.len(), &tensor.data) {
            let storage = QStorage::Cpu(kind.from_data(bytes.clone().into()));
            let floats = QTensor::new(storage, tensor.shape.as_slice()).unwrap().dequantize(&Device::Cpu).unwrap();
            let floats: Vec<f32> = floats.flatten_all().unwrap().to_vec1().unwrap();
            tensor.kind = 0;
            tensor.data = Data::Bytes(floats.iter().flat_map(|x| x.to_le_bytes()).collect());
        }
        copy.tensors.push(tensor);
    }
    copy
}

#[test]
fn token_by_token_comes_to_the_same_as_all_at_once() {
    let model = Model::load(&random_model(&Shape::TINY, 5).to_bytes(), &LoadOptions::default()).unwrap();
    let mut sequence = tokens(130);
    let prompt = model.prompt_of_tokens(&sequence).unwrap();
    let mut answer = Vec::new();
    let generated = model.generate(&prompt, &Sampling::greedy(), 12, &Cancel::new(), &mut |token| {
        answer.push((token.count, token.id));
        ControlFlow::Continue(())
    });
    assert_eq!(generated.unwrap().completion_tokens, 12);
    answer.dedup();
    for (_, id) in answer {
        let logits = model.logits(&model.prompt_of_tokens(&sequence).unwrap()).unwrap();
        let likeliest = (0..).zip(&logits).max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        assert_eq!(id, likeliest);
        sequence.push(id);
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let file = random_model(&Shape::TINY, 6).to_bytes();
    let logits = |threads| {
        let model = Model::load(&file, &LoadOptions { threads }).unwrap();
        assert_eq!(model.threads(), threads);
        model.logits(&model.prompt_of_tokens(&tokens(150)).unwrap()).unwrap()
    };
    assert_eq!(logits(1), logits(4));
}
