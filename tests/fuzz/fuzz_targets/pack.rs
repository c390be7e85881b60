//! The archive of a model pack: the same verdict and the same file for any cut into pieces, and nothing but what the manifest lists.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ring::digest::{SHA384, digest};

#[allow(dead_code)]
#[path = "../../../enclave/src/pack/mod.rs"]
mod pack;

use pack::{Checked, PackError, PackReader};

fuzz_target!(|data: &[u8]| {
    let Some((piece, archive)) = data.split_first() else { return };
    // The digest that a configuration would name: of whatever the first header says is the manifest.
    let size = archive.get(124..135).and_then(|size| std::str::from_utf8(size).ok());
    let size = size.and_then(|size| usize::from_str_radix(size, 8).ok()).unwrap_or(0);
    let manifest = archive.get(512..).map(|rest| rest.get(..size).unwrap_or(rest)).unwrap_or_default();
    let mut sha384 = [0; 48];
    sha384.copy_from_slice(digest(&SHA384, manifest).as_ref());
    let (in_pieces, file_in_pieces) = read(archive, sha384, usize::from(*piece) + 1);
    let (at_once, file_at_once) = read(archive, sha384, archive.len().max(1));
    assert_eq!(in_pieces.as_ref().err(), at_once.as_ref().err());
    if let Ok(proof) = at_once {
        assert_eq!(file_in_pieces, file_at_once);
        assert_eq!(proof.manifest_sha384(), &sha384);
        assert!(proof.bytes() <= LIMIT && proof.bytes() <= archive.len() as u64);
        assert!(file_at_once.len() as u64 <= proof.bytes());
    }
});

/// The verdict, and what was handed out of the file on the way to it.
fn read(archive: &[u8], manifest: [u8; 48], piece: usize) -> (Result<Checked, PackError>, Vec<u8>) {
    let mut reader = PackReader::new(manifest, LIMIT, "model.gguf");
    let mut file = Vec::new();
    let mut take = |mut piece: &[u8]| {
        while let Some(part) = reader.push(&mut piece)? {
            file.extend_from_slice(part.bytes);
            assert!(file.len() as u64 <= part.of && part.of <= LIMIT);
        }
        Ok(())
    };
    let read = archive.chunks(piece).try_for_each(&mut take);
    (read.and_then(|()| reader.finish()), file)
}

const LIMIT: u64 = 1 << 20;
