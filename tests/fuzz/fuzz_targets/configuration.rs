//! The configuration document: whatever it says, every limit is within what is compiled in.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../../enclave/src/kms/arn.rs"]
mod arn;
#[allow(dead_code)]
#[path = "../../../enclave/src/configuration.rs"]
mod configuration;
mod kms {
    pub(crate) use crate::arn;
}

use configuration::{Configuration, is_model_name};

fuzz_target!(|data: &[u8]| {
    if let Ok(configuration) = Configuration::parse(data) {
        let limits = configuration.limits;
        assert!((1024..=16 << 20).contains(&limits.sealed_request_bytes));
        assert!((1..=256).contains(&limits.concurrent_requests));
        assert!((1..=limits.concurrent_requests).contains(&limits.tenant_concurrent_requests));
        assert!((1..=900).contains(&limits.request_time.as_secs()));
        for (name, model) in &configuration.models {
            assert!(is_model_name(name));
            assert_eq!(model.key_arn.region(), &configuration.region);
        }
        assert!(configuration.region.kms_host().starts_with("kms."));
        assert!(Configuration::parse(&[data, b"x"].concat()).is_err());
    }
});
