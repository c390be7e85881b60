//! A matrix of weights, and its product with activations. This is the one place that computes with candle's tensors
//! of weights: an engine with kernels of its own replaces what is behind `Linear`.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Storage, Tensor};
use model_header::Form;
use rayon::iter::{IndexedParallelIterator, IntoParallelRefMutIterator, ParallelIterator};
use rayon::slice::ParallelSlice;

use super::math::dot;
use crate::gguf::{TensorInfo, TensorType};

/// Weights of shape (outputs, inputs).
pub(super) struct Linear {
    weights: Weights,
    outputs: usize,
    inputs: usize,
}

enum Weights {
    /// f32: exact, on the threads of the engine's own pool.
    Dense(Tensor),
    /// Blocks as in the file: activations are rounded to 8 bits too, on the threads of candle's pool.
    Blocks(QTensor),
}

impl Linear {
    /// `bytes` are as long as `info` says, which the header's reader has checked.
    pub(super) fn load(form: Form, info: &TensorInfo, bytes: &[u8]) -> candle_core::Result<Self> {
        let &[outputs, inputs] = info.shape.as_slice() else {
            return Err(candle_core::Error::Msg("a matrix has two dimensions".to_owned()));
        };
        let blocks = blocks(info, bytes)?;
        let weights = match form {
            Form::Dense => Weights::Dense(blocks.dequantize(&Device::Cpu)?),
            Form::Blocks => Weights::Blocks(blocks),
        };
        Ok(Self { weights, outputs, inputs })
    }

    pub(super) fn is_blocks(&self) -> bool {
        matches!(self.weights, Weights::Blocks(_))
    }

    /// Rows of activations in, rows of outputs out: each output is the product of a row and a row of weights.
    pub(super) fn forward(&self, rows: &[f32]) -> candle_core::Result<Vec<f32>> {
        let count = rows.len() / self.inputs;
        if let (Weights::Dense(weights), 1) = (&self.weights, count) {
            return one_row(rows, weights, self.outputs);
        }
        let rows = Tensor::from_slice(rows, (count, self.inputs), &Device::Cpu)?;
        let products = match &self.weights {
            Weights::Dense(weights) => rows.matmul(&weights.t()?)?,
            // Not through QMatMul: it asks the environment whether to dequantise, and here no variable decides anything.
            Weights::Blocks(weights) => rows.apply_op1_no_bwd(weights)?,
        };
        products.reshape(count * self.outputs)?.to_vec1()
    }

    /// The rows of weights at `indices`, as an embedding is looked up.
    pub(super) fn rows(&self, indices: &[u32]) -> candle_core::Result<Vec<f32>> {
        let count = indices.len();
        let indices = Tensor::from_slice(indices, count, &Device::Cpu)?;
        let rows = match &self.weights {
            Weights::Dense(weights) => weights.index_select(&indices, 0)?,
            Weights::Blocks(weights) => weights.embedding(&indices)?,
        };
        rows.reshape(count * self.inputs)?.to_vec1()
    }
}

/// The product of one row. candle asks the operating system for the number of cores at each product of matrices, which
/// for the small ones of a single token takes longer than the product.
fn one_row(row: &[f32], weights: &Tensor, outputs: usize) -> candle_core::Result<Vec<f32>> {
    let (storage, _) = weights.storage_and_layout();
    let Storage::Cpu(weights) = &*storage else {
        return Err(candle_core::Error::Msg("weights lie in memory".to_owned()));
    };
    let weights = weights.as_slice::<f32>()?;
    let mut products = vec![0.0; outputs];
    let multiply = |(product, weights): (&mut f32, &[f32])| *product = dot(row, weights);
    if weights.len() < PARALLEL_FROM {
        products.iter_mut().zip(weights.chunks_exact(row.len())).for_each(multiply);
    } else {
        let each = products.par_iter_mut().zip(weights.par_chunks_exact(row.len()));
        each.with_min_len(ROWS_TOGETHER).for_each(multiply);
    }
    Ok(products)
}

/// A vector of weights (of a norm), as f32.
pub(super) fn vector(info: &TensorInfo, bytes: &[u8]) -> candle_core::Result<Vec<f32>> {
    blocks(info, bytes)?.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()
}

fn blocks(info: &TensorInfo, bytes: &[u8]) -> candle_core::Result<QTensor> {
    let mut copy = Vec::new();
    let bytes = aligned(bytes, &mut copy);
    let storage = QStorage::Cpu(candle_type(info.kind).from_data(Cow::Borrowed(bytes)));
    QTensor::new(storage, info.shape.as_slice())
}

/// The same format, as candle calls it.
fn candle_type(kind: TensorType) -> GgmlDType {
    match kind {
        TensorType::F32 => GgmlDType::F32,
        TensorType::F16 => GgmlDType::F16,
        TensorType::Bf16 => GgmlDType::BF16,
        TensorType::Q4_0 => GgmlDType::Q4_0,
        TensorType::Q4_1 => GgmlDType::Q4_1,
        TensorType::Q5_0 => GgmlDType::Q5_0,
        TensorType::Q5_1 => GgmlDType::Q5_1,
        TensorType::Q8_0 => GgmlDType::Q8_0,
        TensorType::Q2K => GgmlDType::Q2K,
        TensorType::Q3K => GgmlDType::Q3K,
        TensorType::Q4K => GgmlDType::Q4K,
        TensorType::Q5K => GgmlDType::Q5K,
        TensorType::Q6K => GgmlDType::Q6K,
    }
}

/// candle asserts that bytes are aligned to what they hold; a caller's buffer need not be.
fn aligned<'a>(bytes: &'a [u8], copy: &'a mut Vec<u8>) -> &'a [u8] {
    if bytes.as_ptr().align_offset(BLOCK_ALIGNMENT) == 0 {
        return bytes;
    }
    copy.resize(bytes.len() + BLOCK_ALIGNMENT, 0);
    let start = copy.as_ptr().align_offset(BLOCK_ALIGNMENT).min(BLOCK_ALIGNMENT);
    match copy.get_mut(start..start + bytes.len()) {
        Some(place) => {
            place.copy_from_slice(bytes);
            place
        }
        None => bytes,
    }
}

/// Weights from which handing rows to other threads costs less than it saves.
const PARALLEL_FROM: usize = 1 << 22;
/// Rows that one thread takes at once.
const ROWS_TOGETHER: usize = 64;
/// The strictest of candle's block types holds f32.
const BLOCK_ALIGNMENT: usize = align_of::<f32>();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_as_large_as_candle_has_it() {
        for kind in TensorType::ALL {
            let candle = candle_type(kind);
            assert_eq!((kind.block_size(), kind.block_bytes()), (candle.block_size(), candle.type_size()), "{kind:?}");
        }
    }
}
