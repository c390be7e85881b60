//! The envelope of KMS: one reading for each message, within bounds, and nothing after it.
//!
//! The reader's own file is compiled in, because the package around it brings the whole AWS SDK.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../../enclave/src/recipient/envelope.rs"]
mod envelope;

use envelope::Envelope;

fuzz_target!(|data: &[u8]| {
    if let Ok(envelope) = Envelope::parse(data) {
        assert!(!envelope.ciphertext.is_empty() && envelope.ciphertext.len() % 16 == 0);
        assert!(envelope.ciphertext.len() < data.len() && data.len() <= 6144);
        // What was read stands in the message.
        for part in [&envelope.key_identifier[..], &envelope.encrypted_key, &envelope.iv] {
            assert!(data.windows(part.len()).any(|window| window == part));
        }
        assert!(Envelope::parse(&[data, &[0]].concat()).is_err());
        assert!(Envelope::parse(&data[..data.len() - 1]).is_err());
    }
});
