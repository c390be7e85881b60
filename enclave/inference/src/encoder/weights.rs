//! All weights of an encoder: every tensor that should be there, in the shape it should have, and no other.

use std::collections::BTreeMap;
use std::io::{self, Read};

use kernels::{Format, LANES as ROWS_OF_A_TILE, PackError, Packed, Room};
use model_header::safetensors::{Dtype, Header, TensorInfo};
use model_header::{EncoderConfig, READ_AT_ONCE, is_left_out};
use thiserror::Error;

/// The weights of an encoder.
pub(super) struct Weights {
    pub(super) words: Packed,
    /// Of each position, that of the first token type added: as texts are of no other.
    pub(super) positions: Vec<f32>,
    pub(super) norm: Norm,
    pub(super) layers: Vec<Layer>,
}

/// The weights of one layer.
pub(super) struct Layer {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) attention_output: Linear,
    pub(super) attention_norm: Norm,
    pub(super) intermediate: Linear,
    pub(super) output: Linear,
    pub(super) output_norm: Norm,
}

/// A matrix, and what is added to its results.
pub(super) struct Linear {
    pub(super) weight: Packed,
    pub(super) bias: Vec<f32>,
}

/// What a norm multiplies with, and adds.
pub(super) struct Norm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

/// Why the weights of an encoder are refused.
#[derive(Debug, Error)]
pub enum EncoderWeightsError {
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
    /// A tensor of a type that the kernels do not compute with.
    #[error("tensor \"{tensor}\" is of type {kind}, which is not supported; F32, F16 and BF16 are")]
    Type {
        /// Name of the tensor.
        tensor: String,
        /// Its type, as the file calls it.
        kind: &'static str,
    },
    /// The file ends early, or cannot be read.
    #[error("tensor \"{tensor}\" cannot be read: {kind}")]
    Read {
        /// Name of the tensor.
        tensor: String,
        /// What the operating system says.
        kind: io::ErrorKind,
    },
    /// The kernels refused a matrix.
    #[error("tensor \"{tensor}\": {reason}")]
    Pack {
        /// Name of the tensor.
        tensor: String,
        /// Why.
        reason: PackError,
    },
}

impl Weights {
    /// Checks that everything is there, then reads tensor by tensor in the order of the file, of which never more than a few rows are
    /// held. `data` begins where the header ends.
    pub(super) fn load(
        config: &EncoderConfig,
        header: &Header,
        data: &mut dyn Read,
    ) -> Result<Self, EncoderWeightsError> {
        let expected = expected(config);
        for (name, shape) in &expected {
            let info = header.tensor(name).ok_or_else(|| EncoderWeightsError::Missing(name.clone()))?;
            if info.shape != *shape {
                let (tensor, expected) = (name.clone(), shape.clone());
                return Err(EncoderWeightsError::Shape { tensor, shape: info.shape.clone(), expected });
            }
            format(name, info.dtype)?;
        }
        if let Some((name, _)) = header.tensors().find(|(name, _)| !is_left_out(name) && !expected.contains_key(*name))
        {
            return Err(EncoderWeightsError::Unknown(name.to_owned()));
        }
        Self::assemble(config, &mut Loaded(read_tensors(header, data)?))
    }

    fn assemble(config: &EncoderConfig, loaded: &mut Loaded) -> Result<Self, EncoderWeightsError> {
        let words = loaded.matrix(WORDS)?;
        let (table, types) = (loaded.matrix(POSITIONS)?, loaded.matrix(TYPES)?);
        let mut first_type = vec![0.0; config.width];
        types.row(0, &mut first_type);
        let mut positions = vec![0.0; config.positions * config.width];
        for (position, row) in positions.chunks_exact_mut(config.width).enumerate() {
            table.row(position, row);
            kernels::add(row, &first_type);
        }
        let norm = loaded.norm(NORM)?;
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            let name = |part: &str| format!("encoder.layer.{index}.{part}");
            layers.push(Layer {
                query: loaded.linear(&name(QUERY))?,
                key: loaded.linear(&name(KEY))?,
                value: loaded.linear(&name(VALUE))?,
                attention_output: loaded.linear(&name(ATTENTION_OUTPUT))?,
                attention_norm: loaded.norm(&name(ATTENTION_NORM))?,
                intermediate: loaded.linear(&name(INTERMEDIATE))?,
                output: loaded.linear(&name(OUTPUT))?,
                output_norm: loaded.norm(&name(OUTPUT_NORM))?,
            });
        }
        Ok(Self { words, positions, norm, layers })
    }
}

/// The tensors of a model of this shape.
fn expected(config: &EncoderConfig) -> BTreeMap<String, Vec<usize>> {
    let EncoderConfig { vocabulary, positions, token_types, width, layers, feed_forward, .. } = *config;
    let mut expected = BTreeMap::from([
        (WORDS.to_owned(), vec![vocabulary, width]),
        (POSITIONS.to_owned(), vec![positions, width]),
        (TYPES.to_owned(), vec![token_types, width]),
    ]);
    let mut norm = |name: &str| {
        expected.insert(format!("{name}.weight"), vec![width]);
        expected.insert(format!("{name}.bias"), vec![width]);
    };
    norm(NORM);
    for index in 0..layers {
        norm(&format!("encoder.layer.{index}.{ATTENTION_NORM}"));
        norm(&format!("encoder.layer.{index}.{OUTPUT_NORM}"));
    }
    for index in 0..layers {
        for (part, outputs, inputs) in [
            (QUERY, width, width),
            (KEY, width, width),
            (VALUE, width, width),
            (ATTENTION_OUTPUT, width, width),
            (INTERMEDIATE, feed_forward, width),
            (OUTPUT, width, feed_forward),
        ] {
            expected.insert(format!("encoder.layer.{index}.{part}.weight"), vec![outputs, inputs]);
            expected.insert(format!("encoder.layer.{index}.{part}.bias"), vec![outputs]);
        }
    }
    expected
}

enum Tensor {
    Matrix(Packed),
    Vector(Vec<f32>),
}

/// What was read, to be taken once.
struct Loaded(BTreeMap<String, Tensor>);

impl Loaded {
    fn matrix(&mut self, name: &str) -> Result<Packed, EncoderWeightsError> {
        match self.0.remove(name) {
            Some(Tensor::Matrix(matrix)) => Ok(matrix),
            _ => Err(EncoderWeightsError::Missing(name.to_owned())),
        }
    }

    fn vector(&mut self, name: &str) -> Result<Vec<f32>, EncoderWeightsError> {
        match self.0.remove(name) {
            Some(Tensor::Vector(vector)) => Ok(vector),
            _ => Err(EncoderWeightsError::Missing(name.to_owned())),
        }
    }

    fn linear(&mut self, name: &str) -> Result<Linear, EncoderWeightsError> {
        Ok(Linear { weight: self.matrix(&format!("{name}.weight"))?, bias: self.vector(&format!("{name}.bias"))? })
    }

    fn norm(&mut self, name: &str) -> Result<Norm, EncoderWeightsError> {
        Ok(Norm { weight: self.vector(&format!("{name}.weight"))?, bias: self.vector(&format!("{name}.bias"))? })
    }
}

/// Reads every tensor in the order of the file, in which they lie without gaps: matrices are packed as they come.
fn read_tensors(header: &Header, data: &mut dyn Read) -> Result<BTreeMap<String, Tensor>, EncoderWeightsError> {
    let mut in_order: Vec<(&str, &TensorInfo)> = header.tensors().collect();
    in_order.sort_by_key(|(_, info)| (info.offset, info.bytes));
    let (mut loaded, mut room) = (BTreeMap::new(), room(header)?);
    let mut buffer = Vec::new();
    for (name, info) in in_order {
        if is_left_out(name) {
            let skipped = io::copy(&mut (&mut *data).take(info.bytes as u64), &mut io::sink());
            let skipped = skipped.map_err(|error| unreadable(name, &error))?;
            if skipped != info.bytes as u64 {
                return Err(unreadable(name, &io::ErrorKind::UnexpectedEof.into()));
            }
            continue;
        }
        let tensor = match *info.shape.as_slice() {
            [outputs, inputs] => {
                Tensor::Matrix(read_matrix(name, info, (outputs, inputs), &mut room, data, &mut buffer)?)
            }
            _ => {
                // A matrix of one row.
                let mut vector = vec![0.0; info.elements()];
                let row = read_matrix(name, info, (1, info.elements()), &mut Room::new(0), data, &mut buffer)?;
                row.row(0, &mut vector);
                Tensor::Vector(vector)
            }
        };
        loaded.insert(name.to_owned(), tensor);
    }
    Ok(loaded)
}

/// For all matrices, side by side.
fn room(header: &Header) -> Result<Room, EncoderWeightsError> {
    let mut bytes = 0_usize;
    for (name, info) in header.tensors() {
        if let ([outputs, inputs], false) = (info.shape.as_slice(), is_left_out(name)) {
            bytes = bytes.saturating_add(Packed::room_for(format(name, info.dtype)?, *outputs, *inputs));
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
) -> Result<Packed, EncoderWeightsError> {
    let refused = |reason| EncoderWeightsError::Pack { tensor: name.to_owned(), reason };
    let mut matrix = Packed::zeroed(room, format(name, info.dtype)?, outputs, inputs).map_err(refused)?;
    let row_bytes = matrix.bytes_of_row();
    let together = (READ_AT_ONCE / row_bytes).next_multiple_of(ROWS_OF_A_TILE).max(ROWS_OF_A_TILE);
    for first in (0..outputs).step_by(together) {
        buffer.resize(together.min(outputs - first) * row_bytes, 0);
        data.read_exact(buffer).map_err(|error| unreadable(name, &error))?;
        matrix.fill(first, buffer).map_err(refused)?;
    }
    Ok(matrix)
}

fn format(tensor: &str, dtype: Dtype) -> Result<Format, EncoderWeightsError> {
    match dtype {
        Dtype::F32 => Ok(Format::F32),
        Dtype::F16 => Ok(Format::F16),
        Dtype::Bf16 => Ok(Format::Bf16),
        Dtype::Other(kind, _) => Err(EncoderWeightsError::Type { tensor: tensor.to_owned(), kind }),
    }
}

fn unreadable(tensor: &str, error: &io::Error) -> EncoderWeightsError {
    EncoderWeightsError::Read { tensor: tensor.to_owned(), kind: error.kind() }
}

// As transformers' BertModel names them.
const WORDS: &str = "embeddings.word_embeddings.weight";
const POSITIONS: &str = "embeddings.position_embeddings.weight";
const TYPES: &str = "embeddings.token_type_embeddings.weight";
const NORM: &str = "embeddings.LayerNorm";
const QUERY: &str = "attention.self.query";
const KEY: &str = "attention.self.key";
const VALUE: &str = "attention.self.value";
const ATTENTION_OUTPUT: &str = "attention.output.dense";
const ATTENTION_NORM: &str = "attention.output.LayerNorm";
const INTERMEDIATE: &str = "intermediate.dense";
const OUTPUT: &str = "output.dense";
const OUTPUT_NORM: &str = "output.LayerNorm";
