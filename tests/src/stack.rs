//! The whole system on this machine: a simulated KMS, the simulated hypervisor with an enclave, the shipped parent, and recording
//! forwarders on every link of the parent.

mod identities;
mod machine;
mod supply;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use simulator::authority::Authority;
use simulator::kms;
use simulator::notary::Notary;
use subrosa_client::{Client, ClientBuilder};
use tempfile::TempDir;

pub use identities::{
    ACCOUNT, ADMINISTRATOR, ANSWER_READER, APPLICATION, ENCLAVE, Identity, MODEL_SUPPLIER, PROMPT_WRITER, REGION,
};
pub use machine::Machine;
pub use supply::{Measured, TENANT};

use crate::programs::{self, Running, until};
use crate::tap::Tap;

/// What may differ from one stack to the next.
pub struct Options {
    /// The enclave program that the hypervisor starts first.
    pub program: PathBuf,
    /// The enclave program that the keys are for.
    pub trusted_program: PathBuf,
    /// The hypervisor's switch.
    pub debug: bool,
    /// A GGUF file.
    pub model: PathBuf,
    /// `limits` of the configuration document.
    pub limits: Value,
    /// `key_policies` of the configuration document.
    pub key_policies: Option<&'static str>,
    /// Further arguments of the parent.
    pub parent_arguments: Vec<String>,
    /// The environment in which the parent finds its credentials; without one, keys that do not expire.
    pub parent_credentials: Option<Vec<(String, String)>>,
    /// How long the enclave may take until it serves; `None`: do not wait.
    pub ready_within: Option<Duration>,
    /// Whether recording forwarders stand between parent and enclave. They cost time: a benchmark goes without.
    pub recorded: bool,
    /// What runs the enclave instead of the simulated hypervisor; `program`, `trusted_program` and `debug` are then its affair.
    pub machine: Option<Arc<dyn Machine>>,
    /// Whether the simulated KMS signs documents that nobody has signed, as those of an emulated module.
    pub danger_notary: bool,
}

impl Options {
    /// The demonstration model in the simulated enclave.
    ///
    /// # Errors
    /// When the programs are not built.
    pub fn new() -> io::Result<Options> {
        let program = programs::path("simulated-enclave")?;
        Ok(Options {
            trusted_program: program.clone(),
            program,
            debug: false,
            model: programs::project().join("tests/demo-model/subrosa-intake.gguf"),
            limits: Value::Null,
            key_policies: None,
            parent_arguments: Vec::new(),
            parent_credentials: None,
            ready_within: Some(Duration::from_secs(60)),
            recorded: true,
            machine: None,
            danger_notary: false,
        })
    }
}

/// Everything, running. Dropping it ends every process.
pub struct Stack {
    folder: TempDir,
    options: Options,
    /// The simulated KMS: its journal, its faults.
    pub kms: kms::Handle,
    /// The customer's key.
    pub customer_key: String,
    /// The model supplier's key.
    pub model_key: String,
    /// What the hypervisor will measure of the trusted program.
    pub measured: Measured,
    /// The parent.
    pub parent: Running,
    /// The hypervisor, and the enclave in it.
    pub hypervisor: Running,
    /// What else the hypervisor needs.
    _beside: Vec<Running>,
    kms_address: SocketAddr,
    front_door: SocketAddr,
    direct_front_door: SocketAddr,
    taps: Vec<Tap>,
}

impl Stack {
    /// Makes keys and policies, seals the model pack, starts parent and enclave, and waits until it serves.
    ///
    /// # Errors
    /// With what did not come up, and what it printed.
    pub async fn start(options: Options) -> io::Result<Stack> {
        let folder = tempfile::Builder::new().prefix("subrosa-").tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let authority = Arc::new(Authority::open_or_create(&at("authority")).map_err(io::Error::other)?);
        let principals = identities::principals().map_err(io::Error::other)?;
        let mut settings = kms::Settings::on_loopback(at("kms"), authority.root_pem().into(), principals);
        settings.danger_notary = options.danger_notary.then(|| Notary::new(authority, REGION));
        let kms = kms::Server::start(settings).await.map_err(io::Error::other)?;
        std::fs::write(at("image.toml"), format!("release = 1\nkms_roots = \"\"\"\n{}\"\"\"\n", kms.ca_pem()))?;
        let measured = match &options.machine {
            Some(machine) => machine.measure(folder.path())?,
            None => supply::measure(&options.trusted_program, &at("image.toml"))?,
        };

        let model_key = supply::model_key(&kms, &measured).await?;
        let packs = at("model-packs");
        std::fs::create_dir(&packs)?;
        let manifest = supply::seal_pack(&kms, &model_key, &options.model, &packs).await?;
        let configuration = supply::configuration(&model_key, &manifest, &options);
        std::fs::write(at("configuration.json"), &configuration)?;
        let measured = measured.with_model_and_configuration(&manifest, &configuration);
        let customer_key = supply::customer_key(&kms, &measured).await?;

        let mut taps = Vec::new();
        let (kms_tap, kms_address) = Tap::tcp("parent to KMS", kms.address()).await?;
        taps.push(kms_tap);
        if options.recorded {
            taps.push(Tap::unix("parent to enclave", &at("parent.sock"), &at("enclave.sock"))?);
            taps.push(Tap::unix("enclave to host services", &at("enclave.sock_8000"), &at("parent.sock_8000"))?);
            taps.push(Tap::unix("enclave to tunnel", &at("enclave.sock_8443"), &at("parent.sock_8443"))?);
        }
        let direct_front_door = free_port()?;
        let (front_tap, front_door) = Tap::tcp("client to parent", direct_front_door).await?;
        taps.push(front_tap);

        let parent = start_parent(&options, folder.path(), direct_front_door, kms_address)?;
        let (hypervisor, beside) = match &options.machine {
            Some(machine) => machine.start(folder.path())?,
            None => (start_hypervisor(&options.program, options.debug, folder.path())?, Vec::new()),
        };
        let stack = Stack {
            folder,
            options,
            kms,
            customer_key,
            model_key,
            measured,
            parent,
            hypervisor,
            _beside: beside,
            kms_address,
            front_door,
            direct_front_door,
            taps,
        };
        if let Some(limit) = stack.options.ready_within {
            stack.serves_within(limit).await?;
        }
        Ok(stack)
    }

    /// Waits until the parent says that the enclave serves.
    ///
    /// # Errors
    /// With the logs, when it does not.
    pub async fn serves_within(&self, limit: Duration) -> io::Result<()> {
        let url = format!("{}/readyz", self.direct_url());
        let detail = || {
            format!(
                "parent:\n{}\nhypervisor:\n{}\nenclave:\n{}",
                self.parent.output(),
                self.hypervisor.output(),
                self.console()
            )
        };
        until("the enclave serves", limit, || async { status(&url).await == Some(200) }, detail).await
    }

    /// The front door, through the tap.
    pub fn url(&self) -> String {
        format!("http://{}", self.front_door)
    }

    /// The front door itself.
    pub fn direct_url(&self) -> String {
        format!("http://{}", self.direct_front_door)
    }

    /// The folder with everything that the processes share.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The recording forwarders.
    pub fn taps(&self) -> &[Tap] {
        &self.taps
    }

    /// The enclave's console: its closed log.
    pub fn console(&self) -> String {
        std::fs::read_to_string(self.folder().join("console.log")).unwrap_or_default()
    }

    /// The enclave's own process.
    pub fn enclave_pid(&self) -> Option<u32> {
        let announced =
            self.hypervisor.output().lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok())?;
        u32::try_from(announced.get("pid")?.as_u64()?).ok()
    }

    /// A client of the usual tenant, as the prompt writer, through the tap.
    pub fn client(&self) -> ClientBuilder {
        Client::builder(self.url()).kms(self.kms_as(&PROMPT_WRITER)).key(&self.customer_key).tenant(TENANT)
    }

    /// KMS, called as somebody.
    pub fn kms_as(&self, who: &Identity) -> aws_sdk_kms::Client {
        identities::kms_client(&self.kms, who)
    }

    /// The environment in which a command acts as somebody, by the ordinary settings of the AWS SDKs.
    pub fn environment(&self, who: &Identity) -> Vec<(String, String)> {
        identities::environment(&self.kms, who)
    }

    /// The root that the simulated hypervisor's documents lead to.
    pub fn attestation_root(&self) -> PathBuf {
        self.folder().join("authority/root.pem")
    }

    /// Kills the parent, and starts another in its place.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart_parent(&mut self) -> io::Result<()> {
        self.parent.signal(nix::sys::signal::Signal::SIGKILL)?;
        self.parent.ended(Duration::from_secs(10)).await?;
        self.parent = start_parent(&self.options, self.folder.path(), self.direct_front_door, self.kms_address)?;
        Ok(())
    }

    /// Ends the enclave as the owner of the machine can: at once.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn kill_enclave(&mut self) -> io::Result<()> {
        self.hypervisor.stop(Duration::from_secs(10)).await.map(drop)
    }

    /// Starts an enclave again, of this program.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_enclave(&mut self, program: &Path, debug: bool) -> io::Result<()> {
        self.hypervisor = start_hypervisor(program, debug, self.folder.path())?;
        Ok(())
    }
}

fn start_parent(options: &Options, folder: &Path, front_door: SocketAddr, kms: SocketAddr) -> io::Result<Running> {
    let mut arguments = vec!["--listen".to_owned(), front_door.to_string()];
    let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    let socket = if options.recorded { "parent.sock" } else { "enclave.sock" };
    option("--enclave", format!("unix:{}:5000", folder.join(socket).display()));
    option("--configuration", folder.join("configuration.json").display().to_string());
    option("--model-packs", folder.join("model-packs").display().to_string());
    option("--kms-endpoint", kms.to_string());
    arguments.extend(options.parent_arguments.iter().cloned());
    let credentials = options.parent_credentials.clone().unwrap_or_else(|| identities::credentials(&ENCLAVE));
    let environment: Vec<(&str, &str)> =
        credentials.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    Running::start("subrosa-parent", &arguments, &environment, &folder.join("parent.log"))
}

fn start_hypervisor(program: &Path, debug: bool, folder: &Path) -> io::Result<Running> {
    let _ = std::fs::remove_file(folder.join("hypervisor.log"));
    let mut arguments = vec!["--json".to_owned()];
    let mut option = |name: &str, value: &Path| arguments.extend([name.to_owned(), value.display().to_string()]);
    option("--authority", &folder.join("authority"));
    option("--program", program);
    option("--image", &folder.join("image.toml"));
    option("--vsock", &folder.join("enclave.sock"));
    option("--console", &folder.join("console.log"));
    if debug {
        arguments.push("--debug-mode".to_owned());
    }
    Running::start("simulator-hypervisor", &arguments, &[], &folder.join("hypervisor.log"))
}

/// A port of the loopback interface that is free now.
fn free_port() -> io::Result<SocketAddr> {
    std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}

/// The status that a GET of this URL is answered with.
pub async fn status(url: &str) -> Option<u16> {
    use http_body_util::Empty;
    use hyper_util::client::legacy::Client as Http;
    let http = Http::builder(hyper_util::rt::TokioExecutor::new()).build_http::<Empty<bytes::Bytes>>();
    let answer = http.get(url.parse().ok()?);
    tokio::time::timeout(Duration::from_secs(5), answer).await.ok()?.ok().map(|answer| answer.status().as_u16())
}
