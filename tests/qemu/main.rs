//! The image that ships, booted: QEMU's `nitro-enclave` machine runs it under TCG, the parent that ships stands before it over
//! hybrid vsock, and the simulated KMS holds the keys.
//!
//! QEMU measures as the hardware does and cannot sign, so a notary signs for it: one in the simulated KMS, one between client
//! and parent. Both are part of these tests alone. Nothing here says anything about AWS's hardware: its signatures, its
//! limits and its speed are not emulated.
//!
//! `make test-qemu` builds what is needed and runs this.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "tests stop at the first thing that is wrong, and print what they measure"
)]

mod console;
mod failing;
mod image;
mod machine;
#[path = "../../enclave/inference/tests/making/mod.rs"]
mod making;
mod notary_relay;
mod parts;
mod serving;
mod transfers;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

use parts::Parts;
use serving::Serving;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One machine at a time, and in this order: the first ones share a machine.
    arguments.test_threads = Some(1);
    let shared = Arc::new(Shared::default());
    let on_shared = |name: &str, test: fn(&mut Serving, &Runtime) -> Outcome| {
        let shared = shared.clone();
        Trial::test(name, move || shared.run(test))
    };
    let alone = |name: &str, test: fn(&Arc<Parts>, &Runtime) -> Outcome| {
        let shared = shared.clone();
        Trial::test(name, move || {
            let parts = shared.parts()?;
            // Two machines at once would only slow each other down.
            shared.end();
            test(&parts, &runtime()?)
        })
    };
    let trials = vec![
        on_shared("the_shipped_program_boots_and_answers_a_sealed_prompt", serving::answers),
        on_shared("documents_state_the_registers_that_the_image_measures_to", serving::registers),
        on_shared("the_test_image_is_the_shipped_one_but_for_its_configuration", serving::same_program),
        on_shared("an_unsigned_document_is_refused_by_the_verifier_that_ships", serving::unsigned),
        on_shared("a_parent_that_was_killed_may_be_started_again", serving::parent_restart),
        on_shared("a_machine_that_is_gone_is_told_as_enclave_unavailable", serving::machine_gone),
        alone("an_answer_of_more_than_a_mebibyte_comes_whole", transfers::long_answer),
        alone("a_model_pack_of_32_mebibytes_is_loaded_over_vsock", transfers::throughput),
        alone("one_changed_byte_in_a_ramdisk_gives_another_pcr0_and_no_key", failing::changed_byte),
        alone("the_shipped_image_refuses_the_certificate_of_the_simulated_kms", failing::shipped),
        alone("a_model_that_does_not_fit_in_memory_ends_the_enclave_and_says_so", failing::no_room),
        alone("a_kernel_panic_ends_the_machine", failing::panic),
    ];
    let conclusion = libtest_mimic::run(&arguments, trials);
    shared.end();
    conclusion.exit_code()
}

type Outcome = Result<(), Failed>;

fn runtime() -> Result<Runtime, Failed> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// What tests share: the parts, and one machine that serves.
#[derive(Default)]
struct Shared {
    parts: OnceLock<Result<Arc<Parts>, String>>,
    serving: Mutex<Option<(Serving, Runtime)>>,
}

impl Shared {
    fn parts(&self) -> Result<Arc<Parts>, Failed> {
        let gather = || Parts::gather().map(Arc::new).map_err(|error| error.to_string());
        Ok(self.parts.get_or_init(gather).clone()?)
    }

    fn run(&self, test: fn(&mut Serving, &Runtime) -> Outcome) -> Outcome {
        let mut serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        let (serving, runtime) = match &mut *serving {
            Some(running) => running,
            none => {
                let runtime = runtime()?;
                let started = runtime.block_on(Serving::start(&self.parts()?))?;
                none.insert((started, runtime))
            }
        };
        test(serving, runtime)
    }

    /// Ends the shared machine.
    fn end(&self) {
        let ended = self.serving.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((serving, runtime)) = ended {
            // Processes and sockets of tokio want their runtime when they are dropped.
            let _inside = runtime.enter();
            drop(serving);
        }
    }
}
