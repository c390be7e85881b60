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
    /// Sixteen u8.
    unsafe fn load_u8(from: *const u8) -> Self::Ints;
    /// Sixteen i8.
    unsafe fn load_i8(from: *const u8) -> Self::Ints;
    /// Sixteen whole numbers that an i8 holds.
    unsafe fn store_i8(ints: Self::Ints, to: *mut i8);
    unsafe fn store_ints(ints: Self::Ints, to: *mut i32);

    unsafe fn load_bytes(from: *const u8) -> Self::Bytes;
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
    /// Asks for the line of the cache at `at`, which may lie anywhere.
    unsafe fn prefetch(at: *const u8);
}
