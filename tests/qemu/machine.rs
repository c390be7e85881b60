//! QEMU's `nitro-enclave` machine as the hypervisor of a stack, with vhost-device-vsock as the other end of its vsock.
//!
//! Under TCG unless told otherwise: a `/dev/kvm` may be there and not be able to run a guest's kernel.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tests::programs::Running;
use tests::stack::{ENCLAVE, Machine, Measured};

use crate::image::{self, Recipe};
use crate::parts::Parts;

/// Which image is booted. Keys are for the test image in every case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Boot {
    /// The test image: kernel, command line and program of the shipped one, the simulated KMS's certificate as its root.
    Test,
    /// The same with one byte of its second ramdisk changed.
    OneByteChanged,
    /// The image that ships, as it stands.
    Shipped,
    /// The test image with another program as its first.
    Program(PathBuf),
}

/// The machine of one stack.
pub(crate) struct Qemu {
    pub(crate) parts: Arc<Parts>,
    pub(crate) boot: Boot,
    pub(crate) mebibytes: u32,
    /// PEM files of a key and a certificate that sign the test image.
    pub(crate) signer: Option<(PathBuf, PathBuf)>,
}

impl Qemu {
    pub(crate) fn new(parts: &Arc<Parts>, boot: Boot) -> Qemu {
        Qemu { parts: parts.clone(), boot, mebibytes: 256, signer: None }
    }
}

impl Machine for Qemu {
    fn measure(&self, folder: &Path) -> io::Result<Measured> {
        let (trusted, booted, configuration) = (folder.join(TRUSTED), folder.join(BOOTED), folder.join("image.toml"));
        let recipe =
            Recipe { program: &self.parts.program, configuration: &configuration, signer: self.signer.clone() };
        recipe.write(&self.parts, &trusted)?;
        match &self.boot {
            Boot::Test => fs::copy(&trusted, booted).map(drop)?,
            Boot::OneByteChanged => image::with_one_byte_changed(&trusted, &booted)?,
            Boot::Shipped => fs::copy(&self.parts.shipped, booted).map(drop)?,
            Boot::Program(program) => Recipe { program, ..recipe }.write(&self.parts, &booted)?,
        }
        // Policies name these three; the others are for the test that reads documents.
        let registers = image::measured(&trusted)?.into_iter().filter(|(index, _)| *index < 3);
        Ok(Measured { pcrs: registers.collect::<BTreeMap<_, _>>() })
    }

    fn start(&self, folder: &Path) -> io::Result<(Running, Vec<Running>)> {
        let at = |name: &str| folder.join(name).display().to_string();
        let vhost = folder.join("vhost.sock");
        let _ = fs::remove_file(&vhost);
        // 28 KiB: what the guest sends is then never in more than one piece, and 0.3.0 takes no other
        // (it drops such a packet and never gives its buffer back, after which the connection hangs).
        let vm = format!(
            "guest-cid={GUEST_CID},socket={},uds-path={},tx-buffer-size=28672",
            vhost.display(),
            at("enclave.sock")
        );
        let device = program(&self.parts.vhost_device_vsock);
        let device = Running::start(&device, &["--vm".to_owned(), vm], &[], &folder.join("vhost-device-vsock.log"))?;
        appears(&vhost)?;

        let machine =
            format!("nitro-enclave,vsock=door,id={MODULE_ID},parent-role={},parent-id={INSTANCE_ID}", ENCLAVE.arn());
        let mut arguments = vec!["-L".to_owned(), self.parts.firmware.display().to_string()];
        let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        option("-M", machine);
        // `kvm`, where that truly runs a guest's kernel.
        option("-accel", std::env::var("SUBROSA_QEMU_ACCEL").unwrap_or_else(|_| "tcg".to_owned()));
        option("-cpu", "max".to_owned());
        option("-m", format!("{}M", self.mebibytes));
        option("-smp", "2".to_owned());
        option("-chardev", format!("socket,id=door,path={}", vhost.display()));
        option("-serial", format!("file:{}", at("console.log")));
        option("-kernel", at(BOOTED));
        // What QEMU appends is not measured. Its parent is CID 2; a reboot ends the machine by a triple fault, as it has no
        // keyboard controller.
        option("-append", "parent_cid=2 reboot=t".to_owned());
        arguments.extend(["-nodefaults", "-no-reboot", "-display", "none", "-monitor", "none"].map(str::to_owned));
        let qemu = Running::start(&program(&self.parts.qemu), &arguments, &[], &folder.join("hypervisor.log"))?;
        Ok((qemu, vec![device]))
    }
}

fn program(path: &Path) -> String {
    path.display().to_string()
}

fn appears(socket: &Path) -> io::Result<()> {
    let start = Instant::now();
    while !socket.exists() {
        if start.elapsed() > Duration::from_secs(10) {
            return Err(io::Error::other("vhost-device-vsock did not open its socket within 10 s"));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The image that keys are for, in the stack's folder.
pub(crate) const TRUSTED: &str = "trusted.eif";
/// The image that is booted.
pub(crate) const BOOTED: &str = "booted.eif";
/// As EC2 writes them.
pub(crate) const INSTANCE_ID: &str = "i-0123456789abcdef0";
pub(crate) const MODULE_ID: &str = "i-0123456789abcdef0-enc0123456789abcdef";
const GUEST_CID: u32 = 4;
