//! `subrosa policy check`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use kms_policies::arn::KeyArn;
use kms_policies::exposure::{Assessment, Expectation, Finding, Grant, KeyKind, MAX_GRANTS_BYTES, assess};
use kms_policies::{Caller, MAX_POLICY_BYTES};
use serde_json::{Value, json};
use subrosa_client::measurements::PcrArgument;

use super::Kind;
use super::accepted::CodeArguments;
use crate::commands::arguments::{pair, read_bounded};
use crate::commands::exit::{Exit, Failure};
use crate::commands::output::{note, print};

/// Who could get plaintext out of a key, and how? Judges a key policy against the images that may have the key.
#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct Check {
    /// The policy, or what `aws kms get-key-policy` prints; `-`: standard input.
    #[arg(value_name = "POLICY.json")]
    policy: PathBuf,
    /// What the key is for.
    #[arg(long, value_enum, default_value = "customer-key")]
    kind: Kind,
    #[command(flatten)]
    code: CodeArguments,
    /// The manifest.json of a model pack: PCR16. Repeat for all packs, or give --config alone, which names them.
    #[arg(long, value_name = "MANIFEST")]
    model: Vec<PathBuf>,
    /// An accepted NitroTPM PCR value, 96 hex digits (one machine; with --kind attested-key). Repeat for others.
    #[arg(long, value_name = "N=HEX")]
    nitro_tpm_pcr: Vec<PcrArgument>,
    /// The key's grants: what `aws kms list-grants` prints. Without them, what a grant opens is not seen.
    #[arg(long, value_name = "FILE")]
    grants: Option<PathBuf>,
    /// The role whose credentials the enclave uses. The parent has them too. Repeat for more.
    #[arg(long, visible_alias = "enclave-role", value_name = "ARN")]
    role: Vec<String>,
    /// Who may read answers. Repeat for more. Default: whoever the policy names by ARN.
    #[arg(long, value_name = "ARN")]
    answer_reader: Vec<String>,
    /// What the encryption context must be, beside the purpose: subrosa:tenant=acme. Repeat for more.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    context: Vec<(String, String)>,
    /// The key's ARN. Without it, a statement for another resource than `*` is taken to open, and not to deny.
    #[arg(long, value_name = "ARN")]
    key: Option<String>,
    /// Fail on weaknesses too, not only on open paths.
    #[arg(long)]
    strict: bool,
    /// The result as one JSON object.
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let text = policy_text(read_bounded(&self.policy, MAX_FILE)?)?;
        let grants = match &self.grants {
            None => None,
            Some(path) => {
                let json = String::from_utf8(read_bounded(path, MAX_GRANTS_BYTES as u64)?)
                    .map_err(|_| Failure::usage(format!("{}: not text", path.display())))?;
                let read = Grant::list(&json);
                Some(read.map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?)
            }
        };
        let expectation = self.expectation()?;
        let assessment = assess(&text, grants.as_deref(), &expectation);
        if !assessment.grants_seen {
            note("subrosa: warning: without --grants only half is judged: a grant gives plaintext past any key policy");
        }
        print(&if self.json { report_json(&assessment)?.to_string() } else { report(&assessment) })?;
        match (assessment.open.len(), assessment.weaknesses.len()) {
            (0, 0) => Ok(()),
            (0, _) if !self.strict => Ok(()),
            (0, n) => Err(Failure::new(
                Exit::Mismatch,
                format!("no path is open, but there are weaknesses ({n}), and --strict"),
            )),
            (n, _) => {
                Err(Failure::new(Exit::Mismatch, format!("plaintext is open without the attested code ({n} findings)")))
            }
        }
    }

    fn expectation(&self) -> Result<Expectation, Failure> {
        let kind = match self.kind {
            Kind::Customer => KeyKind::Customer,
            Kind::ModelPack => KeyKind::ModelPack,
            Kind::Attested => KeyKind::Attested,
        };
        let images = self.code.accepted(&self.model, kind != KeyKind::ModelPack)?.images;
        let machine: BTreeMap<u8, [u8; 48]> = self.nitro_tpm_pcr.iter().map(|pcr| (pcr.index, pcr.value)).collect();
        if images.is_empty() && machine.is_empty() {
            return Err(Failure::usage("give --image, --measurements or --pcr: which code may have the key?"));
        }
        let enclave_roles = roles_or_users("--role", &self.role)?;
        let answer_readers = roles_or_users("--answer-reader", &self.answer_reader)?;
        let key = self.key.as_deref().map(KeyArn::parse).transpose().map_err(Failure::usage)?;
        Ok(Expectation {
            kind,
            images,
            nitro_tpms: if machine.is_empty() { Vec::new() } else { vec![machine] },
            context: self.context.iter().filter(|(key, _)| key != "subrosa:purpose").cloned().collect(),
            enclave_roles,
            answer_readers: (!answer_readers.is_empty()).then_some(answer_readers),
            key,
        })
    }
}

/// The ARNs of roles and users; a session stands for its role. Another text would match nobody, and so judge nothing.
fn roles_or_users(option: &str, arns: &[String]) -> Result<Vec<String>, Failure> {
    let one = |arn: &String| {
        let caller = Caller::parse(arn).map_err(|error| Failure::usage(format!("{option}: {error}")))?;
        let principal = caller.principal_arn();
        let mut fields = principal.splitn(6, ':').skip(2);
        let is_iam = (fields.next(), fields.next()) == (Some("iam"), Some(""));
        let name = fields
            .nth(1)
            .and_then(|resource| resource.strip_prefix("role/").or_else(|| resource.strip_prefix("user/")));
        // A wildcard is no name: it would match nobody, too.
        if is_iam && name.is_some_and(|name| !name.is_empty() && !name.contains(['*', '?', ':'])) {
            Ok(principal.to_owned())
        } else {
            Err(Failure::usage(format!("{option}: expected arn:aws:iam::ACCOUNT:role/NAME or user/NAME, got {arn:?}")))
        }
    };
    arns.iter().map(one).collect()
}

/// The policy itself, taken out of what `aws kms get-key-policy` prints if it is in there.
fn policy_text(bytes: Vec<u8>) -> Result<String, Failure> {
    let text = String::from_utf8(bytes).map_err(|_| Failure::usage("the policy is not text"))?;
    match serde_json::from_str::<Value>(&text) {
        Ok(Value::Object(members)) if !members.contains_key("Statement") => match members.get("Policy") {
            Some(Value::String(policy)) => Ok(policy.clone()),
            _ => Ok(text),
        },
        _ => Ok(text),
    }
}

fn report_json(assessment: &Assessment) -> Result<Value, Failure> {
    let mut report =
        serde_json::to_value(assessment).map_err(|error| Failure::new(Exit::Other, format!("the report: {error}")))?;
    if let Some(members) = report.as_object_mut() {
        members.insert("verdict".into(), json!(if assessment.is_closed() { "closed" } else { "open" }));
        members.insert("outside".into(), json!(OUTSIDE));
    }
    Ok(report)
}

fn report(assessment: &Assessment) -> String {
    let mut text = String::new();
    let verdict = match (assessment.is_closed(), assessment.grants_seen) {
        (false, _) => "OPEN",
        (true, true) => "no path is open without the attested code",
        (true, false) => "no path is open by the policy; ITS GRANTS WERE NOT LOOKED AT (--grants)",
    };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "verdict: {verdict}\npolicy:  sha384 {}", hex::encode(assessment.digest.0));
    let grants = if assessment.grants_seen { "judged" } else { "not given: what they open is not seen (--grants)" };
    let _ = writeln!(text, "grants:  {grants}");
    for (title, findings) in [
        ("Open now", &assessment.open),
        ("Could open a path", &assessment.could_open),
        ("Weaknesses", &assessment.weaknesses),
    ] {
        section(&mut text, title, findings);
    }
    if !assessment.by_purpose.is_empty() {
        let _ = writeln!(text, "\nBy the key's purpose:");
        for holder in &assessment.by_purpose {
            let principal = holder.principal.escape_default();
            let _ = writeln!(text, "  {principal} may {} ({})", holder.may, holder.statement.escape_default());
        }
    }
    let _ = write!(text, "\n{OUTSIDE}");
    text
}

fn section(text: &mut String, title: &str, findings: &[Finding]) {
    if findings.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{title}:");
    for finding in findings {
        for (n, line) in finding.to_string().lines().enumerate() {
            let _ = writeln!(text, "{}{line}", if n == 0 { "- " } else { "  " });
        }
    }
}

const MAX_FILE: u64 = 4 * MAX_POLICY_BYTES as u64;

const OUTSIDE: &str = "Outside this judgement: IAM policies and service control policies (whoever may need one is taken to have it), \
the origin of the key material, and everything after this moment.";

const HELP: &str = "\
Example:
  aws kms get-key-policy --key-id ARN --policy-name default > policy.json
  aws kms list-grants --key-id ARN > grants.json
  subrosa policy check policy.json --grants grants.json --key ARN --image subrosa.eif --config config.json \\
      --role arn:aws:iam::444455556666:role/inference --context subrosa:tenant=acme

Each finding names its statement, who and by which calls, why, and how to mend it. What is not understood is taken to
open, and is never skipped.

Exit codes: 0: no path is open now; 5: a path is open (with --strict: or there is a weakness); 2: usage.
Who could open a path (by kms:PutKeyPolicy, say) is told, and is no failure: somebody always can.";
