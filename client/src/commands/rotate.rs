//! `subrosa rotate`.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use attestation::document::UnixMillis;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use subrosa_client::image::TrustedImage;
use subrosa_client::live;
use subrosa_client::measurements::{Image, parse_images};
use subrosa_client::registers::{self, MAX_CONFIGURATION};
use subrosa_client::rotation::{self, Drained, Release, Serving, allow_list, drained};

use super::arguments::{PCR_OF_CONFIGURATION, PCR_OF_MODELS, read_bounded, time};
use super::exit::{Exit, Failure};
use super::output::{Output, note, print};
use super::policy::{Accepted, Kind, RoleArguments};

#[derive(Subcommand)]
pub(crate) enum Rotate {
    Plan(Box<Plan>),
}

/// Plan the way from one release to the next: the key policy and the clients' allow-list for the overlap, the order of
/// draining, and the policy and list after it. A release that still serves is never dropped.
#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct Plan {
    /// A release that serves now: an image file, or its measurements as `nitro-cli describe-eif` prints them. Repeat for more.
    #[arg(long, value_name = "IMAGE", required = true)]
    from: Vec<PathBuf>,
    /// A release that serves afterwards. Repeat for more; what stays stands in --from and in --to.
    #[arg(long, value_name = "IMAGE", required = true)]
    to: Vec<PathBuf>,
    /// The configuration document of the releases before: PCR17, and PCR16 of a customer's key.
    #[arg(long, value_name = "FILE", requires = "to_config")]
    from_config: Option<PathBuf>,
    /// The configuration document of the releases after.
    #[arg(long, value_name = "FILE", requires = "from_config")]
    to_config: Option<PathBuf>,
    /// What the key is for.
    #[arg(long, value_enum, default_value = "customer-key")]
    kind: Kind,
    #[command(flatten)]
    roles: RoleArguments,
    /// Of a customer's key: who may seal prompts. Repeat for more.
    #[arg(long, value_name = "ARN")]
    prompt_writer: Vec<String>,
    /// Of a customer's key: who may read answers. Repeat for more.
    #[arg(long, value_name = "ARN")]
    answer_reader: Vec<String>,
    /// Of a model supplier's key: who may seal packs. Repeat for more.
    #[arg(long, value_name = "ARN")]
    model_supplier: Vec<String>,
    /// What serves: a file of `subrosa verify --url URL --json`, at most 15 minutes old, or PCR0 in hex. Repeat for every enclave.
    #[arg(long, value_name = "FILE|PCR0", requires = "enclaves")]
    serving: Vec<String>,
    /// How many enclaves serve: so many must be seen by --serving.
    #[arg(long, value_name = "N", requires = "serving")]
    enclaves: Option<usize>,
    /// The folder for the plan and its files. Default: the plan to standard output, without files.
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// The plan as one JSON object, policies and lists inside.
    #[arg(long)]
    json: bool,
}

impl Rotate {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self::Plan(plan) = self;
        plan.run()
    }
}

/// What stands in force at one time.
struct Stage {
    policy: String,
    allow_list: Value,
}

impl Plan {
    fn run(self) -> Result<(), Failure> {
        let from = self.releases(&self.from, self.from_config.as_deref())?;
        let to = self.releases(&self.to, self.to_config.as_deref())?;
        let mut both = from.clone();
        both.extend(to.iter().filter(|new| !from.iter().any(|old| old.image == new.image)).cloned());
        if both.len() == from.len() && to.len() == from.len() {
            return Err(Failure::usage("--from and --to are the same releases: there is nothing to rotate"));
        }
        let overlap = self.stage(&both)?;
        let go: Vec<Release> =
            from.iter().filter(|old| !to.iter().any(|new| new.image == old.image)).cloned().collect();
        let refusal = match self.evidence().and_then(|serving| {
            let drained = drained(&to, &go, &serving, self.enclaves.unwrap_or(1));
            drained.map_err(|error| Failure::new(Exit::Refused, error))
        }) {
            Ok(proof) => Ok(self.after(&to, &proof)?),
            Err(failure) => Err(failure),
        };
        let steps = self.steps(&from, &to, refusal.is_ok());
        self.write(&overlap, refusal.as_ref().ok(), &steps)?;
        match refusal {
            Ok(_) => Ok(()),
            // Without evidence the first half of the plan is what was asked for.
            Err(failure) if self.serving.is_empty() => {
                note(&format!("subrosa: the policy after the rotation is not written: {}", failure.message()));
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    fn releases(&self, paths: &[PathBuf], config: Option<&Path>) -> Result<Vec<Release>, Failure> {
        let mut releases = Vec::new();
        for path in paths {
            let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            for image in images(path)? {
                releases.push(Release { name: name.clone(), image });
            }
        }
        let Some(config) = config else { return Ok(releases) };
        let document = read_bounded(config, MAX_CONFIGURATION as u64)?;
        let configured = registers::of_configuration(&document)
            .map_err(|error| Failure::usage(format!("{}: {error}", config.display())))?;
        for release in &mut releases {
            if self.kind == Kind::Customer {
                release.image.insert(PCR_OF_MODELS, configured.models);
            }
            release.image.insert(PCR_OF_CONFIGURATION, configured.configuration);
        }
        Ok(releases)
    }

    fn stage(&self, releases: &[Release]) -> Result<Stage, Failure> {
        let accepted = Accepted::of(releases.iter().map(|release| release.image.clone()).collect());
        let rendered = match self.kind {
            Kind::Customer => self.roles.customer_key(&accepted, &self.prompt_writer, &self.answer_reader, &[])?,
            Kind::ModelPack => self.roles.model_pack_key(&accepted, &self.model_supplier, &[])?,
            Kind::Attested => {
                return Err(Failure::usage("--kind: plans are for customer-key and model-pack-key"));
            }
        };
        for warning in &rendered.warnings {
            note(&format!("subrosa: warning: {warning}"));
        }
        Ok(Stage { policy: rendered.policy.to_json(), allow_list: allow_list(releases) })
    }

    /// What stands afterwards: only with the proof that nothing else serves.
    fn after(&self, to: &[Release], _drained: &Drained) -> Result<Stage, Failure> {
        self.stage(to)
    }

    fn evidence(&self) -> Result<Vec<Serving>, Failure> {
        let one = |given: &String| {
            if let Ok(image_digest) = rotation::image_digest(given) {
                return Ok(Serving { module_id: None, registers: Image::from([(0, image_digest)]) });
            }
            let wrong =
                |error: &dyn std::fmt::Display| Failure::new(Exit::Refused, format!("--serving {given}: {error}"));
            let seen = rotation::read_serving(&read_bounded(Path::new(given), MAX_EVIDENCE)?).map_err(|e| wrong(&e))?;
            let UnixMillis(made) = time(&seen.timestamp).map_err(|e| wrong(&e))?;
            let UnixMillis(now) = live::now();
            if now.saturating_sub(made) > MAX_AGE_MILLIS {
                return Err(wrong(&format!("made {}, more than 15 minutes ago: verify again", seen.timestamp)));
            }
            Ok(seen.serving)
        };
        self.serving.iter().map(one).collect()
    }

    fn write(&self, overlap: &Stage, after: Option<&Stage>, steps: &[Step]) -> Result<(), Failure> {
        if let Some(folder) = &self.output {
            fs::create_dir_all(folder)
                .map_err(|error| Failure::new(Exit::Other, format!("-o {}: {error}", folder.display())))?;
            let mut files = vec![
                ("policy-overlap.json", overlap.policy.clone()),
                ("allow-list-overlap.json", format!("{:#}", overlap.allow_list)),
                ("plan.txt", text(steps)),
            ];
            if let Some(after) = after {
                files.push(("policy-after.json", after.policy.clone()));
                files.push(("allow-list-after.json", format!("{:#}", after.allow_list)));
            }
            for (name, content) in files {
                let mut out = Output::create(Some(&folder.join(name)), true)?;
                out.write_line(content.trim_end())?;
                out.commit()?;
            }
            // What an earlier run found drained may have been started again since.
            for name in ["policy-after.json", "allow-list-after.json"] {
                let path = folder.join(name);
                if after.is_none() && path.exists() {
                    fs::remove_file(&path)
                        .map_err(|error| Failure::new(Exit::Other, format!("{}: {error}", path.display())))?;
                }
            }
        }
        if self.json {
            let stage = |stage: &Stage| json!({"policy": serde_json::from_str::<Value>(&stage.policy).ok(), "allow_list": stage.allow_list});
            let steps: Vec<Value> =
                steps.iter().map(|step| json!({"what": step.what, "commands": step.commands})).collect();
            return print(&json!({"overlap": stage(overlap), "after": after.map(stage), "steps": steps}).to_string());
        }
        print(text(steps).trim_end())
    }

    fn steps(&self, from: &[Release], to: &[Release], is_drained: bool) -> Vec<Step> {
        let folder = quoted(self.output.as_deref().unwrap_or(Path::new("PLAN")));
        let (kind, names) = match self.kind {
            Kind::ModelPack => ("model-pack-key", "the model key"),
            _ => ("customer-key", "each customer's key"),
        };
        let flags = |paths: &[PathBuf]| {
            let one = |path: &PathBuf| {
                format!("--{} {}", if is_image(path) { "image" } else { "measurements" }, quoted(path))
            };
            paths.iter().map(one).collect::<Vec<_>>().join(" ")
        };
        let list = |releases: &[Release]| releases.iter().map(|r| r.name.as_str()).collect::<Vec<_>>().join(", ");
        let (old, new) = (list(from), list(to));
        let whose = self.roles.check_options().iter().map(|option| format!(" {}", quoted(option))).collect::<String>();
        let put = |stage: &str| {
            vec![
                "aws kms list-grants --key-id KEY_ARN > grants.json".to_owned(),
                format!(
                    "subrosa policy check {folder}/policy-{stage}.json --kind {kind} --key KEY_ARN --grants grants.json --measurements {folder}/allow-list-{stage}.json{whose}"
                ),
                format!(
                    "aws kms put-key-policy --key-id KEY_ARN --policy-name default --policy file://{folder}/policy-{stage}.json"
                ),
            ]
        };
        let mut steps = vec![
            Step::new(
                format!("Clients first: give them the allow-list of the overlap ({old}; {new}). A client without it refuses the new release."),
                vec![format!("subrosa verify --url URL --measurements {folder}/allow-list-overlap.json")],
            ),
            Step::new(
                format!("Keys next: the policy of the overlap on {names}. Both releases can use it from now on."),
                put("overlap"),
            ),
            Step::new(
                format!("Start {new} beside {old}, and see that it serves before it gets traffic."),
                vec![
                    "nitro-cli run-enclave --eif-path IMAGE --memory MIB --cpu-count N --enclave-cid CID".to_owned(),
                    format!("subrosa verify --url NEW_URL {}", flags(&self.to)),
                ],
            ),
            Step::new(
                "Move new requests to the new release: take the old parents out of the load balancer, and leave them running.".to_owned(),
                Vec::new(),
            ),
            Step::new(
                "Wait until what was sealed for them is answered or expired: a request lives at most 900 s (docs/PROTOCOL.md, section 5), and is worked on for `request_seconds` of the configuration. Then end the old enclaves.".to_owned(),
                vec!["nitro-cli terminate-enclave --enclave-id OLD_ENCLAVE".to_owned()],
            ),
        ];
        if !is_drained {
            steps.push(Step::new(
                "Look at every enclave that serves, and plan again: only then the policy after the rotation is written.".to_owned(),
                vec![
                    "subrosa verify --url URL --json > serving-1.json".to_owned(),
                    "subrosa rotate plan ... --serving serving-1.json --serving serving-2.json --enclaves 2".to_owned(),
                ],
            ));
            return steps;
        }
        steps.push(Step::new(
            format!("Nothing but {new} serves: the policy after the rotation on {names}. The data-key caches of the enclaves forget within 5 minutes."),
            put("after"),
        ));
        steps.push(Step::new(
            "Clients last: the allow-list without the old release. Until then a client would still accept it."
                .to_owned(),
            vec![format!("subrosa verify --url URL --measurements {folder}/allow-list-after.json")],
        ));
        steps
    }
}

/// One step of a plan.
struct Step {
    what: String,
    commands: Vec<String>,
}

impl Step {
    fn new(what: String, commands: Vec<String>) -> Self {
        Self { what, commands }
    }
}

/// An image file, or the measurements of images.
fn images(path: &Path) -> Result<Vec<Image>, Failure> {
    let images = if is_image(path) {
        vec![TrustedImage::measure(path)?.pcrs().iter().map(|pcr| (pcr.index, pcr.value)).collect()]
    } else {
        let json = read_bounded(path, MAX_MEASUREMENTS)?;
        parse_images(&json).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?
    };
    if images.iter().any(|image: &Image| !image.contains_key(&0)) {
        return Err(Failure::usage(format!("{}: no PCR0", path.display())));
    }
    Ok(images)
}

/// Whether a file begins as an image does.
fn is_image(path: &Path) -> bool {
    let mut begin = [0; MAGIC.len()];
    fs::File::open(path).and_then(|mut file| file.read_exact(&mut begin)).is_ok() && begin == *MAGIC
}

/// A word as a POSIX shell reads it back.
fn quoted(word: impl AsRef<Path>) -> String {
    let word = word.as_ref().display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=+@,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) { word } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

fn text(steps: &[Step]) -> String {
    let mut text = String::new();
    for (n, Step { what, commands }) in steps.iter().enumerate() {
        text.push_str(&format!("{}. {what}\n", n + 1));
        for command in commands {
            text.push_str(&format!("     {command}\n"));
        }
    }
    text.push_str("Back, at any time before the policy after the rotation: send requests to the old parents again; nothing else changes.\n");
    text
}

/// The first bytes of an enclave image file.
const MAGIC: &[u8; 4] = b".eif";
const MAX_EVIDENCE: u64 = 64 * 1024;
const MAX_MEASUREMENTS: u64 = 64 * 1024;
/// Long enough to look at a fleet, too short to forget an enclave that was started since.
const MAX_AGE_MILLIS: u64 = 15 * 60 * 1000;

const HELP: &str = "\
Example:
  subrosa rotate plan --from subrosa-1.eif --to subrosa-2.eif --from-config config.json --to-config config.json \\
      --account 111122223333 --prompt-writer role/app --answer-reader role/records --administrator role/security \\
      --role arn:aws:iam::444455556666:role/inference --context subrosa:tenant=acme -o plan
  ... roll out as plan/plan.txt says, then, for every enclave that serves:
  subrosa verify --url http://parent-1:8080 --json > serving-1.json
  subrosa rotate plan ... -o plan --serving serving-1.json --serving serving-2.json --enclaves 2

Without --serving only the overlap is written. With it the policy and the list after the rotation are written too, unless
something still serves that they would shut out.

Exit codes: 0: planned; 4: a release that would be dropped still serves, or not all enclaves were seen (the overlap is
written all the same); 2: usage.";
