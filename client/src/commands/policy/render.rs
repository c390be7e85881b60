//! `subrosa policy render`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use kms_policies::attested_key::{AttestedRoles, Machine, attested_key};
use kms_policies::templates::{self, CustomerRoles, Measurements, ModelPackRoles, RenderError};
use kms_policies::warnings::{self, Warning};
use subrosa_client::measurements::{Image, PcrArgument, join};

use super::accepted::{Accepted, CodeArguments};
use crate::commands::arguments::pair;
use crate::commands::exit::Failure;
use crate::commands::output::{Output, note, print};

#[derive(Subcommand)]
pub(crate) enum Render {
    #[command(name = "customer-key")]
    Customer(CustomerKey),
    #[command(name = "model-pack-key")]
    ModelPack(ModelPackKey),
    #[command(name = "attested-key")]
    Attested(AttestedKey),
}

/// The policy of a customer's key: who writes prompts, which code opens them, who reads answers.
#[derive(Args)]
#[command(after_help = CUSTOMER_HELP)]
pub(crate) struct CustomerKey {
    #[command(flatten)]
    roles: RoleArguments,
    #[command(flatten)]
    code: CodeArguments,
    /// The manifest.json of a model pack: PCR16. Repeat for all packs, or give --config alone, which names them.
    #[arg(long, value_name = "MANIFEST")]
    model: Vec<PathBuf>,
    /// Who may seal prompts (GenerateDataKey, purpose `inference`). Repeat for more.
    #[arg(long, value_name = "ARN", required = true)]
    prompt_writer: Vec<String>,
    /// Who may read answers under this key (Decrypt, purpose `answer`). Repeat for more.
    #[arg(long, value_name = "ARN", required = true)]
    answer_reader: Vec<String>,
    /// Only prompts and answers of this tenant. Repeat for more.
    #[arg(long, value_name = "TENANT")]
    tenant: Vec<String>,
    #[command(flatten)]
    output: OutputArguments,
}

/// The policy of a model supplier's key: who seals packs, which code opens them.
#[derive(Args)]
#[command(after_help = MODEL_PACK_HELP)]
pub(crate) struct ModelPackKey {
    #[command(flatten)]
    roles: RoleArguments,
    #[command(flatten)]
    code: CodeArguments,
    /// Who may seal model packs (GenerateDataKey, purpose `model-pack`). Repeat for more.
    #[arg(long, value_name = "ARN", required = true)]
    model_supplier: Vec<String>,
    /// Only packs of this model, as their encryption context names it. Repeat for more.
    #[arg(long, value_name = "MODEL")]
    model: Vec<String>,
    #[command(flatten)]
    output: OutputArguments,
}

/// The policy of a key for anything else that attested code alone may open: in an enclave, or on a NitroTPM machine.
#[derive(Args)]
#[command(after_help = ATTESTED_HELP)]
pub(crate) struct AttestedKey {
    #[command(flatten)]
    roles: RoleArguments,
    #[command(flatten)]
    code: CodeArguments,
    /// An accepted NitroTPM PCR value instead of an enclave's, 96 hex digits; PCR4 is required. Repeat for others.
    #[arg(long, value_name = "N=HEX", conflicts_with_all = ["pcrs", "measurements", "images", "config"])]
    nitro_tpm_pcr: Vec<PcrArgument>,
    /// Who may seal (GenerateDataKey, without attestation). Repeat for more.
    #[arg(long, value_name = "ARN")]
    sealer: Vec<String>,
    #[command(flatten)]
    output: OutputArguments,
}

/// Who uses and who manages a key.
#[derive(Args)]
pub(crate) struct RoleArguments {
    /// The account that owns the key. Roles may then be written role/NAME and user/NAME.
    #[arg(long, value_name = "ACCOUNT", value_parser = account)]
    account: Option<String>,
    /// The operator's role whose credentials the enclave uses. Repeat for more.
    #[arg(long, visible_alias = "role", value_name = "ARN", required = true)]
    enclave_role: Vec<String>,
    /// Who may manage the key and change this policy. Repeat for more.
    #[arg(long, value_name = "ARN", required = true)]
    administrator: Vec<String>,
    /// Only this encryption context: subrosa:tenant for a customer's key, subrosa:model for packs. Repeat for more.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    context: Vec<(String, String)>,
}

#[derive(Args)]
struct OutputArguments {
    /// Where the policy goes. Default: standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The result is always JSON: accepted so that scripts may say so.
    #[arg(long)]
    json: bool,
}

/// A policy, and what it leaves open.
pub(crate) struct Rendered {
    pub(crate) policy: kms_policies::Policy,
    pub(crate) warnings: Vec<Warning>,
}

impl Render {
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Customer(CustomerKey { roles, code, model, prompt_writer, answer_reader, tenant, output }) => {
                let accepted = code.accepted(&model, true)?;
                let rendered = roles.customer_key(&accepted, &prompt_writer, &answer_reader, &tenant)?;
                output.write(&rendered)
            }
            Self::ModelPack(ModelPackKey { roles, code, model_supplier, model, output }) => {
                let accepted = code.accepted(&[], false)?;
                let rendered = roles.model_pack_key(&accepted, &model_supplier, &model)?;
                output.write(&rendered)
            }
            Self::Attested(AttestedKey { roles, code, nitro_tpm_pcr, sealer, output }) => {
                let (machine, registers) = if nitro_tpm_pcr.is_empty() {
                    (Machine::NitroEnclave, code.accepted(&[], true)?.lists)
                } else {
                    (Machine::NitroTpm, join(nitro_tpm_pcr))
                };
                let context: BTreeMap<String, String> = roles.context.iter().cloned().collect();
                let of = AttestedRoles {
                    attested: roles.arns(&roles.enclave_role),
                    sealers: roles.arns(&sealer),
                    administrators: roles.arns(&roles.administrator),
                };
                let policy = attested_key(&of, machine, &registers, &context).map_err(Failure::usage)?;
                output.write(&Rendered { policy, warnings: Vec::new() })
            }
        }
    }
}

impl RoleArguments {
    pub(crate) fn arns(&self, names: &[String]) -> Vec<String> {
        let full = |name: &String| match &self.account {
            Some(account) if name.starts_with("role/") || name.starts_with("user/") => {
                format!("arn:aws:iam::{account}:{name}")
            }
            _ => name.clone(),
        };
        names.iter().map(full).collect()
    }

    /// The options by which `subrosa policy check` looks at a policy for these roles.
    pub(crate) fn check_options(&self) -> Vec<String> {
        let roles = self.arns(&self.enclave_role).into_iter().map(|arn| ("--role", arn));
        let context = self.context.iter().map(|(key, value)| ("--context", format!("{key}={value}")));
        roles.chain(context).flat_map(|(option, value)| [option.to_owned(), value]).collect()
    }

    pub(crate) fn customer_key(
        &self,
        accepted: &Accepted,
        prompt_writers: &[String],
        answer_readers: &[String],
        tenants: &[String],
    ) -> Result<Rendered, Failure> {
        let roles = CustomerRoles {
            prompt_writers: self.arns(prompt_writers),
            enclaves: self.arns(&self.enclave_role),
            answer_readers: self.arns(answer_readers),
            administrators: self.arns(&self.administrator),
        };
        let tenants = [tenants.to_vec(), self.only("subrosa:tenant", "inference")?].concat();
        let measurements = Measurements { pcrs: accepted.lists.clone() };
        let policy = templates::customer_key(&roles, &measurements, &tenants);
        let warnings = warnings::of_customer_key(&roles, &measurements);
        paired(policy, &accepted.images, warnings)
    }

    pub(crate) fn model_pack_key(
        &self,
        accepted: &Accepted,
        model_suppliers: &[String],
        models: &[String],
    ) -> Result<Rendered, Failure> {
        let roles = ModelPackRoles {
            model_suppliers: self.arns(model_suppliers),
            enclaves: self.arns(&self.enclave_role),
            administrators: self.arns(&self.administrator),
        };
        let models = [models.to_vec(), self.only("subrosa:model", "model-pack")?].concat();
        let measurements = Measurements { pcrs: accepted.lists.clone() };
        let policy = templates::model_pack_key(&roles, &measurements, &models);
        let warnings = warnings::of_model_pack_key(&roles, &measurements);
        paired(policy, &accepted.images, warnings)
    }

    /// The values of the one key that a template leaves free. The purpose is the template's own.
    fn only(&self, key: &str, purpose: &str) -> Result<Vec<String>, Failure> {
        let mut values = Vec::new();
        for (name, value) in &self.context {
            match name.as_str() {
                name if name == key => values.push(value.clone()),
                "subrosa:purpose" if value == purpose => {}
                _ => {
                    return Err(Failure::usage(format!(
                        "--context {name}={value}: this policy binds subrosa:purpose by itself and takes {key}=VALUE"
                    )));
                }
            }
        }
        Ok(values)
    }
}

/// The policy with each image bound to its own models and configuration.
fn paired(
    policy: Result<kms_policies::Policy, RenderError>,
    images: &[Image],
    warnings: Vec<Warning>,
) -> Result<Rendered, Failure> {
    let policy = policy.and_then(|policy| templates::bind_pairs(policy, images)).map_err(Failure::usage)?;
    Ok(Rendered { policy, warnings })
}

impl OutputArguments {
    /// The policy to its place, what it leaves open to standard error.
    fn write(&self, rendered: &Rendered) -> Result<(), Failure> {
        for warning in &rendered.warnings {
            note(&format!("subrosa: warning: {warning}"));
        }
        let json = rendered.policy.to_json();
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
  subrosa policy render customer-key --account 111122223333 --image subrosa.eif --config config.json \\
      --prompt-writer role/app --answer-reader role/records --administrator role/security \\
      --enclave-role arn:aws:iam::444455556666:role/inference --tenant acme > policy.json
  aws kms put-key-policy --key-id ARN --policy-name default --policy file://policy.json

PCR0, PCR1 and PCR2 are required: take them from a build of your own. All-zero values are refused: every enclave in
debug mode has them. PCR16 binds the models, PCR17 the configuration.

Of several images each is bound to its own models and configuration. (Lists of PCR0 to 2 mix nothing, because PCR0 covers
the whole image; lists of PCR16 and PCR17 would, so a Deny is added for each image.) PCR8 of a signed image is not used:
what PCR0 binds needs no signer, and PCR8 alone would let in whatever its owner ever signed.";

const MODEL_PACK_HELP: &str = "\
Example:
  subrosa policy render model-pack-key --account 111122223333 --image subrosa.eif --config config.json \\
      --model-supplier role/release --administrator role/security \\
      --enclave-role arn:aws:iam::444455556666:role/inference --model subrosa-intake > policy.json

PCR16 cannot be bound here: it is extended only after the packs are open.";

const ATTESTED_HELP: &str = "\
Example:
  subrosa policy render attested-key --account 111122223333 --role role/app --administrator role/security \\
      --sealer role/release --context purpose=backup --nitro-tpm-pcr 4=HEX --nitro-tpm-pcr 7=HEX > policy.json

With --image or --measurements the code is an enclave, with --nitro-tpm-pcr an instance with a NitroTPM: PCR4 is its boot
loader or unified kernel image, PCR7 its Secure Boot state, PCR12 its kernel command line.";
