//! Sixteen lanes, as each family has them. Every operation gives the same bits in all of them.
//!
//! The methods are inlined into functions that have the family's instructions switched on (see [`crate::product`],
//! [`crate::attention`], [`crate::math`]); nothing else may call them.

/// Sixteen f32, and what belongs to them.
///
/// # Safety
/// All methods may be called only in a function that enables the instructions of the family, on a processor that has them.
/// Pointers must be valid for what the method reads or writes: 16 elements, 64 [`Bytes`](Vector::Bytes), or as it says.
pub(crate) trait Vector: Copy {
    /// Sixteen i32.
    type Ints: Copy;
    /// Sixty-four codes of 8 bits: four inputs of each of sixteen outputs.
    type Bytes: Copy;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_f16(from: *const u8) -> Self;
    unsafe fn load_bf16(from: *const u8) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// The larger one in each lane; `other` where either is not a number.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller one in each lane; `other` where either is not a number.
    unsafe fn min(self, other: Self) -> Self;
    unsafe fn abs(self) -> Self;
    /// `self * by + plus`, rounded once.
    unsafe fn fma(self, by: Self, plus: Self) -> Self;
    /// `from - self * by`, rounded once.
    unsafe fn fnma(self, by: Self, from: Self) -> Self;
    /// To the nearest whole number, ties to even.
    unsafe fn round(self) -> Self;
    /// 2 to the power of each lane: whole numbers from -126 to 127.
    unsafe fn power_of_two(self) -> Self;
    /// Of whole numbers that an i32 holds.
    unsafe fn ints(self) -> Self::Ints;

    unsafe fn splat_int(value: i32) -> Self::Ints;
    unsafe fn floats(ints: Self::Ints) -> Self;
    /// `plus + ints * by`, which an i32 must hold.
    unsafe fn plus_times(plus: Self::Ints, ints: Self::Ints, by: Self::Ints) -> Self::Ints;
    /// Sixteen u8.
    unsafe fn load_u8(from: *const u8) -> Self::Ints;
    /// Sixteen i8.
    unsafe fn load_i8(from: *const u8) -> Self::Ints;
    /// Sixteen whole numbers that an i8 holds.
    unsafe fn store_i8(ints: Self::Ints, to: *mut i8);

    unsafe fn load_bytes(from: *const u8) -> Self::Bytes;
    unsafe fn store_bytes(bytes: Self::Bytes, to: *mut u8);
    unsafe fn low_nibbles(bytes: Self::Bytes) -> Self::Bytes;
    unsafe fn high_nibbles(bytes: Self::Bytes) -> Self::Bytes;
    /// Adds 16 where the mask of 64 bits has a one.
    unsafe fn fifth_bits(bytes: Self::Bytes, mask: u64) -> Self::Bytes;
    /// Adds 16 times two bits, which begin at bit `2 * PLACE` of each of `high`.
    unsafe fn high_bits<const PLACE: u32>(bytes: Self::Bytes, high: Self::Bytes) -> Self::Bytes;
    /// Adds to each lane its four codes, of at most 127, times the four i8 of `activations`.
    unsafe fn dot(sum: Self::Ints, codes: Self::Bytes, activations: i32) -> Self::Ints;
    /// Where sums of [`dot_full`](Vector::dot_full) begin, for activations that sum to `sum`.
    unsafe fn full_start(sum: i32) -> Self::Ints;
    /// As `dot`, with codes of 8 bits that mean 128 less than they say.
    unsafe fn dot_full(sum: Self::Ints, codes: Self::Bytes, activations: i32) -> Self::Ints;
    /// Adds to each lane its two u8, of 32, times the two i16 of `pair`.
    unsafe fn dot_pairs(sum: Self::Ints, pairs: *const u8, pair: i32) -> Self::Ints;
    /// Asks for the line at `at`, which may lie anywhere, to be in the second cache.
    unsafe fn prefetch(at: *const u8);
    /// The same, in the first one.
    unsafe fn prefetch_near(at: *const u8);
}

#[cfg(test)]
mod tests {
    use super::Vector;
    use crate::dispatch::for_each_family;
    use crate::{Family, LANES};

    const ODD: [f32; 16] = [
        0.0,
        -0.0,
        1.0,
        -1.5,
        0.5,
        2.5,
        -3.5,
        1e-3,
        65_504.0,
        f32::MAX,
        f32::MIN_POSITIVE,
        1e-40,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        16_777_215.0,
    ];

    for_each_family!(fn arithmetic = arithmetic_of(a: &[f32; LANES], b: &[f32; LANES], out: &mut [[f32; LANES]; 10]));

    #[inline(always)]
    unsafe fn arithmetic_of<V: Vector>(a: &[f32; LANES], b: &[f32; LANES], out: &mut [[f32; LANES]; 10]) {
        // SAFETY: 16 elements each.
        unsafe {
            let (a, b) = (V::load(a.as_ptr()), V::load(b.as_ptr()));
            let third = V::splat(1.0 / 3.0);
            let results = [
                a.add(b),
                a.sub(b),
                a.mul(b),
                a.div(b),
                a.max(b),
                a.min(b),
                a.abs(),
                a.fma(third, b),
                a.fnma(third, b),
                a.round(),
            ];
            for (result, out) in results.into_iter().zip(out) {
                result.store(out.as_mut_ptr());
            }
        }
    }

    for_each_family!(fn conversions = conversions_of(bytes: &[u8; 32], out: &mut [[f32; LANES]; 5], codes: &mut [i8; LANES]));

    #[inline(always)]
    unsafe fn conversions_of<V: Vector>(bytes: &[u8; 32], out: &mut [[f32; LANES]; 5], codes: &mut [i8; LANES]) {
        // SAFETY: 32 bytes, 16 elements each.
        unsafe {
            let from = bytes.as_ptr();
            let whole = V::floats(V::load_i8(from));
            let power = whole.max(V::splat(-126.0)).power_of_two();
            let results = [V::load_f16(from), V::load_bf16(from), V::floats(V::load_u8(from)), whole, power];
            for (result, out) in results.into_iter().zip(out) {
                result.store(out.as_mut_ptr());
            }
            V::store_i8(whole.ints(), codes.as_mut_ptr());
        }
    }

    /// The bits, but for which no number it is.
    fn bits<const N: usize>(results: [[f32; LANES]; N]) -> [[u32; LANES]; N] {
        results.map(|lanes| lanes.map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }))
    }

    #[test]
    fn arithmetic_has_the_bits_of_plain_rust_at_the_edges_of_numbers_too() {
        for turn in 0..LANES {
            let mut other = ODD;
            other.rotate_left(turn);
            let run = |family| {
                let mut out = [[0.0; LANES]; 10];
                arithmetic(family, &ODD, &other, &mut out);
                bits(out)
            };
            for &family in Family::all() {
                assert_eq!(run(family), run(Family::Plain), "{family:?} {turn}");
            }
        }
    }

    #[test]
    fn every_half_every_bfloat_and_every_byte_is_read_as_plain_rust_reads_it() {
        for high in 0..4096_u16 {
            let mut bytes = [0; 32];
            for (low, pair) in (0..).zip(bytes.as_chunks_mut::<2>().0) {
                *pair = (high * 16 + low).to_le_bytes();
            }
            let run = |family| {
                let (mut out, mut codes) = ([[0.0; LANES]; 5], [0; LANES]);
                conversions(family, &bytes, &mut out, &mut codes);
                (bits(out), codes)
            };
            for &family in Family::all() {
                let found = run(family);
                assert_eq!(found, run(Family::Plain), "{family:?} {high}");
                assert_eq!(found.1.map(i8::cast_unsigned), bytes[..LANES], "{family:?} {high}");
            }
        }
    }
}
