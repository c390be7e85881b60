//! The tile registers of AMX: eight of them, of up to 16 rows of 64 bytes.
//!
//! The compiler has no stable names for them, and never uses them itself: what one `asm!` leaves in them the next one finds.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

use nix::libc::{SYS_arch_prctl, syscall};

/// Whether this processor has tiles of integers and the operating system lets this process use them: Linux from 5.16 on, once it is
/// asked (`Documentation/arch/x86/xstate.rst`, *Using dynamically enabled XSTATE features in user space applications*).
pub(crate) fn is_there() -> bool {
    // Intel SDM, volume 2A, CPUID leaf 7: "AMX-TILE" and "AMX-INT8".
    let bits = __cpuid_count(7, 0).edx;
    let has_tiles = bits >> 24 & 1 == 1 && bits >> 25 & 1 == 1;
    // SAFETY: the call takes two numbers, and gives this process a permission or an error.
    has_tiles && unsafe { syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } == 0
}

const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
const XFEATURE_XTILEDATA: u64 = 18;

/// The registers of this thread while they have a shape: 0 to 3 for sums, 4 and 5 for activations, 6 and 7 for weights. On drop they
/// hold nothing any more.
pub(crate) struct Tiles(());

impl Tiles {
    /// For products of `rows` rows of activations with 16 outputs, over `inputs` inputs.
    ///
    /// # Safety
    /// Tiles must [be there](is_there); 1 to 16 rows, and a multiple of 4 inputs, at most 64.
    pub(crate) unsafe fn new(rows: u8, inputs: u8) -> Self {
        let mut shape = Shape { palette: 1, start_row: 0, unused: [0; 14], bytes: [0; 16], rows: [0; 16] };
        for (registers, bytes, rows) in [(0..4, 64, rows), (4..6, inputs, rows), (6..8, 64, inputs / 4)] {
            shape.bytes[registers.clone()].fill(bytes.into());
            shape.rows[registers].fill(rows);
        }
        // SAFETY: 64 bytes, as the instruction reads them.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shape, options(nostack, preserves_flags, readonly)) };
        Self(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: who made this has the instruction.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start_row: u8,
    unused: [u8; 14],
    /// Of a row of each register.
    bytes: [u16; 16],
    rows: [u8; 16],
}

/// # Safety
/// As [`load`].
#[inline(always)]
pub(crate) unsafe fn zero<const REGISTER: usize>() {
    // SAFETY: as the caller's.
    unsafe { asm!("tilezero tmm{register}", register = const REGISTER, options(nostack, preserves_flags, nomem)) };
}

/// Rows that are `stride` bytes apart.
///
/// # Safety
/// The registers of this thread must have a [shape](Tiles::new), and memory as many rows.
#[inline(always)]
pub(crate) unsafe fn load<const REGISTER: usize>(from: *const u8, stride: usize) {
    // SAFETY: as the caller's.
    unsafe {
        asm!(
            "tileloadd tmm{register}, [{from} + {stride}]",
            register = const REGISTER,
            from = in(reg) from,
            stride = in(reg) stride,
            options(nostack, preserves_flags, readonly)
        );
    }
}

/// Adds to each sum of a row and an output its i8 activations times its i8 weights, which lie four inputs of 16 outputs after the other.
///
/// # Safety
/// As [`load`].
#[inline(always)]
pub(crate) unsafe fn multiply<const SUMS: usize, const ACTIVATIONS: usize, const WEIGHTS: usize>() {
    // SAFETY: as the caller's.
    unsafe {
        asm!(
            "tdpbssd tmm{sums}, tmm{activations}, tmm{weights}",
            sums = const SUMS,
            activations = const ACTIVATIONS,
            weights = const WEIGHTS,
            options(nostack, preserves_flags, nomem)
        );
    }
}

/// One row after the other.
///
/// # Safety
/// As [`load`].
#[inline(always)]
pub(crate) unsafe fn store<const REGISTER: usize>(to: *mut i32) {
    // SAFETY: as the caller's.
    unsafe {
        asm!(
            "tilestored [{to} + {stride}], tmm{register}",
            register = const REGISTER,
            to = in(reg) to,
            stride = in(reg) 64_usize,
            options(nostack, preserves_flags)
        );
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says what failed by panicking")]
mod tests {
    use super::*;
    use crate::{Activations, Family, Format, Packed, Product};

    /// What `sttilecfg` writes is zeros "if the tiles are not configured" (Intel SDM, volume 2B): registers then hold nothing.
    #[test]
    fn no_tile_register_holds_anything_after_products() {
        if !Family::all().contains(&Family::Avx512Amx) {
            return;
        }
        let shape = || {
            let mut shape = [1_u8; 64];
            // SAFETY: 64 bytes, on a processor that has the instruction.
            unsafe { asm!("sttilecfg [{}]", in(reg) shape.as_mut_ptr(), options(nostack, preserves_flags)) };
            shape
        };
        // SAFETY: tiles are there.
        let tiles = unsafe { Tiles::new(16, 32) };
        assert_ne!(shape(), [0; 64]);
        drop(tiles);
        assert_eq!(shape(), [0; 64]);
        for format in [Format::Q8_0, Format::Q4K, Format::Q6K] {
            let bytes = vec![17; 48 * 256 / format.inputs_of_block() * format.bytes_of_block()];
            let weights = Packed::pack(format, 48, 256, &bytes).unwrap();
            let mut activations = Activations::new();
            activations.rows_mut(37, 256).fill(1.0);
            activations.quantise(Family::Avx512Amx);
            let mut out = vec![0.0; 37 * 48];
            crate::multiply(Family::Avx512Amx, &activations, &mut [Product { weights: &weights, out: &mut out }]);
            assert_eq!(shape(), [0; 64]);
        }
    }
}
