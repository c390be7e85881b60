//! The norm of encoders, with mean, variance and bias.

use crate::dispatch::for_each_family;
use crate::math::total;
use crate::vector::Vector;
use crate::{Family, LANES};

/// Each row, less its mean, divided by the root of its variance plus `epsilon`, times `weight`, plus `bias` (Ba, Kiros and Hinton 2016).
///
/// # Panics
/// When the lengths do not go together.
pub fn layer_norm(family: Family, rows: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) {
    assert!(rows.len().is_multiple_of(weight.len()) && weight.len() == bias.len(), "whole rows, and as many biases");
    norms(family, rows, weight, bias, epsilon);
}

for_each_family!(fn norms = norm_rows(rows: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32));

#[inline(always)]
unsafe fn norm_rows<V: Vector>(rows: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) {
    let width = weight.len();
    for row in rows.chunks_exact_mut(width) {
        // SAFETY: as the caller's.
        let (mean, squares) = unsafe {
            let mean = sum::<V, false>(row, 0.0) / width as f32;
            (mean, sum::<V, true>(row, mean))
        };
        let scale = 1.0 / (squares / width as f32 + epsilon).sqrt();
        for ((x, &weight), &bias) in row.iter_mut().zip(weight).zip(bias) {
            *x = (*x - mean) * scale * weight + bias;
        }
    }
}

/// Of each element less `mean`, or of the squares of that.
#[inline(always)]
unsafe fn sum<V: Vector, const SQUARED: bool>(row: &[f32], mean: f32) -> f32 {
    let (whole, rest) = row.as_chunks::<LANES>();
    // What fills up the last sixteen adds nothing.
    let mut last = [mean; LANES];
    last[..rest.len()].copy_from_slice(rest);
    // SAFETY: 16 elements each.
    unsafe {
        let mut sum = V::splat(0.0);
        let mean = V::splat(mean);
        for chunk in whole.iter().chain([&last]) {
            let x = V::load(chunk.as_ptr()).sub(mean);
            sum = if SQUARED { x.fma(x, sum) } else { x.add(sum) };
        }
        total(sum)
    }
}
