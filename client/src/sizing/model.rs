//! The plan of a model's file, read from its header: of a file of many gigabytes, the first megabytes.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use model_header::gguf::GgufError;
use model_header::{Plan, PlanError};

/// Reads so much of the file as its header takes.
///
/// # Errors
/// When it cannot be read, is no model that the engine computes, or is shorter than its header says.
pub fn plan(path: &Path) -> Result<Plan, ModelError> {
    let unreadable = |error| ModelError::Read { path: path.to_owned(), error };
    let refused = |error| ModelError::Header { path: path.to_owned(), error };
    let mut file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(ModelError::NotAFile(path.to_owned()));
    }
    let length = metadata.len();
    let mut head = Vec::new();
    let mut wanted = FIRST_READ;
    loop {
        file.by_ref().take(wanted - head.len() as u64).read_to_end(&mut head).map_err(unreadable)?;
        match Plan::from_header(&head) {
            Ok(plan) if (plan.file_bytes as u64) > length => {
                let announced = plan.file_bytes as u64;
                return Err(ModelError::CutOff { path: path.to_owned(), length, announced });
            }
            Ok(plan) => return Ok(plan),
            Err(error) => {
                let truncated = matches!(error, PlanError::Gguf(GgufError::Truncated { .. }))
                    || matches!(
                        &error,
                        PlanError::Config(model_header::ConfigError::Gguf(GgufError::Truncated { .. }))
                    );
                let whole = (head.len() as u64) < wanted;
                if !truncated || whole || wanted >= MAX_HEADER {
                    return Err(refused(error));
                }
                wanted = (wanted * 8).min(MAX_HEADER);
            }
        }
    }
}

/// Why a file has no plan.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// It cannot be read.
    #[error("{} cannot be read: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A folder, a pipe or a device.
    #[error("{} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// Not a model that the engine loads.
    #[error("{}: {error}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: PlanError,
    },
    /// Shorter than its header says.
    #[error("{} has {length} bytes, its header announces {announced}: it is cut off, get it again", path.display())]
    CutOff {
        /// The file.
        path: PathBuf,
        /// Bytes that it has.
        length: u64,
        /// Bytes up to the end of its last tensor.
        announced: u64,
    },
}

const FIRST_READ: u64 = 4 << 20;
/// As the engine's: the largest vocabularies in circulation make headers of some 12 MB.
const MAX_HEADER: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const DEMONSTRATION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/demo-model/subrosa-intake.gguf");

    #[test]
    fn a_file_that_is_cut_off_is_refused_with_both_lengths() {
        let whole = std::fs::read(DEMONSTRATION).unwrap();
        let announced = plan(Path::new(DEMONSTRATION)).unwrap().file_bytes;
        assert!(announced <= whole.len());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut.gguf");
        std::fs::write(&path, &whole[..announced - 1]).unwrap();
        let error = plan(&path).unwrap_err();
        assert!(matches!(error, ModelError::CutOff { length, .. } if length == announced as u64 - 1), "{error}");
        // In the middle of the header.
        std::fs::write(&path, &whole[..1000]).unwrap();
        assert!(plan(&path).unwrap_err().to_string().contains("cut.gguf: the file ends"));
    }

    #[test]
    fn what_is_no_model_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(plan(folder.path()), Err(ModelError::NotAFile(_))));
        assert!(matches!(plan(&folder.path().join("absent")), Err(ModelError::Read { .. })));
        let path = folder.path().join("text");
        std::fs::write(&path, "not a model").unwrap();
        assert!(plan(&path).unwrap_err().to_string().contains("not a GGUF file"));
    }
}
