//! The other side: what a program finds when the simulated hypervisor starts it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;
use std::process;
use std::thread;

use crate::nsm::Client;

/// The surroundings of a simulated enclave, taken from its arguments and descriptors.
#[derive(Debug)]
pub struct Inside {
    /// The file of the image.
    pub image_configuration: Vec<u8>,
    /// The hybrid socket on which the enclave plays the monitor.
    pub vsock: PathBuf,
    /// Its NSM.
    pub nsm: Client,
}

impl Inside {
    /// Reads the surroundings. From here on the program ends when its hypervisor does.
    pub fn enter(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, InsideError> {
        let (mut image, mut power, mut vsock) = (None, None, None);
        let mut arguments = arguments.into_iter().skip(1);
        while let Some(name) = arguments.next() {
            let slot = match name.to_str() {
                Some("--image-fd") => &mut image,
                Some("--power-fd") => &mut power,
                Some("--vsock") => &mut vsock,
                _ => return Err(InsideError::Arguments),
            };
            *slot = Some(arguments.next().ok_or(InsideError::Arguments)?);
        }
        let (Some(image), Some(power), Some(vsock)) = (image, power, vsock) else {
            return Err(InsideError::Arguments);
        };
        end_with(File::open(descriptor(&power)?)?)?;
        Ok(Self {
            image_configuration: fs::read(descriptor(&image)?)?,
            vsock: vsock.into(),
            nsm: Client::on_standard_input()?,
        })
    }
}

/// Ends this program when the other end of the power line closes.
fn end_with(mut power: File) -> io::Result<()> {
    thread::Builder::new().name("power".to_owned()).spawn(move || {
        // Nothing is ever written there, so this returns at the end only.
        let _ = power.read(&mut [0]);
        process::exit(POWER_LOST);
    })?;
    Ok(())
}

fn descriptor(number: &OsString) -> Result<PathBuf, InsideError> {
    let number: u32 = number.to_str().and_then(|text| text.parse().ok()).ok_or(InsideError::Arguments)?;
    Ok(PathBuf::from(format!("/proc/self/fd/{number}")))
}

/// Why this is not the inside of a simulated enclave.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InsideError {
    /// Not the arguments that the hypervisor gives.
    #[error("not started by the simulated hypervisor: expected --image-fd N --power-fd N --vsock PATH")]
    Arguments,
    /// The descriptors are not there.
    #[error("not started by the simulated hypervisor: {0}")]
    Descriptors(#[from] io::Error),
}

const POWER_LOST: i32 = 137;
