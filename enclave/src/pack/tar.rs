//! One header block of a POSIX ustar archive, and of ustar only regular files with plain names.

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) path: String,
    pub(super) size: u64,
}

impl Header {
    /// Reads a block; `None` for a block of zeros.
    ///
    /// IEEE Std 1003.1, pax, "ustar Interchange Format": name 0..100, mode, uid, gid, size 124..136, mtime, chksum
    /// 148..156, typeflag 156, linkname 157..257, magic 257..263, version 263..265, uname, gname, devmajor, devminor,
    /// prefix 345..500. Mode, owner and time decide nothing here and are read past.
    pub(super) fn parse(block: &[u8; BLOCK_BYTES]) -> Result<Option<Self>, TarError> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if field(block, 257, 8) != b"ustar\x0000" {
            return Err(TarError::NotUstar);
        }
        // "The chksum field ... the simple sum of all bytes in the header, with the chksum field treated as spaces."
        let sum = block.iter().enumerate().map(|(at, byte)| match at {
            148..156 => u64::from(b' '),
            _ => u64::from(*byte),
        });
        if octal(field(block, 148, 8))? != sum.sum::<u64>() {
            return Err(TarError::Checksum);
        }
        // '0' is a regular file. Links, devices, directories and extensions (x, g, L) have no place in a pack.
        if field(block, 156, 1) != b"0" {
            return Err(TarError::NotRegular);
        }
        let linkname_or_prefix = field(block, 157, 100).iter().chain(field(block, 345, 155));
        if linkname_or_prefix.clone().any(|byte| *byte != 0) {
            return Err(TarError::Name);
        }
        let name = field(block, 0, 100);
        let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        let (name, rest) = name.split_at(length);
        let path = std::str::from_utf8(name).map_err(|_| TarError::Name)?;
        if !is_path(path) || rest.iter().any(|byte| *byte != 0) {
            return Err(TarError::Name);
        }
        Ok(Some(Self { path: path.to_owned(), size: octal(field(block, 124, 12))? }))
    }
}

/// `[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}`: no folder, no dot first, nothing that any system reads in two ways.
pub(super) fn is_path(path: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=100).contains(&path.len()) && !path.starts_with('.') && path.bytes().all(inside)
}

/// Octal digits, then only NUL or space.
fn octal(field: &[u8]) -> Result<u64, TarError> {
    let digits = field.iter().take_while(|byte| (b'0'..=b'7').contains(*byte)).count();
    let (number, rest) = field.split_at(digits);
    if digits == 0 || rest.iter().any(|byte| !matches!(byte, 0 | b' ')) {
        return Err(TarError::Number);
    }
    // At most 12 digits of 3 bits: 36 bits.
    Ok(number.iter().fold(0, |value, digit| value * 8 + u64::from(digit - b'0')))
}

fn field(block: &[u8; BLOCK_BYTES], at: usize, length: usize) -> &[u8] {
    block.get(at..at + length).unwrap_or_default()
}

/// Why a block is no header of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// Another format, such as GNU's.
    #[error("the archive must have the ustar format")]
    NotUstar,
    /// The checksum does not fit.
    #[error("a header's checksum is wrong")]
    Checksum,
    /// A link, folder, device or extension.
    #[error("the archive must hold regular files only")]
    NotRegular,
    /// A name with a folder, a link target, or a character outside the set.
    #[error("a file's name must match [A-Za-z0-9_-][A-Za-z0-9._-]*, without folders")]
    Name,
    /// A number that is not octal.
    #[error("a number in a header is not octal")]
    Number,
}

/// "Each header block ... 512 octets."
pub(super) const BLOCK_BYTES: usize = 512;
