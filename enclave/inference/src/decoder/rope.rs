//! Rotary position embedding (Su et al. 2021).
//!
//! In GGUF files of architecture `llama` element 2i of a head turns with element 2i + 1 (llama.cpp's `LLAMA_ROPE_TYPE_NORM`; the
//! converters permute the weights of Hugging Face's models); in those of Qwen element i turns with i + n/2 (`LLAMA_ROPE_TYPE_NEOX`).

use model_header::{Architecture, RopeScaling};

/// The angular frequency of each pair of a head.
pub(super) struct Rope {
    frequencies: Vec<f64>,
    halves: bool,
}

/// Cosine and sine for each row of a step and each pair of a head.
pub(super) struct Rotation {
    turns: Vec<(f32, f32)>,
    pairs: usize,
    halves: bool,
}

impl Rope {
    /// `factors` is the tensor `rope_freqs.weight` of Llama 3.1 and later, if the file has one: "freq / factor"
    /// (`ggml_rope_ext`, `freq_factors`).
    pub(super) fn new(
        architecture: Architecture,
        head_width: usize,
        base: f64,
        scaling: &RopeScaling,
        factors: Option<&[f32]>,
    ) -> Self {
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
        Self { frequencies, halves: architecture != Architecture::Llama }
    }

    /// The turns of rows at these positions. (The C library's sine may differ in its last bit on a processor without FMA, which no
    /// host of Nitro Enclaves is.)
    /// In f64: position 100,000 times the first frequency, 1, is far outside what f32 keeps
    /// the angle of.
    pub(super) fn rotation(&self, positions: &[usize]) -> Rotation {
        let mut turns = Vec::with_capacity(positions.len() * self.frequencies.len());
        for &position in positions {
            turns.extend(self.frequencies.iter().map(|frequency| {
                let (sine, cosine) = (position as f64 * frequency).sin_cos();
                (cosine as f32, sine as f32)
            }));
        }
        Rotation { turns, pairs: self.frequencies.len(), halves: self.halves }
    }
}

impl Rotation {
    /// Turns every head of row `index`; a row is a multiple of the head's width.
    pub(super) fn apply(&self, index: usize, row: &mut [f32]) {
        let turns = self.turns.chunks_exact(self.pairs).nth(index).unwrap_or_default();
        for head in row.chunks_exact_mut(2 * self.pairs) {
            if self.halves {
                let (left, right) = head.split_at_mut(self.pairs);
                for ((x, y), &(cosine, sine)) in left.iter_mut().zip(right).zip(turns) {
                    (*x, *y) = (*x * cosine - *y * sine, *x * sine + *y * cosine);
                }
            } else {
                for (pair, &(cosine, sine)) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                    let [x, y] = *pair;
                    *pair = [x * cosine - y * sine, x * sine + y * cosine];
                }
            }
        }
    }
}
