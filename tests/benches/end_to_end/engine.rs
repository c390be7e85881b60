//! The engine alone, on one thread.

use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use inference::{Cancel, FinishReason, LoadOptions, Message, Model, Role, Sampling};

use crate::{Outcome, Timing};

/// The last CPU that this process may use: the enclave's, and the engine's.
pub(crate) fn cpu() -> Outcome<String> {
    // proc(5): "Cpus_allowed_list: ... list format", such as 0-3,6.
    let status = std::fs::read_to_string("/proc/self/status")?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).ok_or("no list of CPUs")?;
    Ok(list.trim().rsplit(['-', ',']).next().unwrap_or_default().to_owned())
}

pub(crate) struct Engine(Model);

impl Engine {
    pub(crate) fn load(file: &Path) -> Outcome<Self> {
        let file = std::fs::read(file)?;
        let options = LoadOptions { threads: 1 };
        Ok(Self(pinned(|| Model::load(&file, &options))??))
    }

    /// The likeliest answer to one question of a user, timed from its text on, as in the system.
    pub(crate) fn ask(&self, question: &str, most: usize) -> Outcome<Timing> {
        pinned(|| {
            let start = Instant::now();
            let mut first = None;
            let prompt = self.0.prompt(&[Message { role: Role::User, content: question }])?;
            let finished = self.0.generate(&prompt, &Sampling::greedy(), most, &Cancel::new(), &mut |token| {
                if !token.text.is_empty() {
                    first.get_or_insert_with(|| start.elapsed());
                }
                ControlFlow::Continue(())
            })?;
            debug_assert_ne!(finished.reason, FinishReason::Cancelled);
            let total = start.elapsed();
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Timing {
                first: first.ok_or("an answer without text")?,
                total,
                tokens: finished.completion_tokens,
            })
        })?
        .map_err(|error| -> Box<dyn std::error::Error> { error })
    }

    /// A question that makes a prompt of exactly so many tokens.
    pub(crate) fn question_of(&self, tokens: usize) -> Outcome<String> {
        let question = |length: usize| -> String { "0123456789".chars().cycle().take(length).collect() };
        let length_of = |content: &str| {
            let prompt = self.0.prompt(&[Message { role: Role::User, content }]).ok()?;
            Some(self.0.context_length() - self.0.room_after(&prompt))
        };
        let mut candidates = (1..=8 * tokens).map(question);
        candidates.find(|text| length_of(text) == Some(tokens)).ok_or_else(|| "no prompt of that length".into())
    }
}

/// Runs `work` on a thread that stays on the one CPU, as do the threads that it starts.
fn pinned<T: Send>(work: impl FnOnce() -> T + Send) -> Outcome<T> {
    let cpu = cpu()?;
    let on_cpu = || {
        let thread = nix::unistd::gettid().to_string();
        let status =
            Command::new("taskset").args(["-p", "-c", &cpu, &thread]).stdout(std::process::Stdio::null()).status();
        status.is_ok_and(|status| status.success()).then(work)
    };
    let done = std::thread::scope(|scope| scope.spawn(on_cpu).join());
    done.map_err(|_| "the engine's thread panicked")?.ok_or_else(|| "taskset (util-linux) is needed".into())
}
