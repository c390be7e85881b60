//! What encoders need beside products and attention: the same bits in every family, near to what f64 says.
#![allow(clippy::unwrap_used, reason = "a test says what failed by panicking")]

use kernels::{Family, gelu, layer_norm};
use proptest::prelude::*;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The error function, by Simpson's rule over its integral.
fn erf(x: f64) -> f64 {
    let steps = 2_000;
    let width = x / f64::from(steps);
    let at = |step: i32| (-(f64::from(step) * width).powi(2)).exp();
    let inner: f64 = (1..steps).map(|step| at(step) * if step % 2 == 1 { 4.0 } else { 2.0 }).sum();
    (at(0) + inner + at(steps)) * width / 3.0 * std::f64::consts::FRAC_2_SQRT_PI
}

#[test]
fn gelu_is_near_what_f64_says_and_the_same_in_every_family() {
    let values: Vec<f32> = (-2_000..=2_000).map(|step| step as f32 * 0.003_71).collect();
    let run = |family| {
        let mut values = values.clone();
        gelu(family, &mut values);
        values
    };
    let plain = run(Family::Plain);
    for (&x, &found) in values.iter().zip(&plain) {
        let x = f64::from(x);
        let exact = x / 2.0 * (1.0 + erf(x / 2.0_f64.sqrt()));
        assert!((exact - f64::from(found)).abs() <= 1e-6, "gelu({x}) = {exact}, not {found}");
    }
    for &family in Family::all() {
        assert_eq!(bits(&run(family)), bits(&plain), "{family:?}");
    }
}

#[test]
fn gelu_of_what_is_large_or_no_number_is_what_it_should_be() {
    for &family in Family::all() {
        let mut values = [0.0, 100.0, -100.0, f32::INFINITY, f32::NAN];
        gelu(family, &mut values);
        assert_eq!(values[0], 0.0);
        assert!((values[1] - 100.0).abs() < 4e-5 && values[2].abs() < 4e-5, "{family:?} {values:?}");
        assert!(values[3] == f32::INFINITY && values[4].is_nan(), "{family:?} {values:?}");
    }
}

proptest! {
    #[test]
    fn the_norm_is_near_what_f64_says_and_the_same_in_every_family_and_for_each_row(
        row in prop::collection::vec(-100.0_f32..100.0, 1..100),
        far in -100.0_f32..100.0,
    ) {
        let row: Vec<f32> = row.iter().map(|x| x + far).collect();
        let weight: Vec<f32> = row.iter().rev().map(|x| x / 50.0).collect();
        let bias: Vec<f32> = row.iter().map(|x| 3.0 - x / 20.0).collect();
        let run = |family, times: usize| {
            let mut rows = row.repeat(times);
            layer_norm(family, &mut rows, &weight, &bias, 1e-5);
            rows
        };
        let plain = run(Family::Plain, 1);
        for &family in Family::all() {
            prop_assert_eq!(bits(&run(family, 3)), bits(&plain.repeat(3)));
        }
        let count = row.len() as f64;
        let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count;
        for (((x, weight), bias), found) in row.iter().zip(&weight).zip(&bias).zip(&plain) {
            let scaled = (f64::from(*x) - mean) / (variance + 1e-5).sqrt() * f64::from(*weight);
            let exact = scaled + f64::from(*bias);
            // A row whose elements are nearly the same loses digits to its mean.
            let bound = 1e-4 * (1.0 + scaled.abs()) * (1.0 + f64::from(far.abs()) / (variance + 1e-5).sqrt());
            prop_assert!((exact - f64::from(*found)).abs() <= bound, "{} {}", exact, found);
        }
    }
}
