use tests::memory;
use tests::search::{Findings, Secrets};

use crate::{NOTE, ask, stack};

#[tokio::test(flavor = "multi_thread")]
async fn the_parent_sees_no_plaintext() {
    let stack = stack().await;
    let answer = ask(&stack).await.unwrap();
    assert!(answer.contains("complaint: chest pain"), "{answer}");
    let model = std::fs::read(tests::programs::project().join("tests/demo-model/subrosa-intake.gguf")).unwrap();
    // The tensors are the last seven eighths of the file.
    let weights = &model[model.len() / 8..];
    let secrets = Secrets::new(&[("prompt", NOTE.as_bytes()), ("answer", answer.as_bytes()), ("weights", weights)]);
    for tap in stack.taps() {
        let runs = tap.recorded();
        assert!(runs.iter().map(Vec::len).sum::<usize>() > 1000, "nothing to search on {}", tap.name());
        for run in runs {
            assert_eq!(secrets.search(&run), Findings::default(), "{}", tap.name());
        }
    }
    let mut findings = Findings::default();
    let searched = memory::visit(stack.parent.pid().unwrap(), |region| findings.merge(secrets.search(region))).unwrap();
    assert!(searched > 1 << 20 && findings.is_empty(), "{findings} in {searched} bytes");
    // What the processes of the parent's side write down.
    for log in [stack.parent.output(), stack.hypervisor.output(), stack.console()] {
        assert_eq!(secrets.search(log.as_bytes()), Findings::default());
    }
    // The control: the same search finds the prompt in the memory of this process, which is the client.
    let mut control = Findings::default();
    let prompt = Secrets::new(&[("prompt", NOTE.as_bytes())]);
    memory::visit(std::process::id(), |region| control.merge(prompt.search(region))).unwrap();
    assert!(control.has("prompt"));
}
