//! What the tests are made of: tools, kernel, program and image. Each is built by its own script, which returns at once when it
//! has nothing to do.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tests::programs;

/// Where everything lies.
pub(crate) struct Parts {
    pub(crate) qemu: PathBuf,
    pub(crate) firmware: PathBuf,
    pub(crate) vhost_device_vsock: PathBuf,
    pub(crate) kernel: PathBuf,
    /// The enclave's program, the very file that is in the shipped image.
    pub(crate) program: PathBuf,
    /// The image that `make eif` has written.
    pub(crate) shipped: PathBuf,
    /// The program that writes images.
    pub(crate) writer: PathBuf,
}

impl Parts {
    /// Finds or builds them.
    pub(crate) fn gather() -> io::Result<Parts> {
        let tools = script("tests/qemu/tools.sh")?;
        let tool = |name: &str| {
            let line = tools.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.map(PathBuf::from)
                .ok_or_else(|| io::Error::other(format!("tests/qemu/tools.sh did not print {name}=")))
        };
        let shipped = programs::project().join("target/eif/subrosa.eif");
        if !shipped.is_file() {
            return Err(io::Error::other(format!("{} is missing: run `make eif`", shipped.display())));
        }
        Ok(Parts {
            qemu: tool("QEMU")?,
            firmware: tool("FIRMWARE")?,
            vhost_device_vsock: tool("VHOST_DEVICE_VSOCK")?,
            kernel: script("enclave/image/kernel/build.sh")?.trim().into(),
            program: script("enclave/image/program.sh")?.trim().into(),
            shipped,
            writer: programs::path("subrosa-image")?,
        })
    }
}

/// Runs a script of the project, and returns what it prints on its standard output.
fn script(path: &str) -> io::Result<String> {
    output(Command::new("bash").arg(programs::project().join(path)).stderr(Stdio::inherit()))
}

/// What a command prints, if it succeeds.
pub(crate) fn output(command: &mut Command) -> io::Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return String::from_utf8(output.stdout).map_err(io::Error::other);
    }
    let why = [output.stdout, output.stderr].concat();
    Err(io::Error::other(format!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&why))))
}

/// Compiles a program of the guest, without any library that the image would need.
pub(crate) fn compile(source: &Path, into: &Path) -> io::Result<()> {
    let arguments = [OsStr::new("-O2"), "-Wall".as_ref(), "-Werror".as_ref(), "-static".as_ref(), "-o".as_ref()];
    output(Command::new("cc").args(arguments).arg(into).arg(source)).map(drop)
}
