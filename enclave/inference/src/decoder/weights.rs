//! All weights of a model: every tensor that should be there, in the shape it should have, and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use kernels::{Format, PackError, Packed, Room};
use model_header::{Architecture, Config, bytes_at_once};
use thiserror::Error;
use zeroize::Zeroizing;

use super::rope::Rope;
use crate::gguf::{GgufError, Header, TensorInfo, TensorType};

/// The weights of a model.
pub(crate) struct Weights {
    pub(super) embedding: Packed,
    pub(super) layers: Vec<Layer>,
    pub(super) output_norm: Vec<f32>,
    /// `None`: tied, the embedding is the output too.
    pub(super) output: Option<Packed>,
    pub(super) rope: Rope,
}

/// The weights of one layer.
pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) query: Packed,
    pub(super) key: Packed,
    pub(super) value: Packed,
    pub(super) attention_output: Packed,
    /// Of queries, keys and values (Qwen 2).
    pub(super) biases: Option<[Vec<f32>; 3]>,
    /// Of each head of queries and of keys (Qwen 3).
    pub(super) head_norms: Option<[Vec<f32>; 2]>,
    pub(super) feed_forward_norm: Vec<f32>,
    pub(super) gate: Packed,
    pub(super) up: Packed,
    pub(super) down: Packed,
}

/// Why the weights of a file are refused.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// A tensor lies outside the file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A tensor is missing.
    #[error("tensor \"{0}\" is missing")]
    Missing(String),
    /// A tensor has another shape than the hyperparameters ask for.
    #[error("tensor \"{tensor}\" has shape {shape:?}; {expected:?} is expected")]
    Shape {
        /// Name of the tensor.
        tensor: String,
        /// Its shape, slowest dimension first.
        shape: Vec<usize>,
        /// The shape that the hyperparameters ask for.
        expected: Vec<usize>,
    },
    /// A tensor that the architecture does not have: ignoring it would compute another model.
    #[error("tensor \"{0}\" has no place in this architecture")]
    Unknown(String),
    /// A tensor in a format that the kernels do not compute with.
    #[error("tensor \"{tensor}\" is of type {kind}, which is not supported; {supported} are", supported = SUPPORTED)]
    Type {
        /// Name of the tensor.
        tensor: String,
        /// Its type, as ggml calls it.
        kind: &'static str,
    },
    /// A vector of weights is zero, infinite or not a number where that cannot be computed with.
    #[error("tensor \"{0}\" holds values that cannot be computed with")]
    Values(String),
    /// Two tensors lie in the same place.
    #[error("tensor \"{0}\" begins before the one in front of it ends")]
    Overlap(String),
    /// Something that should not happen did.
    #[error("loading the weights failed")]
    Panicked,
    /// A tensor cannot be read.
    #[error("tensor \"{tensor}\": {reason}")]
    Tensor {
        /// Name of the tensor.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
}

impl Weights {
    /// Checks that everything is there, then reads tensor by tensor in the order of the file, of which never more than a few rows are
    /// held. `data` begins where the header ends.
    pub(super) fn load(config: &Config, header: &Header<'_>, data: &mut dyn Read) -> Result<Self, WeightsError> {
        let mut look = Loader { header, loaded: None, seen: BTreeSet::new() };
        Self::assemble(config, &mut look)?;
        let loaded = read_tensors(header, data)?;
        Self::assemble(config, &mut Loader { header, loaded: Some(loaded), seen: BTreeSet::new() })
    }

    fn assemble(config: &Config, loader: &mut Loader<'_>) -> Result<Self, WeightsError> {
        let (width, query, key_value) = (config.width, config.query_width(), config.kv_width());
        let embedding = loader.matrix("token_embd.weight", config.vocabulary, width)?;
        let mut layers = Vec::new();
        for index in 0..config.layers {
            let name = |part: &str| format!("blk.{index}.{part}.weight");
            let biases = match config.architecture {
                Architecture::Qwen2 => {
                    let bias = |loader: &mut Loader<'_>, part: &str, length| {
                        loader.vector(&format!("blk.{index}.{part}.bias"), length)
                    };
                    Some([
                        bias(loader, "attn_q", query)?,
                        bias(loader, "attn_k", key_value)?,
                        bias(loader, "attn_v", key_value)?,
                    ])
                }
                _ => None,
            };
            let head_norms = match config.architecture {
                Architecture::Qwen3 => Some([
                    loader.vector(&name("attn_q_norm"), config.head_width)?,
                    loader.vector(&name("attn_k_norm"), config.head_width)?,
                ]),
                _ => None,
            };
            layers.push(Layer {
                biases,
                head_norms,
                attention_norm: loader.vector(&name("attn_norm"), width)?,
                query: loader.matrix(&name("attn_q"), query, width)?,
                key: loader.matrix(&name("attn_k"), key_value, width)?,
                value: loader.matrix(&name("attn_v"), key_value, width)?,
                attention_output: loader.matrix(&name("attn_output"), width, query)?,
                feed_forward_norm: loader.vector(&name("ffn_norm"), width)?,
                gate: loader.matrix(&name("ffn_gate"), config.feed_forward, width)?,
                up: loader.matrix(&name("ffn_up"), config.feed_forward, width)?,
                down: loader.matrix(&name("ffn_down"), width, config.feed_forward)?,
            });
        }
        let output_norm = loader.vector("output_norm.weight", width)?;
        let output = match loader.header.tensor_info(OUTPUT) {
            Some(_) => Some(loader.matrix(OUTPUT, config.vocabulary, width)?),
            None => None,
        };
        let factors = match loader.header.tensor_info(ROPE_FACTORS) {
            Some(_) => Some(loader.vector(ROPE_FACTORS, config.head_width / 2)?),
            None => None,
        };
        if factors.as_ref().is_some_and(|factors| factors.iter().any(|factor| !factor.is_normal())) {
            return Err(WeightsError::Values(ROPE_FACTORS.to_owned()));
        }
        loader.nothing_left()?;
        let Config { architecture, head_width, rope_base, rope_scaling, .. } = config;
        let rope = Rope::new(*architecture, *head_width, *rope_base, rope_scaling, factors.as_deref());
        Ok(Self { embedding, layers, output_norm, output, rope })
    }
}

/// Finds each tensor once.
struct Loader<'a> {
    header: &'a Header<'a>,
    /// What was read; without it the loader only looks whether the header has it all, and what it gives stands for nothing.
    loaded: Option<BTreeMap<&'a str, Tensor>>,
    seen: BTreeSet<String>,
}

enum Tensor {
    Matrix(Packed),
    Vector(Vec<f32>),
}

impl Loader<'_> {
    fn matrix(&mut self, name: &str, outputs: usize, inputs: usize) -> Result<Packed, WeightsError> {
        let kind = self.find(name, &[outputs, inputs])?;
        match &mut self.loaded {
            None => {
                let format = format(name, kind)?;
                let block = format.inputs_of_block();
                if inputs.is_multiple_of(block) {
                    Packed::zeroed(&mut Room::new(0), format, 1, block).map_err(|error| unreadable(name, &error))
                } else {
                    Err(unreadable(name, &PackError::Inputs { inputs, block }))
                }
            }
            Some(loaded) => match loaded.remove(name) {
                Some(Tensor::Matrix(matrix)) => Ok(matrix),
                _ => Err(WeightsError::Missing(name.to_owned())),
            },
        }
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, WeightsError> {
        let kind = self.find(name, &[length])?;
        match &mut self.loaded {
            None => float_type(name, kind).map(|_| vec![1.0; length]),
            Some(loaded) => match loaded.remove(name) {
                Some(Tensor::Vector(vector)) => Ok(vector),
                _ => Err(WeightsError::Missing(name.to_owned())),
            },
        }
    }

    fn find(&mut self, name: &str, expected: &[usize]) -> Result<TensorType, WeightsError> {
        let info = self.header.tensor_info(name).ok_or_else(|| WeightsError::Missing(name.to_owned()))?;
        if info.shape != expected {
            let (tensor, shape) = (name.to_owned(), info.shape.clone());
            return Err(WeightsError::Shape { tensor, shape, expected: expected.to_vec() });
        }
        self.seen.insert(name.to_owned());
        Ok(info.kind)
    }

    fn nothing_left(&self) -> Result<(), WeightsError> {
        match self.header.tensors().find(|(name, _)| !self.seen.contains(*name)) {
            Some((name, _)) => Err(WeightsError::Unknown(name.to_owned())),
            None => Ok(()),
        }
    }
}

/// Reads every tensor: matrices are packed as they come.
fn read_tensors<'a>(header: &Header<'a>, data: &mut dyn Read) -> Result<BTreeMap<&'a str, Tensor>, WeightsError> {
    let mut room = room(header)?;
    let mut in_order: Vec<(&'a str, &TensorInfo)> = header.tensors().collect();
    in_order.sort_by_key(|(_, info)| info.offset);
    let mut at = 0;
    let mut loaded = BTreeMap::new();
    // Made once: what grows leaves copies behind.
    let most = in_order.iter().map(|(_, info)| bytes_at_once(info)).max().unwrap_or(0);
    let mut buffer = Zeroizing::new(Vec::with_capacity(most));
    for (name, info) in in_order {
        let gap = info.offset.checked_sub(at).ok_or_else(|| WeightsError::Overlap(name.to_owned()))?;
        let skipped =
            io::copy(&mut (&mut *data).take(gap as u64), &mut io::sink()).map_err(|error| cut(name, &error))?;
        if skipped != gap as u64 {
            return Err(GgufError::TensorPastEnd { tensor: name.to_owned() }.into());
        }
        let tensor = match info.shape.as_slice() {
            &[outputs, inputs] => {
                Tensor::Matrix(read_matrix(name, info, (outputs, inputs), &mut room, data, &mut buffer)?)
            }
            _ => Tensor::Vector(read_vector(name, info, data, &mut buffer)?),
        };
        loaded.insert(name, tensor);
        at = info.offset + info.bytes;
    }
    Ok(loaded)
}

/// For all matrices.
fn room(header: &Header<'_>) -> Result<Room, WeightsError> {
    let mut bytes = 0_usize;
    for (name, info) in header.tensors() {
        if let &[outputs, inputs] = info.shape.as_slice() {
            bytes = bytes.saturating_add(Packed::room_for(format(name, info.kind)?, outputs, inputs));
        }
    }
    Ok(Room::new(bytes))
}

fn read_matrix(
    name: &str,
    info: &TensorInfo,
    (outputs, inputs): (usize, usize),
    room: &mut Room,
    data: &mut dyn Read,
    buffer: &mut Vec<u8>,
) -> Result<Packed, WeightsError> {
    let mut matrix =
        Packed::zeroed(room, format(name, info.kind)?, outputs, inputs).map_err(|error| unreadable(name, &error))?;
    let row_bytes = matrix.bytes_of_row();
    let together = bytes_at_once(info) / row_bytes;
    for first in (0..outputs).step_by(together.max(1)) {
        buffer.resize(together.min(outputs - first) * row_bytes, 0);
        data.read_exact(buffer).map_err(|error| cut(name, &error))?;
        matrix.fill(first, buffer).map_err(|error| unreadable(name, &error))?;
    }
    Ok(matrix)
}

fn read_vector(
    name: &str,
    info: &TensorInfo,
    data: &mut dyn Read,
    buffer: &mut Vec<u8>,
) -> Result<Vec<f32>, WeightsError> {
    let dtype = float_type(name, info.kind)?;
    buffer.resize(info.bytes, 0);
    data.read_exact(buffer).map_err(|error| cut(name, &error))?;
    // candle asserts that bytes are aligned to what they hold: so it gets a copy of its own.
    let floats = || {
        let storage = QStorage::Cpu(dtype.from_data(buffer.clone().into()));
        QTensor::new(storage, info.elements())?.dequantize(&Device::Cpu)?.to_vec1()
    };
    floats().map_err(|error: candle_core::Error| unreadable(name, &error))
}

fn unreadable(tensor: &str, error: &dyn std::fmt::Display) -> WeightsError {
    WeightsError::Tensor { tensor: tensor.to_owned(), reason: error.to_string() }
}

/// The file ends early, or cannot be read.
fn cut(tensor: &str, error: &io::Error) -> WeightsError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => GgufError::TensorPastEnd { tensor: tensor.to_owned() }.into(),
        _ => unreadable(tensor, error),
    }
}

fn float_type(tensor: &str, kind: TensorType) -> Result<GgmlDType, WeightsError> {
    match kind {
        TensorType::F32 => Ok(GgmlDType::F32),
        TensorType::F16 => Ok(GgmlDType::F16),
        TensorType::Bf16 => Ok(GgmlDType::BF16),
        _ => Err(WeightsError::Type { tensor: tensor.to_owned(), kind: kind.name() }),
    }
}

/// The format in which the kernels have it.
fn format(tensor: &str, kind: TensorType) -> Result<Format, WeightsError> {
    Ok(match kind {
        TensorType::F32 => Format::F32,
        TensorType::F16 => Format::F16,
        TensorType::Bf16 => Format::Bf16,
        TensorType::Q4_0 => Format::Q4_0,
        TensorType::Q4_1 => Format::Q4_1,
        TensorType::Q5_0 => Format::Q5_0,
        TensorType::Q5_1 => Format::Q5_1,
        TensorType::Q8_0 => Format::Q8_0,
        TensorType::Q4K => Format::Q4K,
        TensorType::Q5K => Format::Q5K,
        TensorType::Q6K => Format::Q6K,
        // Q3_K could be had as Q6_K, weight for weight, at twice its size: then a file of another type is better.
        TensorType::Q2K | TensorType::Q3K => {
            return Err(WeightsError::Type { tensor: tensor.to_owned(), kind: kind.name() });
        }
    })
}

const SUPPORTED: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K";
const OUTPUT: &str = "output.weight";
const ROPE_FACTORS: &str = "rope_freqs.weight";

#[cfg(test)]
mod tests {
    use model_header::gguf::TensorInfo;
    use model_header::resident_bytes;

    use super::*;

    #[test]
    fn a_plan_counts_what_the_kernels_take() {
        let kinds = [
            TensorType::F32,
            TensorType::F16,
            TensorType::Bf16,
            TensorType::Q4_0,
            TensorType::Q4_1,
            TensorType::Q5_0,
            TensorType::Q5_1,
            TensorType::Q8_0,
            TensorType::Q4K,
            TensorType::Q5K,
            TensorType::Q6K,
        ];
        for kind in kinds {
            for (outputs, inputs) in [(1, 256), (300, 2048), (8200, 768), (4096, 288), (17, 32)] {
                if inputs % kind.block_size() != 0 {
                    continue;
                }
                let bytes = outputs * inputs / kind.block_size() * kind.block_bytes();
                let info = TensorInfo { shape: vec![outputs, inputs], kind, offset: 0, bytes };
                let taken = format("a", kind).unwrap().packed_bytes(outputs, inputs);
                assert_eq!(resident_bytes(&info), taken, "{kind:?} {outputs} {inputs}");
            }
        }
    }
}
