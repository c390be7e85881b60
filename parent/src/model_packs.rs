//! Sealed model packs as files: opened without leaving their folder, sent from any offset, never gathered.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    path::Path,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::stat::Mode,
};
use tokio::io::{AsyncRead, ReadBuf};

/// A pack, opened, and its length when it was.
pub(crate) struct Pack {
    file: File,
    pub(crate) length: u64,
}

/// Why there is no such pack.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    #[error("no such model pack")]
    NotFound,
    #[error("cannot read the model pack: {0}")]
    Io(#[from] io::Error),
}

impl Pack {
    /// Opens `name` in `folder`. Blocking.
    ///
    /// The name has one component that does not begin with a dot; the last component is never followed where it is a
    /// link, and only a regular file is served.
    pub(crate) fn open(folder: &Path, name: &str) -> Result<Self, PackError> {
        if !is_name(name) {
            return Err(PackError::NotFound);
        }
        let folder = open(folder, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(io::Error::from)?;
        // O_NONBLOCK: opening a FIFO must not wait for its writer.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&folder, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENXIO) => return Err(PackError::NotFound),
            Err(error) => return Err(PackError::Io(error.into())),
        };
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(PackError::NotFound);
        }
        Ok(Self { file, length: found.len() })
    }

    /// The bytes of `range`, which lies within the file. Blocking.
    pub(crate) fn body(mut self, range: Range) -> io::Result<PackBody> {
        self.file.seek(SeekFrom::Start(range.from))?;
        Ok(PackBody { file: tokio::fs::File::from_std(self.file), left: range.length, buffer: BytesMut::new() })
    }
}

/// `docs/PROTOCOL.md`, section 3: `[a-z0-9][a-z0-9._-]{0,63}`.
fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=64).contains(&name.len())
        && name.bytes().next().is_some_and(plain)
        && name.bytes().all(|byte| plain(byte) || b"._-".contains(&byte))
}

/// Part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) from: u64,
    pub(crate) length: u64,
}

/// What a `Range` header asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Everything: no header, or one of a form that is not served (RFC 9110, section 14.2: "A server MAY ignore the
    /// Range header field").
    Whole,
    /// `bytes=N-` or `bytes=N-M`, within the file.
    Part(Range),
    /// It begins behind the end.
    Unsatisfiable,
}

impl Asked {
    pub(crate) fn parse(header: Option<&[u8]>, length: u64) -> Self {
        let Some(spec) = header.and_then(|text| std::str::from_utf8(text).ok()).and_then(|t| t.strip_prefix("bytes="))
        else {
            return Self::Whole;
        };
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse::<u64>().ok()).flatten()
        };
        let Some((from, to)) = spec.split_once('-') else { return Self::Whole };
        let (Some(from), Some(to)) = (number(from), if to.is_empty() { Some(u64::MAX) } else { number(to) }) else {
            return Self::Whole;
        };
        if to < from {
            return Self::Whole;
        }
        if from >= length {
            return Self::Unsatisfiable;
        }
        let end = to.saturating_add(1).min(length);
        Self::Part(Range { from, length: end - from })
    }
}

/// A part of a file as a body, [`CHUNK`] bytes at a time.
pub(crate) struct PackBody {
    file: tokio::fs::File,
    left: u64,
    buffer: BytesMut,
}

impl Body for PackBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        if this.left == 0 {
            return Poll::Ready(None);
        }
        let wanted = usize::try_from(this.left).unwrap_or(CHUNK).min(CHUNK);
        this.buffer.resize(wanted, 0);
        let mut into = ReadBuf::new(&mut this.buffer);
        ready!(Pin::new(&mut this.file).poll_read(cx, &mut into))?;
        let read = into.filled().len();
        if read == 0 {
            // The file shrank. An error leaves `Content-Length` unfulfilled, so the reader sees the cut.
            return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
        }
        this.left -= read as u64;
        Poll::Ready(Some(Ok(Frame::data(this.buffer.split_to(read).freeze()))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

const CHUNK: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use proptest::prelude::*;

    fn read(folder: &Path, name: &str) -> Result<Vec<u8>, PackError> {
        let mut bytes = Vec::new();
        Pack::open(folder, name)?.file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        let outside = tempfile::tempdir().unwrap();
        let folder = outside.path().join("packs");
        std::fs::create_dir(&folder).unwrap();
        std::fs::create_dir(folder.join("folder")).unwrap();
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        std::fs::write(folder.join("pack-1.sealed"), "good").unwrap();
        std::fs::write(folder.join(".hidden"), "secret").unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), folder.join("link")).unwrap();
        std::os::unix::fs::symlink("pack-1.sealed", folder.join("inner-link")).unwrap();
        nix::unistd::mkfifo(&folder.join("fifo"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        assert_eq!(read(&folder, "pack-1.sealed").unwrap(), b"good");
        let absolute = outside.path().join("secret");
        for name in [
            "",
            ".",
            "..",
            "../secret",
            "folder/../../secret",
            "link",
            "inner-link",
            "fifo",
            "folder",
            ".hidden",
            "%2e%2e%2fsecret",
            "Pack-1.sealed",
            "pack-1.sealed\0",
            "absent",
            absolute.to_str().unwrap(),
            &"a".repeat(65),
        ] {
            assert!(matches!(read(&folder, name), Err(PackError::NotFound)), "{name:?}");
        }
    }

    #[test]
    fn ranges_are_read_as_rfc_9110_has_them() {
        let part = |from, length| Asked::Part(Range { from, length });
        for (header, asked) in [
            (None, Asked::Whole),
            (Some("bytes=0-"), part(0, 100)),
            (Some("bytes=99-"), part(99, 1)),
            (Some("bytes=100-"), Asked::Unsatisfiable),
            (Some("bytes=10-19"), part(10, 10)),
            (Some("bytes=10-1000"), part(10, 90)),
            (Some("bytes=10-18446744073709551615"), part(10, 90)),
            (Some("bytes=20-10"), Asked::Whole),
            (Some("bytes=-5"), Asked::Whole),
            (Some("bytes=0-1,5-6"), Asked::Whole),
            (Some("bytes=+1-"), Asked::Whole),
            (Some("bytes=99999999999999999999-"), Asked::Whole),
            (Some("items=0-"), Asked::Whole),
        ] {
            assert_eq!(Asked::parse(header.map(str::as_bytes), 100), asked, "{header:?}");
        }
    }

    proptest! {
        #[test]
        fn every_part_lies_within_the_file(header in "bytes=[0-9]{0,20}-[0-9]{0,20}|.{0,30}", length in 0..1000_u64) {
            if let Asked::Part(Range { from, length: part }) = Asked::parse(Some(header.as_bytes()), length) {
                prop_assert!(part > 0 && from + part <= length);
            }
        }

        #[test]
        fn accepted_names_are_one_plain_component(name in "\\PC{0,70}") {
            if is_name(&name) {
                prop_assert!(Path::new(&name).components().count() == 1 && !name.starts_with('.'));
            }
        }
    }
}
