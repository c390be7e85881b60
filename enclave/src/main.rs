//! `subrosa-enclave`: the service on Nitro, and the first and only program of its image. It sets the machine up, gives the
//! library vsock, the security module's device and the file of the measured image, and decides nothing else: there is no
//! flag, no variable and no other file.

mod init;

use std::process::ExitCode;
use std::sync::Arc;

use address::{Address, ENCLAVE_PORT};
use attestation::nsm::{Exchange, NsmError};
use aws_nitro_enclaves_nsm_api::api::{Request, Response};
use aws_nitro_enclaves_nsm_api::driver;
use enclave::log::{self, EndReason, Event};
use enclave::{Dialler, ImageConfiguration, Platform, SystemClock};

fn main() -> ExitCode {
    let ended = run();
    init::end();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed) => ExitCode::FAILURE,
    }
}

/// The reason is in the log, as far as the parent may know it.
struct Failed;

fn failed(reason: EndReason) -> Failed {
    log::write(Event::Ended { reason });
    Failed
}

fn run() -> Result<(), Failed> {
    let machine = init::begin().map_err(|_| failed(EndReason::Machine))?;
    let image = std::fs::read_to_string(IMAGE_CONFIGURATION).map_err(|_| failed(EndReason::Image))?;
    let image = ImageConfiguration::parse(&image).map_err(|_| failed(EndReason::Image))?;
    let parent = Address::Vsock { cid: machine.parent_cid, port: ENCLAVE_PORT };
    let platform = Platform {
        dialler: Dialler::at(&parent),
        listener: parent,
        nsm: Arc::new(Device::open().ok_or_else(|| failed(EndReason::Module))?),
        clock: Arc::new(SystemClock),
        image,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|_| failed(EndReason::Internal))?;
    // An enclave is ended from outside, by its hypervisor: nothing inside asks it to stop.
    runtime.block_on(enclave::serve(platform, std::future::pending())).map_err(|_| Failed)
}

/// `/dev/nsm`.
struct Device(i32);

impl Device {
    fn open() -> Option<Self> {
        let descriptor = driver::nsm_init();
        (descriptor >= 0).then_some(Self(descriptor))
    }
}

impl Exchange for Device {
    fn exchange(&self, request: Request) -> Result<Response, NsmError> {
        Ok(driver::nsm_process_request(self.0, request))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        driver::nsm_exit(self.0);
    }
}

/// Inside the measured image.
const IMAGE_CONFIGURATION: &str = "/etc/subrosa/image.toml";
