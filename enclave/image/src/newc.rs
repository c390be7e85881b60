//! cpio archives in the `newc` form, as the kernel unpacks them into its first file system.
//!
//! Linux, Documentation/driver-api/early-userspace/buffer-format.rst. Times are 0, the owner is root, inodes count from 1 and
//! entries stand in the order in which they were added: the same entries give the same bytes.

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

/// Why an entry cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NewcError {
    /// The format counts sizes in 32 bits.
    #[error("{path} has {bytes} bytes: a ramdisk holds files of at most 4 GiB")]
    TooLarge {
        /// Where it should have gone.
        path: String,
        /// Its size.
        bytes: usize,
    },
}

impl Archive {
    /// A directory, mode 0755.
    pub fn directory(&mut self, path: &str) -> Result<(), NewcError> {
        self.entry(path, S_IFDIR | 0o755, (0, 0), &[])
    }

    /// A character device, mode 0600.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) -> Result<(), NewcError> {
        self.entry(path, S_IFCHR | 0o600, (major, minor), &[])
    }

    /// A file.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> Result<(), NewcError> {
        self.entry(path, S_IFREG | permissions, (0, 0), content)
    }

    /// The whole archive, a multiple of four bytes long: a second archive may follow at once.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.header(0, 0, (0, 0), 0, TRAILER);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<(), NewcError> {
        let too_large = |_| NewcError::TooLarge { path: path.to_owned(), bytes: content.len() };
        let size = u32::try_from(content.len()).map_err(too_large)?;
        self.entries += 1;
        self.header(self.entries, mode, device, size, path);
        self.bytes.extend_from_slice(content);
        pad(&mut self.bytes);
        Ok(())
    }

    /// buffer-format.rst: magic, then inode, mode, uid, gid, links, mtime, size, device numbers of the file system and of the
    /// node, length of the name with its NUL, checksum (0), each as eight hexadecimal digits; name and content are padded to four.
    fn header(&mut self, inode: u32, mode: u32, (major, minor): (u32, u32), size: u32, name: &str) {
        // Names are constants of this crate: far below 4 GiB.
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let links = if mode & S_IFDIR == S_IFDIR { 2 } else { 1 };
        self.bytes.extend_from_slice(b"070701");
        for field in [inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        pad(&mut self.bytes);
    }
}

/// Fills up to a multiple of four bytes. The kernel looks for the next archive there; without it a second ramdisk is
/// silently left out.
pub fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// stat(2).
const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;
/// buffer-format.rst: "the name TRAILER!!!" ends an archive.
const TRAILER: &str = "TRAILER!!!";
