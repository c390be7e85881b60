//! Where results go: standard output, or a file that appears under its name only when it is whole.

use std::fs::{self, File, Permissions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tempfile::NamedTempFile;

use super::exit::{Exit, Failure};

/// A destination that is written once, from begin to end.
pub(crate) enum Output {
    Stdout(io::Stdout),
    File { file: NamedTempFile, path: PathBuf },
}

impl Output {
    /// Standard output without `path`; else a temporary file in the folder of `path`, readable by others only if `public`.
    pub(crate) fn create(path: Option<&Path>, public: bool) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(Self::Stdout(io::stdout())) };
        let wrong = |what: &dyn std::fmt::Display| Failure::new(Exit::Other, format!("-o {}: {what}", path.display()));
        if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
            return Err(wrong(&"there is something that is no file; write to standard output instead"));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::Builder::new()
            .prefix(".subrosa-")
            .suffix(".incomplete")
            .permissions(Permissions::from_mode(if public { 0o666 } else { 0o600 }))
            .tempfile_in(folder)
            .map_err(|error| wrong(&error))?;
        if let Ok(mut paths) = UNFINISHED.lock() {
            paths.push(file.path().to_owned());
        }
        Ok(Self::File { file, path: path.to_owned() })
    }

    /// A line of text.
    pub(crate) fn write_line(&mut self, line: &str) -> Result<(), Failure> {
        writeln!(self, "{line}")
            .map_err(|error| Failure::new(Exit::Other, format!("the output cannot be written: {error}")))
    }

    /// Gives the whole file its name: content to the disk first, then the name, then the folder.
    pub(crate) fn commit(self) -> Result<(), Failure> {
        match self {
            Self::Stdout(mut out) => {
                out.flush().map_err(|error| Failure::new(Exit::Other, format!("standard output: {error}")))
            }
            Self::File { file, path } => {
                let wrong = |error: io::Error| Failure::new(Exit::Other, format!("-o {}: {error}", path.display()));
                file.as_file().sync_all().map_err(wrong)?;
                let folder = file.path().parent().map(Path::to_owned);
                file.persist(&path).map_err(|error| wrong(error.error))?;
                folder.map_or(Ok(()), |folder| File::open(folder)?.sync_all()).map_err(wrong)
            }
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(out) => out.write(bytes),
            Self::File { file, .. } => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.flush(),
            Self::File { file, .. } => file.flush(),
        }
    }
}

/// Removes every temporary file of this process that has no name yet: for an interruption, in which no destructor runs.
pub(crate) fn remove_unfinished() {
    let unfinished = UNFINISHED.lock().map(|mut paths| std::mem::take(&mut *paths)).unwrap_or_default();
    for path in unfinished {
        // It may have got its name, or be gone, in the meantime.
        let _ = fs::remove_file(path);
    }
}

/// The temporary files that were made. Their names are random and never used again.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A progress bar on standard error, if that is a terminal; of unknown length without `total`.
pub(crate) fn progress(total: Option<u64>, what: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {eta}"),
        None => (ProgressBar::new_spinner(), "{msg} {spinner} {binary_bytes} {binary_bytes_per_sec}"),
    };
    bar.enable_steady_tick(Duration::from_millis(200));
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_message(what)
}

/// A line on standard output.
pub(crate) fn print(line: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|error| Failure::new(Exit::Other, format!("standard output: {error}")))
}

/// A line on standard error. Nothing can be done when that is closed.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
