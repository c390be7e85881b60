//! Every family gives the bits of the plain one, and those are near to what f64 says.
#![allow(clippy::unwrap_used, reason = "a test says what failed by panicking")]

use kernels::{
    Activations, Attention, BLOCK, Family, Format, KvElement, KvShape, Packed, Product, multiply, rms_norm, swiglu,
    write_kv,
};
use proptest::prelude::*;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From -1 to 1.
    fn float(&mut self) -> f32 {
        ((self.next() >> 40) as f32 / (1 << 23) as f32) - 1.0
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }
}

/// The bytes of a tensor: any codes, and scales that are small numbers.
fn tensor(format: Format, outputs: usize, inputs: usize, random: &mut Random) -> Vec<u8> {
    let blocks = outputs * inputs / format.inputs_of_block();
    let mut bytes = Vec::new();
    for _ in 0..blocks {
        let mut block: Vec<u8> = (0..format.bytes_of_block()).map(|_| random.next() as u8).collect();
        let mut half =
            |at: usize, value: f32| block[at..at + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
        match format {
            Format::F32 => block.copy_from_slice(&random.float().to_le_bytes()),
            Format::F16 => half(0, random.float()),
            Format::Bf16 => block.copy_from_slice(&half::bf16::from_f32(random.float()).to_le_bytes()),
            Format::Q8_0 | Format::Q4_0 | Format::Q5_0 => half(0, random.float() * 0.01),
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => {
                half(0, random.float() * 0.01);
                half(2, random.float() * 0.01);
            }
            Format::Q6K => half(208, random.float() * 0.01),
        }
        bytes.extend(block);
    }
    bytes
}

fn product(family: Family, weights: &Packed, rows: &[f32]) -> Vec<f32> {
    let count = rows.len() / weights.inputs();
    let mut activations = Activations::new();
    activations.rows_mut(count, weights.inputs()).copy_from_slice(rows);
    activations.quantise(family);
    let mut out = vec![0.0; count * weights.outputs()];
    multiply(family, &activations, &mut [Product { weights, out: &mut out }]);
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn weights_of(packed: &Packed) -> Vec<Vec<f32>> {
    (0..packed.outputs())
        .map(|row| {
            let mut out = vec![0.0; packed.inputs()];
            packed.row(row, &mut out);
            out
        })
        .collect()
}

#[test]
fn every_family_and_number_of_rows_gives_the_same_bits_near_what_f64_says() {
    let mut random = Random(1);
    for format in Format::ALL {
        let block = format.inputs_of_block();
        let widths: &[usize] = if block == 256 {
            &[256, 768]
        } else if block == 32 {
            &[32, 96, 288, 512]
        } else {
            &[1, 33, 256]
        };
        for &inputs in widths {
            for outputs in [1, 15, 16, 40, 275] {
                let packed =
                    Packed::pack(format, outputs, inputs, &tensor(format, outputs, inputs, &mut random)).unwrap();
                let exact = weights_of(&packed);
                let rows = random.floats(19 * inputs);
                let expected = product(Family::Plain, &packed, &rows);
                for (row, results) in rows.chunks_exact(inputs).zip(expected.chunks_exact(outputs)) {
                    for (weights, result) in exact.iter().zip(results) {
                        let terms = weights.iter().zip(row).map(|(w, x)| f64::from(*w) * f64::from(*x));
                        let size: f64 = weights.iter().map(|w| f64::from(w.abs())).sum();
                        // Half a step of 127 for each activation, and rounding.
                        let bound = if format.is_quantised() { size / 200.0 } else { size * 1e-6 } + 1e-9;
                        let sum: f64 = terms.sum();
                        assert!((sum - f64::from(*result)).abs() <= bound, "{format:?} {inputs}: {sum} {result}");
                    }
                }
                for &family in Family::all() {
                    for count in (1..=13).chain([18, 19]) {
                        let some = product(family, &packed, &rows[..count * inputs]);
                        assert_eq!(
                            bits(&some),
                            bits(&expected[..count * outputs]),
                            "{format:?} {family:?} {inputs} {count}"
                        );
                    }
                }
            }
        }
    }
}

/// Codes, scales and activations that are nearly all the largest, so that sums have more bits than an f32.
#[test]
fn the_largest_sums_have_the_same_bits_in_every_family_and_number_of_rows() {
    let mut random = Random(5);
    for format in Format::ALL.into_iter().filter(|format| format.is_quantised()) {
        let (outputs, inputs) = (40, 768);
        let mut bytes = tensor(format, outputs, inputs, &mut random);
        let halves = match format {
            Format::Q8_0 | Format::Q4_0 | Format::Q5_0 => 0..2,
            Format::Q6K => 208..210,
            _ => 0..4,
        };
        for block in bytes.chunks_exact_mut(format.bytes_of_block()) {
            for (place, byte) in block.iter_mut().enumerate().filter(|(place, _)| !halves.contains(place)) {
                // In Q6_K the largest scale is -128, and the largest code is 0 with it.
                let most = if format != Format::Q6K {
                    255
                } else if place < 192 {
                    0
                } else {
                    128
                };
                *byte = if random.next().is_multiple_of(8) { random.next() as u8 } else { most };
            }
        }
        let packed = Packed::pack(format, outputs, inputs, &bytes).unwrap();
        let rows: Vec<f32> = (0..40 * inputs).map(|_| 1.0 - random.float().abs() / 64.0).collect();
        let expected = product(Family::Plain, &packed, &rows);
        for &family in Family::all() {
            for count in [1, 3, 12, 13, 21, 40] {
                let some = product(family, &packed, &rows[..count * inputs]);
                assert_eq!(bits(&some), bits(&expected[..count * outputs]), "{format:?} {family:?} {count}");
            }
        }
    }
}

/// More rows than are multiplied together, a short super-block, an odd number of tiles and the last one not full; and in one step
/// with what is a number, what is none.
#[test]
fn a_row_has_the_bits_that_it_has_alone_beside_any_rows_and_matrices() {
    let mut random = Random(9);
    for inputs in [608, 768] {
        let formats = Format::ALL.into_iter().filter(|format| inputs % format.inputs_of_block() == 0);
        let matrices: Vec<_> = formats
            .zip([40, 15, 33].into_iter().cycle())
            .map(|(format, outputs)| {
                Packed::pack(format, outputs, inputs, &tensor(format, outputs, inputs, &mut random)).unwrap()
            })
            .collect();
        let mut rows = random.floats(131 * inputs);
        rows[3 * inputs + 1] = f32::NAN;
        rows[12 * inputs - 1] = f32::INFINITY;
        rows[7 * inputs..8 * inputs].fill(0.0);
        let alone: Vec<Vec<f32>> = matrices
            .iter()
            .map(|matrix| rows.chunks_exact(inputs).flat_map(|row| product(Family::Plain, matrix, row)).collect())
            .collect();
        for &family in Family::all() {
            for count in [12, 13, 18, 128, 129, 130, 131] {
                let mut activations = Activations::new();
                activations.rows_mut(count, inputs).copy_from_slice(&rows[..count * inputs]);
                activations.quantise(family);
                // A result that is not written would show.
                let mut results: Vec<_> = matrices.iter().map(|matrix| vec![0.5; count * matrix.outputs()]).collect();
                let mut products: Vec<_> =
                    matrices.iter().zip(&mut results).map(|(weights, out)| Product { weights, out }).collect();
                multiply(family, &activations, &mut products);
                for ((matrix, alone), found) in matrices.iter().zip(&alone).zip(&results) {
                    let same =
                        found.iter().zip(alone).all(|(x, y)| x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan());
                    let odd = found.iter().map(|x| !x.is_finite());
                    let expected = (0..found.len()).map(|index| [3, 11].contains(&(index / matrix.outputs())));
                    assert!(same && expected.eq(odd), "{family:?} {:?} {inputs} {count}", matrix.format());
                }
            }
        }
    }
}

/// `KERNELS=plain,neon-dotprod` holds the families that are found, and so those that every other test here compares, to what the
/// processor is known to have (`make test-neon`).
#[test]
fn the_families_compared_are_those_that_the_processor_has() {
    let names: Vec<_> = Family::all().iter().map(|family| family.name()).collect();
    assert_eq!((names[0], names.last()), ("plain", Some(&Family::best().name())));
    if let Ok(expected) = std::env::var("KERNELS") {
        assert_eq!(names.join(","), expected);
    }
}

/// FNV-1a.
fn digest(values: &[f32]) -> u64 {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Families of two architectures never run in one process: the same digests in both compare them. A change of one changes answers
/// that were given before: the changelog says so.
#[test]
fn results_have_the_same_bits_on_every_architecture() {
    let family = Family::best();
    let products = Format::ALL.map(|format| {
        let mut random = Random(7);
        let packed = Packed::pack(format, 40, 512, &tensor(format, 40, 512, &mut random)).unwrap();
        (format, digest(&product(family, &packed, &random.floats(5 * 512))))
    });
    assert!(products[..] == PRODUCTS, "{products:#x?}");
    let attention = [KvElement::F32, KvElement::F16].map(|element| {
        let mut random = Random(7);
        let cache = cache(KvShape { layers: 1, kv_heads: 1, head_width: 80, element }, 70, &mut random);
        digest(&cache.attend(family, 0, &random.floats(2 * 80), &[69, 70]))
    });
    assert!(attention == ATTENTION, "{attention:#x?}");
    let rows = Random(7).floats(100);
    let (mut gated, mut normed) = (rows.clone(), rows.clone());
    swiglu(family, &mut gated, &rows);
    rms_norm(family, &mut normed, &rows, 1e-5);
    let between = [digest(&gated), digest(&normed)];
    assert!(between == BETWEEN, "{between:#x?}");
}

#[test]
fn threads_change_no_bit() {
    let mut random = Random(2);
    // Of some hundred tiles a task is a part of a band, of some thousand it is several.
    for outputs in [1000, 9000] {
        let packed = Packed::pack(Format::Q4K, outputs, 512, &tensor(Format::Q4K, outputs, 512, &mut random)).unwrap();
        for count in [1, 3, 9, 200] {
            let rows = random.floats(count * 512);
            let on = |threads: usize| {
                let team = kernels::Team::new(threads).unwrap();
                team.run(|| bits(&product(Family::best(), &packed, &rows)))
            };
            assert!(on(1) == on(3) && on(1) == on(11), "{outputs} {count}");
        }
    }
}

#[test]
fn a_row_with_an_infinite_element_gives_no_number() {
    let mut random = Random(3);
    let packed = Packed::pack(Format::Q8_0, 16, 64, &tensor(Format::Q8_0, 16, 64, &mut random)).unwrap();
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut rows = random.floats(128);
        rows[70] = odd;
        for &family in Family::all() {
            let out = product(family, &packed, &rows);
            assert!(
                out[..16].iter().all(|x| x.is_finite()) && out[16..].iter().all(|x| x.is_nan()),
                "{family:?} {odd}"
            );
        }
    }
}

#[test]
fn the_most_negative_code_is_computed_with() {
    let mut bytes = half::f16::from_f32(1.0).to_le_bytes().to_vec();
    bytes.extend([0x80_u8; 32]);
    let packed = Packed::pack(Format::Q8_0, 1, 32, &bytes).unwrap();
    for &family in Family::all() {
        for sign in [1.0, -1.0] {
            assert_eq!(product(family, &packed, &[sign; 32]), [-128.0 * 32.0 * sign], "{family:?}");
        }
    }
}

#[test]
fn activations_half_way_between_two_codes_become_the_even_one() {
    let mut bytes = half::f16::from_f32(1.0).to_le_bytes().to_vec();
    bytes.extend((0..32).map(|place: u8| u8::from(place > 0)));
    let packed = Packed::pack(Format::Q8_0, 1, 32, &bytes).unwrap();
    // 127 sets the step to one; its weight is zero.
    let mut row = [0.0; 32];
    (row[0], row[1], row[2], row[3], row[4]) = (127.0, 0.5, 1.5, 2.5, -4.5);
    for &family in Family::all() {
        assert_eq!(product(family, &packed, &row), [0.0 + 2.0 + 2.0 - 4.0], "{family:?}");
    }
}

#[test]
#[should_panic(expected = "quantised activations")]
fn activations_that_were_quantised_for_other_rows_are_not_multiplied() {
    let packed = Packed::pack(Format::Q8_0, 16, 32, &tensor(Format::Q8_0, 16, 32, &mut Random(8))).unwrap();
    let mut activations = Activations::new();
    activations.rows_mut(1, 8192).fill(1.0);
    activations.quantise(Family::best());
    activations.rows_mut(256, 32).fill(1.0);
    let mut out = vec![0.0; 256 * 16];
    multiply(Family::best(), &activations, &mut [Product { weights: &packed, out: &mut out }]);
}

#[test]
fn what_is_no_whole_matrix_is_refused() {
    assert!(Packed::pack(Format::Q4K, 1, 128, &[0; 144]).is_err());
    assert!(Packed::pack(Format::Q8_0, 2, 32, &[0; 34]).is_err());
    assert!(Packed::pack(Format::F32, 0, 4, &[]).is_err());
    assert!(Packed::pack(Format::F32, 1, 0, &[]).is_err());
}

struct Cache {
    shape: KvShape,
    pages: Vec<Vec<u8>>,
    /// By position, of each head.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

fn cache(shape: KvShape, length: usize, random: &mut Random) -> Cache {
    let mut cache = Cache { shape, pages: Vec::new(), keys: Vec::new(), values: Vec::new() };
    for position in 0..length {
        if position % BLOCK == 0 {
            cache.pages.push(vec![0; shape.page_bytes()]);
        }
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for _ in 0..shape.kv_heads {
            keys.extend(random.floats(shape.head_width));
            values.extend(random.floats(shape.head_width));
        }
        cache.keys.push(keys);
        cache.values.push(values);
    }
    // One alone, then some at once.
    for (index, page) in cache.pages.iter_mut().enumerate() {
        let first = index * BLOCK;
        for rows in [first..first + 1, first + 1..length.min(first + BLOCK)] {
            let (keys, values) = (cache.keys[rows.clone()].concat(), cache.values[rows.clone()].concat());
            write_kv(&shape, page, shape.layers - 1, rows.start % BLOCK, &keys, &values);
        }
    }
    cache
}

impl Cache {
    fn attend(&self, family: Family, head: usize, queries: &[f32], lengths: &[usize]) -> Vec<f32> {
        let pages: Vec<&[u8]> = self.pages.iter().map(Vec::as_slice).collect();
        let mut out = vec![0.0; queries.len()];
        Attention { shape: &self.shape, layer: self.shape.layers - 1, kv_head: head, pages: &pages }
            .attend(family, queries, lengths, &mut out);
        out
    }

    fn exact(&self, head: usize, query: &[f32], length: usize) -> Vec<f64> {
        let width = self.shape.head_width;
        let dot = |key: &[f32]| {
            key[head * width..][..width].iter().zip(query).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum::<f64>()
        };
        let weights: Vec<f64> = self.keys[..length].iter().map(|key| dot(key).exp()).collect();
        let total: f64 = weights.iter().sum();
        (0..width)
            .map(|element| {
                let terms = weights
                    .iter()
                    .zip(&self.values)
                    .map(|(weight, value)| weight * f64::from(value[head * width + element]));
                terms.sum::<f64>() / total
            })
            .collect()
    }
}

#[test]
fn attention_is_near_what_f64_says_and_the_same_in_every_family_however_rows_are_put_together() {
    let mut random = Random(4);
    for (element, bound) in [(KvElement::F32, 1e-5), (KvElement::F16, 3e-3)] {
        for width in [16, 20, 64, 80, 128] {
            for length in [1, 15, 34, 50, 64, 65, 84, 200] {
                let cache = cache(KvShape { layers: 2, kv_heads: 3, head_width: width, element }, length, &mut random);
                for rows in [6, 7] {
                    let queries = random.floats(rows * width);
                    let lengths: Vec<usize> =
                        (0..rows).map(|row| (length - (rows - 1 - row).min(length - 1)).max(1)).collect();
                    let expected = cache.attend(Family::Plain, 1, &queries, &lengths);
                    for (row, length) in lengths.iter().enumerate() {
                        let exact = cache.exact(1, &queries[row * width..][..width], *length);
                        for (exact, found) in exact.iter().zip(&expected[row * width..]) {
                            assert!(
                                (exact - f64::from(*found)).abs() < bound,
                                "{element:?} {width} {length}: {exact} {found}"
                            );
                        }
                    }
                    for &family in Family::all() {
                        assert_eq!(bits(&cache.attend(family, 1, &queries, &lengths)), bits(&expected), "{family:?}");
                        for (row, length) in lengths.iter().enumerate() {
                            let alone = cache.attend(family, 1, &queries[row * width..][..width], &[*length]);
                            assert_eq!(
                                bits(&alone),
                                bits(&expected[row * width..][..width]),
                                "{family:?} {element:?} {width} {length}"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// A token that was guessed wrongly may be no number; the ones before it must not notice.
#[test]
fn what_a_row_does_not_see_does_not_reach_it() {
    for element in [KvElement::F32, KvElement::F16] {
        let shape = KvShape { layers: 1, kv_heads: 1, head_width: 80, element };
        let mut random = Random(6);
        let mut cache = cache(shape, 70, &mut random);
        let queries = random.floats(4 * 80);
        let before: Vec<_> =
            Family::all().iter().map(|&family| cache.attend(family, 0, &queries, &[66, 67, 68, 69])).collect();
        write_kv(&shape, &mut cache.pages[1], 0, 69 - BLOCK, &[1.0; 80], &[f32::NAN; 80]);
        for (&family, before) in Family::all().iter().zip(before) {
            let after = cache.attend(family, 0, &queries, &[66, 67, 68, 70]);
            assert_eq!(bits(&after[..240]), bits(&before[..240]), "{element:?} {family:?}");
            assert!(after[240..].iter().all(|x| x.is_nan()), "{element:?} {family:?}");
        }
    }
}

#[test]
fn a_key_that_is_no_number_shows() {
    let shape = KvShape { layers: 1, kv_heads: 1, head_width: 16, element: KvElement::F16 };
    let mut cache = cache(shape, 70, &mut Random(5));
    write_kv(&shape, &mut cache.pages[1], 0, 2, &[f32::NAN; 16], &[0.0; 16]);
    for &family in Family::all() {
        assert!(cache.attend(family, 0, &[1.0; 16], &[70]).iter().all(|x| x.is_nan()), "{family:?}");
        assert!(cache.attend(family, 0, &[1.0; 16], &[66]).iter().all(|x| x.is_finite()), "{family:?}");
    }
}

proptest! {
    #[test]
    fn norms_and_gates_are_the_same_in_every_family(rows in prop::collection::vec(-100.0_f32..100.0, 1..100)) {
        let weight: Vec<f32> = rows.iter().map(|x| x * 0.5).collect();
        let run = |family: Family| {
            let mut normed = rows.clone();
            rms_norm(family, &mut normed, &weight, 1e-5);
            let mut gated = rows.clone();
            swiglu(family, &mut gated, &weight);
            (normed, gated)
        };
        let (normed, gated) = run(Family::Plain);
        for &family in Family::all() {
            let (other_normed, other_gated) = run(family);
            prop_assert_eq!(bits(&normed), bits(&other_normed));
            prop_assert_eq!(bits(&gated), bits(&other_gated));
        }
        let mean = rows.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / rows.len() as f64;
        for ((x, weight), (normed, gated)) in rows.iter().zip(&weight).zip(normed.iter().zip(&gated)) {
            let (x, weight) = (f64::from(*x), f64::from(*weight));
            let exact = x / (mean + 1e-5).sqrt() * weight;
            prop_assert!((exact - f64::from(*normed)).abs() <= exact.abs() * 1e-5 + 1e-6, "{} {}", exact, normed);
            let exact = x / (1.0 + (-x).exp()) * weight;
            prop_assert!((exact - f64::from(*gated)).abs() <= exact.abs() * 1e-5 + 1e-30, "{} {}", exact, gated);
        }
    }
}

/// What x86-64 with AVX-512 gives.
const PRODUCTS: [(Format, u64); 11] = [
    (Format::F32, 0x7bc2_64dd_fbf2_6fa3),
    (Format::F16, 0x544b_8688_a347_765a),
    (Format::Bf16, 0x6245_f3fa_655e_82ff),
    (Format::Q8_0, 0xf1b2_7016_d3a8_2b5e),
    (Format::Q4_0, 0x6d40_b1ce_d317_4b37),
    (Format::Q4_1, 0x8379_0baf_0836_9095),
    (Format::Q5_0, 0x2a54_2b82_c625_d59d),
    (Format::Q5_1, 0xb579_a384_c1ad_298e),
    (Format::Q4K, 0xfcc5_caf1_0853_fc27),
    (Format::Q5K, 0x2cfc_da4f_c392_c79e),
    (Format::Q6K, 0x12ca_667d_8125_968b),
];
/// With f32, and with f16.
const ATTENTION: [u64; 2] = [0x424a_3551_bd98_c325, 0xc312_a5f4_6f75_242c];
/// Gate, and norm.
const BETWEEN: [u64; 2] = [0x39cb_2068_e600_2a07, 0xa5bc_5012_183f_9844];
