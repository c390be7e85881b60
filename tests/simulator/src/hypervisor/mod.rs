//! The simulated hypervisor: measures an enclave program, starts exactly the measured bytes, and is its NSM.
//!
//! The program gets no environment, its NSM as standard input, its console as standard output and error, and the
//! arguments `--image-fd N --power-fd M --vsock PATH`: the file of the image, a pipe that ends when the hypervisor does,
//! and the hybrid socket on which it plays the monitor. It cannot choose its measurements: they are made from the bytes
//! before the first of them runs.

mod image;
mod inside;
mod process;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use attestation::UnixMillis;

pub use image::{Image, ImageError};
pub use inside::{Inside, InsideError};
pub use process::Process;

use crate::authority::{Authority, AuthorityError};
use crate::nsm::{self, Module, ModuleError, ModuleSettings, Registers};

/// What to start, and as what.
#[derive(Clone, Debug)]
pub struct EnclaveSpec {
    /// The enclave program, an ELF file.
    pub program: PathBuf,
    /// The file that the image holds beside the program.
    pub image_configuration: PathBuf,
    /// The hybrid socket: the enclave listens on PATH and dials `PATH_PORT`.
    pub vsock: PathBuf,
    /// The hypervisor's debug switch: PCR0, PCR1 and PCR2 become zero.
    pub debug: bool,
    /// Of the parent, `i-<17 hex>`.
    pub instance_id: String,
    /// Of the parent's role, if it has one.
    pub role_arn: Option<String>,
    /// Of AWS.
    pub region: String,
    /// Where the enclave's console goes.
    pub console: Console,
    /// How far the NSM's clock is ahead of this machine's, in milliseconds (a fault to test with).
    pub clock_offset_millis: i64,
}

impl EnclaveSpec {
    /// A production-mode enclave with the usual settings.
    pub fn new(
        program: impl Into<PathBuf>,
        image_configuration: impl Into<PathBuf>,
        vsock: impl Into<PathBuf>,
    ) -> Self {
        Self {
            program: program.into(),
            image_configuration: image_configuration.into(),
            vsock: vsock.into(),
            debug: false,
            instance_id: DEFAULT_INSTANCE_ID.to_owned(),
            role_arn: None,
            region: DEFAULT_REGION.to_owned(),
            console: Console::StandardError,
            clock_offset_millis: 0,
        }
    }
}

/// Where what an enclave prints goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Console {
    /// To this program's standard error.
    StandardError,
    /// Appended to a file.
    File(PathBuf),
    /// To [`Enclave::take_console`].
    Pipe,
}

/// A running enclave. Dropping it kills it.
pub struct Enclave {
    process: Process,
    registers: Registers,
    module_id: String,
    console: Option<File>,
    // The enclave ends when this end of its power line closes, however this program ends.
    _power: OwnedFd,
}

impl Enclave {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// PCR0, PCR1 and PCR2 as its documents show them: zero in debug mode.
    #[must_use]
    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    /// The name that its documents carry.
    #[must_use]
    pub fn module_id(&self) -> &str {
        &self.module_id
    }

    /// The reading end of its console, once, if that was asked for.
    pub fn take_console(&mut self) -> Option<File> {
        self.console.take()
    }

    /// A handle that can wait for it and kill it from another thread.
    #[must_use]
    pub fn process(&self) -> Process {
        self.process.clone()
    }

    /// Ends it at once, as `nitro-cli terminate-enclave` does.
    pub fn kill(&self) -> io::Result<()> {
        self.process.kill()
    }

    /// Waits for its end.
    pub fn wait(&self) -> io::Result<ExitStatus> {
        self.process.wait()
    }

    /// How it ended, if it did.
    pub fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        self.process.try_wait()
    }
}

impl Drop for Enclave {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.process.kill().and_then(|()| self.process.wait());
    }
}

/// Starts an enclave.
pub fn start(authority: Arc<Authority>, spec: &EnclaveSpec) -> Result<Enclave, HypervisorError> {
    let EnclaveSpec {
        program,
        image_configuration,
        vsock,
        debug,
        instance_id,
        role_arn,
        region,
        console,
        clock_offset_millis,
    } = spec;
    let image = Image::read(program, image_configuration)?;
    let registers = image.measure(role_arn.clone());
    let settings = ModuleSettings {
        region: region.clone(),
        instance_id: instance_id.clone(),
        registers: registers.clone(),
        debug: *debug,
    };
    let offset = *clock_offset_millis;
    let mut module = Module::new(authority, &settings, now(offset))?;
    let module_id = module.module_id().to_owned();

    let (ours, theirs) = UnixStream::pair()?;
    let (power_out, power_in) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(io::Error::from)?;
    let (console_in, console_out) = open_console(console)?;
    let process = process::spawn(&process::Parts {
        program: image.sealed_program()?,
        nsm: theirs.into(),
        configuration: image.sealed_configuration()?,
        power: power_out,
        console: console_in,
        vsock: vsock.clone(),
    })?;
    let name = format!("nsm of {}", process.pid());
    // It ends when the enclave does: the other end of the socket closes.
    thread::Builder::new().name(name).spawn(move || nsm::serve(ours, &mut module, || now(offset)))?;
    let registers = if *debug {
        Registers { pcr0: [0; 48], pcr1: [0; 48], pcr2: [0; 48], role_arn: registers.role_arn }
    } else {
        registers
    };
    Ok(Enclave { process, registers, module_id, console: console_out, _power: power_in })
}

fn open_console(console: &Console) -> io::Result<(OwnedFd, Option<File>)> {
    match console {
        Console::StandardError => Ok((io::stderr().as_fd().try_clone_to_owned()?, None)),
        Console::File(path) => Ok((OpenOptions::new().create(true).append(true).open(path)?.into(), None)),
        Console::Pipe => {
            let (out, into) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
            Ok((into, Some(File::from(out))))
        }
    }
}

fn now(offset_millis: i64) -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    UnixMillis(millis.saturating_add_signed(offset_millis))
}

/// Why an enclave could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HypervisorError {
    /// The files cannot be read or held.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Its NSM could not be made.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// The authority is not there.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The process could not be started.
    #[error("the enclave could not be started: {0}")]
    Process(#[from] io::Error),
}

/// The parent of simulated enclaves, unless another is named.
pub const DEFAULT_INSTANCE_ID: &str = "i-0123456789abcdef0";
/// The region of simulated enclaves, unless another is named.
pub const DEFAULT_REGION: &str = "us-east-1";
