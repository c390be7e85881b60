//! Sixteen lanes in one AVX-512 register, with the products of VNNI.
#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "every method rests on the one condition of `Vector`, which each caller states"
)]

use std::arch::asm;
use std::arch::x86_64::*;

use crate::vector::Vector;

#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

impl Avx512 {
    /// # Safety
    /// As the methods of [`Vector`].
    #[inline(always)]
    pub(crate) unsafe fn load_ints(from: *const i32) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    /// Adds to each lane its two i16 times those of `with`. The compiler makes two instructions of the intrinsic.
    ///
    /// # Safety
    /// As the methods of [`Vector`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(crate) unsafe fn dot_words(sum: __m512i, words: __m512i, with: i32) -> __m512i {
        let (mut sum, with) = (sum, _mm512_set1_epi32(with));
        unsafe {
            asm!(
                "vpdpwssd {sum}, {words}, {with}",
                sum = inout(zmm_reg) sum,
                words = in(zmm_reg) words,
                with = in(zmm_reg) with,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sum
    }
}

impl Vector for Avx512 {
    type Ints = __m512i;
    type Bytes = __m512i;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self(unsafe { _mm512_set1_ps(value) })
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { _mm512_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        Self(unsafe {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()))))
        })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        Self(unsafe { _mm512_div_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        Self(unsafe { _mm512_abs_ps(self.0) })
    }
    #[inline(always)]
    unsafe fn fma(self, by: Self, plus: Self) -> Self {
        Self(unsafe { _mm512_fmadd_ps(self.0, by.0, plus.0) })
    }
    #[inline(always)]
    unsafe fn fnma(self, by: Self, from: Self) -> Self {
        Self(unsafe { _mm512_fnmadd_ps(self.0, by.0, from.0) })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        let exponent = unsafe { _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127)) };
        Self(unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent)) })
    }
    #[inline(always)]
    unsafe fn ints(self) -> __m512i {
        unsafe { _mm512_cvtps_epi32(self.0) }
    }
    #[inline(always)]
    unsafe fn splat_int(value: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn floats(ints: __m512i) -> Self {
        Self(unsafe { _mm512_cvtepi32_ps(ints) })
    }
    #[inline(always)]
    unsafe fn plus_times(plus: __m512i, ints: __m512i, by: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(plus, _mm512_mullo_epi32(ints, by)) }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> __m512i {
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> __m512i {
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_i8(ints: __m512i, to: *mut i8) {
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(ints)) }
    }
    #[inline(always)]
    unsafe fn store_bytes(bytes: __m512i, to: *mut u8) {
        unsafe { _mm512_storeu_si512(to.cast(), bytes) }
    }
    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn low_nibbles(bytes: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(bytes, _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    unsafe fn high_nibbles(bytes: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    unsafe fn fifth_bits(bytes: __m512i, mask: u64) -> __m512i {
        unsafe { _mm512_mask_add_epi8(bytes, mask, bytes, _mm512_set1_epi8(16)) }
    }
    #[inline(always)]
    unsafe fn high_bits<const PLACE: u32>(bytes: __m512i, high: __m512i) -> __m512i {
        let moved = unsafe {
            match PLACE {
                0 => _mm512_slli_epi16::<4>(high),
                1 => _mm512_slli_epi16::<2>(high),
                2 => high,
                _ => _mm512_srli_epi16::<2>(high),
            }
        };
        // a | (b & c)
        unsafe { _mm512_ternarylogic_epi32::<0xF8>(bytes, moved, _mm512_set1_epi8(0x30)) }
    }
    #[inline(always)]
    unsafe fn dot(sum: __m512i, codes: __m512i, activations: i32) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(activations)) }
    }
    #[inline(always)]
    unsafe fn full_start(sum: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(-128 * sum) }
    }
    #[inline(always)]
    unsafe fn dot_full(sum: __m512i, codes: __m512i, activations: i32) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(activations)) }
    }
    #[inline(always)]
    unsafe fn dot_pairs(sum: __m512i, pairs: *const u8, pair: i32) -> __m512i {
        let pairs = unsafe { _mm512_cvtepu8_epi16(_mm256_loadu_si256(pairs.cast())) };
        unsafe { Self::dot_words(sum, pairs, pair) }
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
