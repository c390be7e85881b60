//! `subrosa doctor`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use subrosa_client::doctor::machine::Wanted;
use subrosa_client::doctor::settings::{self, EnclaveSettings};
use subrosa_client::doctor::{Finding, Root, Verdict, cloud, configuration, image, machine, packs};
use subrosa_client::{aws, sizing};

use super::exit::{Exit, Failure};
use super::output::print;

/// Examine this parent instance: what is wrong, and how to mend it. Changes nothing, starts nothing.
#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct Doctor {
    /// The folder in which absolute paths begin, for a machine that lies in a folder.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// The settings of subrosa-enclave.service: EIF, CPUS, MEMORY, CID, DEBUG.
    #[arg(long, value_name = "FILE", default_value = "/etc/subrosa/enclave.env")]
    settings: PathBuf,
    /// The settings of subrosa-parent.service.
    #[arg(long, value_name = "FILE", default_value = "/etc/subrosa/parent.env")]
    parent_settings: PathBuf,
    /// The enclave image file. Default: EIF of the settings.
    #[arg(long, value_name = "FILE.eif")]
    image: Option<PathBuf>,
    /// The release's measurements, which the image must have. Default: measurements.json beside the image, if it is there.
    #[arg(long, value_name = "FILE")]
    measurements: Option<PathBuf>,
    /// The configuration document.
    #[arg(long, value_name = "FILE", default_value = "/etc/subrosa/configuration.json")]
    configuration: PathBuf,
    /// The folder of sealed model packs.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/subrosa/model-packs")]
    model_packs: PathBuf,
    /// The manifest.json of a pack, to compare with the configuration. Repeat for more.
    #[arg(long, value_name = "FILE")]
    manifest: Vec<PathBuf>,
    /// The largest model's GGUF file, for an exact answer about memory.
    #[arg(long, value_name = "FILE.gguf")]
    model: Option<PathBuf>,
    /// Answers in the making at the same time, for that answer.
    #[arg(long, value_name = "N", default_value_t = 4)]
    sequences: usize,
    /// Ask KMS too: DescribeKey and GetKeyPolicy of each model's key, under the usual AWS settings.
    #[arg(long)]
    aws: bool,
    /// The role whose credentials the enclave uses, for judging key policies. Repeat for more.
    #[arg(long, value_name = "ARN", requires = "aws")]
    enclave_role: Vec<String>,
    /// The result as one JSON object.
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let json = self.json;
        let findings = self.examine().await?;
        let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
        let [ok, not_checked, warnings, wrong] =
            [Verdict::Ok, Verdict::NotChecked, Verdict::Warning, Verdict::Wrong].map(count);
        if json {
            let result = json!({"findings": findings, "ok": ok, "not_checked": not_checked, "warnings": warnings, "wrong": wrong});
            print(&result.to_string())?;
        } else {
            for Finding { check, verdict, found, mend } in &findings {
                print(&format!("{:<11}  {check}: {found}", verdict.word()))?;
                if let Some(mend) = mend {
                    print(&format!("{:<11}  mend: {mend}", ""))?;
                }
            }
            print(&format!("\n{ok} ok, {warnings} warnings, {wrong} wrong, {not_checked} not checked"))?;
        }
        if wrong == 0 {
            return Ok(());
        }
        Err(Failure::new(Exit::Other, format!("{wrong} of {} checks found something wrong", findings.len())))
    }

    async fn examine(self) -> Result<Vec<Finding>, Failure> {
        let root = Root::new(self.root);
        let (settings, about_settings) = enclave_settings(&root, &self.settings, &self.parent_settings);
        let wanted = Wanted { memory_mib: settings.memory_mib, cpus: settings.cpus };
        let mut findings = machine::examine(&root, wanted);
        findings.extend(about_settings);
        let (about_configuration, configuration) = configuration::examine(&root, &self.configuration);
        findings.push(about_configuration);
        let path = self.image.or_else(|| settings.eif.as_ref().map(PathBuf::from));
        let (about_image, known_image) = image::examine(&root, path.as_deref(), self.measurements.as_deref());
        findings.extend(about_image);
        let (about_packs, largest) = packs::examine(&root, &self.model_packs, &self.manifest, configuration.as_ref());
        findings.extend(about_packs);
        let plan = self.model.as_deref().map(|model| sizing::model::plan(&root.at(model))).transpose()?;
        findings.push(image::memory(
            known_image.as_ref(),
            settings.memory_mib,
            settings.cpus,
            plan.as_ref(),
            largest,
            self.sequences,
        ));
        if self.aws {
            let kms = aws::kms_client().await?;
            findings
                .extend(cloud::examine(&kms, configuration.as_ref(), known_image.as_ref(), &self.enclave_role).await);
        } else {
            findings.extend(cloud::not_asked(&root));
        }
        Ok(findings)
    }
}

/// How the enclave is started, and whether the parent looks for it where it will be.
fn enclave_settings(root: &Root, path: &Path, parents: &Path) -> (EnclaveSettings, Vec<Finding>) {
    const CHECK: &str = "settings";
    let shown = path.display();
    let text = match root.text(&path.to_string_lossy()) {
        Ok(text) => text,
        Err(error) => {
            let why = format!("{shown} cannot be read ({error}): how the enclave is to be started is not known");
            return (EnclaveSettings::default(), vec![Finding::not_checked(CHECK, why)]);
        }
    };
    let settings = match EnclaveSettings::parse(&text) {
        Ok(settings) => settings,
        Err(error) => {
            let mend = "deploy/systemd/enclave.env is an example";
            return (EnclaveSettings::default(), vec![Finding::wrong(CHECK, format!("{shown}: {error}"), mend)]);
        }
    };
    let mut findings = Vec::new();
    if settings.debug {
        findings.push(Finding::warning(
            CHECK,
            format!(
                "{shown} starts the enclave in DEBUG MODE: its memory is open to this machine, and it serves nobody"
            ),
            "take DEBUG=1 away once you have read the console",
        ));
    }
    match root.text(&parents.to_string_lossy()).ok().as_deref().and_then(settings::parents_cid) {
        Some(parents_cid) if settings.cid.is_some_and(|cid| cid != parents_cid) => findings.push(Finding::wrong(
            CHECK,
            format!(
                "the parent looks for CID {parents_cid}, {shown} starts the enclave as CID {}",
                settings.cid.unwrap_or(0)
            ),
            format!("write the same CID in {shown} and in ENCLAVE=vsock:CID:5000 of {}", parents.display()),
        )),
        _ if findings.is_empty() => findings.push(Finding::ok(CHECK, shown.to_string())),
        _ => {}
    }
    (settings, findings)
}

const HELP: &str = "\
Each line is one check: ok, warning, wrong, or not checked with the reason. Exit code 1 if anything is wrong.

Examples:
  subrosa doctor                                            # files of the machine alone
  subrosa doctor --aws --enclave-role arn:aws:iam::444455556666:role/inference --json
  subrosa doctor --model intake.gguf --sequences 8          # does it fit MEMORY?";
