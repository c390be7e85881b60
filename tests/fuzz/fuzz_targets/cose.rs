//! The envelope and strict CBOR: one encoding for each value, and what the strict reader takes, others take too.
#![no_main]

use attestation::cbor;
use attestation::cose::{SIGNATURE_LENGTH, Sign1, to_be_signed};
use attestation::nsm::{wire_decode_request, wire_decode_response, wire_encode_request, wire_encode_response};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(message) = Sign1::parse(data) {
        assert_eq!(message.signature().len(), SIGNATURE_LENGTH);
        assert!(data.ends_with(message.signature()));
        assert!(to_be_signed(message.payload()).ends_with(message.payload()));
        assert!(Sign1::parse(&[data, &[0]].concat()).is_err());
    }
    if cbor::check(data, 8).is_ok() {
        assert!(cbor::check(&[data, &[0]].concat(), 8).is_err());
        assert!(cbor::check(&data[..data.len() - 1], 8).is_err());
    }
    if let Ok(request) = wire_decode_request(data) {
        let written = wire_encode_request(&request).unwrap();
        assert!(wire_decode_request(&written).is_ok());
    }
    if let Ok(response) = wire_decode_response(data) {
        let written = wire_encode_response(&response).unwrap();
        assert!(written.len() > attestation::nsm::MAX_RESPONSE || wire_decode_response(&written).is_ok());
    }
});
