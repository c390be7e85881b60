//! Sixteen lanes in two AVX registers.
#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "every method rests on the one condition of `Vector`, which each caller states"
)]

use std::arch::x86_64::*;

use crate::vector::Vector;

#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

#[derive(Clone, Copy)]
pub(crate) struct Pair(__m256i, __m256i);

/// Both halves by the same instruction.
macro_rules! both {
    ($instruction:ident, $a:expr) => {
        Self(unsafe { $instruction($a.0) }, unsafe { $instruction($a.1) })
    };
    ($instruction:ident, $a:expr, $b:expr) => {
        Self(unsafe { $instruction($a.0, $b.0) }, unsafe { $instruction($a.1, $b.1) })
    };
    ($instruction:ident, $a:expr, $b:expr, $c:expr) => {
        Self(unsafe { $instruction($a.0, $b.0, $c.0) }, unsafe { $instruction($a.1, $b.1, $c.1) })
    };
}

impl Vector for Avx2 {
    type Ints = Pair;
    type Bytes = Pair;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        let half = unsafe { _mm256_set1_ps(value) };
        Self(half, half)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        unsafe {
            Self(_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast())))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        unsafe {
            let low = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())));
            let high = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(16).cast())));
            Self(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        both!(_mm256_add_ps, self, other)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        both!(_mm256_sub_ps, self, other)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        both!(_mm256_mul_ps, self, other)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        both!(_mm256_div_ps, self, other)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        both!(_mm256_max_ps, self, other)
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        both!(_mm256_min_ps, self, other)
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        let sign = unsafe { _mm256_set1_ps(-0.0) };
        unsafe { Self(_mm256_andnot_ps(sign, self.0), _mm256_andnot_ps(sign, self.1)) }
    }
    #[inline(always)]
    unsafe fn fma(self, by: Self, plus: Self) -> Self {
        both!(_mm256_fmadd_ps, self, by, plus)
    }
    #[inline(always)]
    unsafe fn fnma(self, by: Self, from: Self) -> Self {
        both!(_mm256_fnmadd_ps, self, by, from)
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        unsafe { Self(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1)) }
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(self.0), bias));
            let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(self.1), bias));
            Self(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }
    #[inline(always)]
    unsafe fn ints(self) -> Pair {
        unsafe { Pair(_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1)) }
    }
    #[inline(always)]
    unsafe fn splat_int(value: i32) -> Pair {
        let half = unsafe { _mm256_set1_epi32(value) };
        Pair(half, half)
    }
    #[inline(always)]
    unsafe fn floats(ints: Pair) -> Self {
        both!(_mm256_cvtepi32_ps, ints)
    }
    #[inline(always)]
    unsafe fn plus_times(plus: Pair, ints: Pair, by: Pair) -> Pair {
        unsafe {
            Pair(
                _mm256_add_epi32(plus.0, _mm256_mullo_epi32(ints.0, by.0)),
                _mm256_add_epi32(plus.1, _mm256_mullo_epi32(ints.1, by.1)),
            )
        }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Pair {
        unsafe {
            Pair(
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())),
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.add(8).cast())),
            )
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Pair {
        unsafe {
            Pair(
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())),
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(8).cast())),
            )
        }
    }
    #[inline(always)]
    unsafe fn store_i8(ints: Pair, to: *mut i8) {
        unsafe {
            // Within 128-bit halves: 0-3 8-11, 4-7 12-15.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(ints.0, ints.1));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.cast(), bytes);
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(bytes: Pair, to: *mut u8) {
        unsafe {
            _mm256_storeu_si256(to.cast(), bytes.0);
            _mm256_storeu_si256(to.add(32).cast(), bytes.1);
        }
    }
    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> Pair {
        unsafe { Pair(_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())) }
    }
    #[inline(always)]
    unsafe fn low_nibbles(bytes: Pair) -> Pair {
        unsafe {
            let mask = _mm256_set1_epi8(15);
            Pair(_mm256_and_si256(bytes.0, mask), _mm256_and_si256(bytes.1, mask))
        }
    }
    #[inline(always)]
    unsafe fn high_nibbles(bytes: Pair) -> Pair {
        unsafe { Self::low_nibbles(Pair(_mm256_srli_epi16::<4>(bytes.0), _mm256_srli_epi16::<4>(bytes.1))) }
    }
    #[inline(always)]
    unsafe fn fifth_bits(bytes: Pair, mask: u64) -> Pair {
        unsafe {
            // Byte i of a half gets byte i / 8 of the mask, then bit i % 8 of it.
            let spread = _mm256_setr_epi8(
                0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3,
            );
            let bits = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
            let sixteen = _mm256_set1_epi8(16);
            let low = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(mask as i32), spread), bits);
            let high = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((mask >> 32) as i32), spread), bits);
            Pair(
                _mm256_or_si256(bytes.0, _mm256_and_si256(_mm256_cmpeq_epi8(low, bits), sixteen)),
                _mm256_or_si256(bytes.1, _mm256_and_si256(_mm256_cmpeq_epi8(high, bits), sixteen)),
            )
        }
    }
    #[inline(always)]
    unsafe fn high_bits<const PLACE: u32>(bytes: Pair, high: Pair) -> Pair {
        unsafe {
            let moved = match PLACE {
                0 => Pair(_mm256_slli_epi16::<4>(high.0), _mm256_slli_epi16::<4>(high.1)),
                1 => Pair(_mm256_slli_epi16::<2>(high.0), _mm256_slli_epi16::<2>(high.1)),
                2 => high,
                _ => Pair(_mm256_srli_epi16::<2>(high.0), _mm256_srli_epi16::<2>(high.1)),
            };
            let mask = _mm256_set1_epi8(0x30);
            Pair(
                _mm256_or_si256(bytes.0, _mm256_and_si256(moved.0, mask)),
                _mm256_or_si256(bytes.1, _mm256_and_si256(moved.1, mask)),
            )
        }
    }
    #[inline(always)]
    unsafe fn dot(sum: Pair, codes: Pair, activations: i32) -> Pair {
        unsafe {
            let (with, ones) = (_mm256_set1_epi32(activations), _mm256_set1_epi16(1));
            // Two products of at most 127 * 127 each stay within an i16.
            let low = _mm256_madd_epi16(_mm256_maddubs_epi16(codes.0, with), ones);
            let high = _mm256_madd_epi16(_mm256_maddubs_epi16(codes.1, with), ones);
            Pair(_mm256_add_epi32(sum.0, low), _mm256_add_epi32(sum.1, high))
        }
    }
    #[inline(always)]
    unsafe fn full_start(_: i32) -> Pair {
        let zero = unsafe { _mm256_setzero_si256() };
        Pair(zero, zero)
    }
    #[inline(always)]
    unsafe fn dot_full(sum: Pair, codes: Pair, activations: i32) -> Pair {
        unsafe {
            let (with, ones) = (_mm256_set1_epi32(activations), _mm256_set1_epi16(1));
            let flip = _mm256_set1_epi8(-128);
            let (low, high) = (_mm256_xor_si256(codes.0, flip), _mm256_xor_si256(codes.1, flip));
            // |w| times the activation with w's sign: 128 * 127 twice stays within an i16, and -128 has its own |w|.
            let low = _mm256_maddubs_epi16(_mm256_abs_epi8(low), _mm256_sign_epi8(with, low));
            let high = _mm256_maddubs_epi16(_mm256_abs_epi8(high), _mm256_sign_epi8(with, high));
            Pair(
                _mm256_add_epi32(sum.0, _mm256_madd_epi16(low, ones)),
                _mm256_add_epi32(sum.1, _mm256_madd_epi16(high, ones)),
            )
        }
    }
    #[inline(always)]
    unsafe fn dot_pairs(sum: Pair, pairs: *const u8, pair: i32) -> Pair {
        unsafe {
            let with = _mm256_set1_epi32(pair);
            let low = _mm256_cvtepu8_epi16(_mm_loadu_si128(pairs.cast()));
            let high = _mm256_cvtepu8_epi16(_mm_loadu_si128(pairs.add(16).cast()));
            Pair(
                _mm256_add_epi32(sum.0, _mm256_madd_epi16(low, with)),
                _mm256_add_epi32(sum.1, _mm256_madd_epi16(high, with)),
            )
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_near(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}
