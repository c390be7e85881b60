//! Key policies of strangers: read by the strict parser and judged by `exposure`, which must come to a verdict on any text.
#![no_main]

use std::collections::BTreeMap;

use kms_policies::Policy;
use kms_policies::exposure::{Expectation, Grant, assess};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // A policy, and behind a zero byte the grants.
    let (policy, grants) = text.split_once('\0').unwrap_or((text, ""));
    let grants = Grant::list(grants).ok();
    let expectation = Expectation {
        images: vec![BTreeMap::from([(0, [0xaa; 48])])],
        enclave_roles: vec!["arn:aws:iam::444455556666:role/Enclave".into()],
        ..Expectation::default()
    };
    let found = assess(policy, grants.as_deref(), &expectation);
    match Policy::parse(policy) {
        // What was written is read back the same, and judged the same.
        Ok(parsed) => {
            let written = parsed.to_json();
            assert_eq!(Policy::parse(&written).map(|again| again.to_json()).ok().as_ref(), Some(&written));
            assert_eq!(assess(&written, grants.as_deref(), &expectation).is_closed(), found.is_closed());
        }
        // What is no JSON is never closed.
        Err(_) if serde_json::from_str::<serde_json::Value>(policy).is_err() => assert!(!found.is_closed()),
        Err(_) => {}
    }
});
