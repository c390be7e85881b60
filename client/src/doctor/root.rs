//! The files of a machine, this one's or those of a folder that stands for one.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Where absolute paths begin.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// `/` is this machine.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// Where `path` really lies: below the root if it is absolute, else where it says.
    #[must_use]
    pub fn at(&self, path: &Path) -> PathBuf {
        path.strip_prefix("/").map_or_else(|_| path.to_owned(), |below| self.0.join(below))
    }

    /// A small file of text.
    ///
    /// # Errors
    /// When it cannot be read, is larger than 1 MiB or is not UTF-8.
    pub fn text(&self, path: &str) -> io::Result<String> {
        let mut text = String::new();
        File::open(self.at(Path::new(path)))?.take(MAX_TEXT + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_TEXT {
            return Err(io::Error::other(format!("larger than {MAX_TEXT} bytes")));
        }
        Ok(text)
    }

    /// A whole number in a file of its own, as sysfs has them.
    #[must_use]
    pub fn number(&self, path: &str) -> Option<u64> {
        self.text(path).ok()?.trim().parse().ok()
    }

    /// Whether something is there; a link counts wherever it leads.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.at(Path::new(path))).is_ok()
    }

    /// Whether a character device is there. Below another root than `/` a plain file stands for one.
    #[must_use]
    pub fn has_device(&self, path: &str) -> bool {
        fs::metadata(self.at(Path::new(path)))
            .is_ok_and(|found| found.file_type().is_char_device() || (self.0 != Path::new("/") && found.is_file()))
    }

    /// The names in a folder that begin with `prefix`, in order.
    #[must_use]
    pub fn names(&self, folder: &str, prefix: &str) -> Vec<String> {
        let entries = fs::read_dir(self.at(Path::new(folder))).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
        names.sort();
        names
    }
}

const MAX_TEXT: u64 = 1 << 20;
