//! `subrosa policy render`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use kms_policies::templates::{self, CustomerRoles, Measurements, ModelPackRoles};
use kms_policies::warnings::{self, Warning};
use subrosa_client::measurements::join;

use super::arguments::MeasurementArguments;
use super::exit::Failure;
use super::output::{Output, note, print};

#[derive(Subcommand)]
pub(crate) enum Policy {
    /// Render a key policy from its template.
    #[command(subcommand)]
    Render(Render),
}

#[derive(Subcommand)]
pub(crate) enum Render {
    CustomerKey(CustomerKey),
    ModelPackKey(ModelPackKey),
}

/// The policy of a customer's key: who writes prompts, which code opens them, who reads answers.
#[derive(Args)]
#[command(after_help = CUSTOMER_HELP)]
pub(crate) struct CustomerKey {
    #[command(flatten)]
    shared: Shared,
    /// Who may seal prompts (GenerateDataKey, purpose `inference`). Repeat for more.
    #[arg(long, value_name = "ARN", required = true)]
    prompt_writer: Vec<String>,
    /// Who may read answers under this key (Decrypt, purpose `answer`). Repeat for more.
    #[arg(long, value_name = "ARN", required = true)]
    answer_reader: Vec<String>,
    /// Only prompts and answers of this tenant. Repeat for more.
    #[arg(long, value_name = "TENANT")]
    tenant: Vec<String>,
}

/// The policy of a model supplier's key: who seals packs, which code opens them.
#[derive(Args)]
#[command(after_help = MODEL_PACK_HELP)]
pub(crate) struct ModelPackKey {
    #[command(flatten)]
    shared: Shared,
    /// Who may seal model packs (GenerateDataKey, purpose `model-pack`). Repeat for more.
    #[arg(long, value_name = "ARN", required = true)]
    model_supplier: Vec<String>,
    /// Only packs of this model. Repeat for more.
    #[arg(long, value_name = "MODEL")]
    model: Vec<String>,
}

#[derive(Args)]
struct Shared {
    /// The account that owns the key. Roles may then be written role/NAME and user/NAME.
    #[arg(long, value_name = "ACCOUNT", value_parser = account)]
    account: Option<String>,
    /// The operator's role whose credentials the enclave uses. Repeat for more.
    #[arg(long, value_name = "ARN", required = true)]
    enclave_role: Vec<String>,
    /// Who may manage the key and change this policy. Repeat for more.
    #[arg(long, value_name = "ARN", required = true)]
    administrator: Vec<String>,
    #[command(flatten)]
    measurements: MeasurementArguments,
    /// Where the policy goes. Default: standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The result is always JSON: accepted so that scripts may say so.
    #[arg(long)]
    json: bool,
}

impl Policy {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self::Render(render) = self;
        match render {
            Render::CustomerKey(CustomerKey { shared, prompt_writer, answer_reader, tenant }) => {
                let roles = CustomerRoles {
                    prompt_writers: shared.arns(prompt_writer),
                    enclaves: shared.arns(shared.enclave_role.clone()),
                    answer_readers: shared.arns(answer_reader),
                    administrators: shared.arns(shared.administrator.clone()),
                };
                let measurements = shared.measurements()?;
                let policy = templates::customer_key(&roles, &measurements, &tenant).map_err(Failure::usage)?;
                shared.write(&policy, &warnings::of_customer_key(&roles, &measurements))
            }
            Render::ModelPackKey(ModelPackKey { shared, model_supplier, model }) => {
                let roles = ModelPackRoles {
                    model_suppliers: shared.arns(model_supplier),
                    enclaves: shared.arns(shared.enclave_role.clone()),
                    administrators: shared.arns(shared.administrator.clone()),
                };
                let measurements = shared.measurements()?;
                let policy = templates::model_pack_key(&roles, &measurements, &model).map_err(Failure::usage)?;
                shared.write(&policy, &warnings::of_model_pack_key(&roles, &measurements))
            }
        }
    }
}

impl Shared {
    fn arns(&self, names: Vec<String>) -> Vec<String> {
        let full = |name: String| match &self.account {
            Some(account) if name.starts_with("role/") || name.starts_with("user/") => {
                format!("arn:aws:iam::{account}:{name}")
            }
            _ => name,
        };
        names.into_iter().map(full).collect()
    }

    fn measurements(&self) -> Result<Measurements, Failure> {
        Ok(Measurements { pcrs: join(self.measurements.read()?) })
    }

    /// The policy to its place, what it leaves open to standard error.
    fn write(&self, policy: &kms_policies::Policy, warnings: &[Warning]) -> Result<(), Failure> {
        for warning in warnings {
            note(&format!("subrosa: warning: {warning}"));
        }
        let json = policy.to_json();
        let json = json.trim_end();
        let Some(path) = &self.output else { return print(json) };
        let mut out = Output::create(Some(path), true)?;
        out.write_line(json)?;
        out.commit()
    }
}

fn account(text: &str) -> Result<String, String> {
    let is_account = text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_account { Ok(text.to_owned()) } else { Err("an account is 12 digits".to_owned()) }
}

const CUSTOMER_HELP: &str = "\
Example:
  subrosa policy render customer-key --account 111122223333 --measurements eif.json --pcr 16=HEX --pcr 17=HEX \\
      --prompt-writer role/app --answer-reader role/records --administrator role/security \\
      --enclave-role arn:aws:iam::444455556666:role/inference --tenant acme > policy.json
  aws kms put-key-policy --key-id ARN --policy-name default --policy file://policy.json

PCR0, PCR1 and PCR2 are required: take them from a build of your own. All-zero values are refused: every enclave in
debug mode has them. PCR16 binds the models, PCR17 the configuration.";

const MODEL_PACK_HELP: &str = "\
Example:
  subrosa policy render model-pack-key --account 111122223333 --measurements eif.json --pcr 17=HEX \\
      --model-supplier role/release --administrator role/security \\
      --enclave-role arn:aws:iam::444455556666:role/inference --model subrosa-intake > policy.json

PCR16 cannot be bound here: it is extended only after the packs are open.";
