//! `subrosa-image`: an enclave image file from its parts.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use enclave_image::eif::Parts;
use enclave_image::metadata::{BuildMetadata, Metadata};
use enclave_image::ramdisk::{Contents, ramdisks};
use enclave_image::sign::Signer;

/// Writes enclave image files (EIF) for AWS Nitro Enclaves: the same bytes from the same parts.
#[derive(Parser)]
#[command(version, after_help = HELP)]
struct Command {
    #[command(subcommand)]
    command: What,
}

#[derive(Subcommand)]
enum What {
    /// Builds an image.
    Build(Box<Build>),
}

#[derive(Args)]
struct Build {
    /// The enclave's program, a static ELF file; it becomes /init.
    #[arg(long, value_name = "FILE")]
    program: PathBuf,
    /// The kernel, a bzImage.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The kernel's .config, for the metadata.
    #[arg(long, value_name = "FILE")]
    kernel_config: Option<PathBuf>,
    /// nsm.ko, for a kernel (such as AWS's own) without a built-in driver for the security module.
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,
    /// The image configuration: release number and the TLS roots that KMS must show.
    #[arg(long, value_name = "FILE")]
    image_config: PathBuf,
    /// The kernel's command line.
    #[arg(long, value_name = "TEXT", default_value = CMDLINE)]
    cmdline: String,
    /// The image's name.
    #[arg(long, default_value = "subrosa")]
    name: String,
    /// The image's version.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    version: String,
    /// Something to say about the toolchain, for the metadata. Repeat.
    #[arg(long = "tool", value_name = "NAME=TEXT", value_parser = pair)]
    tools: Vec<(String, String)>,
    /// Sign with this private key on P-384 (PEM); the image gets PCR8.
    #[arg(long, value_name = "FILE", requires = "sign_certificate", conflicts_with = "sign_kms_key")]
    sign_key: Option<PathBuf>,
    /// Sign with this key of KMS, under the usual AWS settings.
    #[arg(long, value_name = "ARN", requires = "sign_certificate")]
    sign_kms_key: Option<String>,
    /// The certificate of the signing key (PEM).
    #[arg(long, value_name = "FILE")]
    sign_certificate: Option<PathBuf>,
    /// Where the image goes.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

fn main() -> ExitCode {
    let What::Build(build) = Command::parse().command;
    match build.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            let _ = writeln!(std::io::stderr(), "subrosa-image: {text}");
            ExitCode::FAILURE
        }
    }
}

impl Build {
    fn run(self) -> Result<(), String> {
        let program = read(&self.program)?;
        check_program(&program).map_err(|reason| format!("{}: {reason}", self.program.display()))?;
        let kernel = read(&self.kernel)?;
        check_kernel(&kernel).map_err(|reason| format!("{}: {reason}", self.kernel.display()))?;
        let module = self.module.as_deref().map(read).transpose()?;
        let image_configuration = read(&self.image_config)?;
        let kernel_config = self.kernel_config.as_deref().map(read).transpose()?;
        let kernel_config = kernel_config.as_deref().map(String::from_utf8_lossy);

        let contents =
            Contents { program: &program, nsm_module: module.as_deref(), image_configuration: &image_configuration };
        let ramdisks = ramdisks(&contents).map_err(|error| error.to_string())?;
        let metadata = Metadata {
            image_name: &self.name,
            image_version: &self.version,
            build_metadata: BuildMetadata::of_kernel(kernel_config.as_deref()),
            docker_info: serde_json::json!({}),
            custom_metadata: self.tools.iter().cloned().collect(),
        };
        let metadata = serde_json::to_vec(&metadata).map_err(|error| error.to_string())?;
        let parts = Parts { kernel: &kernel, cmdline: &self.cmdline, metadata: &metadata, ramdisks: &ramdisks };
        let signature = self.signer()?.map(|signer| signer.sign(&parts.pcr0())).transpose();
        let signature = signature.map_err(|error| error.to_string())?;
        let image = parts.write(signature.as_deref()).map_err(|error| error.to_string())?;
        write_whole(&self.output, &image)
    }

    fn signer(&self) -> Result<Option<Signer>, String> {
        let Some(certificate) = &self.sign_certificate else { return Ok(None) };
        let certificate = read(certificate)?;
        let signer = match (&self.sign_key, &self.sign_kms_key) {
            (Some(key), _) => Signer::of_file(&read(key)?, certificate),
            (None, Some(arn)) => Signer::of_kms(arn.clone(), certificate),
            (None, None) => return Err("--sign-certificate needs --sign-key or --sign-kms-key".to_owned()),
        };
        signer.map(Some).map_err(|error| error.to_string())
    }
}

/// An image with a program that needs a loader would boot, and end at once.
fn check_program(program: &[u8]) -> Result<(), &'static str> {
    if !program.starts_with(b"\x7fELF") {
        return Err("not an ELF program");
    }
    // The path of the loader stands near the start, in the segment PT_INTERP.
    let start = program.get(..4096).unwrap_or(program);
    if start.windows(4).any(|bytes| bytes == b"/ld-") {
        return Err(
            "the program is linked dynamically; an enclave has no loader. Build it with enclave/image/program.sh",
        );
    }
    Ok(())
}

/// Linux, Documentation/arch/x86/boot.rst: "HdrS" at offset 0x202.
fn check_kernel(kernel: &[u8]) -> Result<(), &'static str> {
    let is_bz_image = kernel.get(0x202..0x206) == Some(b"HdrS");
    if is_bz_image { Ok(()) } else { Err("not a bzImage") }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

/// The whole file or none.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let wrong = |error: std::io::Error| format!("{} cannot be written: {error}", path.display());
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(wrong)?;
    file.write_all(bytes).map_err(wrong)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode).map_err(wrong)?;
    file.persist(path).map_err(|error| wrong(error.error))?;
    Ok(())
}

fn pair(text: &str) -> Result<(String, String), &'static str> {
    text.split_once('=').map(|(name, text)| (name.to_owned(), text.to_owned())).ok_or("write NAME=TEXT")
}

/// AWS's own, but for a panic that ends at once, and `rootfstype=ramfs`: a tmpfs holds half of the memory and drops what
/// does not fit without a word. `random.trust_cpu` lets the first random bytes come before the security module is asked.
const CMDLINE: &str = "reboot=k panic=1 pci=off nomodules console=ttyS0 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd \
                       random.trust_cpu=on rootfstype=ramfs";

const HELP: &str = "\
Example:
  subrosa-image build --program target/.../subrosa-enclave --kernel bzImage --kernel-config bzImage.config \\
      --image-config enclave/image/image.toml --output subrosa.eif
  subrosa measure subrosa.eif

`make eif` does all of it.";
