//! The activation of encoders.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use crate::dispatch::for_each_family;
use crate::vector::Vector;
use crate::{Family, LANES};

/// `x := x / 2 * (1 + erf(x / sqrt(2)))` (GELU, Hendrycks and Gimpel 2016; the exact one, not the approximation by tanh), to 1e-6, and to
/// 4e-7 of x where x is large.
pub fn gelu(family: Family, x: &mut [f32]) {
    all(family, x);
}

for_each_family!(fn all = gelu_all(x: &mut [f32]));

#[inline(always)]
unsafe fn gelu_all<V: Vector>(x: &mut [f32]) {
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    // SAFETY: as the caller's.
    unsafe {
        for lanes in whole {
            gelu_lanes::<V>(lanes);
        }
        let mut last = [0.0; LANES];
        last[..rest.len()].copy_from_slice(rest);
        gelu_lanes::<V>(&mut last);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

#[inline(always)]
unsafe fn gelu_lanes<V: Vector>(lanes: &mut [f32; LANES]) {
    // SAFETY: 16 elements.
    unsafe {
        let x = V::load(lanes.as_ptr());
        let half = x.mul(V::splat(0.5));
        half.fma(erf(x.mul(V::splat(FRAC_1_SQRT_2))), half).store(lanes.as_mut_ptr());
    }
}

/// The error function, to 3e-7: up to 4 as x times a fraction of polynomials of x squared, beyond as at 4. What is no number stays none.
///
/// The coefficients are a least-maximum fit of ours (Lawson's iteration) of erf(x) / x.
#[inline(always)]
unsafe fn erf<V: Vector>(x: V) -> V {
    // SAFETY: as the caller's.
    unsafe {
        // In this order: min and max give their argument where there is no number.
        let x = V::splat(-4.0).max(V::splat(4.0).min(x));
        let square = x.mul(x);
        let mut above = V::splat(ABOVE[0]);
        for &coefficient in &ABOVE[1..] {
            above = above.fma(square, V::splat(coefficient));
        }
        let mut below = V::splat(BELOW[0]);
        for &coefficient in &BELOW[1..] {
            below = below.fma(square, V::splat(coefficient));
        }
        V::splat(-1.0).max(V::splat(1.0).min(x.mul(above.div(below))))
    }
}

/// Of the highest power first.
const ABOVE: [f32; 7] =
    [1.911_074_9e-8, -1.942_300_3e-6, 1.472_857_1e-4, 3.990_563_6e-3, 5.152_487_8e-2, 0.207_125_26, FRAC_2_SQRT_PI];
const BELOW: [f32; 5] = [1.021_108_6e-3, 1.495_806_2e-2, 0.117_970_74, 0.516_891_24, 1.0];
