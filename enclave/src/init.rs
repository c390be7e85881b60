//! The first program of an enclave: what a kernel without any other user space needs to be done before the service runs.
//!
//! There is no shell and no second program in the image. When this program ends the enclave ends: [`end`] makes the kernel
//! reboot, which tells the hypervisor that it is over.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use address::PARENT_CID;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use vsock::VsockStream;

/// What stands on the kernel's command line for this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// The CID under which the parent is reached: 3 on Nitro.
    pub(crate) parent_cid: u32,
}

/// Why the machine cannot be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InitError {
    /// It was started by another program.
    #[error("subrosa-enclave is the first program of an enclave image (PID 1), and runs nowhere else")]
    NotFirst,
    /// `/proc`, `/sys` or `/dev`.
    #[error("a file system of the kernel cannot be mounted")]
    Mount,
    /// `nsm.ko` is in the image and does not fit the kernel.
    #[error("the kernel refuses nsm.ko")]
    Module,
    /// `/proc/cmdline`.
    #[error("the kernel's command line cannot be used: parent_cid must be one decimal number of 2 to 4294967294")]
    CommandLine,
}

/// Mounts what the service reads, loads the driver of the security module if the image brings one, and tells the parent's
/// `nitro-cli` that the enclave lives.
pub(crate) fn begin() -> Result<Machine, InitError> {
    if std::process::id() != 1 {
        return Err(InitError::NotFirst);
    }
    for (kind, place, flags) in MOUNTS {
        mount(Some(kind), place, Some(kind), flags, None::<&str>).map_err(|_| InitError::Mount)?;
    }
    if Path::new(MODULE).exists() {
        let module = File::open(MODULE).map_err(|_| InitError::Module)?;
        finit_module(module, c"", ModuleInitFlags::empty()).map_err(|_| InitError::Module)?;
    }
    let line = std::fs::read_to_string("/proc/cmdline").map_err(|_| InitError::CommandLine)?;
    let parent_cid = parent_cid(&line).ok_or(InitError::CommandLine)?;
    // It takes seconds where nobody listens, and nothing waits for it.
    thread::spawn(move || heartbeat(parent_cid));
    Ok(Machine { parent_cid })
}

/// Ends the enclave. Without it the kernel would panic, which ends it too, and later.
pub(crate) fn end() {
    if std::process::id() == 1 {
        let _ = std::io::stdout().flush();
        let _ = reboot(RebootMode::RB_AUTOBOOT);
    }
}

/// `nitro-cli run-enclave` listens on port 9000 for the byte 0xB7 and sends it back; an enclave from which it does not come in
/// time is ended there (aws-nitro-enclaves-cli, `enclave_proc_comm` and the sources of AWS's own init). Whoever else is the
/// parent need not listen, so a failure means nothing here.
fn heartbeat(parent_cid: u32) {
    let Ok(mut stream) = VsockStream::connect_with_cid_port(parent_cid, HEARTBEAT_PORT) else { return };
    let deadline = Some(HEARTBEAT_DEADLINE);
    let _ = stream.set_write_timeout(deadline).and_then(|()| stream.set_read_timeout(deadline));
    let _ = stream.write_all(&[HEARTBEAT]).and_then(|()| stream.read_exact(&mut [0]));
}

/// `parent_cid=N`, at most once. It is the one setting that does not come from the measured image or its configuration: it says
/// where an untrusted party is reached, and a wrong one costs availability alone.
fn parent_cid(command_line: &str) -> Option<u32> {
    let mut found = command_line.split_ascii_whitespace().filter_map(|word| word.strip_prefix("parent_cid="));
    match (found.next(), found.next()) {
        (None, _) => Some(PARENT_CID),
        (Some(text), None) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            // vsock(7): 0 and 1 are the hypervisor and this machine itself, the last number is "any".
            text.parse().ok().filter(|cid| (2..u32::MAX).contains(cid))
        }
        _ => None,
    }
}

const MOUNTS: [(&str, &str, MsFlags); 3] = [
    ("proc", "/proc", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC)),
    ("sysfs", "/sys", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC)),
    ("devtmpfs", "/dev", MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC)),
];
const MODULE: &str = "/nsm.ko";
const HEARTBEAT_PORT: u32 = 9000;
const HEARTBEAT: u8 = 0xb7;
const HEARTBEAT_DEADLINE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_has_cid_3_unless_the_command_line_says_otherwise() {
        assert_eq!(parent_cid("reboot=k console=ttyS0\n"), Some(3));
        assert_eq!(parent_cid("reboot=k parent_cid=2 reboot=t\n"), Some(2));
        for wrong in [
            "parent_cid=",
            "parent_cid=+2",
            "parent_cid=1",
            "parent_cid=4294967295",
            "parent_cid=2 parent_cid=3",
            "parent_cid=x",
        ] {
            assert_eq!(parent_cid(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn nothing_begins_but_as_the_first_program() {
        assert_eq!(begin(), Err(InitError::NotFirst));
    }
}
