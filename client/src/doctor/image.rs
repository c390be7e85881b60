//! The enclave image, and whether the enclave gets the memory that it needs.

use std::path::{Path, PathBuf};

use attestation::Pcr;
use attestation::image::Image;
use model_header::Plan;

use super::{Finding, Root};
use crate::image::file;
use crate::measurements::parse_images;
use crate::sizing::{self, ImageSize, Load};

/// What is known of a good image.
#[derive(Clone, Debug)]
pub struct Known {
    /// What it takes.
    pub size: ImageSize,
    /// PCR0, PCR1, PCR2.
    pub pcrs: Vec<(u8, Pcr)>,
}

/// The image, and what of it is known if it is good.
#[must_use]
pub fn examine(root: &Root, path: Option<&Path>, measurements: Option<&Path>) -> (Vec<Finding>, Option<Known>) {
    const CHECK: &str = "image";
    let Some(path) = path else {
        let why = "no image is named: give --image, or EIF= in the enclave's settings";
        return (vec![Finding::not_checked(CHECK, why)], None);
    };
    let place = root.at(path);
    let mend = "put the image there (`make eif` builds it, `subrosa measure` shows it)";
    let bytes = match file::read(&place) {
        Ok(bytes) => bytes,
        Err(error) => return (vec![Finding::wrong(CHECK, error.to_string(), mend)], None),
    };
    let image = match Image::parse(&bytes) {
        Ok(image) => image,
        Err(error) => return (vec![Finding::wrong(CHECK, format!("{}: {error}", place.display()), mend)], None),
    };
    if let Err(error) = file::check(&place, &image) {
        return (vec![Finding::wrong(CHECK, error.to_string(), mend)], None);
    }
    let measured = image.measurements();
    let pcrs = vec![(0, measured.pcr0), (1, measured.pcr1), (2, measured.pcr2)];
    let ramdisks: Vec<&[u8]> = image.ramdisks().collect();
    let size = ImageSize::of(bytes.len() as u64, &ramdisks);
    let ok = Finding::ok(CHECK, format!("{}: PCR0 {}", place.display(), hex::encode(measured.pcr0)));
    (vec![ok, expected(root, path, measurements, &pcrs)], Some(Known { size, pcrs }))
}

/// Against the measurements that came with the image.
fn expected(root: &Root, image: &Path, given: Option<&Path>, pcrs: &[(u8, Pcr)]) -> Finding {
    const CHECK: &str = "measurements";
    let beside = image.with_file_name("measurements.json");
    let place: PathBuf = root.at(given.unwrap_or(&beside));
    let json = match std::fs::read(&place) {
        Ok(json) if json.len() <= MAX_MEASUREMENTS => json,
        Ok(_) => {
            return Finding::wrong(CHECK, format!("{} is too large", place.display()), "give the file of the release");
        }
        Err(_) if given.is_none() => {
            let why = format!("{} is not there: give --measurements with those of the release", place.display());
            return Finding::not_checked(CHECK, why);
        }
        Err(error) => {
            let found = format!("{} cannot be read: {error}", place.display());
            return Finding::wrong(CHECK, found, "give the file of the release");
        }
    };
    let stated = match parse_images(&json) {
        Ok(stated) => stated,
        Err(error) => {
            return Finding::wrong(CHECK, format!("{}: {error}", place.display()), "give the file of the release");
        }
    };
    if !stated.iter().any(|stated| pcrs.iter().all(|(index, value)| stated.get(index) == Some(value))) {
        let differs = |(index, value): &&(u8, Pcr)| stated.iter().all(|stated| stated.get(index) != Some(value));
        let which = pcrs.iter().find(differs).map_or_else(
            || "no image has all of its registers".to_owned(),
            |(index, value)| format!("PCR{index} is {}, which no image has", hex::encode(value)),
        );
        return Finding::wrong(
            CHECK,
            format!("{which} in {}", place.display()),
            "this is another image than the release's: no key will open to it. Get the image again, or build it",
        );
    }
    Finding::ok(CHECK, format!("PCR0, PCR1 and PCR2 are those of {}", place.display()))
}

/// Whether so much memory is enough.
#[must_use]
pub fn memory(
    image: Option<&Known>,
    memory_mib: Option<u64>,
    cpus: Option<u64>,
    plan: Option<&Plan>,
    packs: Option<u64>,
    sequences: usize,
) -> Finding {
    const CHECK: &str = "memory";
    let Some(memory_mib) = memory_mib else {
        return Finding::not_checked(
            CHECK,
            "it is not said how much the enclave gets: MEMORY= in the enclave's settings",
        );
    };
    let Some(Known { size, .. }) = image else {
        return Finding::not_checked(CHECK, "without the image it is not known what it needs");
    };
    let rule = sizing::rule_mib(size.file);
    let set = |mib: u64| {
        format!("set MEMORY={mib} in the enclave's settings, and memory_mib in {}", super::machine::ALLOCATOR)
    };
    if memory_mib < rule {
        let found = format!("{memory_mib} MiB, nitro-cli wants 4 times the image: {rule}");
        return Finding::wrong(CHECK, found, set(rule));
    }
    if let Some(plan) = plan {
        let cpus = cpus.and_then(|cpus| usize::try_from(cpus).ok()).unwrap_or(2);
        let load = Load { plan: *plan, sequences, context: plan.context_length, cpus, image: *size };
        let needed = load.memory_mib();
        return match load.longest_context(memory_mib) {
            _ if needed <= memory_mib => Finding::ok(
                CHECK,
                format!("{memory_mib} MiB, {sequences} sequences of the whole context need {needed}"),
            ),
            Some(context) => Finding::warning(
                CHECK,
                format!(
                    "{memory_mib} MiB hold {sequences} sequences of {context} tokens, the model has {}",
                    plan.context_length
                ),
                set(needed),
            ),
            None => Finding::wrong(
                CHECK,
                format!("{memory_mib} MiB do not hold the model with {sequences} sequences"),
                set(needed),
            ),
        };
    }
    match packs.map(|largest| sizing::least_for_pack(*size, largest)) {
        Some(least) if memory_mib < least => Finding::wrong(
            CHECK,
            format!("{memory_mib} MiB, but loading the largest pack takes at least {least}"),
            "`subrosa plan MODEL.gguf` says how much is needed; set MEMORY= and memory_mib",
        ),
        Some(least) => Finding::ok(
            CHECK,
            format!(
                "{memory_mib} MiB, enough to load the largest pack ({least}); --model tells how long a context fits"
            ),
        ),
        None => {
            Finding::ok(CHECK, format!("{memory_mib} MiB, nitro-cli wants {rule}; without a pack no more is known"))
        }
    }
}

const MAX_MEASUREMENTS: usize = 64 * 1024;
