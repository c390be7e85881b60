//! Rotary position embedding, on interleaved pairs: element 2i turns with element 2i + 1.
//!
//! This is llama.cpp's `LLAMA_ROPE_TYPE_NORM`, "rope of type 0", which GGUF files of architecture `llama` expect
//! (their converters permute the weights of Hugging Face models, which pair i with i + n/2).

use model_header::RopeScaling;

/// The angular frequency of each pair of a head.
pub(super) struct Rope {
    frequencies: Vec<f64>,
}

/// Cosine and sine for each position of a chunk and each pair of a head.
pub(super) struct Rotation {
    turns: Vec<(f32, f32)>,
    pairs: usize,
}

impl Rope {
    /// `factors` is the tensor `rope_freqs.weight` of Llama 3.1 and later, if the file has one: "freq / factor"
    /// (`ggml_rope_ext`, `freq_factors`).
    pub(super) fn new(head_width: usize, base: f64, scaling: &RopeScaling, factors: Option<&[f32]>) -> Self {
        let position_scale = match scaling {
            RopeScaling::None => 1.0,
            RopeScaling::Linear(factor) => 1.0 / factor,
        };
        let pairs = head_width / 2;
        let frequencies = (0..pairs)
            .map(|pair| {
                let factor = factors.and_then(|factors| factors.get(pair)).map_or(1.0, |&factor| f64::from(factor));
                base.powf(-2.0 * pair as f64 / head_width as f64) * position_scale / factor
            })
            .collect();
        Self { frequencies }
    }

    /// The turns of positions `first..first + count`. In f64: position 100,000 times the first frequency, 1, is far
    /// outside what f32 keeps the angle of.
    pub(super) fn rotation(&self, first: usize, count: usize) -> Rotation {
        let turns = (first..first + count)
            .flat_map(|position| {
                self.frequencies.iter().map(move |frequency| {
                    let (sine, cosine) = (position as f64 * frequency).sin_cos();
                    (cosine as f32, sine as f32)
                })
            })
            .collect();
        Rotation { turns, pairs: self.frequencies.len() }
    }
}

impl Rotation {
    /// Turns every head of every row; a row has `row_width` elements, a multiple of the head's width.
    pub(super) fn apply(&self, rows: &mut [f32], row_width: usize) {
        for (row, turns) in rows.chunks_exact_mut(row_width).zip(self.turns.chunks_exact(self.pairs)) {
            for head in row.chunks_exact_mut(2 * self.pairs) {
                for (pair, &(cosine, sine)) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                    let [x, y] = *pair;
                    *pair = [x * cosine - y * sine, x * sine + y * cosine];
                }
            }
        }
    }
}
