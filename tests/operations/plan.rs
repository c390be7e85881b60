//! `subrosa plan` against an enclave that really runs: the enclave's own library in the simulated hypervisor.

use std::fs::File;
use std::io::BufWriter;

use candle_core::quantized::GgmlDType;
use subrosa_client::sizing::{ImageSize, Load, model};
use tests::stack::{Options, Stack};

use crate::making::{Shape, random_model};

/// Bytes: `VmRSS` or `VmHWM` of proc(5).
fn resident(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).expect("proc(5) has it");
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_enclave_holds_no_more_than_was_planned() {
    let options = Options::new().unwrap();
    let plan = model::plan(&options.model).unwrap();
    let stack = Stack::start(options).await.unwrap();
    let pid = stack.enclave_pid().unwrap();
    let load = Load { plan, sequences: 4, context: plan.context_length, cpus: 2, image: ImageSize::ASSUMED };
    let parts = load.parts();

    // A process does not hold kernel and image; the code that it maps from the image is part of its resident memory.
    let loading = resident(pid, "VmHWM");
    let planned = parts.program + parts.weights + parts.loading;
    println!("loading: {loading}, planned {planned}");
    assert!(loading <= planned, "{loading} bytes at the peak of loading, planned were {planned}");

    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..load.sequences {
        let client = stack.client().build().unwrap();
        asking.spawn(async move {
            let mut request = subrosa_client::Request::user("Takes metformin 500 mg twice a day. ".repeat(8));
            request.max_tokens = Some(200);
            let mut answer = client.ask(request).await.unwrap();
            while answer.next().await.is_some_and(|piece| piece.is_ok()) {}
        });
    }
    asking.join_all().await;
    let serving = resident(pid, "VmHWM");
    let planned = parts.program + parts.weights + parts.keys_and_values + parts.activations + parts.messages;
    println!("serving: {serving}, planned {planned}");
    assert!(serving <= planned, "{serving} bytes at the peak of serving, planned were {planned}");
    // An estimate that is several times too large would send people to instances that they do not need.
    assert!(planned <= 3 * serving, "{planned} bytes planned, {serving} taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pack_passes_through_an_enclave_and_leaves_its_weights_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    let shape = Shape { kind: GgmlDType::Q8_0, width: 1024, layers: 12, feed_forward: 4352, heads: 16, ..Shape::TINY };
    random_model(&shape, 1).write(&mut BufWriter::new(File::create(&file).unwrap())).unwrap();
    let bytes = file.metadata().unwrap().len();
    let mut options = Options::new().unwrap();
    let plan = model::plan(&file).unwrap();
    options.model = file;
    let stack = Stack::start(options).await.unwrap();
    let load = Load { plan, sequences: 1, context: 1, cpus: 2, image: ImageSize::ASSUMED };
    let parts = load.parts();
    let peak = resident(stack.enclave_pid().unwrap(), "VmHWM");
    println!("a file of {bytes}: peak {peak}, of the program {}, of loading {}", parts.program, parts.loading);
    assert!(bytes > 3 * (parts.program + parts.loading), "what is fixed is small beside the file");
    assert!(peak as f64 <= 1.1 * bytes as f64 + (parts.program + parts.loading) as f64);
}
