//! `subrosa verify`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use attestation::Pcr;
use attestation::chain::TrustAnchor;
use attestation::document::{Document, UnixMillis};
use attestation::keyset::Keyset;
use clap::Args;
use serde_json::{Value, json};
use subrosa_client::appraisal::{Appraisal, Demands, Outcome};
use subrosa_client::evidence::Evidence;
use subrosa_client::key_policy::KeyPolicyVerdict;
use subrosa_client::live::{self, LiveError, Verification};
use subrosa_client::measurements::join;
use subrosa_client::transport::{Deadlines, MAX_EVIDENCE, Transport};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::arguments::{MeasurementArguments, anchor, read_bounded, seconds, time};
use super::exit::{Exit, Failure};
use super::output::print;

/// Check an attestation document, stored or of a live enclave: is its signature good, is it fresh, is it the right code?
#[derive(Args)]
#[command(after_help = HELP)]
#[group(id = "evidence", required = true, multiple = false, args = ["document", "url"])]
pub(crate) struct Verify {
    /// Stored evidence: a document (raw, base64 or hex), or {"document": base64, "keyset": base64}; `-`: standard input.
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
    /// A live enclave behind this parent: own nonce, age at most 300 s, 60 s leeway, keyset checked.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The time as of which stored evidence is judged, for example 2026-11-21T10:00:00Z. Default: now.
    #[arg(long, value_name = "RFC3339", value_parser = time, conflicts_with = "url")]
    at: Option<UnixMillis>,
    /// How old the document may be, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    max_age: Option<Duration>,
    #[command(flatten)]
    measurements: MeasurementArguments,
    /// The lowest release of the enclave's image that is accepted, as its keyset names it.
    #[arg(long, value_name = "N", conflicts_with = "document")]
    min_release: Option<u64>,
    /// The nonce that the document must carry.
    #[arg(long, value_name = "HEX", value_parser = nonce, conflicts_with = "url")]
    nonce: Option<Nonce>,
    /// Trust this root instead of AWS's: for the simulator. Whoever holds its key can forge every measurement.
    #[arg(long, value_name = "FILE.pem")]
    danger_root: Option<PathBuf>,
    /// Accept an enclave in debug mode, whose memory its parent reads.
    #[arg(long)]
    danger_allow_debug: bool,
    /// How long to wait for a live enclave, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30")]
    timeout: Duration,
    /// The result as one JSON object.
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let Self {
            document,
            url,
            at,
            max_age,
            measurements,
            min_release,
            nonce,
            danger_root,
            danger_allow_debug,
            timeout,
            json,
        } = self;
        let anchor = anchor(danger_root.as_deref())?;
        let pcrs = join(measurements.read()?);
        let image_left_out = !pcrs.is_empty() && !pcrs.contains_key(&0);
        let appraisal = match (url, document) {
            (Some(url), _) => {
                let max_age = max_age.unwrap_or(attestation::freshness::LIVE_MAX_AGE);
                let verification =
                    Verification { anchor: anchor.clone(), pcrs, max_age, danger_allow_debug, min_release };
                live(&url, &verification, timeout).await?
            }
            (None, Some(path)) => {
                let evidence = Evidence::read(&read_bounded(&path, MAX_EVIDENCE as u64)?)
                    .map_err(|error| Failure::new(Exit::Mismatch, format!("{}: {error}", path.display())))?;
                let demands = Demands {
                    anchor: anchor.clone(),
                    now: at.unwrap_or_else(live::now),
                    leeway: Duration::ZERO,
                    max_age,
                    nonce: nonce.map(|Nonce(nonce)| nonce),
                    pcrs,
                    danger_allow_debug,
                    keyset_required: false,
                    min_release: None,
                };
                Appraisal::of(&evidence, &demands)
            }
            (None, None) => return Err(Failure::usage("give --document or --url")),
        };
        let report = Report::of(&appraisal, &anchor, image_left_out);
        print(&if json { report.json().to_string() } else { report.text() })?;
        if appraisal.is_good() {
            return Ok(());
        }
        let failed: Vec<&str> =
            report.questions().iter().filter(|(_, outcome)| is_failed(outcome)).map(|(name, _)| *name).collect();
        Err(Failure::new(Exit::Mismatch, format!("the evidence is NOT good: {} failed", failed.join(", "))))
    }
}

async fn live(url: &str, verification: &Verification, timeout: Duration) -> Result<Appraisal, Failure> {
    let transport = Transport::new(url, Deadlines::within(timeout), false)?;
    live::appraise(&transport, verification).await.map_err(|error| match error {
        LiveError::Transport(error) => error.into(),
        error @ LiveError::Evidence(_) => Failure::new(Exit::Mismatch, error),
        error @ LiveError::Random(_) => Failure::new(Exit::Other, error),
    })
}

/// What is told, in either form.
struct Report {
    is_good: bool,
    signature: Outcome,
    freshness: Outcome,
    measurements: Outcome,
    keyset: Outcome,
    image_pinned: bool,
    /// PCRs were given, and PCR0 was not among them.
    image_left_out: bool,
    debug_mode: Option<bool>,
    keyset_content: Option<Keyset>,
    anchor: String,
    aws_root: bool,
    timestamp: Option<String>,
    module_id: Option<String>,
    pcrs: BTreeMap<u8, Pcr>,
}

impl Report {
    fn of(appraisal: &Appraisal, anchor: &TrustAnchor, image_left_out: bool) -> Self {
        let document = appraisal.document();
        Self {
            is_good: appraisal.is_good(),
            signature: appraisal.signature(),
            freshness: appraisal.freshness(),
            measurements: appraisal.measurements(),
            keyset: appraisal.keyset(),
            image_pinned: appraisal.is_image_pinned(),
            image_left_out,
            debug_mode: document.map(Document::is_debug),
            keyset_content: appraisal.good_keyset().cloned(),
            anchor: hex::encode(anchor.sha256()),
            aws_root: anchor.is_aws(),
            timestamp: document.map(|document| rfc3339(document.timestamp())),
            module_id: document.map(|document| document.module_id().to_owned()),
            pcrs: document.map(|document| document.pcrs().clone()).unwrap_or_default(),
        }
    }

    fn questions(&self) -> [(&'static str, &Outcome); 4] {
        [
            ("signature", &self.signature),
            ("freshness", &self.freshness),
            ("measurements", &self.measurements),
            ("keyset", &self.keyset),
        ]
    }

    fn json(&self) -> Value {
        let pcrs: serde_json::Map<String, Value> =
            self.pcrs.iter().map(|(index, value)| (index.to_string(), hex::encode(value).into())).collect();
        let mut report = json!({
            "verdict": if self.is_good { "good" } else { "failed" },
            "trust_anchor_sha256": self.anchor,
            "aws_root": self.aws_root,
            "timestamp": self.timestamp,
            "module_id": self.module_id,
            "debug_mode": self.debug_mode,
            "pcrs": pcrs,
        });
        if let Some(members) = report.as_object_mut() {
            for (name, outcome) in self.questions() {
                let (status, error) = match outcome {
                    Outcome::Good => ("good", None),
                    Outcome::Failed(error) => ("failed", Some(error)),
                    Outcome::NotChecked => ("not-checked", None),
                };
                members.insert(name.to_owned(), json!({"status": status, "error": error}));
            }
        }
        if let Some(measurements) = report.get_mut("measurements").and_then(Value::as_object_mut) {
            measurements.insert("image_pinned".to_owned(), self.image_pinned.into());
        }
        if let (Some(keyset), Some(members)) =
            (&self.keyset_content, report.get_mut("keyset").and_then(Value::as_object_mut))
        {
            let models: serde_json::Map<String, Value> =
                keyset.models.iter().map(|(name, digest)| (name.clone(), hex::encode(digest).into())).collect();
            members.insert("release".to_owned(), keyset.release.into());
            members.insert("models".to_owned(), models.into());
            members.insert("configuration".to_owned(), hex::encode(keyset.configuration).into());
            members.insert("not_after".to_owned(), keyset.not_after.into());
            let verdicts =
                keyset.model_key_policy.as_deref().map(|text| KeyPolicyVerdict::read(text).to_json().clone());
            members.insert("model_key_policy".to_owned(), verdicts.into());
        }
        report
    }

    fn text(&self) -> String {
        let mut lines = vec![format!("verdict:      {}", if self.is_good { "good" } else { "FAILED" })];
        if self.debug_mode == Some(true) {
            lines.push("DEBUG MODE: the parent can read this enclave's memory".to_owned());
        }
        for (name, outcome) in self.questions() {
            let (label, how, todo) = words(name);
            lines.push(match outcome {
                Outcome::Good => format!("{label} good"),
                Outcome::NotChecked => format!("{label} not checked ({how})"),
                Outcome::Failed(error) => format!("{label} FAILED: {error}\n              {todo}"),
            });
            if name == "measurements" && self.image_left_out {
                lines.push("              PCR0 was not among them: no image is pinned".to_owned());
            }
        }
        lines.extend(self.keyset_content.iter().flat_map(keyset_lines));
        let whose =
            if self.aws_root { "AWS Nitro Enclaves" } else { "NOT AWS: this proves nothing about real hardware" };
        lines.push(format!("trust anchor: {} ({whose})", self.anchor));
        lines.push(format!("module id:    {}", self.module_id.as_deref().unwrap_or("none")));
        lines.push(format!("timestamp:    {}", self.timestamp.as_deref().unwrap_or("none")));
        for (index, value) in self.pcrs.iter().filter(|(_, value)| value.iter().any(|byte| *byte != 0)) {
            lines.push(format!("{:<13} {}", format!("PCR{index}:"), hex::encode(value)));
        }
        lines.join("\n")
    }
}

/// What a good keyset says. The names are an enclave's own words: they must not steer the terminal.
fn keyset_lines(keyset: &Keyset) -> Vec<String> {
    let until = UnixMillis(keyset.not_after.saturating_mul(1000));
    let mut lines = vec![format!("              release {}, not after {}", keyset.release, rfc3339(until))];
    for (name, digest) in &keyset.models {
        lines.push(format!("              model {} {}", name.escape_debug(), hex::encode(digest)));
    }
    lines.push(format!("              configuration {}", hex::encode(keyset.configuration)));
    for verdict in keyset.model_key_policy.iter().flat_map(|text| KeyPolicyVerdict::read_list(text)) {
        lines.push(format!("              model key: {}", verdict.to_line()));
    }
    lines
}

/// Label, how to ask the question, what to do when the answer is no.
fn words(question: &str) -> (&'static str, &'static str, &'static str) {
    match question {
        "signature" => (
            "signature:   ",
            "the document has no shape to check",
            "Do not trust this enclave. For stored evidence give the time it was made with --at.",
        ),
        "freshness" => (
            "freshness:   ",
            "give --max-age or --nonce",
            "Ask for a new document with a nonce of your own, and check this machine's clock.",
        ),
        "measurements" => (
            "measurements:",
            "give --pcr, --measurements or --image",
            "Do not send it anything. If the image was updated, take the new values from a build of your own, never from the document.",
        ),
        _ => ("keyset:      ", "the evidence holds none", "Do not rely on anything that this keyset says."),
    }
}

fn is_failed(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failed(_))
}

fn rfc3339(time: UnixMillis) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(time.0) * 1_000_000).ok();
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| time.to_string())
}

/// clap would take a bare vector for a repeated argument.
#[derive(Clone)]
struct Nonce(Vec<u8>);

fn nonce(text: &str) -> Result<Nonce, String> {
    match hex::decode(text) {
        Ok(nonce) if !nonce.is_empty() => Ok(Nonce(nonce)),
        _ => Err("expected hex".to_owned()),
    }
}

const HELP: &str = "\
Three questions, three answers; what was not asked for is reported as not checked and does not fail:
  signature     did a Nitro hypervisor sign this, under AWS's root?         always asked
  freshness     is it recent (--max-age), and made for me (--nonce)?        a future timestamp always fails
  measurements  is it the code I want (--pcr, --measurements, --image)?     debug mode always fails
                PCR0 is the image: without it among them no code is pinned (image_pinned in the JSON)

Examples:
  subrosa verify --url https://inference.example.org --measurements eif.json
  subrosa verify --document evidence.bin --at 2025-12-25T13:15:37Z --pcr 0=5cb70295... --json

Exit code 0: nothing that was asked failed; 5: something did; 3: no evidence could be had. A live check without
measurements says that an enclave is there, not which.";
