//! The archive of a model pack, before it is sealed (docs/PROTOCOL.md section 10): `manifest.json`, then the files.
//!
//! The same files make the same archive, byte for byte: no times, owners or paths of the machine go in.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA384};
use serde::Serialize;

/// A file to pack, and its name in the archive.
#[derive(Clone, Debug)]
pub struct Entry {
    /// `[a-z0-9][a-z0-9._-]*`, at most 100 bytes.
    pub name: String,
    /// Where it lies.
    pub file: PathBuf,
}

/// What was packed.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The bytes of `manifest.json`.
    pub manifest: Vec<u8>,
    /// Their SHA-384: what the enclave's configuration names.
    pub manifest_sha384: [u8; 48],
    /// Length of the archive.
    pub bytes: u64,
}

/// Writes the archive of the model `name` to `out`. `progress` is told of every piece read, twice over (once for the
/// digests, once for the archive).
///
/// # Errors
/// When a name is not allowed or given twice, a file cannot be read or changes meanwhile, or `out` cannot be written.
pub fn write(
    name: &str,
    entries: &[Entry],
    out: &mut impl Write,
    mut progress: impl FnMut(u64),
) -> Result<Packed, PackError> {
    if !is_name(name, MAX_MODEL_NAME) {
        return Err(PackError::Name { name: name.to_owned(), limit: MAX_MODEL_NAME });
    }
    if entries.is_empty() {
        return Err(PackError::NoFile);
    }
    let mut files: Vec<FileEntry> = Vec::with_capacity(entries.len());
    for Entry { name, file } in entries {
        if !is_name(name, MAX_PATH) || name == MANIFEST {
            return Err(PackError::Name { name: name.clone(), limit: MAX_PATH });
        }
        if files.iter().any(|earlier| earlier.path == *name) {
            return Err(PackError::Twice(name.clone()));
        }
        let (size, digest) = copy(file, &mut io::sink(), &mut progress)?;
        if size > MAX_FILE {
            return Err(PackError::TooLarge { file: file.clone() });
        }
        files.push(FileEntry { path: name.clone(), size, sha384: hex::encode(digest) });
    }
    let manifest = serde_json::to_vec(&Manifest { version: 1, name, files: &files })
        .map_err(io::Error::from)
        .map_err(PackError::Write)?;

    let mut written = write_file(out, MANIFEST, manifest.len() as u64, &mut |out| {
        out.write_all(&manifest).map_err(PackError::Write)
    })?;
    for (FileEntry { path, size, sha384 }, entry) in files.iter().zip(entries) {
        written += write_file(out, path, *size, &mut |out| {
            let (now, digest) = copy(&entry.file, out, &mut progress)?;
            let same = now == *size && hex::encode(digest) == *sha384;
            if same { Ok(()) } else { Err(PackError::Changed { file: entry.file.clone() }) }
        })?;
    }
    // "the end of the archive: two 512-byte blocks of zeros" (POSIX pax, ustar Interchange Format).
    out.write_all(&[0; 2 * BLOCK]).map_err(PackError::Write)?;
    written += 2 * BLOCK as u64;
    let manifest_sha384 = digest(&manifest);
    Ok(Packed { manifest, manifest_sha384, bytes: written })
}

/// Why a pack was not written.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// Not a name.
    #[error("`{name}` cannot be a name in a pack: [a-z0-9][a-z0-9._-]*, at most {limit} bytes, and not manifest.json")]
    Name {
        /// As given.
        name: String,
        /// The limit.
        limit: usize,
    },
    /// Two files of one name.
    #[error("two files would be named `{0}` in the pack: name one of them otherwise with NAME=FILE")]
    Twice(String),
    /// Nothing to pack.
    #[error("a pack needs at least one file")]
    NoFile,
    /// More than ustar can say.
    #[error("{file} is larger than 8 GiB, which this archive format cannot hold")]
    TooLarge {
        /// The file.
        file: PathBuf,
    },
    /// Cannot be read.
    #[error("{file} cannot be read: {error}")]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Was written to meanwhile.
    #[error("{file} changed while it was packed")]
    Changed {
        /// The file.
        file: PathBuf,
    },
    /// The archive cannot be written.
    #[error("the pack cannot be written: {0}")]
    Write(#[source] io::Error),
}

#[derive(Serialize)]
struct Manifest<'a> {
    version: u32,
    name: &'a str,
    files: &'a [FileEntry],
}

#[derive(Serialize)]
struct FileEntry {
    path: String,
    size: u64,
    sha384: String,
}

/// docs/PROTOCOL.md section 3: `[a-z0-9][a-z0-9._-]{0,63}` for packs; file names by the same alphabet.
fn is_name(name: &str, limit: usize) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=limit).contains(&name.len())
        && name.bytes().next().is_some_and(plain)
        && name.bytes().all(|byte| plain(byte) || matches!(byte, b'.' | b'_' | b'-'))
}

fn write_file<W: Write>(
    out: &mut W,
    path: &str,
    size: u64,
    content: &mut dyn FnMut(&mut W) -> Result<(), PackError>,
) -> Result<u64, PackError> {
    out.write_all(&header(path, size)).map_err(PackError::Write)?;
    content(out)?;
    let padding = size.next_multiple_of(BLOCK as u64) - size;
    io::copy(&mut io::repeat(0).take(padding), out).map_err(PackError::Write)?;
    Ok(BLOCK as u64 + size + padding)
}

/// A ustar header of a regular file (POSIX.1-2017, pax, *ustar Interchange Format*): octal text, zero-filled.
fn header(path: &str, size: u64) -> [u8; BLOCK] {
    let mut header = [0_u8; BLOCK];
    let mut fields = vec![
        (0, path.as_bytes().to_vec()),
        (100, b"0000644\0".to_vec()),
        (108, b"0000000\0".to_vec()),
        (116, b"0000000\0".to_vec()),
        (124, format!("{size:011o}\0").into_bytes()),
        (136, b"00000000000\0".to_vec()),
        // The sum is taken with its own field as spaces.
        (148, b"        ".to_vec()),
        (156, b"0".to_vec()),
        (257, b"ustar\x0000".to_vec()),
        (329, b"0000000\0".to_vec()),
        (337, b"0000000\0".to_vec()),
    ];
    let mut put = |at: usize, bytes: &[u8]| {
        header.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
        header.iter().map(|byte| u32::from(*byte)).sum::<u32>()
    };
    let sum = fields.drain(..).fold(0, |_, (at, bytes)| put(at, &bytes));
    put(148, format!("{sum:06o}\0 ").as_bytes());
    header
}

fn copy(file: &Path, out: &mut impl Write, progress: &mut impl FnMut(u64)) -> Result<(u64, [u8; 48]), PackError> {
    let unreadable = |error| PackError::Read { file: file.to_owned(), error };
    let mut reader = File::open(file).map_err(unreadable)?;
    let (mut buffer, mut size, mut context) = (vec![0; 1 << 20], 0, Context::new(&SHA384));
    loop {
        let count = reader.read(&mut buffer).map_err(unreadable)?;
        let Some(read) = buffer.get(..count).filter(|read| !read.is_empty()) else { break };
        context.update(read);
        out.write_all(read).map_err(PackError::Write)?;
        size += read.len() as u64;
        progress(read.len() as u64);
    }
    let mut digest = [0; 48];
    digest.copy_from_slice(context.finish().as_ref());
    Ok((size, digest))
}

fn digest(bytes: &[u8]) -> [u8; 48] {
    let mut digest = [0; 48];
    digest.copy_from_slice(ring::digest::digest(&SHA384, bytes).as_ref());
    digest
}

const MANIFEST: &str = "manifest.json";
const BLOCK: usize = 512;
const MAX_MODEL_NAME: usize = 64;
/// The name field of a ustar header.
const MAX_PATH: usize = 100;
/// Eleven octal digits.
const MAX_FILE: u64 = 0o77_777_777_777;

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn pack(folder: &Path) -> (Vec<u8>, Packed) {
        std::fs::write(folder.join("a"), b"first").unwrap();
        std::fs::write(folder.join("b"), vec![7; 1024]).unwrap();
        let entry = |name: &str, file: &str| Entry { name: name.to_owned(), file: folder.join(file) };
        let mut out = Vec::new();
        let packed = write("demo", &[entry("model.gguf", "a"), entry("license.txt", "b")], &mut out, |_| ()).unwrap();
        (out, packed)
    }

    #[test]
    fn a_pack_is_the_same_every_time_and_begins_with_its_manifest() {
        let folder = tempfile::tempdir().unwrap();
        let (first, packed) = pack(folder.path());
        assert_eq!(first, pack(folder.path()).0);
        assert_eq!(first.len() as u64, packed.bytes);
        assert_eq!(first.len() % 512, 0);
        assert_eq!(&first[..13], b"manifest.json");
        let end = 512 + packed.manifest.len();
        assert_eq!(&first[512..end], packed.manifest.as_slice());
        assert!(
            packed
                .manifest
                .starts_with(br#"{"version":1,"name":"demo","files":[{"path":"model.gguf","size":5,"sha384":""#)
        );
    }

    #[test]
    fn any_tar_reads_a_pack() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pack.tar");
        std::fs::write(&path, pack(folder.path()).0).unwrap();
        let listed = Command::new("tar").arg("-tf").arg(&path).output().expect("tar is needed for this test");
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        assert_eq!(listed.stdout, b"manifest.json\nmodel.gguf\nlicense.txt\n");
        let content = Command::new("tar").args(["-xOf"]).arg(&path).arg("license.txt").output().unwrap();
        assert_eq!(content.stdout, vec![7; 1024]);
    }

    #[test]
    fn names_that_could_leave_a_folder_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), b"x").unwrap();
        for name in ["../x", "/x", "", ".x", "manifest.json", "A", &"x".repeat(101)] {
            let entry = Entry { name: name.to_owned(), file: folder.path().join("a") };
            assert!(matches!(write("demo", &[entry], &mut io::sink(), |_| ()), Err(PackError::Name { .. })), "{name}");
        }
    }
}
