//! Sixteen lanes in four NEON registers, with the products of `dotprod`, and of `i8mm` where the processor has that too.
//!
//! Those instructions have no stable intrinsics (rust-lang/rust#117223, #117224): they are written as assembly, one by one, so that
//! the compiler still chooses registers and order.
//!
//! `i8mm` has a matrix product too (SMMLA), which takes eight inputs of two outputs in a register. From tiles of four inputs that is
//! a shuffle of each register of codes, and of each two of sums. For 32 inputs of four rows, which is what fits into the registers,
//! those 50 eat up most of the 64 products that it saves: not without another order of tiles.
#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "every method rests on the one condition of `Vector`, which each caller states"
)]

use std::arch::aarch64::*;
use std::arch::asm;
use std::mem::transmute;

use crate::vector::Vector;

/// `I8MM`: whether the processor multiplies unsigned with signed codes.
#[derive(Clone, Copy)]
pub(crate) struct Neon<const I8MM: bool>([float32x4_t; 4]);

#[derive(Clone, Copy)]
pub(crate) struct Ints([int32x4_t; 4]);

#[derive(Clone, Copy)]
pub(crate) struct Bytes([uint8x16_t; 4]);

/// The same for each of the four registers. No closure: it would not have the instructions switched on.
macro_rules! each {
    ($register:ident => $value:expr) => {
        [
            {
                let $register = 0;
                $value
            },
            {
                let $register = 1;
                $value
            },
            {
                let $register = 2;
                $value
            },
            {
                let $register = 3;
                $value
            },
        ]
    };
}

impl<const I8MM: bool> Vector for Neon<I8MM> {
    type Ints = Ints;
    type Bytes = Bytes;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([unsafe { vdupq_n_f32(value) }; 4])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { each!(i => vld1q_f32(from.add(4 * i))) })
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        unsafe {
            let halves = words(from);
            // Not `vreinterpret`, which asks for the arithmetic of halves; their conversion is in every processor.
            Self(each!(i => vcvt_f32_f16(transmute::<uint16x4_t, float16x4_t>(halves[i]))))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        unsafe {
            let words = words(from);
            Self(each!(i => vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(words[i])))))
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { each!(i => vst1q_f32(to.add(4 * i), self.0[i])) };
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(unsafe { each!(i => vaddq_f32(self.0[i], other.0[i])) })
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(unsafe { each!(i => vsubq_f32(self.0[i], other.0[i])) })
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(unsafe { each!(i => vmulq_f32(self.0[i], other.0[i])) })
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        Self(unsafe { each!(i => vdivq_f32(self.0[i], other.0[i])) })
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // Not `vmaxq`, which gives no number where either is none.
        Self(unsafe { each!(i => vbslq_f32(vcgtq_f32(self.0[i], other.0[i]), self.0[i], other.0[i])) })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Self(unsafe { each!(i => vbslq_f32(vcltq_f32(self.0[i], other.0[i]), self.0[i], other.0[i])) })
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        Self(unsafe { each!(i => vabsq_f32(self.0[i])) })
    }
    #[inline(always)]
    unsafe fn fma(self, by: Self, plus: Self) -> Self {
        Self(unsafe { each!(i => vfmaq_f32(plus.0[i], self.0[i], by.0[i])) })
    }
    #[inline(always)]
    unsafe fn fnma(self, by: Self, from: Self) -> Self {
        Self(unsafe { each!(i => vfmsq_f32(from.0[i], self.0[i], by.0[i])) })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(unsafe { each!(i => vrndnq_f32(self.0[i])) })
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        unsafe {
            let bias = vdupq_n_s32(127);
            Self(each!(i => vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(self.0[i]), bias)))))
        }
    }
    #[inline(always)]
    unsafe fn ints(self) -> Ints {
        Ints(unsafe { each!(i => vcvtq_s32_f32(self.0[i])) })
    }
    #[inline(always)]
    unsafe fn splat_int(value: i32) -> Ints {
        Ints([unsafe { vdupq_n_s32(value) }; 4])
    }
    #[inline(always)]
    unsafe fn floats(ints: Ints) -> Self {
        Self(unsafe { each!(i => vcvtq_f32_s32(ints.0[i])) })
    }
    #[inline(always)]
    unsafe fn plus_times(plus: Ints, ints: Ints, by: Ints) -> Ints {
        Ints(unsafe { each!(i => vmlaq_s32(plus.0[i], ints.0[i], by.0[i])) })
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Ints {
        unsafe {
            let bytes = vld1q_u8(from);
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            let wide = [
                vmovl_u16(vget_low_u16(low)),
                vmovl_high_u16(low),
                vmovl_u16(vget_low_u16(high)),
                vmovl_high_u16(high),
            ];
            Ints(each!(i => vreinterpretq_s32_u32(wide[i])))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Ints {
        unsafe {
            let bytes = vld1q_s8(from.cast());
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            Ints([
                vmovl_s16(vget_low_s16(low)),
                vmovl_high_s16(low),
                vmovl_s16(vget_low_s16(high)),
                vmovl_high_s16(high),
            ])
        }
    }
    #[inline(always)]
    unsafe fn store_i8(ints: Ints, to: *mut i8) {
        unsafe {
            let low = vmovn_high_s32(vmovn_s32(ints.0[0]), ints.0[1]);
            let high = vmovn_high_s32(vmovn_s32(ints.0[2]), ints.0[3]);
            vst1q_s8(to, vmovn_high_s16(vmovn_s16(low), high));
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(bytes: Bytes, to: *mut u8) {
        unsafe { each!(i => vst1q_u8(to.add(16 * i), bytes.0[i])) };
    }
    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> Bytes {
        Bytes(unsafe { each!(i => vld1q_u8(from.add(16 * i))) })
    }
    #[inline(always)]
    unsafe fn low_nibbles(bytes: Bytes) -> Bytes {
        Bytes(unsafe { each!(i => vandq_u8(bytes.0[i], vdupq_n_u8(15))) })
    }
    #[inline(always)]
    unsafe fn high_nibbles(bytes: Bytes) -> Bytes {
        Bytes(unsafe { each!(i => vshrq_n_u8::<4>(bytes.0[i])) })
    }
    #[inline(always)]
    unsafe fn fifth_bits(bytes: Bytes, mask: u64) -> Bytes {
        unsafe {
            let mask = vreinterpretq_u8_u64(vdupq_n_u64(mask));
            // Byte j of a register gets byte j / 8 of its part of the mask, then bit j % 8 of that, moved to bit 4.
            let byte = vcombine_u8(vdup_n_u8(0), vdup_n_u8(1));
            let by = vreinterpretq_s8_u64(vdupq_n_u64(0xFDFE_FF00_0102_0304));
            let moved = each!(i => vshlq_u8(vqtbl1q_u8(mask, vaddq_u8(byte, vdupq_n_u8(2 * i))), by));
            Bytes(each!(i => vorrq_u8(bytes.0[i], vandq_u8(moved[i], vdupq_n_u8(16)))))
        }
    }
    #[inline(always)]
    unsafe fn high_bits<const PLACE: u32>(bytes: Bytes, high: Bytes) -> Bytes {
        unsafe {
            let moved = match PLACE {
                0 => each!(i => vshlq_n_u8::<4>(high.0[i])),
                1 => each!(i => vshlq_n_u8::<2>(high.0[i])),
                2 => high.0,
                _ => each!(i => vshrq_n_u8::<2>(high.0[i])),
            };
            Bytes(each!(i => vbslq_u8(vdupq_n_u8(0x30), moved[i], bytes.0[i])))
        }
    }
    #[inline(always)]
    unsafe fn dot(sum: Ints, codes: Bytes, activations: i32) -> Ints {
        unsafe {
            let with = vreinterpretq_s8_s32(vdupq_n_s32(activations));
            // Codes of at most 127 are the same with a sign.
            Ints(each!(i => sdot(sum.0[i], vreinterpretq_s8_u8(codes.0[i]), with)))
        }
    }
    #[inline(always)]
    unsafe fn full_start(sum: i32) -> Ints {
        unsafe { Self::splat_int(if I8MM { -128 * sum } else { 0 }) }
    }
    #[inline(always)]
    unsafe fn dot_full(sum: Ints, codes: Bytes, activations: i32) -> Ints {
        unsafe {
            let with = vreinterpretq_s8_s32(vdupq_n_s32(activations));
            if I8MM {
                return Ints(each!(i => usdot(sum.0[i], codes.0[i], with)));
            }
            // 128 less, as i8: the first bit flipped.
            let flip = vdupq_n_u8(128);
            Ints(each!(i => sdot(sum.0[i], vreinterpretq_s8_u8(veorq_u8(codes.0[i], flip)), with)))
        }
    }
    #[inline(always)]
    unsafe fn dot_pairs(sum: Ints, pairs: *const u8, pair: i32) -> Ints {
        unsafe {
            let uint8x16x2_t(first, second) = vld2q_u8(pairs);
            let firsts = [vmovl_u8(vget_low_u8(first)), vmovl_high_u8(first)];
            let seconds = [vmovl_u8(vget_low_u8(second)), vmovl_high_u8(second)];
            let mut sum = sum.0;
            for (words, with) in [(firsts, pair as i16), (seconds, (pair >> 16) as i16)] {
                let words = [vreinterpretq_s16_u16(words[0]), vreinterpretq_s16_u16(words[1])];
                sum = [
                    vmlal_n_s16(sum[0], vget_low_s16(words[0]), with),
                    vmlal_high_n_s16(sum[1], words[0], with),
                    vmlal_n_s16(sum[2], vget_low_s16(words[1]), with),
                    vmlal_high_n_s16(sum[3], words[1], with),
                ];
            }
            Ints(sum)
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // A number: nothing is read that the program could tell.
        unsafe { asm!("prfm pldl2keep, [{at}]", at = in(reg) at.addr(), options(nomem, nostack, preserves_flags)) }
    }
    #[inline(always)]
    unsafe fn prefetch_near(at: *const u8) {
        // As above.
        unsafe { asm!("prfm pldl1keep, [{at}]", at = in(reg) at.addr(), options(nomem, nostack, preserves_flags)) }
    }
}

/// Sixteen u16.
#[inline(always)]
unsafe fn words(from: *const u8) -> [uint16x4_t; 4] {
    unsafe {
        let (low, high) = (vreinterpretq_u16_u8(vld1q_u8(from)), vreinterpretq_u16_u8(vld1q_u8(from.add(16))));
        [vget_low_u16(low), vget_high_u16(low), vget_low_u16(high), vget_high_u16(high)]
    }
}

/// Adds to each i32 four products of i8 (`dotprod`).
#[inline(always)]
unsafe fn sdot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Adds to each i32 four products of u8 with i8 (`i8mm`).
#[inline(always)]
unsafe fn usdot(mut sum: int32x4_t, a: uint8x16_t, b: int8x16_t) -> int32x4_t {
    unsafe {
        asm!(
            "usdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
