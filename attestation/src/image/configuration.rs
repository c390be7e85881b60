//! The image configuration inside an image: one file, alone in an uncompressed ramdisk.
//!
//! A kernel unpacks one archive after the other, and a later file replaces an earlier one of the same name. So the file
//! found here is the file that an enclave sees only if the last ramdisk holds nothing else: no second archive behind the
//! first, no link, no second file. That is what this reader insists on.

/// The file's bytes; none if this is not a ramdisk of ours.
pub(super) fn find(ramdisk: &[u8]) -> Result<Option<&[u8]>, ConfigurationError> {
    let is_named = || ramdisk.windows(PATH.len()).any(|window| window == PATH.as_bytes());
    if !ramdisk.starts_with(MAGIC) || !is_named() {
        return Ok(None);
    }
    let mut archive = Archive { rest: ramdisk };
    let mut entry = archive.entry()?;
    for folder in FOLDERS {
        if entry.name == folder.as_bytes() && entry.mode & MODE_TYPE == MODE_FOLDER && entry.content.is_empty() {
            entry = archive.entry()?;
        }
    }
    let Entry { name, mode, links, content } = entry;
    // A link of another name could change the content behind the reader's back.
    if name != PATH.as_bytes() || mode & MODE_TYPE != MODE_FILE || links != 1 {
        return Err(ConfigurationError::Entry { expected: PATH });
    }
    if content.len() > MAX_CONFIGURATION {
        return Err(ConfigurationError::TooLarge { length: content.len() });
    }
    let last = archive.entry()?;
    if last.name != TRAILER.as_bytes() || !last.content.is_empty() {
        return Err(ConfigurationError::Entry { expected: TRAILER });
    }
    if archive.rest.iter().any(|byte| *byte != 0) {
        return Err(ConfigurationError::Trailing);
    }
    Ok(Some(content))
}

/// A cpio archive in the format "newc" (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
struct Archive<'a> {
    rest: &'a [u8],
}

struct Entry<'a> {
    name: &'a [u8],
    mode: u32,
    links: u32,
    content: &'a [u8],
}

impl<'a> Archive<'a> {
    /// The magic, thirteen numbers of eight hex digits, the name with its NUL, the content; both padded to 4 bytes.
    fn entry(&mut self) -> Result<Entry<'a>, ConfigurationError> {
        let magic = self.take(MAGIC.len())?;
        if magic != MAGIC {
            return Err(ConfigurationError::Malformed);
        }
        let mut numbers = [0; NUMBERS];
        for number in &mut numbers {
            *number = hex(self.take(8)?)?;
        }
        let [_, mode, _, _, links, _, size, _, _, _, _, name_size, _] = numbers;
        let name_size = usize::try_from(name_size).map_err(|_| ConfigurationError::Malformed)?;
        let size = usize::try_from(size).map_err(|_| ConfigurationError::Malformed)?;
        if name_size > MAX_NAME {
            return Err(ConfigurationError::Malformed);
        }
        let name = self.take(name_size)?.strip_suffix(&[0]).ok_or(ConfigurationError::Malformed)?;
        // The header's 110 bytes and the name end at a multiple of 4.
        self.padding(HEADER_LENGTH + name_size)?;
        let content = self.take(size)?;
        self.padding(size)?;
        Ok(Entry { name, mode, links, content })
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ConfigurationError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(ConfigurationError::Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    fn padding(&mut self, length: usize) -> Result<(), ConfigurationError> {
        let padding = self.take(length.next_multiple_of(4) - length)?;
        if padding.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(ConfigurationError::Malformed) }
    }
}

fn hex(digits: &[u8]) -> Result<u32, ConfigurationError> {
    digits.iter().try_fold(0, |value, digit| {
        let digit = char::from(*digit).to_digit(16).ok_or(ConfigurationError::Malformed)?;
        Ok(value << 4 | digit)
    })
}

/// Why the image configuration cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigurationError {
    /// Not a cpio archive of the format "newc".
    #[error("the ramdisk names {PATH}, but is not a well-formed archive")]
    Malformed,
    /// Something else than the file and its folders.
    #[error("the ramdisk of {PATH} must hold nothing else: expected `{expected}`")]
    Entry {
        /// What belongs there.
        expected: &'static str,
    },
    /// Something behind the archive.
    #[error("bytes follow the archive that holds {PATH}: a kernel would unpack them too")]
    Trailing,
    /// More or fewer ramdisks than our images have.
    #[error("an image with {PATH} must have {RAMDISKS} ramdisks, it has {count}: a kernel reads all of them as one")]
    Ramdisks {
        /// How many it has.
        count: usize,
    },
    /// Larger than any real file.
    #[error("{PATH} has {length} bytes, at most {MAX_CONFIGURATION} are allowed")]
    TooLarge {
        /// Its length.
        length: usize,
    },
}

/// The program's, and the one with this file.
pub(super) const RAMDISKS: usize = 2;
/// Where the file is in the ramdisk.
pub const PATH: &str = "etc/subrosa/image.toml";
/// As the enclave has it: Amazon's five roots are about 7 KiB of PEM.
pub const MAX_CONFIGURATION: usize = 256 * 1024;

/// In this order, each at most once.
const FOLDERS: [&str; 2] = ["etc", "etc/subrosa"];
const MAGIC: &[u8] = b"070701";
const TRAILER: &str = "TRAILER!!!";
const NUMBERS: usize = 13;
const HEADER_LENGTH: usize = 110;
/// Linux: `PATH_MAX`.
const MAX_NAME: usize = 4096;
/// `S_IFMT`, `S_IFDIR` and `S_IFREG` of stat(2).
const MODE_TYPE: u32 = 0o170_000;
const MODE_FOLDER: u32 = 0o040_000;
const MODE_FILE: u32 = 0o100_000;
