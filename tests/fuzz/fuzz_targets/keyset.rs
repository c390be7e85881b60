//! Keysets: a keyset has one encoding.
#![no_main]

use attestation::keyset::{Digest, Keyset};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(keyset) = Keyset::parse(data) {
        assert_eq!(keyset.to_cbor(), data);
        assert_eq!(keyset.digest(), Digest::of(data));
    }
});
