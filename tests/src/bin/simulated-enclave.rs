//! The enclave program under the simulated hypervisor: the same library as `subrosa-enclave`, with a hybrid socket for
//! vsock, the simulator's module for the device, and the hypervisor's descriptor for the file of the image.

use std::env;
use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use address::{Address, ENCLAVE_PORT};
use enclave::{Dialler, ImageConfiguration, Platform, SystemClock};
use simulator::hypervisor::Inside;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("simulated-enclave: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let Inside { image_configuration, vsock, nsm } = Inside::enter(env::args_os())?;
    let door = Address::Unix { path: vsock, port: ENCLAVE_PORT };
    let platform = Platform {
        dialler: Dialler::at(&door),
        listener: door,
        nsm: Arc::new(nsm),
        clock: Arc::new(SystemClock),
        image: ImageConfiguration::parse(&String::from_utf8(image_configuration)?)?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // An enclave is ended from outside, by its hypervisor: nothing inside asks it to stop.
    Ok(runtime.block_on(enclave::serve(platform, std::future::pending()))?)
}
