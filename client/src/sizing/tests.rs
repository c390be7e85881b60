use proptest::prelude::*;

use super::*;

fn demonstration() -> Plan {
    let file = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/demo-model/subrosa-intake.gguf")).unwrap();
    Plan::from_header(&file).unwrap()
}

fn load() -> Load {
    let plan = demonstration();
    Load { plan, sequences: 4, context: plan.context_length, cpus: 2, image: ImageSize::ASSUMED }
}

#[test]
fn the_demonstration_model_fits_a_small_enclave() {
    let load = load();
    let memory = load.memory_mib();
    assert!((128..=1024).contains(&memory), "{memory} MiB");
    assert_eq!(memory % 2, 0);
    assert_eq!(load.parts().keys_and_values, 4 * (load.plan.kv_bytes_per_token * load.context) as u64);
    assert_eq!(load.parts().weights, (load.plan.weights_bytes + load.plan.vocabulary_bytes) as u64);
    assert!(load.parts().loading > load.plan.file_bytes as u64);
}

#[test]
fn keys_and_values_are_at_most_half_of_what_the_weights_leave() {
    // As the enclave decides it: half of what is available.
    let load = Load { sequences: 64, ..load() };
    let Parts { image, program, weights, keys_and_values, .. } = load.parts();
    let available = load.moments().serving - image - program - weights - KERNEL;
    let available = available - load.moments().serving / KERNEL_SHARE;
    assert!(available / 2 >= keys_and_values, "{available} / 2 < {keys_and_values}");
    assert_eq!(load.moments().decisive(), "serving");
}

#[test]
fn an_image_that_is_large_decides_alone() {
    let load = Load { image: ImageSize::of_compressed(1 << 30), ..load() };
    assert_eq!(load.moments().rule, 4 << 30);
    assert!(load.moments().booting > 6 << 30, "a gigabyte of gzip is several unpacked");
    assert_eq!(load.moments().decisive(), "booting");
    let raw = [b"070701".as_slice(), &[0; 94]].concat();
    let ramdisks = [[raw.as_slice(), &[0; 1 << 20]].concat()];
    let size = ImageSize::of(2 << 20, &ramdisks.iter().map(Vec::as_slice).collect::<Vec<_>>());
    assert_eq!(size.unpacked, size.ramdisks, "what is not compressed does not grow");
    assert_eq!(rule_mib(2 << 20), 8);
    assert_eq!(rule_mib((2 << 20) + 1), 9);
}

#[test]
fn memory_is_given_in_whole_pages() {
    assert_eq!(in_pages(1), 2);
    assert_eq!(in_pages((64 << 20) + 1), 66);
    assert_eq!(in_pages(4 << 30), 4096);
    assert_eq!(in_pages((4 << 30) + 1), 5 * 1024);
}

#[test]
fn what_never_fits_has_no_context() {
    assert_eq!(load().longest_context(32), None);
    assert_eq!(load().most_sequences(32), None);
    assert_eq!(load().longest_context(1 << 20), Some(load().plan.context_length));
}

#[test]
fn the_allocators_file_is_what_its_reader_takes() {
    assert_eq!(allocator_yaml(6144, 2), "---\nmemory_mib: 6144\ncpu_count: 2\n");
}

proptest! {
    #[test]
    fn the_longest_context_fits_and_the_next_does_not(memory in 100_u64..4096, sequences in 1_usize..64) {
        let load = Load { sequences, ..load() };
        let needed = |context| Load { context, ..load }.memory_mib();
        if let Some(context) = load.longest_context(memory) {
            prop_assert!(needed(context) <= memory);
            prop_assert!(context == load.plan.context_length || needed(context + 1) > memory);
        } else {
            prop_assert!(needed(1) > memory);
        }
    }

    #[test]
    fn more_work_never_needs_less(context in 1_usize..1024, sequences in 1_usize..255, cpus in 1_usize..64) {
        let less = Load { sequences, context, cpus, ..load() };
        let more = [
            Load { sequences: sequences + 1, ..less },
            Load { context: context + 1, ..less },
            Load { cpus: cpus + 1, ..less },
        ];
        prop_assert!(more.iter().all(|more| more.memory_mib() >= less.memory_mib()));
    }

    #[test]
    fn no_header_makes_the_sums_overflow(kv in any::<usize>(), weights in any::<usize>(), file in any::<usize>()) {
        let plan = Plan { kv_bytes_per_token: kv, weights_bytes: weights, file_bytes: file, ..demonstration() };
        let image = ImageSize::of_compressed(u64::MAX);
        let load = Load { plan, sequences: MAX_SEQUENCES, context: usize::MAX, cpus: usize::MAX, image };
        prop_assert!(load.memory_mib() > 0);
        prop_assert!(load.longest_context(1).is_none());
    }
}
