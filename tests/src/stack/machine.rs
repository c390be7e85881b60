//! What can run an enclave in place of the simulated hypervisor.

use std::io;
use std::path::Path;

use super::Measured;
use crate::programs::Running;

/// Runs an enclave. Everything lies in the stack's folder.
pub trait Machine: Send + Sync {
    /// The measurements that keys are for. The image's configuration is `image.toml`.
    ///
    /// # Errors
    /// When there is no image.
    fn measure(&self, folder: &Path) -> io::Result<Measured>;

    /// Starts the enclave, with its hybrid vsock at `enclave.sock` and its console in `console.log`: the hypervisor's
    /// process, and those that it needs beside it.
    ///
    /// # Errors
    /// When something cannot be started.
    fn start(&self, folder: &Path) -> io::Result<(Running, Vec<Running>)>;
}
