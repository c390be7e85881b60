//! How packed weights lie.

use crate::layout::{Layout, SUPER_INPUTS};
use crate::{BLOCK_INPUTS, LANES, SUPER};

/// The format of a packed matrix: what a weight is made of, and how 16 rows of weights lie in a tile.
///
/// The quantised formats are those of GGUF files, value for value; only their order differs. A tile is 16 outputs wide. It
/// consists of super-blocks (256 inputs; the last one may be shorter), which lie next to those of the 15 tiles beside it: of 16 tiles
/// first all first super-blocks, then all second ones. A super-block holds, `n` being its number of blocks of 32 inputs:
///
/// | format | bytes of a super-block, in their order |
/// | --- | --- |
/// | `Q8_0` | `n` x 16 scales (f16); `n` x 512 codes, each plus 128 |
/// | `Q4_0` | `n` x 16 scales (f16); `n` x 256 bytes of nibbles |
/// | `Q4_1` | `n` x 16 scales (f16); `n` x 16 minima (f16); `n` x 256 bytes of nibbles |
/// | `Q5_0`, `Q5_1` | as `Q4_0` and `Q4_1`, but `n` x (256 bytes of nibbles; 8 masks of 64 fifth bits) |
/// | `Q4_K` | 16 scales of scales (f16); 16 of minima; 8 x 16 scales; 4 x 16 x 2 minima; 8 x 256 bytes of nibbles |
/// | `Q5_K` | as `Q4_K`, but 8 x (256 bytes of nibbles; 8 masks of 64 fifth bits) |
/// | `Q6_K` | 16 scales of scales (f16), 32 bytes unused; 16 x 16 scales (i8); 8 x (256 bytes of nibbles; 128 of high bits) |
///
/// Codes of a block lie as 8 groups of 4 inputs; a group holds 4 codes of each of 16 outputs: 64 bytes, one vector, of which an
/// instruction multiplies each four with the same four activations. A byte of nibbles holds the codes of group `g` (low) and
/// `g + 4` (high). Floats lie input by input, 16 outputs each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 8 bits and a scale for 32.
    Q8_0,
    /// 4 bits and a scale for 32.
    Q4_0,
    /// 4 bits, a scale and a minimum for 32.
    Q4_1,
    /// 5 bits and a scale for 32.
    Q5_0,
    /// 5 bits, a scale and a minimum for 32.
    Q5_1,
    /// 4 bits, 6-bit scales and minima for 32, two scales for 256.
    Q4K,
    /// 5 bits, else as `Q4K`.
    Q5K,
    /// 6 bits, 8-bit scales for 16, one scale for 256.
    Q6K,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Inputs that lie together in a file: a row has a multiple of so many.
    #[must_use]
    pub const fn inputs_of_block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => BLOCK_INPUTS,
            Self::Q4K | Self::Q5K | Self::Q6K => SUPER * BLOCK_INPUTS,
        }
    }

    /// Bytes of such a block in a GGUF file (`ggml-common.h`: `block_q8_0` and so on).
    #[must_use]
    pub const fn bytes_of_block(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Whether activations are quantised to 8 bits before they are multiplied.
    #[must_use]
    pub const fn is_quantised(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Whether each block of 32 has a minimum of its own.
    pub(crate) const fn has_minima(self) -> bool {
        matches!(self, Self::Q4_1 | Self::Q5_1)
    }

    /// Whether codes are nibbles and a bit.
    pub(crate) const fn has_fifth_bits(self) -> bool {
        matches!(self, Self::Q5_0 | Self::Q5_1 | Self::Q5K)
    }

    /// Bytes of scales and minima, with which a super-block of `blocks` blocks begins.
    pub(crate) const fn head_bytes(self, blocks: usize) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 0,
            Self::Q8_0 | Self::Q4_0 | Self::Q5_0 => blocks * 32,
            Self::Q4_1 | Self::Q5_1 => blocks * 64,
            Self::Q4K | Self::Q5K => K_HEAD,
            Self::Q6K => Q6_HEAD,
        }
    }

    /// Bytes of the codes of a block of 16 outputs, of a quantised format.
    pub(crate) const fn codes_bytes(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 0,
            Self::Q8_0 => 512,
            Self::Q4_0 | Self::Q4_1 | Self::Q4K => 256,
            Self::Q5_0 | Self::Q5_1 | Self::Q5K => 256 + 64,
            Self::Q6K => 256 + 128,
        }
    }

    /// Bytes of a super-block of at most 256 inputs in a tile.
    pub(crate) const fn super_bytes(self, inputs: usize) -> usize {
        let blocks = inputs / BLOCK_INPUTS;
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => inputs * LANES * self.bytes_of_block(),
            _ if blocks == 0 => 0,
            _ => self.head_bytes(blocks) + blocks * self.codes_bytes(),
        }
    }

    /// Bytes of a tile of 16 outputs.
    pub(crate) const fn tile_bytes(self, inputs: usize) -> usize {
        let whole = (inputs / SUPER_INPUTS).saturating_mul(self.super_bytes(SUPER_INPUTS));
        whole.saturating_add(self.super_bytes(inputs % SUPER_INPUTS))
    }

    /// Bytes that a matrix takes once it is packed.
    #[must_use]
    pub const fn packed_bytes(self, outputs: usize, inputs: usize) -> usize {
        Layout { format: self, inputs, tiles: outputs.div_ceil(LANES) }.bytes()
    }
}

/// Scales of scales, scales of minima, scales, minima.
pub(crate) const K_HEAD: usize = 32 + 32 + SUPER * LANES + SUPER * LANES;
/// Scales of scales and room after them, so that the rest lies on lines of the cache; scales.
pub(crate) const Q6_HEAD: usize = 64 + 2 * SUPER * LANES;
