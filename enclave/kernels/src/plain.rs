//! Sixteen lanes in plain Rust: what the others are compared with, and what runs where there is nothing better.

use half::{bf16, f16};

use crate::vector::Vector;

#[derive(Clone, Copy)]
pub(crate) struct Plain([f32; 16]);

/// The same operation in each lane.
macro_rules! lanes {
    ($index:ident => $value:expr) => {{
        let mut lanes = [Default::default(); 16];
        for $index in 0..16 {
            lanes[$index] = $value;
        }
        lanes
    }};
}

impl Vector for Plain {
    type Ints = [i32; 16];
    type Bytes = [u8; 64];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 16])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is valid for 16 elements.
        Self(unsafe { from.cast::<[f32; 16]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: as above, of 2 bytes.
        let bytes = unsafe { from.cast::<[[u8; 2]; 16]>().read_unaligned() };
        Self(lanes!(lane => f16::from_le_bytes(bytes[lane]).to_f32()))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        // SAFETY: as above, of 2 bytes.
        let bytes = unsafe { from.cast::<[[u8; 2]; 16]>().read_unaligned() };
        Self(lanes!(lane => f32::from_bits(u32::from(bf16::from_le_bytes(bytes[lane]).to_bits()) << 16)))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's pointer is valid for 16 elements.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(lanes!(lane => self.0[lane] + other.0[lane]))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(lanes!(lane => self.0[lane] - other.0[lane]))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(lanes!(lane => self.0[lane] * other.0[lane]))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        Self(lanes!(lane => self.0[lane] / other.0[lane]))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // Not f32::max, which prefers the number: the instruction gives its second operand.
        Self(lanes!(lane => if self.0[lane] > other.0[lane] { self.0[lane] } else { other.0[lane] }))
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Self(lanes!(lane => if self.0[lane] < other.0[lane] { self.0[lane] } else { other.0[lane] }))
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        Self(lanes!(lane => self.0[lane].abs()))
    }
    #[inline(always)]
    unsafe fn fma(self, by: Self, plus: Self) -> Self {
        Self(lanes!(lane => self.0[lane].mul_add(by.0[lane], plus.0[lane])))
    }
    #[inline(always)]
    unsafe fn fnma(self, by: Self, from: Self) -> Self {
        Self(lanes!(lane => (-self.0[lane]).mul_add(by.0[lane], from.0[lane])))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(lanes!(lane => self.0[lane].round_ties_even()))
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        Self(lanes!(lane => f32::from_bits((self.0[lane] as i32 + 127).cast_unsigned() << 23)))
    }
    #[inline(always)]
    unsafe fn ints(self) -> [i32; 16] {
        lanes!(lane => self.0[lane] as i32)
    }
    #[inline(always)]
    unsafe fn splat_int(value: i32) -> [i32; 16] {
        [value; 16]
    }
    #[inline(always)]
    unsafe fn floats(ints: [i32; 16]) -> Self {
        Self(lanes!(lane => ints[lane] as f32))
    }
    #[inline(always)]
    unsafe fn plus_times(plus: [i32; 16], ints: [i32; 16], by: [i32; 16]) -> [i32; 16] {
        lanes!(lane => plus[lane] + ints[lane] * by[lane])
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> [i32; 16] {
        // SAFETY: the caller's pointer is valid for 16 bytes.
        let bytes = unsafe { from.cast::<[u8; 16]>().read_unaligned() };
        lanes!(lane => i32::from(bytes[lane]))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> [i32; 16] {
        // SAFETY: the caller's pointer is valid for 16 bytes.
        let bytes = unsafe { from.cast::<[i8; 16]>().read_unaligned() };
        lanes!(lane => i32::from(bytes[lane]))
    }
    #[inline(always)]
    unsafe fn store_i8(ints: [i32; 16], to: *mut i8) {
        let bytes: [i8; 16] = lanes!(lane => ints[lane] as i8);
        // SAFETY: the caller's pointer is valid for 16 bytes.
        unsafe { to.cast::<[i8; 16]>().write_unaligned(bytes) }
    }
    #[inline(always)]
    unsafe fn store_bytes(bytes: [u8; 64], to: *mut u8) {
        // SAFETY: the caller's pointer is valid for 64 bytes.
        unsafe { to.cast::<[u8; 64]>().write_unaligned(bytes) }
    }
    #[inline(always)]
    unsafe fn load_bytes(from: *const u8) -> [u8; 64] {
        // SAFETY: the caller's pointer is valid for 64 bytes.
        unsafe { from.cast::<[u8; 64]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn low_nibbles(mut bytes: [u8; 64]) -> [u8; 64] {
        for byte in &mut bytes {
            *byte &= 15;
        }
        bytes
    }
    #[inline(always)]
    unsafe fn high_nibbles(mut bytes: [u8; 64]) -> [u8; 64] {
        for byte in &mut bytes {
            *byte >>= 4;
        }
        bytes
    }
    #[inline(always)]
    unsafe fn fifth_bits(mut bytes: [u8; 64], mask: u64) -> [u8; 64] {
        for (bit, byte) in bytes.iter_mut().enumerate() {
            *byte |= ((mask >> bit & 1) as u8) << 4;
        }
        bytes
    }
    #[inline(always)]
    unsafe fn high_bits<const PLACE: u32>(mut bytes: [u8; 64], high: [u8; 64]) -> [u8; 64] {
        for (byte, high) in bytes.iter_mut().zip(high) {
            *byte |= (high >> (2 * PLACE) & 3) << 4;
        }
        bytes
    }
    #[inline(always)]
    unsafe fn dot(sum: [i32; 16], codes: [u8; 64], activations: i32) -> [i32; 16] {
        let with = activations.to_le_bytes();
        let mut sum = sum;
        for (lane, sum) in sum.iter_mut().enumerate() {
            for (input, with) in with.iter().enumerate() {
                *sum += i32::from(codes[lane * 4 + input]) * i32::from(with.cast_signed());
            }
        }
        sum
    }
    #[inline(always)]
    unsafe fn full_start(sum: i32) -> [i32; 16] {
        [-128 * sum; 16]
    }
    #[inline(always)]
    unsafe fn dot_full(sum: [i32; 16], codes: [u8; 64], activations: i32) -> [i32; 16] {
        // SAFETY: plain Rust.
        unsafe { Self::dot(sum, codes, activations) }
    }
    #[inline(always)]
    unsafe fn dot_pairs(sum: [i32; 16], pairs: *const u8, pair: i32) -> [i32; 16] {
        // SAFETY: the caller's pointer is valid for 32 bytes.
        let pairs = unsafe { pairs.cast::<[[u8; 2]; 16]>().read_unaligned() };
        let (first, second) = (pair as i16, (pair >> 16) as i16);
        lanes!(lane => sum[lane] + i32::from(pairs[lane][0]) * i32::from(first) + i32::from(pairs[lane][1]) * i32::from(second))
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_near(_: *const u8) {}
}
