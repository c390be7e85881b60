//! What the engine spends its time in: products of packed weights with activations, attention over a paged KV cache, and
//! the element-wise parts between them.
//!
//! Several families compute the same: AVX-512 VNNI, with AMX or without, and AVX2 with FMA on x86-64, NEON with `dotprod` and with
//! `i8mm` on Arm, and plain Rust. The family is chosen at run time ([`Family::best`]), so one image runs, and measures the same, on
//! every host. **All families give the same bits**, but for those of what is no number: integer sums are exact, and every f32
//! operation is a fused or a single one, in one order: that of the format, and where a sum runs across lanes (norms, softmax) that of
//! one fixed tree. It depends neither on how many rows are computed together nor on the number of threads.
//!
//! Weights lie in *tiles* of 16 outputs (see [`Format`]): a vector instruction works on 16 outputs at once, and a step of a few
//! answers reads the weights in the order in which they lie.

mod activations;
mod attention;
mod dispatch;
mod format;
mod gelu;
mod layer_norm;
mod layout;
mod math;
mod pack;
mod packed;
mod plain;
mod product;
mod store;
mod team;
mod vector;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

pub use activations::Activations;
pub use attention::{Attention, BLOCK, KvElement, KvPage, KvShape, write_head, write_kv};
pub use format::Format;
pub use gelu::gelu;
pub use layer_norm::layer_norm;
pub use math::{add, rms_norm, swiglu};
pub use packed::{PackError, Packed};
pub use product::{Product, multiply};
pub use store::Room;
pub use team::{Team, for_each, threads};

/// Instructions that the kernels are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// What every processor has.
    Plain,
    /// AVX2, FMA and F16C: Haswell and later, Zen and later.
    Avx2,
    /// AVX-512 F, BW, VL and VNNI: Ice Lake and later, Zen 4 and later.
    Avx512Vnni,
    /// These and the tiles of AMX: Sapphire Rapids and later, on Linux from 5.16 on.
    Avx512Amx,
    /// NEON with `dotprod`: Graviton2. Linux tells programs of it from 4.15 on.
    NeonDotprod,
    /// NEON with `dotprod` and `i8mm`: Graviton3 and later. Linux tells programs of it from 5.6 on.
    NeonI8mm,
}

impl Family {
    /// The fastest that this processor has.
    #[must_use]
    pub fn best() -> Self {
        Self::all().last().copied().unwrap_or(Self::Plain)
    }

    /// Those that this processor has, the slowest first.
    #[must_use]
    pub fn all() -> &'static [Self] {
        static FOUND: std::sync::OnceLock<Vec<Family>> = std::sync::OnceLock::new();
        FOUND.get_or_init(|| {
            #[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), expect(unused_mut))]
            let mut found = vec![Self::Plain];
            #[cfg(target_arch = "x86_64")]
            {
                let avx2 = is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c");
                if avx2 {
                    found.push(Self::Avx2);
                }
                let avx512 = is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni");
                if avx2 && avx512 {
                    found.push(Self::Avx512Vnni);
                    if amx::is_there() {
                        found.push(Self::Avx512Amx);
                    }
                }
            }
            #[cfg(target_arch = "aarch64")]
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                found.push(Self::NeonDotprod);
                if std::arch::is_aarch64_feature_detected!("i8mm") {
                    found.push(Self::NeonI8mm);
                }
            }
            found
        })
    }

    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Avx2 => "avx2",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Avx512Amx => "avx512-amx",
            Self::NeonDotprod => "neon-dotprod",
            Self::NeonI8mm => "neon-i8mm",
        }
    }
}

/// Outputs of a tile.
pub const LANES: usize = 16;
/// Inputs of a block. In most formats their weights share a scale.
pub(crate) const BLOCK_INPUTS: usize = 32;
/// Blocks that lie together: 256 inputs, the super-block of the K formats.
pub(crate) const SUPER: usize = 8;
