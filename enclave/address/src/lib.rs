//! Addresses of the enclave's door: vsock and hybrid vsock over Unix sockets.
