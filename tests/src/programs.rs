//! The programs of this project, as they were built, and how to start and stop them.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Where a program of this workspace lies: beside the running one, or one folder up (tests run in `deps`).
///
/// # Errors
/// When it was not built.
pub fn path(name: &str) -> io::Result<PathBuf> {
    let here = std::env::current_exe()?;
    let folders = here.ancestors().skip(1).take(2);
    folders
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{name} is not built: run `make build`")))
}

/// The root of the project's checkout.
pub fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A program that runs in the background, with its output in a file; it is killed when this is dropped.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts `program` with nothing in its environment but what `environment` names.
    ///
    /// # Errors
    /// When it is not built or cannot be started.
    pub fn start<A: AsRef<OsStr>>(
        program: &str,
        arguments: &[A],
        environment: &[(&str, &str)],
        log: &Path,
    ) -> io::Result<Running> {
        let output = File::options().create(true).append(true).open(log)?;
        let child = Command::new(path(program)?)
            .args(arguments)
            .env_clear()
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true)
            .spawn()?;
        Ok(Running { child, log: log.to_owned() })
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub async fn ended(&mut self, limit: Duration) -> io::Result<std::process::ExitStatus> {
        timeout(limit, self.child.wait())
            .await
            .map_err(|_| io::Error::other(format!("still running after {limit:?}:\n{}", self.output())))?
    }

    /// Asks it to end (SIGTERM) and waits for it.
    ///
    /// # Errors
    /// As [`Self::ended`].
    pub async fn stop(&mut self, limit: Duration) -> io::Result<std::process::ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.ended(limit).await
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok()).ok_or_else(|| io::Error::other("it has ended"))?;
        kill(Pid::from_raw(pid), signal).map_err(io::Error::from)
    }
}

/// Polls `ready` until it is, or `limit` has passed.
///
/// # Errors
/// With `what` and `detail()` when it never is.
pub async fn until<F: Future<Output = bool>>(
    what: &str,
    limit: Duration,
    mut ready: impl FnMut() -> F,
    detail: impl Fn() -> String,
) -> io::Result<()> {
    let waiting = async {
        while !ready().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(limit, waiting).await.map_err(|_| io::Error::other(format!("{what}: not within {limit:?}\n{}", detail())))
}
