//! The module over a socket: a length of four bytes, big-endian, and the CBOR that the device takes and gives.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use attestation::UnixMillis;
use attestation::nsm::{
    Exchange, MAX_REQUEST, MAX_RESPONSE, NsmError, wire_decode_request, wire_decode_response, wire_encode_request,
    wire_encode_response,
};
use aws_nitro_enclaves_nsm_api::api::{ErrorCode, Request, Response};

use super::Module;

/// Answers requests until the other end closes. `now` is asked for each request.
pub fn serve(mut socket: UnixStream, module: &mut Module, now: impl Fn() -> UnixMillis) -> io::Result<()> {
    loop {
        let request = match read_frame(&mut socket, MAX_REQUEST) {
            Ok(request) => request,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let response = match wire_decode_request(&request) {
            Ok(request) => module.handle(request, now()),
            Err(_) => Response::Error(ErrorCode::InvalidArgument),
        };
        let response = wire_encode_response(&response).map_err(io::Error::other)?;
        write_frame(&mut socket, &response)?;
    }
}

/// The enclave's end: a module like the device's, for `attestation::nsm`.
#[derive(Debug)]
pub struct Client {
    // One request at a time, as the device's driver does it.
    socket: Mutex<UnixStream>,
}

impl Client {
    /// A client over the socket that the hypervisor gave this program as its standard input.
    pub fn on_standard_input() -> io::Result<Self> {
        Ok(Self::new(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?)))
    }

    /// A client over a socket.
    #[must_use]
    pub fn new(socket: UnixStream) -> Self {
        Self { socket: Mutex::new(socket) }
    }
}

impl Exchange for Client {
    fn exchange(&self, request: Request) -> Result<Response, NsmError> {
        let request = wire_encode_request(&request)?;
        // The device's driver: a larger request is EMSGSIZE, which the library reports so.
        if request.len() > MAX_REQUEST {
            return Ok(Response::Error(ErrorCode::InputTooLarge));
        }
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.set_read_timeout(Some(DRIVER_TIMEOUT))?;
        let response = write_frame(&mut socket, &request).and_then(|()| read_frame(&mut socket, MAX_RESPONSE));
        if response.is_err() {
            // A late response must not answer the next request.
            socket.shutdown(Shutdown::Both)?;
        }
        wire_decode_response(&response?)
    }
}

fn write_frame(socket: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    socket.write_all(&[&length.to_be_bytes()[..], bytes].concat())
}

fn read_frame(socket: &mut UnixStream, max: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {length} bytes, at most {max} are allowed"),
        ));
    }
    let mut bytes = vec![0; length];
    socket.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The Linux driver gives up after two minutes.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(120);
