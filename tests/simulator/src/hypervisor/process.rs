//! One enclave's process: started from memory with nothing of ours but five file descriptors.

use std::ffi::{CString, NulError};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

/// What a new enclave gets.
pub(super) struct Parts {
    pub(super) program: OwnedFd,
    pub(super) nsm: OwnedFd,
    pub(super) configuration: OwnedFd,
    pub(super) power: OwnedFd,
    pub(super) console: OwnedFd,
    pub(super) vsock: PathBuf,
}

/// Starts the program. Every other descriptor of this process closes on the way.
pub(super) fn spawn(parts: &Parts) -> io::Result<Process> {
    let Parts { program, nsm, configuration, power, console, vsock } = parts;
    // High numbers, so that no source is overwritten by a target before its turn.
    let sources = [nsm, console, console, configuration, power].map(high);
    let mut actions = PosixSpawnFileActions::init()?;
    let mut held = Vec::new();
    for (source, target) in sources.into_iter().zip([STDIN, STDOUT, STDERR, IMAGE_FD, POWER_FD]) {
        let source = source?;
        actions.add_dup2(source.as_raw_fd(), target)?;
        held.push(source);
    }
    for stray in inheritable()? {
        actions.add_close(stray)?;
    }
    let program = high(program)?;
    let path = CString::new(format!("/proc/self/fd/{}", program.as_raw_fd())).map_err(invalid)?;
    let arguments = [
        c"enclave".to_owned(),
        c"--image-fd".to_owned(),
        CString::new(IMAGE_FD.to_string()).map_err(invalid)?,
        c"--power-fd".to_owned(),
        CString::new(POWER_FD.to_string()).map_err(invalid)?,
        c"--vsock".to_owned(),
        CString::new(vsock.as_os_str().as_bytes()).map_err(invalid)?,
    ];
    let mut attributes = PosixSpawnAttr::init()?;
    // Signals as a fresh machine has them, whatever this process blocks.
    attributes.set_flags(PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK)?;
    attributes.set_sigmask(&SigSet::empty())?;
    let environment: [CString; 0] = [];
    let pid = posix_spawn(path.as_c_str(), &actions, &attributes, &arguments, &environment)?;
    Ok(Process { pid, ended: Arc::new(Mutex::new(None)) })
}

fn high(fd: &OwnedFd) -> io::Result<OwnedFd> {
    // Each clone closes on exec; low numbers are held until one is high enough.
    let mut low = Vec::new();
    loop {
        let clone = fd.try_clone()?;
        if clone.as_raw_fd() > POWER_FD {
            return Ok(clone);
        }
        low.push(clone);
    }
}

/// Descriptors that this process got from its own parent and that would go on to the enclave. (All that it opened itself
/// close on exec.)
fn inheritable() -> io::Result<Vec<RawFd>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        // proc(5): "flags: ... the file access mode and file status flags", octal, with the close-on-exec flag.
        let flags = fs::read_to_string(entry.path()).unwrap_or_default();
        let flags = flags.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
        if let (Some(number), Some(flags)) = (number, flags)
            && number > POWER_FD
            && !OFlag::from_bits_retain(flags).contains(OFlag::O_CLOEXEC)
        {
            found.push(number);
        }
    }
    Ok(found)
}

fn invalid(error: NulError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

/// A process that can be waited for and killed from several threads; its id is not reused under them.
#[derive(Clone, Debug)]
pub struct Process {
    pid: Pid,
    ended: Arc<Mutex<Option<ExitStatus>>>,
}

impl Process {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        u32::try_from(self.pid.as_raw()).unwrap_or_default()
    }

    /// Kills it, unless it has ended.
    pub fn kill(&self) -> io::Result<()> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        // Until it is reaped, under the same lock, nobody else gets its id.
        if ended.is_none() { Ok(kill(self.pid, Signal::SIGKILL)?) } else { Ok(()) }
    }

    /// Waits for its end.
    pub fn wait(&self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            // Waits without reaping, so that `kill` never meets a stranger.
            match waitid(Id::Pid(self.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                // ECHILD: another thread reaped it in between.
                Ok(_) | Err(Errno::EINTR | Errno::ECHILD) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// How it ended, if it did.
    pub fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.is_none() {
            *ended = match waitpid(self.pid, Some(WaitPidFlag::WNOHANG))? {
                WaitStatus::Exited(_, code) => Some(ExitStatus::from_raw(code << 8)),
                WaitStatus::Signaled(_, signal, _) => Some(ExitStatus::from_raw(signal as i32)),
                _ => None,
            };
        }
        Ok(*ended)
    }
}

const STDIN: RawFd = 0;
const STDOUT: RawFd = 1;
const STDERR: RawFd = 2;
const IMAGE_FD: RawFd = 3;
const POWER_FD: RawFd = 4;
