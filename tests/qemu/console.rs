//! The enclave's console, with the moment at which each line was seen.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::programs::until;
use tokio::task::JoinHandle;

/// Follows a console's file from its beginning; ends when dropped.
pub(crate) struct Console {
    lines: Arc<Mutex<Vec<(Instant, String)>>>,
    following: JoinHandle<()>,
}

impl Console {
    /// Follows the file, which need not be there yet.
    pub(crate) fn follow(file: &Path) -> Console {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let following = tokio::spawn(follow(file.to_owned(), lines.clone()));
        Console { lines, following }
    }

    /// Waits for an event of the enclave's log (`enclave/src/log.rs`), and says when it was seen.
    pub(crate) async fn event(&self, name: &str, limit: Duration) -> io::Result<(Instant, Value)> {
        self.event_where(&format!("the event {name}"), limit, |event| event["event"] == name).await
    }

    /// Waits for a phase of boot.
    pub(crate) async fn phase(&self, phase: &str, limit: Duration) -> io::Result<Instant> {
        let what = format!("the phase {phase}");
        let reached = |event: &Value| event["event"] == "boot" && event["phase"] == phase;
        Ok(self.event_where(&what, limit, reached).await?.0)
    }

    /// Waits for the first event that fits.
    pub(crate) async fn event_where(
        &self,
        what: &str,
        limit: Duration,
        fits: impl Fn(&Value) -> bool,
    ) -> io::Result<(Instant, Value)> {
        let find = || {
            let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            lines.iter().find_map(|(at, line)| {
                let event: Value = serde_json::from_str(line).ok()?;
                fits(&event).then_some((*at, event))
            })
        };
        until(what, limit, || async { find().is_some() }, || format!("console:\n{}", self.text())).await?;
        find().ok_or_else(|| io::Error::other("the console forgot a line"))
    }

    /// Waits for a text anywhere, for what the kernel says.
    pub(crate) async fn text_with(&self, text: &str, limit: Duration) -> io::Result<()> {
        until(text, limit, || async { self.text().contains(text) }, || format!("console:\n{}", self.text())).await
    }

    /// Everything so far.
    pub(crate) fn text(&self) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|(_, line)| format!("{line}\n")).collect()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.following.abort();
    }
}

async fn follow(file: PathBuf, lines: Arc<Mutex<Vec<(Instant, String)>>>) {
    let mut known = 0;
    loop {
        // Consoles have a few kilobytes.
        let text = String::from_utf8_lossy(&fs::read(&file).unwrap_or_default()).into_owned();
        let whole: Vec<&str> = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
        for line in whole.iter().skip(known) {
            let line = line.trim_end().to_owned();
            lines.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), line));
        }
        known = known.max(whole.len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
