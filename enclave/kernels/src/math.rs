//! The element-wise parts, and sums in one fixed order.

use crate::dispatch::for_each_family;
use crate::vector::Vector;
use crate::{Family, LANES};

/// Divides each row by its root mean square, and multiplies it with `weight` (Zhang and Sennrich 2019).
///
/// # Panics
/// When the lengths do not go together.
pub fn rms_norm(family: Family, rows: &mut [f32], weight: &[f32], epsilon: f32) {
    assert!(rows.len().is_multiple_of(weight.len()), "whole rows");
    norms(family, rows, weight, epsilon);
}

for_each_family!(fn norms = norm_rows(rows: &mut [f32], weight: &[f32], epsilon: f32));

#[inline(always)]
unsafe fn norm_rows<V: Vector>(rows: &mut [f32], weight: &[f32], epsilon: f32) {
    let width = weight.len();
    for row in rows.chunks_exact_mut(width) {
        // SAFETY: as the caller's.
        let squares = unsafe { sum_of_squares::<V>(row) };
        let scale = 1.0 / (squares / width as f32 + epsilon).sqrt();
        for (x, &weight) in row.iter_mut().zip(weight) {
            *x = *x * scale * weight;
        }
    }
}

#[inline(always)]
unsafe fn sum_of_squares<V: Vector>(row: &[f32]) -> f32 {
    let (whole, rest) = row.as_chunks::<LANES>();
    // SAFETY: 16 elements each.
    unsafe {
        let mut sum = V::splat(0.0);
        for chunk in whole {
            let x = V::load(chunk.as_ptr());
            sum = x.fma(x, sum);
        }
        let mut last = [0.0; LANES];
        last[..rest.len()].copy_from_slice(rest);
        let x = V::load(last.as_ptr());
        total(x.fma(x, sum))
    }
}

/// `gate := gate / (1 + exp(-gate)) * up`, the gated unit of Llama's feed-forward (SwiGLU, Shazeer 2020).
///
/// # Panics
/// When the lengths differ.
pub fn swiglu(family: Family, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "as many gates as values");
    gated(family, gate, up);
}

for_each_family!(fn gated = gate_all(gate: &mut [f32], up: &[f32]));

#[inline(always)]
unsafe fn gate_all<V: Vector>(gate: &mut [f32], up: &[f32]) {
    let (gates, last_gates) = gate.as_chunks_mut::<LANES>();
    let (ups, last_ups) = up.as_chunks::<LANES>();
    for (gate, up) in gates.iter_mut().zip(ups) {
        // SAFETY: as the caller's.
        unsafe { gate_lanes::<V>(gate, up) };
    }
    if !last_gates.is_empty() {
        let (mut gate, mut up) = ([0.0; LANES], [0.0; LANES]);
        gate[..last_gates.len()].copy_from_slice(last_gates);
        up[..last_ups.len()].copy_from_slice(last_ups);
        // SAFETY: as the caller's.
        unsafe { gate_lanes::<V>(&mut gate, &up) };
        last_gates.copy_from_slice(&gate[..last_gates.len()]);
    }
}

#[inline(always)]
unsafe fn gate_lanes<V: Vector>(gate: &mut [f32; LANES], up: &[f32; LANES]) {
    // SAFETY: 16 elements each.
    unsafe {
        let x = V::load(gate.as_ptr());
        let one = V::splat(1.0);
        let below = exp(V::splat(0.0).sub(x)).add(one);
        x.div(below).mul(V::load(up.as_ptr())).store(gate.as_mut_ptr());
    }
}

/// `sum := sum + x`.
///
/// # Panics
/// When the lengths differ.
pub fn add(sum: &mut [f32], x: &[f32]) {
    assert_eq!(sum.len(), x.len(), "as many as there are sums");
    for (sum, &x) in sum.iter_mut().zip(x) {
        *sum += x;
    }
}

/// e to the power of each lane, to 2 units in the last place, between e^-86 and e^88; beyond them those bounds. What is no number
/// stays none. The reduction and the polynomial are those of Cephes' `expf` (Moshier 1989).
#[inline(always)]
pub(crate) unsafe fn exp<V: Vector>(x: V) -> V {
    // SAFETY: as the caller's.
    unsafe {
        // In this order: min and max give their argument where there is no number.
        let x = V::splat(-86.0).max(V::splat(88.0).min(x));
        let power = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
        // ln 2 in two parts, the first with zeros at its end.
        let rest = power.fnma(V::splat(0.693_359_4), x);
        let rest = power.fnma(V::splat(-2.121_944_4e-4), rest);
        let mut polynomial = V::splat(1.987_569_1e-4);
        for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            polynomial = polynomial.fma(rest, V::splat(coefficient));
        }
        let result = polynomial.fma(rest.mul(rest), rest).add(V::splat(1.0));
        // 2^127 is the last power of two: half of it twice.
        let power = power.sub(V::splat(1.0));
        result.mul(power.power_of_two()).mul(V::splat(2.0))
    }
}

/// The sum of all lanes: pairs of lanes, then pairs of pairs.
#[inline(always)]
pub(crate) unsafe fn total<V: Vector>(lanes: V) -> f32 {
    let mut sums = [0.0_f32; LANES];
    // SAFETY: 16 elements.
    unsafe { lanes.store(sums.as_mut_ptr()) };
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

/// The largest lane; of no numbers nothing is said.
#[inline(always)]
pub(crate) unsafe fn largest<V: Vector>(lanes: V) -> f32 {
    let mut all = [0.0_f32; LANES];
    // SAFETY: 16 elements.
    unsafe { lanes.store(all.as_mut_ptr()) };
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            let (one, other) = (all[lane], all[lane + half]);
            all[lane] = if one > other { one } else { other };
        }
        half /= 2;
    }
    all[0]
}
