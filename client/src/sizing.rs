//! How much memory an enclave needs for a model, before it is started.
//!
//! An enclave has the memory that it was started with and no more: no disk, no swap. What does not fit ends it, in the
//! middle of loading or, worse, under load. So the sizes are added up beforehand: the model's from its header, by the
//! reader and the numbers of the engine itself ([`Plan`]); the rest from the constants below, each with its source.
//!
//! Four moments decide, and the largest wins: booting (kernel, image, and the image unpacked), `nitro-cli`'s own rule,
//! loading (the pack passes through; buffers beside the weights made of it), and serving (weights, keys and values, activations).

pub mod instances;
pub mod model;

use model_header::Plan;

/// What an enclave is to run.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The model.
    pub plan: Plan,
    /// Answers in the making at the same time.
    pub sequences: usize,
    /// Most tokens of each, prompt and answer.
    pub context: usize,
    /// CPUs of the enclave: the engine has as many threads.
    pub cpus: usize,
    /// The image.
    pub image: ImageSize,
}

/// What of an image takes memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSize {
    /// The file.
    pub file: u64,
    /// Its ramdisks as they stand in it.
    pub ramdisks: u64,
    /// Its ramdisks unpacked.
    pub unpacked: u64,
}

/// What there is to hold, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// The image unpacked: there is no disk, so the files of the image stay in memory.
    pub image: u64,
    /// The program: heap, stacks, TLS, buffers; and the vocabulary, for the tokenizer and for forms.
    pub program: u64,
    /// The weights, as the engine holds them.
    pub weights: u64,
    /// What loading takes beside the weights: the header, rows on their way, frames of the pack.
    pub loading: u64,
    /// Keys and values of all sequences.
    pub keys_and_values: u64,
    /// Activations and logits of all sequences.
    pub activations: u64,
    /// Requests and answers, sealed and open.
    pub messages: u64,
}

/// What the enclave needs at each moment, in bytes, the kernel's share included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moments {
    /// The kernel unpacks the ramdisks.
    pub booting: u64,
    /// `nitro-cli` starts no enclave with less.
    pub rule: u64,
    /// The weights are being made of the pack, which comes frame by frame.
    pub loading: u64,
    /// All sequences at their full length.
    pub serving: u64,
}

impl Load {
    /// What there is to hold.
    #[must_use]
    pub fn parts(&self) -> Parts {
        let Self { plan, sequences, context, cpus, image } = self;
        let count = *sequences as u64;
        Parts {
            image: image.unpacked,
            program: sum(&[PROGRAM, plan.vocabulary_bytes as u64, plan.form_bytes as u64]),
            weights: plan.weights_bytes as u64,
            loading: FRAMES.saturating_add(plan.loading_bytes as u64),
            keys_and_values: plan.sequence_bytes(*context).saturating_mul(count),
            activations: plan.activations.bytes(*sequences, *context, *cpus),
            messages: MESSAGES.saturating_mul(count),
        }
    }

    /// What is needed when.
    #[must_use]
    pub fn moments(&self) -> Moments {
        let ImageSize { file, ramdisks, unpacked } = self.image;
        let Parts { image, program, weights, loading, keys_and_values: _, activations, messages } = self.parts();
        let lasting = sum(&[image, program, weights]);
        // `enclave/src/service/mod.rs`: answers get half of what is available once the models are loaded; "the other half is for what
        // steps take, for messages". Of the first, one customer alone gets three quarters (`engine/memory.rs`).
        let answers = self.plan.answer_bytes(self.context).saturating_mul(self.sequences as u64);
        let half = answers.saturating_add(answers / 3).max(sum(&[activations, messages]));
        Moments {
            booting: with_kernel(sum(&[file, ramdisks, unpacked])),
            rule: file.saturating_mul(EIF_SIZE_RATIO),
            loading: with_kernel(sum(&[lasting, loading])),
            serving: with_kernel(sum(&[lasting, half, half])),
        }
    }

    /// What to give the enclave: MiB, in whole huge pages.
    #[must_use]
    pub fn memory_mib(&self) -> u64 {
        in_pages(self.moments().most())
    }

    /// The longest context with which this fits `memory_mib`; none, if not even one token does.
    #[must_use]
    pub fn longest_context(&self, memory_mib: u64) -> Option<usize> {
        largest(self.plan.context_length, |context| Self { context, ..*self }.memory_mib() <= memory_mib)
    }

    /// The most sequences of this context that fit `memory_mib`; none, if not even one does.
    #[must_use]
    pub fn most_sequences(&self, memory_mib: u64) -> Option<usize> {
        largest(MAX_SEQUENCES, |sequences| Self { sequences, ..*self }.memory_mib() <= memory_mib)
    }
}

impl ImageSize {
    /// Of an image that is not there yet: as large as Subrosa's own, generously.
    pub const ASSUMED: Self = Self::of_compressed(16 << 20);

    /// Of a file of which nothing but its length is known: all of it ramdisk, and compressed.
    #[must_use]
    pub const fn of_compressed(file: u64) -> Self {
        Self { file, ramdisks: file, unpacked: file.saturating_mul(UNPACKED_RATIO) }
    }

    /// Of an image's ramdisks.
    #[must_use]
    pub fn of(file: u64, ramdisks: &[&[u8]]) -> Self {
        let unpacked = |ramdisk: &&[u8]| {
            let length = ramdisk.len() as u64;
            // "new ASCII format" archives (cpio(5)) stand as they are; everything else the kernel decompresses.
            if ramdisk.starts_with(b"070701") { length } else { length.saturating_mul(UNPACKED_RATIO) }
        };
        Self {
            file,
            ramdisks: ramdisks.iter().map(|ramdisk| ramdisk.len() as u64).fold(0, u64::saturating_add),
            unpacked: ramdisks.iter().map(unpacked).fold(0, u64::saturating_add),
        }
    }
}

impl Moments {
    /// The most that is ever needed.
    #[must_use]
    pub fn most(&self) -> u64 {
        let Self { booting, rule, loading, serving } = *self;
        booting.max(rule).max(loading).max(serving)
    }

    /// The name of the moment that needs the most.
    #[must_use]
    pub fn decisive(&self) -> &'static str {
        let Self { booting, rule, loading, serving } = *self;
        let moments = [(serving, "serving"), (loading, "loading"), (rule, "nitro-cli's rule"), (booting, "booting")];
        moments.into_iter().find(|(bytes, _)| *bytes == self.most()).map_or("booting", |(_, name)| name)
    }
}

/// The least memory, in MiB, with which `nitro-cli` starts an image of so many bytes.
#[must_use]
pub fn rule_mib(eif_bytes: u64) -> u64 {
    eif_bytes.saturating_mul(EIF_SIZE_RATIO).div_ceil(MIB)
}

/// The least memory, in MiB, in which a pack of so many bytes can be loaded: its weights take no less than the file. A model's
/// [`Plan`] tells more.
#[must_use]
pub fn least_for_pack(image: ImageSize, pack_bytes: u64) -> u64 {
    in_pages(with_kernel(sum(&[image.unpacked, pack_bytes]))).max(rule_mib(image.file))
}

/// `allocator.yaml` for one enclave. The service's own reader starts at the line `---`, and takes one `key: value` a line.
#[must_use]
pub fn allocator_yaml(memory_mib: u64, cpus: usize) -> String {
    format!("---\nmemory_mib: {memory_mib}\ncpu_count: {cpus}\n")
}

/// MiB, in whole huge pages: of 2 MiB up to 4 GiB, of 1 GiB above. The driver takes a limited number of pages for one
/// enclave ("The maximum number of memory regions per enclave has been reached"), so a large one should be of large pages.
fn in_pages(bytes: u64) -> u64 {
    let page = if bytes > SMALL_PAGES_UP_TO { 1 << 30 } else { 2 << 20 };
    bytes.div_ceil(page).saturating_mul(page / MIB)
}

/// The whole memory of a machine on which so much is for programs and files.
fn with_kernel(bytes: u64) -> u64 {
    let rest = bytes.saturating_add(KERNEL);
    rest.saturating_add(rest / (KERNEL_SHARE - 1)).saturating_add(1)
}

/// The largest number from 1 to `most` that holds, if a number holds whenever a larger one does.
fn largest(most: usize, holds: impl Fn(usize) -> bool) -> Option<usize> {
    let (mut good, mut bad) = (0, most.saturating_add(1));
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if holds(middle) { good = middle } else { bad = middle }
    }
    (good > 0).then_some(good)
}

fn sum(parts: &[u64]) -> u64 {
    parts.iter().copied().fold(0, u64::saturating_add)
}

const MIB: u64 = 1 << 20;
/// `ENCLAVE_MEMORY_EIF_SIZE_RATIO` of `nitro-cli`: it refuses an enclave with less memory than four times its image.
const EIF_SIZE_RATIO: u64 = 4;
/// What gzip -9 makes of the enclave's program is 2.6 times smaller (17.5 MB, 6.7 MB); other programs come near 4.
const UNPACKED_RATIO: u64 = 4;
/// The kernel itself, and what boot leaves behind. Our kernel in QEMU, 256 MiB: 22 MiB were not free with nothing running,
/// and unpacking a ramdisk took 40 MB more than its two copies.
const KERNEL: u64 = 40 * MIB;
/// One part in so many of the memory: `struct page` takes 64 bytes for each 4,096, and the kernel keeps watermarks free,
/// which `MemAvailable` does not count.
const KERNEL_SHARE: u64 = 48;
/// What the running enclave holds beside model and messages: 20 MiB were measured (`tests/operations/plan.rs`).
const PROGRAM: u64 = 32 * MIB;
/// Of a pack on its way, at most 1 MiB each (docs/PROTOCOL.md, section 4): what came, the frame that is being opened, the part of
/// it that waits, and the one that the loader works on.
const FRAMES: u64 = 4 * MIB;
/// For each sequence: the sealed request (1 MiB by default), the same opened, its text as a prompt, and the answer.
const MESSAGES: u64 = 4 * MIB;
const SMALL_PAGES_UP_TO: u64 = 4 << 30;
/// `concurrent_requests` of the configuration document has this ceiling (docs/PROTOCOL.md, section 9).
pub const MAX_SEQUENCES: usize = 256;

#[cfg(test)]
mod tests;
