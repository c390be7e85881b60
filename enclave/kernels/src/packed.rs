//! A matrix of weights, packed.

use crate::LANES;
use crate::format::Format;
use crate::layout::{Layout, SUPER_INPUTS};
use crate::pack::{pack_tile, unpack_row};
use crate::store::{LINE, Room, Store};
use crate::team::for_each;

/// A matrix of weights (outputs, inputs) in tiles, held once. See [`Format`] for how it lies.
pub struct Packed {
    format: Format,
    outputs: usize,
    inputs: usize,
    store: Store,
}

/// Why weights are not packed.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PackError {
    /// A row is no whole number of blocks.
    #[error("rows of {inputs} weights are no whole blocks of {block}")]
    Inputs {
        /// Weights of a row.
        inputs: usize,
        /// Of a block.
        block: usize,
    },
    /// There are more bytes than the matrix has, or fewer.
    #[error("{found} bytes, where the matrix has {expected}")]
    Bytes {
        /// What the matrix has.
        expected: usize,
        /// What there is.
        found: usize,
    },
}

impl Packed {
    /// A matrix of zeros in `room`, to be [filled](Packed::fill).
    ///
    /// # Errors
    /// When rows are no whole blocks, or there are none.
    pub fn zeroed(room: &mut Room, format: Format, outputs: usize, inputs: usize) -> Result<Self, PackError> {
        Self::row_bytes(format, inputs)?;
        if outputs == 0 {
            return Err(PackError::Bytes { expected: 1, found: 0 });
        }
        Ok(Self { format, outputs, inputs, store: room.take(format.packed_bytes(outputs, inputs)) })
    }

    /// Bytes of [`Room`] that a matrix takes, at most.
    #[must_use]
    pub const fn room_for(format: Format, outputs: usize, inputs: usize) -> usize {
        format.packed_bytes(outputs, inputs).saturating_add(LINE)
    }

    /// Packs the weights of a GGUF tensor: `outputs` rows of `inputs` weights, one row after the other.
    ///
    /// # Errors
    /// When rows are no whole blocks, or the bytes are not as many as the rows have.
    pub fn pack(format: Format, outputs: usize, inputs: usize, rows: &[u8]) -> Result<Self, PackError> {
        let expected = outputs.saturating_mul(Self::row_bytes(format, inputs)?);
        if rows.len() != expected {
            return Err(PackError::Bytes { expected, found: rows.len() });
        }
        let mut packed = Self::zeroed(&mut Room::new(format.packed_bytes(outputs, inputs)), format, outputs, inputs)?;
        packed.fill(0, rows)?;
        Ok(packed)
    }

    /// Packs rows of a GGUF tensor into a matrix of zeros, from row `first` on: a multiple of 16. Each row may come once.
    ///
    /// # Errors
    /// When the bytes are no whole rows, or there are fewer rows than that.
    pub fn fill(&mut self, first: usize, rows: &[u8]) -> Result<(), PackError> {
        let (format, inputs) = (self.format, self.inputs);
        let row_bytes = Self::row_bytes(format, inputs)?;
        let expected = self.outputs.saturating_sub(first).saturating_mul(row_bytes);
        if !rows.len().is_multiple_of(row_bytes) || rows.len() > expected || !first.is_multiple_of(LANES) {
            return Err(PackError::Bytes { expected, found: rows.len() });
        }
        let of_tiles = rows.chunks(row_bytes * LANES);
        let tiles = self.layout().cut(self.store.bytes_mut(), first / LANES, of_tiles.len());
        let mut tiles: Vec<_> = tiles.into_iter().zip(of_tiles).collect();
        for_each(&mut tiles, |(tile, rows)| pack_tile(format, rows, inputs, tile));
        Ok(())
    }

    /// Bytes of a row in a GGUF file.
    #[must_use]
    pub fn bytes_of_row(&self) -> usize {
        self.inputs / self.format.inputs_of_block() * self.format.bytes_of_block()
    }

    fn row_bytes(format: Format, inputs: usize) -> Result<usize, PackError> {
        let block = format.inputs_of_block();
        if inputs == 0 || !inputs.is_multiple_of(block) {
            return Err(PackError::Inputs { inputs, block });
        }
        Ok((inputs / block).saturating_mul(format.bytes_of_block()))
    }

    /// How the weights lie.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows: elements of a result.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns: elements of what is multiplied.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.store.bytes().len()
    }

    /// One row as f32, as of an embedding. `out` has as many elements as the matrix has inputs.
    ///
    /// # Panics
    /// When there is no such row, or `out` has another length.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.outputs && out.len() == self.inputs, "a row of the matrix, and room for it");
        let layout = self.layout();
        for (part, out) in out.chunks_mut(SUPER_INPUTS).enumerate() {
            let tile = &self.store.bytes()[layout.offset(index / LANES, part)..][..layout.bytes_of(part)];
            unpack_row(self.format, tile, index % LANES, out);
        }
    }

    pub(crate) fn layout(&self) -> Layout {
        Layout { format: self.format, inputs: self.inputs, tiles: self.outputs.div_ceil(LANES) }
    }

    /// What the [layout](Packed::layout) leads through.
    pub(crate) fn start(&self) -> *const u8 {
        self.store.bytes().as_ptr()
    }
}
