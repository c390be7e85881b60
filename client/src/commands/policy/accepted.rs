//! The code that a key policy accepts: images, each with the models and the configuration that it runs with.

use std::collections::BTreeMap;
use std::path::PathBuf;

use attestation::Pcr;
use clap::Args;
use subrosa_client::measurements::{Image, join, shared};
use subrosa_client::registers::{self, MAX_CONFIGURATION, MAX_MANIFEST};

use crate::commands::arguments::{
    MeasurementArguments, PCR_OF_CONFIGURATION, PCR_OF_MODELS, PCR_OF_SIGNER, read_bounded,
};
use crate::commands::exit::Failure;

/// Accepted images.
#[derive(Args)]
pub(crate) struct CodeArguments {
    #[command(flatten)]
    pub(crate) measurements: MeasurementArguments,
    /// The configuration document of the enclave: PCR17, and PCR16 by the manifests that it names. One for all images,
    /// or one for each, in their order (--measurements first, then --image).
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
}

/// Accepted images, ready for a policy.
pub(crate) struct Accepted {
    /// Each with its own registers.
    pub(crate) images: Vec<Image>,
    /// For each register the values of all of them.
    pub(crate) lists: BTreeMap<u8, Vec<Pcr>>,
}

impl Accepted {
    /// These images and no other values. PCR8 is left out: PCR0 covers what the signer signed.
    pub(crate) fn of(images: Vec<Image>) -> Self {
        let mut lists = join(shared(&images));
        lists.remove(&PCR_OF_SIGNER);
        for values in lists.values_mut() {
            values.sort_unstable();
            values.dedup();
        }
        Self { images, lists }
    }
}

impl CodeArguments {
    /// The images, with PCR16 and PCR17 where a configuration or manifests tell them. A policy that cannot bind PCR16 has no use for
    /// it: then `with_models` is false.
    pub(crate) fn accepted(&self, manifests: &[PathBuf], with_models: bool) -> Result<Accepted, Failure> {
        let mut images = self.measurements.images()?;
        let mut lists = self.measurements.lists()?;
        let read = |path: &PathBuf, limit: usize| read_bounded(path, limit as u64);
        let manifests: Vec<Vec<u8>> =
            manifests.iter().map(|path| read(path, MAX_MANIFEST)).collect::<Result<_, _>>()?;
        let mut configured = Vec::new();
        for path in &self.config {
            let wrong = |error| Failure::usage(format!("{}: {error}", path.display()));
            let registers = registers::of_configuration(&read(path, MAX_CONFIGURATION)?).map_err(wrong)?;
            if !manifests.is_empty() {
                registers.check_manifests(&manifests).map_err(wrong)?;
            }
            configured.push(registers);
        }
        if configured.len() > 1 && configured.len() != images.len() {
            return Err(Failure::usage(format!(
                "{} configurations for {} images: give one for all, or one for each in their order",
                configured.len(),
                images.len()
            )));
        }
        let of_manifests = match manifests.is_empty() {
            true => None,
            false => Some(registers::of_manifests(&manifests).map_err(Failure::usage)?),
        };
        for (n, image) in images.iter_mut().enumerate() {
            let of_image = if configured.len() > 1 { configured.get(n) } else { configured.first() };
            let models = of_image.map(|registers| registers.models).or(of_manifests).filter(|_| with_models);
            let configuration = of_image.map(|registers| registers.configuration);
            for (index, value) in [(PCR_OF_MODELS, models), (PCR_OF_CONFIGURATION, configuration)] {
                if let Some(value) = value
                    && *image.entry(index).or_insert(value) != value
                {
                    return Err(Failure::usage(format!("PCR{index} is given twice, and differs")));
                }
            }
        }
        for index in [PCR_OF_MODELS, PCR_OF_CONFIGURATION] {
            let values: Option<Vec<Pcr>> = images.iter().map(|image| image.get(&index).copied()).collect();
            if let Some(mut values) = values.filter(|values| !values.is_empty()) {
                values.extend(lists.remove(&index).unwrap_or_default());
                values.sort_unstable();
                values.dedup();
                lists.insert(index, values);
            }
        }
        Ok(Accepted { images, lists })
    }
}
