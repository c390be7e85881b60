//! `subrosa plan`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use attestation::image::Image;
use clap::Args;
use serde_json::{Value, json};
use subrosa_client::image::file;
use subrosa_client::sizing::instances::InstanceType;
use subrosa_client::sizing::{ImageSize, Load, MAX_SEQUENCES, Moments, Parts, allocator_yaml, model};

use super::exit::{Exit, Failure};
use super::output::print;

/// Say what an enclave needs for a model, before it is started: memory, allocator.yaml, instance types.
#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct Plan {
    /// The model: a GGUF file. Only its header is read.
    #[arg(value_name = "MODEL.gguf")]
    model: PathBuf,
    /// Most tokens of one answer, its prompt included. Default: the model's context, or with --memory the longest that fits.
    #[arg(long, value_name = "N", value_parser = positive)]
    context: Option<usize>,
    /// Answers in the making at the same time; `concurrent_requests` of the configuration document should be no more.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = sequences)]
    sequences: usize,
    /// CPUs of the enclave. On types with hyperthreads an even number.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = positive)]
    cpus: usize,
    /// The enclave image file. Without one, 16 MiB are assumed.
    #[arg(long, value_name = "FILE.eif")]
    image: Option<PathBuf>,
    /// Whether it fits an enclave of so much memory, and what fits.
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
    /// The result as one JSON object. Sizes are in bytes, but for those whose names end in _mib.
    #[arg(long)]
    json: bool,
}

impl Plan {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self { model, context, sequences, cpus, image, memory, json } = self;
        let plan = model::plan(&model)?;
        let assumed = image.is_none();
        let image = image.as_deref().map_or(Ok(ImageSize::ASSUMED), size)?;
        if let Some(context) = context.filter(|context| *context > plan.context_length) {
            let most = plan.context_length;
            let why = slides(&plan).unwrap_or_default();
            return Err(Failure::usage(format!("--context {context}: the model has a context of {most} tokens{why}")));
        }
        let mut load = Load { plan, sequences, context: context.unwrap_or(plan.context_length), cpus, image };
        let given = memory.map(|mib| Given { mib, longest: load.longest_context(mib), most: load.most_sequences(mib) });
        if let (None, Some(Given { longest: Some(longest), .. })) = (context, &given) {
            load.context = *longest;
        }
        let fits = given.as_ref().is_none_or(|given| load.memory_mib() <= given.mib);
        let result = Told { model: &model, load, assumed, given, fits };
        print(if json { result.json().to_string() } else { result.text() }.trim_end())?;
        if fits {
            return Ok(());
        }
        let needed = Load { context: context.unwrap_or(1), ..load }.memory_mib();
        let what = context.map_or_else(|| "even one token".to_owned(), |context| format!("a context of {context}"));
        let given = memory.unwrap_or_default();
        Err(Failure::new(
            Exit::Other,
            format!("{given} MiB are not enough: {what} for {sequences} sequences needs {needed} MiB"),
        ))
    }
}

/// What was asked about a given memory.
struct Given {
    mib: u64,
    longest: Option<usize>,
    most: Option<usize>,
}

/// What is told.
struct Told<'a> {
    model: &'a Path,
    load: Load,
    assumed: bool,
    given: Option<Given>,
    fits: bool,
}

impl Told<'_> {
    /// The memory that the enclave is to have.
    fn memory_mib(&self) -> u64 {
        let needed = self.load.memory_mib();
        self.given.as_ref().map_or(needed, |given| given.mib.max(needed))
    }

    fn json(&self) -> Value {
        let Self { model: _, load, assumed, given, fits } = self;
        let Load { plan, sequences, context, cpus, image } = load;
        let Parts { image: unpacked, program, weights, loading, keys_and_values, activations, messages } = load.parts();
        let moments = load.moments();
        let Moments { booting, rule, loading: while_loading, serving } = moments;
        let memory_mib = self.memory_mib();
        let instance = |instance: &InstanceType| {
            json!({"type": instance.name, "vcpus": instance.vcpus, "memory_mib": instance.memory_mib,
                "parent_vcpus": instance.parent_vcpus(), "parent_memory_mib": instance.parent_memory_mib()})
        };
        let fitting: Vec<Value> = InstanceType::fitting(memory_mib, *cpus).iter().map(instance).collect();
        json!({
            "model": {"parameters": plan.parameters, "context_length": plan.context_length,
                "stated_context_length": plan.stated_context,
                "file_bytes": plan.file_bytes, "kv_bytes_per_token": plan.kv_bytes_per_token},
            "sequences": sequences, "context": context, "cpus": cpus,
            "image": {"file_bytes": image.file, "unpacked_bytes": image.unpacked, "assumed": assumed},
            "parts": {"image": unpacked, "program": program, "weights": weights, "loading": loading,
                "keys_and_values": keys_and_values, "activations": activations, "messages": messages},
            "moments": {"booting": booting, "nitro_cli_rule": rule, "loading": while_loading, "serving": serving},
            "decisive": moments.decisive(),
            "needed_mib": load.memory_mib(),
            "given": given.as_ref().map(|given| json!({"memory_mib": given.mib, "fits": fits,
                "longest_context": given.longest, "most_sequences": given.most})),
            "allocator": {"memory_mib": memory_mib, "cpu_count": cpus},
            "allocator_yaml": allocator_yaml(memory_mib, *cpus),
            "instance_types": fitting,
        })
    }

    fn text(&self) -> String {
        let Self { model, load, assumed, given, fits: _ } = self;
        let Load { plan, sequences, context, cpus, image } = load;
        let Parts { image: unpacked, program, weights, loading, keys_and_values, activations, messages } = load.parts();
        let moments = load.moments();
        let Moments { booting, rule, loading: while_loading, serving } = moments;
        let mut text = String::new();
        let mut line = |words: std::fmt::Arguments<'_>| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{words}");
        };
        line(format_args!(
            "{}: {:.1} M weights, a context of {} tokens{}",
            model.display(),
            plan.parameters as f64 / 1e6,
            plan.context_length,
            slides(plan).unwrap_or_default()
        ));
        line(format_args!("for {sequences} sequences of {context} tokens on {cpus} CPUs an enclave holds, in MiB:"));
        for (what, bytes) in [
            ("the image unpacked", unpacked),
            ("the program, and the vocabulary", program),
            ("weights", weights),
            ("buffers, while the model is loaded", loading),
            ("keys and values", keys_and_values),
            ("activations, at most", activations),
            ("requests and answers", messages),
        ] {
            line(format_args!("  {what:<38} {:>8}", mib(bytes)));
        }
        line(format_args!("and needs, the kernel's share included:"));
        for (what, bytes) in [
            ("to boot", booting),
            ("by nitro-cli's rule, 4 x image", rule),
            ("to load the model", while_loading),
            ("to serve (keys and values get half)", serving),
        ] {
            line(format_args!("  {what:<38} {:>8}", mib(bytes)));
        }
        let source = if *assumed { ", which is assumed: give --image" } else { "" };
        line(format_args!("the image has {} MiB{source}", mib(image.file)));
        line(format_args!("\nneeded: {} MiB in whole huge pages ({} decides)", load.memory_mib(), moments.decisive()));
        if let Some(Given { mib, longest, most }) = given {
            match longest {
                Some(longest) => line(format_args!("{mib} MiB hold {sequences} sequences of {longest} tokens")),
                None => line(format_args!("{mib} MiB hold no {sequences} sequences, however short")),
            }
            if let Some(most) = most {
                line(format_args!("{mib} MiB hold {most} sequences of {context} tokens"));
            }
        }
        let memory_mib = self.memory_mib();
        line(format_args!("\n/etc/nitro_enclaves/allocator.yaml:"));
        line(format_args!("{}", allocator_yaml(memory_mib, *cpus)));
        line(format_args!(
            "instance types with room for it, the smallest of each family (the parent keeps one core, and 2 GiB"
        ));
        line(format_args!("or a sixteenth of the memory, whichever is more):"));
        let fitting = InstanceType::fitting(memory_mib, *cpus);
        for InstanceType { name, vcpus, memory_mib, .. } in &fitting {
            line(format_args!("  {name:<12} {vcpus:>3} vCPUs {:>5} GiB", memory_mib / 1024));
        }
        if fitting.is_empty() {
            line(format_args!("  none of the table's"));
        }
        text
    }
}

/// Why the context is shorter than the file states.
fn slides(plan: &model_header::Plan) -> Option<String> {
    let (stated, most) = (plan.stated_context, plan.context_length);
    (stated > most).then(|| {
        format!(
            " (its file states {stated}, but from {most} on attention slides through a window: that is not computed)"
        )
    })
}

/// The image's ramdisks are looked into, so that what is not compressed is not thought to grow.
fn size(path: &Path) -> Result<ImageSize, Failure> {
    let bytes = file::read(path)?;
    let image =
        Image::parse(&bytes).map_err(|error| Failure::new(Exit::Other, format!("{}: {error}", path.display())))?;
    let ramdisks: Vec<&[u8]> = image.ramdisks().collect();
    Ok(ImageSize::of(bytes.len() as u64, &ramdisks))
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "expected a whole number above 0".to_owned())
}

fn sequences(text: &str) -> Result<usize, String> {
    let number = positive(text)?;
    if number <= MAX_SEQUENCES { Ok(number) } else { Err(format!("an enclave works on at most {MAX_SEQUENCES}")) }
}

const HELP: &str = "\
Examples:
  subrosa plan intake.gguf --context 2048 --sequences 8 --image subrosa.eif
  subrosa plan intake.gguf --memory 6144 --sequences 8      # the longest context that fits 6 GiB

Exit code 1 if --memory is given and is not enough. The figures for the model are the engine's own; those for kernel
and program are measured, and rounded up. What an enclave needs beyond them is not known before it runs: leave room.";
