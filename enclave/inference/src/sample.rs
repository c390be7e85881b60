//! Which token comes next.

use thiserror::Error;
use zeroize::Zeroizing;

use crate::constraint::{ConstraintError, Course, Form};
use crate::logprobs::{MAX_TOP_LOGPROBS, TokenLogprobs};

/// How tokens are chosen, and which texts end the answer.
#[derive(Clone)]
pub struct Sampling {
    /// 0 chooses the likeliest token always; 1 samples the model's own distribution; at most [`MAX_TEMPERATURE`].
    pub temperature: f32,
    /// Only the so many likeliest tokens are considered; 0 stands for all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability are considered; above 0, at most 1.
    pub top_p: f32,
    /// Only tokens at least so likely, relative to the likeliest, are considered; from 0 (all) to 1.
    pub min_p: f32,
    /// A token that stands in prompt or answer has its logit divided by this if it is positive, else multiplied (Keskar et al. 2019);
    /// 1 changes nothing.
    pub repetition_penalty: f32,
    /// Taken from the logit of a token that stands in the answer, -2 to 2 (OpenAI API reference).
    pub presence_penalty: f32,
    /// Taken from the logit of a token for each time that it stands in the answer, -2 to 2 (OpenAI API reference).
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens, -100 to 100 (OpenAI API reference).
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same text, for the same model and prompt.
    pub seed: u64,
    /// Guess what comes next from what the prompt says, which changes the pace of an answer but no token of it. The pace then shows
    /// how far the answer copies its prompt: only where the one who asks has said so.
    pub speculate: bool,
    /// Texts that end the answer and are not part of it.
    pub stops: Vec<Zeroizing<String>>,
    /// Say how likely each token was, and so many others at its place: at most [`MAX_TOP_LOGPROBS`].
    pub logprobs: Option<usize>,
    /// The form that the answer is to have. If it ends by itself, it has it.
    pub form: Option<Form>,
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
    /// `min_p` is outside 0 to 1.
    #[error("min_p is {0}; 0 to 1 is expected")]
    MinP(f32),
    /// A penalty is out of range.
    #[error("{what} is {value}; {expected} is expected")]
    Penalty {
        /// Which.
        what: &'static str,
        /// Its value.
        value: f32,
        /// What would be accepted.
        expected: &'static str,
    },
    /// Too many biases, or one out of range.
    #[error("logit_bias holds a number outside -100 to 100, or more than {MAX_BIASES} tokens")]
    Bias,
    /// Too many stop texts.
    #[error("{0} stop texts; at most {MAX_STOPS} are accepted")]
    TooManyStops(usize),
    /// Too many log-probabilities.
    #[error("log-probabilities of {0} tokens at each place; at most {MAX_TOP_LOGPROBS} are given")]
    TopLogprobs(usize),
    /// A stop text is empty or too long.
    #[error("a stop text has {0} bytes; 1 to {MAX_STOP_BYTES} are expected")]
    StopLength(usize),
}

impl Sampling {
    /// The likeliest token always, no stop texts.
    #[must_use]
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            speculate: false,
            stops: Vec::new(),
            logprobs: None,
            form: None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), SamplingError> {
        let Self {
            temperature,
            top_k: _,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            seed: _,
            speculate: _,
            stops,
            logprobs,
            form: _,
        } = self;
        if !(0.0..=MAX_TEMPERATURE).contains(temperature) {
            return Err(SamplingError::Temperature(*temperature));
        }
        if !(*top_p > 0.0 && *top_p <= 1.0) {
            return Err(SamplingError::TopP(*top_p));
        }
        if !(0.0..=1.0).contains(min_p) {
            return Err(SamplingError::MinP(*min_p));
        }
        if !(0.01..=100.0).contains(repetition_penalty) {
            let value = *repetition_penalty;
            return Err(SamplingError::Penalty { what: "repetition_penalty", value, expected: "0.01 to 100" });
        }
        for (what, value) in [("presence_penalty", *presence_penalty), ("frequency_penalty", *frequency_penalty)] {
            if !(-2.0..=2.0).contains(&value) {
                return Err(SamplingError::Penalty { what, value, expected: "-2 to 2" });
            }
        }
        if logit_bias.len() > MAX_BIASES || logit_bias.iter().any(|(_, bias)| !(-100.0..=100.0).contains(bias)) {
            return Err(SamplingError::Bias);
        }
        if let Some(top) = logprobs.filter(|top| *top > MAX_TOP_LOGPROBS) {
            return Err(SamplingError::TopLogprobs(top));
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
pub(crate) struct Sampler {
    sampling: Sampling,
    course: Option<Course>,
    random: Random,
    candidates: Zeroizing<Vec<(u32, f32)>>,
    /// The logits as the model gave them. Empty if nobody asks how likely tokens were.
    raw: Zeroizing<Vec<f32>>,
    /// Tokens of prompt and answer, in order of id, and how often they stand in the answer. Empty if no penalty asks for them.
    seen: Zeroizing<Vec<(u32, u32)>>,
}

/// The next token of an answer.
pub(crate) struct Chosen {
    pub(crate) id: u32,
    pub(crate) logprobs: Option<TokenLogprobs>,
    /// The answer has its form now, and nothing may follow.
    pub(crate) is_last: bool,
}

/// Why there is no next token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChoiceError {
    /// No logit is a number that can be compared.
    NotANumber,
    Constraint(ConstraintError),
}

impl Sampler {
    pub(crate) fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let mut sampler = Self {
            random: Random::new(sampling.seed),
            sampling,
            course: None,
            candidates: Zeroizing::new(Vec::new()),
            raw: Zeroizing::new(Vec::new()),
            seen: Zeroizing::new(Vec::new()),
        };
        if sampler.sampling.repetition_penalty != 1.0 {
            let mut ids = Zeroizing::new(prompt.to_vec());
            ids.sort_unstable();
            let distinct = ids.chunk_by(|a, b| a == b).filter_map(|same| same.first());
            sampler.seen = Zeroizing::new(Vec::with_capacity(ids.len() + 256));
            sampler.seen.extend(distinct.map(|id| (*id, 0)));
        }
        sampler
    }

    /// Holds the answer, of which there is nothing yet, to its form.
    pub(crate) fn follow(&mut self, course: Course) {
        self.course = Some(course);
    }

    /// Gives the memory back that choosing takes: the answer is at its end.
    pub(crate) fn forget(&mut self) {
        self.course = None;
        self.candidates = Zeroizing::default();
        self.raw = Zeroizing::default();
        self.seen = Zeroizing::default();
    }

    /// Takes the next token of the answer.
    pub(crate) fn choose(&mut self, logits: &mut [f32]) -> Result<Chosen, ChoiceError> {
        if self.sampling.logprobs.is_some() {
            if self.raw.is_empty() {
                self.raw = Zeroizing::new(vec![0.0; logits.len()]);
            }
            self.raw.copy_from_slice(logits);
        }
        if let Some(course) = &mut self.course {
            course.restrict(logits).map_err(ChoiceError::Constraint)?;
        }
        self.adjust(logits);
        let id = self.choose_among(logits).ok_or(ChoiceError::NotANumber)?;
        if self.remembers() {
            self.note(id, 1);
        }
        let logprobs = self.sampling.logprobs.map(|top| TokenLogprobs::new(&self.raw, id, top));
        let is_last = match &mut self.course {
            None => false,
            Some(course) => course.take(id).map_err(ChoiceError::Constraint)?,
        };
        Ok(Chosen { id, logprobs, is_last })
    }

    fn remembers(&self) -> bool {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } = self.sampling;
        repetition_penalty != 1.0 || presence_penalty != 0.0 || frequency_penalty != 0.0
    }

    fn note(&mut self, id: u32, times: u32) {
        match self.seen.binary_search_by_key(&id, |(id, _)| *id) {
            Ok(at) => {
                if let Some((_, count)) = self.seen.get_mut(at) {
                    *count += times;
                }
            }
            Err(at) => {
                if self.seen.len() == self.seen.capacity() {
                    // A vector that grows by itself leaves its former self behind, not wiped.
                    let mut larger = Zeroizing::new(Vec::with_capacity(2 * self.seen.len() + 256));
                    larger.extend_from_slice(&self.seen);
                    self.seen = larger;
                }
                self.seen.insert(at, (id, times));
            }
        }
    }

    /// Applies penalties, then biases.
    fn adjust(&self, logits: &mut [f32]) {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } = self.sampling;
        for &(id, count) in self.seen.iter() {
            let Some(logit) = logits.get_mut(id as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
            if count > 0 {
                *logit -= presence_penalty + frequency_penalty * count as f32;
            }
        }
        for &(id, bias) in &self.sampling.logit_bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
    }

    fn choose_among(&mut self, logits: &[f32]) -> Option<u32> {
        let (likeliest, largest) = likeliest(logits)?;
        if self.sampling.temperature == 0.0 || largest == f32::INFINITY {
            return Some(likeliest);
        }
        let weight = |logit: f32| ((logit - largest) / self.sampling.temperature).exp();
        self.candidates.clear();
        if self.candidates.capacity() < logits.len() {
            // A vector that grows by itself leaves its former selves behind, not wiped.
            self.candidates = Zeroizing::new(Vec::with_capacity(logits.len()));
        }
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

    /// Applies `min_p`, `top_k`, then `top_p`. The likeliest has the weight 1.
    fn keep_likeliest(&mut self) {
        let Sampling { top_k, top_p, min_p, .. } = self.sampling;
        if min_p > 0.0 {
            self.candidates.retain(|(_, weight)| *weight >= min_p);
        }
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
/// More than anybody sends, few enough to go through for each token.
pub const MAX_BIASES: usize = 1024;
/// So much text may be held back while it could still become a stop text.
pub const MAX_STOP_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn next(sampler: &mut Sampler, logits: &[f32]) -> Result<u32, ChoiceError> {
        sampler.choose(&mut logits.to_vec()).map(|chosen| chosen.id)
    }

    fn chosen(sampling: &Sampling, logits: &[f32], times: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling.clone(), &[]);
        (0..times).map(|_| next(&mut sampler, logits).unwrap()).collect()
    }

    #[test]
    fn temperature_zero_takes_the_first_of_the_largest() {
        assert_eq!(chosen(&Sampling::greedy(), &[0.0, 3.0, f32::NAN, 3.0], 1), [1]);
    }

    #[test]
    fn logits_without_a_number_give_no_token() {
        let mut sampler = Sampler::new(Sampling::greedy(), &[]);
        assert_eq!(next(&mut sampler, &[f32::NAN, f32::NEG_INFINITY]), Err(ChoiceError::NotANumber));
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
    fn min_p_leaves_out_what_is_unlikely_beside_the_likeliest() {
        let sampling = Sampling { temperature: 1.0, min_p: 0.5, ..Sampling::greedy() };
        let drawn = chosen(&sampling, &[1.0_f32.ln(), 0.6_f32.ln(), 0.4_f32.ln()], 400);
        assert!(drawn.contains(&0) && drawn.contains(&1) && !drawn.contains(&2));
    }

    #[test]
    fn penalties_and_biases_change_the_order() {
        let logits = [2.0, 1.9, 1.7];
        let greedy = Sampling::greedy;
        assert_eq!(chosen(&Sampling { presence_penalty: 0.15, ..greedy() }, &logits, 4), [0, 1, 0, 0]);
        assert_eq!(chosen(&Sampling { frequency_penalty: 0.15, ..greedy() }, &logits, 4), [0, 1, 0, 1]);
        assert_eq!(chosen(&Sampling { logit_bias: vec![(2, 1.0)], ..greedy() }, &logits, 1), [2]);
        let mut sampler = Sampler::new(Sampling { repetition_penalty: 1.1, ..greedy() }, &[0]);
        assert_eq!([next(&mut sampler, &logits), next(&mut sampler, &logits)], [Ok(1), Ok(0)]);
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
