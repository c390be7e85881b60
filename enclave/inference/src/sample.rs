//! Which token comes next.

use thiserror::Error;
use zeroize::Zeroizing;

/// How tokens are chosen, and which texts end the answer.
#[derive(Clone)]
pub struct Sampling {
    /// 0 chooses the likeliest token always; 1 samples the model's own distribution; at most [`MAX_TEMPERATURE`].
    pub temperature: f32,
    /// Only the so many likeliest tokens are considered; 0 stands for all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability are considered; above 0, at most 1.
    pub top_p: f32,
    /// The same seed gives the same text, for the same model, prompt and engine.
    pub seed: u64,
    /// Texts that end the answer and are not part of it.
    pub stops: Vec<Zeroizing<String>>,
}

/// Why sampling parameters are refused.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
pub enum SamplingError {
    /// Temperature is negative, too high or not a number.
    #[error("temperature is {0}; 0 to {MAX_TEMPERATURE} is expected")]
    Temperature(f32),
    /// `top_p` is zero, negative, above one or not a number.
    #[error("top_p is {0}; a number above 0, at most 1, is expected")]
    TopP(f32),
    /// Too many stop texts.
    #[error("{0} stop texts; at most {MAX_STOPS} are accepted")]
    TooManyStops(usize),
    /// A stop text is empty or too long.
    #[error("a stop text has {0} bytes; 1 to {MAX_STOP_BYTES} are expected")]
    StopLength(usize),
}

impl Sampling {
    /// The likeliest token always, no stop texts.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0, stops: Vec::new() }
    }

    pub(crate) fn check(&self) -> Result<(), SamplingError> {
        let Self { temperature, top_k: _, top_p, seed: _, stops } = self;
        if !(0.0..=MAX_TEMPERATURE).contains(temperature) {
            return Err(SamplingError::Temperature(*temperature));
        }
        if !(*top_p > 0.0 && *top_p <= 1.0) {
            return Err(SamplingError::TopP(*top_p));
        }
        if stops.len() > MAX_STOPS {
            return Err(SamplingError::TooManyStops(stops.len()));
        }
        match stops.iter().find(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
            Some(stop) => Err(SamplingError::StopLength(stop.len())),
            None => Ok(()),
        }
    }
}

/// Chooses the tokens of one answer.
pub(crate) struct Sampler<'a> {
    sampling: &'a Sampling,
    random: Random,
    candidates: Zeroizing<Vec<(u32, f32)>>,
}

impl<'a> Sampler<'a> {
    pub(crate) fn new(sampling: &'a Sampling) -> Self {
        Self { sampling, random: Random::new(sampling.seed), candidates: Zeroizing::new(Vec::new()) }
    }

    /// `None` if no logit is a number that can be compared.
    pub(crate) fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let (likeliest, largest) = likeliest(logits)?;
        if self.sampling.temperature == 0.0 || largest == f32::INFINITY {
            return Some(likeliest);
        }
        let weight = |logit: f32| ((logit - largest) / self.sampling.temperature).exp();
        self.candidates.clear();
        self.candidates.extend((0..).zip(logits).map(|(id, &logit)| (id, weight(logit))).filter(|(_, w)| *w > 0.0));
        self.keep_likeliest();
        let total: f64 = self.candidates.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let mut left = self.random.unit() * total;
        for &(id, weight) in self.candidates.iter() {
            left -= f64::from(weight);
            if left < 0.0 {
                return Some(id);
            }
        }
        Some(likeliest)
    }

    /// Applies `top_k`, then `top_p`.
    fn keep_likeliest(&mut self) {
        let Sampling { top_k, top_p, .. } = *self.sampling;
        // Equal weights in order of id, so that the choice depends on nothing else.
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if top_k > 0 && top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(top_k - 1, order);
            self.candidates.truncate(top_k);
        }
        if top_p < 1.0 {
            self.candidates.sort_unstable_by(order);
            let total: f64 = self.candidates.iter().map(|(_, weight)| f64::from(*weight)).sum();
            let mut reached = 0.0;
            let enough = self.candidates.iter().position(|(_, weight)| {
                reached += f64::from(*weight);
                reached >= f64::from(top_p) * total
            });
            self.candidates.truncate(enough.map_or(usize::MAX, |last| last + 1));
        } else {
            self.candidates.sort_unstable_by_key(|(id, _)| *id);
        }
    }
}

/// The largest logit and its token; of equal ones the first.
fn likeliest(logits: &[f32]) -> Option<(u32, f32)> {
    let numbers = (0..).zip(logits).filter(|(_, logit)| !logit.is_nan());
    let best = numbers.fold(None, |best: Option<(u32, f32)>, (id, &logit)| match best {
        Some((_, largest)) if largest >= logit => best,
        _ => Some((id, logit)),
    });
    best.filter(|(_, largest)| *largest > f32::NEG_INFINITY)
}

/// SplitMix64 (Steele, Lea, Flood 2014). What it decides is which of the likely words comes next: nothing here needs
/// to be unpredictable, only repeatable.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From 0 up to, not including, 1.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        (z >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// "temperature: ... between 0 and 2" (OpenAI API reference).
pub const MAX_TEMPERATURE: f32 = 2.0;
/// "stop: up to 4 sequences" (OpenAI API reference).
pub const MAX_STOPS: usize = 4;
/// So much text may be held back while it could still become a stop text.
pub const MAX_STOP_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(sampling: &Sampling, logits: &[f32], times: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling);
        (0..times).map(|_| sampler.choose(logits).unwrap()).collect()
    }

    #[test]
    fn temperature_zero_takes_the_first_of_the_largest() {
        assert_eq!(chosen(&Sampling::greedy(), &[0.0, 3.0, f32::NAN, 3.0], 1), [1]);
    }

    #[test]
    fn logits_without_a_number_give_no_token() {
        assert_eq!(Sampler::new(&Sampling::greedy()).choose(&[f32::NAN, f32::NEG_INFINITY]), None);
    }

    #[test]
    fn top_k_one_is_greedy_at_any_temperature() {
        let sampling = Sampling { temperature: 2.0, top_k: 1, ..Sampling::greedy() };
        assert_eq!(chosen(&sampling, &[1.0, 1.5, 1.4], 50), [1; 50]);
    }

    #[test]
    fn top_p_leaves_out_the_tail() {
        let sampling = Sampling { temperature: 1.0, top_p: 0.6, ..Sampling::greedy() };
        // Probabilities 0.5, 0.25, 0.25: the first two reach 0.6.
        let drawn = chosen(&sampling, &[2.0_f32.ln(), 0.0, 0.0], 400);
        assert!(drawn.contains(&0) && drawn.contains(&1) && !drawn.contains(&2));
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let sampling = Sampling { temperature: 1.0, seed: 7, ..Sampling::greedy() };
        let drawn = chosen(&sampling, &[3.0_f32.ln(), 0.0], 20_000);
        let share = drawn.iter().filter(|&&id| id == 0).count() as f64 / 20_000.0;
        assert!((share - 0.75).abs() < 0.01, "{share}");
    }

    #[test]
    fn the_same_seed_draws_the_same_and_another_does_not() {
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32 * 0.1).collect();
        let sampling = |seed| Sampling { temperature: 1.0, seed, ..Sampling::greedy() };
        assert_eq!(chosen(&sampling(1), &logits, 40), chosen(&sampling(1), &logits, 40));
        assert_ne!(chosen(&sampling(1), &logits, 40), chosen(&sampling(2), &logits, 40));
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        let greedy = Sampling::greedy;
        assert!(greedy().check().is_ok());
        assert_eq!(Sampling { temperature: -0.1, ..greedy() }.check(), Err(SamplingError::Temperature(-0.1)));
        assert!(Sampling { temperature: f32::NAN, ..greedy() }.check().is_err());
        assert_eq!(Sampling { top_p: 0.0, ..greedy() }.check(), Err(SamplingError::TopP(0.0)));
        assert!(Sampling { top_p: f32::NAN, ..greedy() }.check().is_err());
        let stops = |stop: &str, count| vec![Zeroizing::new(stop.to_owned()); count];
        assert_eq!(Sampling { stops: stops("", 1), ..greedy() }.check(), Err(SamplingError::StopLength(0)));
        assert_eq!(Sampling { stops: stops("a", 5), ..greedy() }.check(), Err(SamplingError::TooManyStops(5)));
    }
}
