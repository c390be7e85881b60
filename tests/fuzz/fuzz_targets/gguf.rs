//! A model's file: read or refused, and what is loaded can be computed with.
#![no_main]

use inference::{LoadOptions, Model, Plan};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let plan = Plan::from_header(data);
    if let Ok(plan) = &plan {
        // What a plan adds up is a stranger's numbers.
        assert!(plan.activations.bytes(256, plan.context_length, 64) > 0);
    }
    let loaded = Model::load(data, &LoadOptions { threads: 1 });
    if let Ok(model) = loaded {
        assert!(plan.is_ok());
        if let Ok(prompt) = model.prompt_of_tokens(&[0]) {
            let _ = model.logits(&prompt);
        }
    }
});
