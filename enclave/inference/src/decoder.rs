//! Decoder-only transformers: what Llama 2 and 3, Mistral, Qwen 2, 2.5 and 3 and their kin compute.

mod attention;
mod cache;
mod forward;
mod rope;
mod weights;

pub(crate) use cache::KvCache;
pub(crate) use forward::{Run, Scratch};
use std::io::Read;

use kernels::{Family, KvElement, KvShape};
use model_header::Config;
use weights::Weights;
pub use weights::WeightsError;

use crate::gguf::Header;

/// Hyperparameters and weights.
pub(crate) struct Decoder {
    pub(crate) config: Config,
    pub(crate) kv_shape: KvShape,
    pub(crate) family: Family,
    weights: Weights,
}

impl Decoder {
    /// Loads all weights; `data` begins where the header ends.
    pub(crate) fn load(config: Config, header: &Header<'_>, data: &mut dyn Read) -> Result<Self, WeightsError> {
        let weights = Weights::load(&config, header, data)?;
        let kv_shape = KvShape {
            layers: config.layers,
            kv_heads: config.kv_heads,
            head_width: config.head_width,
            element: if config.kv_element_bytes == 4 { KvElement::F32 } else { KvElement::F16 },
        };
        Ok(Self { config, kv_shape, family: Family::best(), weights })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoder(path: &str) -> Decoder {
        let file = std::fs::read(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let header = Header::parse(&file).unwrap();
        Decoder::load(Config::read(&header).unwrap(), &header, &mut &file[header.data_offset()..]).unwrap()
    }

    /// A sequence that is read in parts, with strangers beside it in every step, of whom some want logits of all, some of none of
    /// their tokens. Gives the logits after it, as bits.
    fn logits(decoder: &Decoder, tokens: &[u32], part: usize, strangers: usize) -> Vec<u32> {
        let (mut cache, mut scratch) = (KvCache::new(), Scratch::default());
        let mut others: Vec<KvCache> = (0..strangers).map(|_| KvCache::new()).collect();
        let mut last = Vec::new();
        let mut parts = tokens.chunks(part).enumerate().peekable();
        while let Some((step, tokens)) = parts.next() {
            let strange: Vec<Vec<u32>> = (0..strangers).map(|n| vec![(7 * n + step) as u32 % 90 + 4; n + 1]).collect();
            let mut runs: Vec<Run<'_>> = (step..)
                .zip(others.iter_mut().zip(&strange))
                .map(|(n, (cache, tokens))| Run { cache, tokens, wants_logits: n % (tokens.len() + 1) })
                .collect();
            let before: usize = runs[..strangers / 2].iter().map(|run| run.wants_logits).sum();
            let wants_logits = if parts.peek().is_none() { tokens.len().min(2) } else { step % 2 };
            runs.insert(strangers / 2, Run { cache: &mut cache, tokens, wants_logits });
            let wanted: usize = runs.iter().map(|run| run.wants_logits).sum();
            let Ok(logits) = decoder.step(&mut runs, &mut scratch, &|| false) else { panic!("nobody abandons it") };
            let rows: Vec<_> = logits.chunks_exact(decoder.config.vocabulary).collect();
            assert_eq!(rows.len(), wanted);
            if wants_logits > 0 {
                last = rows[before + wants_logits - 1].iter().map(|x| x.to_bits()).collect();
            }
        }
        last
    }

    /// An answer can be computed again, and must come out the same, whatever the enclave did beside it.
    #[test]
    fn logits_have_the_same_bits_however_they_are_computed() {
        for path in [
            "tests/fixtures/reference-scaled.gguf",
            "tests/fixtures/reference-qwen3.gguf",
            "../../tests/demo-model/subrosa-intake.gguf",
        ] {
            let mut decoder = decoder(path);
            let tokens: Vec<u32> = (0..150).map(|index| (index * 31) % 300 + 4).collect();
            let expected = logits(&decoder, &tokens, tokens.len(), 0);
            for (part, strangers) in [(1, 0), (7, 0), (64, 0), (100, 3), (32, 8), (1, 5)] {
                assert!(logits(&decoder, &tokens, part, strangers) == expected, "{path}: {part}, {strangers}");
            }
            for threads in [1, 3] {
                let team = kernels::Team::new(threads).unwrap();
                assert!(team.run(|| logits(&decoder, &tokens, 50, 4)) == expected, "{path}: {threads} threads");
            }
            for &family in Family::all() {
                decoder.family = family;
                assert!(logits(&decoder, &tokens, 75, 1) == expected, "{path}: {family:?}");
            }
            // What is left out in the last layer is left out in the first, if there is but one.
            decoder.weights.layers.truncate(1);
            let expected = logits(&decoder, &tokens, 1, 0);
            assert!(logits(&decoder, &tokens, 100, 3) == expected, "{path}: one layer");
        }
    }

    fn bits(decoder: &Decoder, cache: &mut KvCache, tokens: &[u32]) -> Vec<u32> {
        let run = Run { cache, tokens, wants_logits: 1 };
        let mut scratch = Scratch::default();
        let Ok(logits) = decoder.step(&mut [run], &mut scratch, &|| false) else { panic!("nobody abandons it") };
        logits.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn logits_have_the_same_bits_on_pages_that_another_sequence_computed_and_still_reads() {
        for path in ["tests/fixtures/reference-qwen3.gguf", "../../tests/demo-model/subrosa-intake.gguf"] {
            let decoder = decoder(path);
            let tokens: Vec<u32> = (0..200).map(|index| (index * 31) % 300 + 4).collect();
            let mut first = KvCache::new();
            let expected = bits(&decoder, &mut first, &tokens);
            let pages = first.full_pages().to_vec();
            assert_eq!(pages.len(), 3);
            let before: Vec<Vec<u8>> = pages.iter().map(|page| page.bytes().to_vec()).collect();
            for count in 1..=3 {
                let mut second = KvCache::of_pages(pages[..count].to_vec());
                let mut runs = [
                    Run { cache: &mut first, tokens: &[7], wants_logits: 1 },
                    Run { cache: &mut second, tokens: &tokens[64 * count..], wants_logits: 1 },
                ];
                let mut scratch = Scratch::default();
                let Ok(logits) = decoder.step(&mut runs, &mut scratch, &|| false) else { panic!("nobody abandons it") };
                let own: Vec<u32> = logits[decoder.config.vocabulary..].iter().map(|x| x.to_bits()).collect();
                assert!(own == expected, "{path}: {count} pages");
            }
            // Back into a shared page, and on with other tokens: they go to a copy.
            let mut third = KvCache::of_pages(pages.clone());
            third.truncate(100);
            let other = [&tokens[..100], &[5; 60]].concat();
            assert!(bits(&decoder, &mut third, &[5; 60]) == bits(&decoder, &mut KvCache::new(), &other), "{path}");
            assert!(pages.iter().zip(&before).all(|(page, before)| page.bytes() == before), "{path}: written to");
        }
    }
}
