use proptest::prelude::*;

use super::*;

fn header(path: &str, size: usize, kind: u8) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, path.as_bytes());
    put(100, b"0000644\x000000000\x000000000\x00");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\x00        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000root");
    checksum(&mut block);
    block
}

fn checksum(block: &mut [u8; BLOCK_BYTES]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn member(path: &str, content: &[u8]) -> Vec<u8> {
    let mut out = header(path, content.len(), b'0').to_vec();
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(BLOCK_BYTES), 0);
    out
}

fn manifest(files: &[(&str, &[u8])]) -> Vec<u8> {
    let files: Vec<_> = files
        .iter()
        .map(|(path, content)| {
            let sha384 = hex::encode(digest::digest(&digest::SHA384, content));
            serde_json::json!({"path": path, "size": content.len(), "sha384": sha384})
        })
        .collect();
    serde_json::to_vec(&serde_json::json!({"version": 1, "name": "m", "files": files})).unwrap()
}

fn sha384(bytes: &[u8]) -> [u8; 48] {
    digest::digest(&digest::SHA384, bytes).as_ref().try_into().unwrap()
}

fn archive(listed: &[(&str, &[u8])], stored: &[(&str, &[u8])]) -> (Vec<u8>, [u8; 48]) {
    let manifest = manifest(listed);
    let mut out = member("manifest.json", &manifest);
    for (path, content) in stored {
        out.extend_from_slice(&member(path, content));
    }
    out.resize(out.len() + 2 * BLOCK_BYTES, 0);
    (out, sha384(&manifest))
}

/// A proof, of some pack.
pub(crate) fn checked() -> Checked {
    let (bytes, digest) = archive(FILES, FILES);
    read(&bytes, digest, 512).unwrap().1
}

/// The file "model.gguf", and the proof.
fn read(bytes: &[u8], digest: [u8; 48], piece: usize) -> Result<(Vec<u8>, Checked), PackError> {
    read_file("model.gguf", bytes, digest, piece)
}

fn read_file(
    wanted: &'static str,
    bytes: &[u8],
    digest: [u8; 48],
    piece: usize,
) -> Result<(Vec<u8>, Checked), PackError> {
    let mut reader = PackReader::new(digest, 1 << 20, wanted);
    let mut file = Vec::new();
    for mut piece in bytes.chunks(piece) {
        while let Some(part) = reader.push(&mut piece)? {
            assert!(!part.bytes.is_empty());
            file.extend_from_slice(part.bytes);
            assert!(file.len() as u64 <= part.of);
        }
        assert!(piece.is_empty());
    }
    Ok((file, reader.finish()?))
}

const FILES: &[(&str, &[u8])] = &[("model.gguf", &[7; 1500]), ("card.md", b"a card"), ("empty", b"")];

#[test]
fn a_pack_is_read_in_pieces_of_any_size_and_one_of_its_files_is_handed_out() {
    let (bytes, digest) = archive(FILES, FILES);
    for piece in [1, 3, 511, 512, 513, 4096, bytes.len()] {
        for (path, content) in FILES {
            let (file, proof) = read_file(path, &bytes, digest, piece).unwrap();
            assert_eq!(file, *content);
            assert_eq!((proof.manifest_sha384(), proof.bytes()), (&digest, 1506));
        }
        assert!(read_file("other", &bytes, digest, piece).unwrap().0.is_empty());
    }
}

#[test]
fn a_file_is_handed_out_before_its_end_and_its_last_bytes_only_with_a_good_digest() {
    let (good, digest) = archive(FILES, FILES);
    let (bad, _) = archive(FILES, &[("model.gguf", &[8; 1500]), FILES[1], FILES[2]]);
    let start = member("manifest.json", &manifest(FILES)).len() + BLOCK_BYTES;
    for (bytes, is_good) in [(&good, true), (&[&good[..start], &bad[start..]].concat(), false)] {
        let mut reader = PackReader::new(digest, 1 << 20, "model.gguf");
        let mut first = &bytes[..start + 1000];
        assert_eq!(reader.push(&mut first).unwrap().expect("a part").bytes.len(), 1000);
        assert!(reader.push(&mut first).unwrap().is_none());
        let mut second = &bytes[start + 1000..];
        assert_eq!(
            reader.push(&mut second).map(|part| part.map(|part| part.bytes.len())),
            match is_good {
                true => Ok(Some(500)),
                false => Err(PackError::Digest),
            }
        );
    }
}

#[test]
fn a_file_with_other_bytes_is_refused() {
    let (bytes, digest) = archive(FILES, &[("model.gguf", &[8; 1500]), FILES[1], FILES[2]]);
    assert_eq!(read(&bytes, digest, 512).err(), Some(PackError::Digest));
}

#[test]
fn another_manifest_is_refused_before_it_is_believed() {
    let (bytes, _) = archive(FILES, FILES);
    assert_eq!(read(&bytes, [0; 48], 512).err(), Some(PackError::ManifestDigest));
}

#[test]
fn an_extra_file_is_refused() {
    let (bytes, digest) = archive(&FILES[..1], &FILES[..2]);
    assert_eq!(read(&bytes, digest, 512).err(), Some(PackError::Extra));
}

#[test]
fn a_missing_file_is_refused() {
    let (bytes, digest) = archive(FILES, &FILES[..1]);
    assert_eq!(read(&bytes, digest, 512).err(), Some(PackError::Missing));
}

#[test]
fn files_in_another_order_are_refused() {
    let (bytes, digest) = archive(FILES, &[FILES[1], FILES[0], FILES[2]]);
    assert_eq!(read(&bytes, digest, 512).err(), Some(PackError::NotInOrder));
}

#[test]
fn a_pack_without_its_manifest_first_is_refused() {
    let bytes = member("model.gguf", b"x");
    assert_eq!(read(&bytes, [0; 48], 512).err(), Some(PackError::ManifestFirst));
    assert_eq!(read(&[0; 1024], [0; 48], 512).err(), Some(PackError::ManifestFirst));
}

#[test]
fn every_truncation_is_refused() {
    let (bytes, digest) = archive(FILES, FILES);
    for end in (0..bytes.len()).step_by(37) {
        assert!(read(&bytes[..end], digest, 700).is_err(), "cut at {end}");
    }
}

#[test]
fn zeros_may_fill_the_last_record_and_nothing_else_may_follow() {
    let (mut bytes, digest) = archive(FILES, FILES);
    bytes.resize(bytes.len() + 18 * BLOCK_BYTES, 0);
    assert!(read(&bytes, digest, 1000).is_ok());
    let mut longer = bytes.clone();
    longer.push(0);
    assert_eq!(read(&longer, digest, 1000).err(), Some(PackError::Trailing));
    *bytes.last_mut().unwrap() = 1;
    assert_eq!(read(&bytes, digest, 1000).err(), Some(PackError::Padding));
}

#[test]
fn anything_but_a_regular_file_is_refused() {
    for kind in [0, b'1', b'2', b'5', b'x', b'g', b'L'] {
        assert_eq!(Header::parse(&header("model.gguf", 1, kind)), Err(TarError::NotRegular), "{kind}");
    }
}

#[test]
fn a_name_with_a_folder_is_refused() {
    for name in ["../model.gguf", "a/b", "/etc", ".hidden", "a b"] {
        assert_eq!(Header::parse(&header(name, 1, b'0')), Err(TarError::Name), "{name}");
    }
}

#[test]
fn a_gnu_header_is_refused() {
    let mut block = header("a", 1, b'0');
    block[257..265].copy_from_slice(b"ustar  \0");
    checksum(&mut block);
    assert_eq!(Header::parse(&block), Err(TarError::NotUstar));
}

#[test]
fn a_wrong_checksum_is_refused() {
    let mut block = header("a", 1, b'0');
    block[0] = b'b';
    assert_eq!(Header::parse(&block), Err(TarError::Checksum));
}

#[test]
fn more_bytes_than_allowed_are_refused_before_memory_is_taken() {
    let content = manifest(&[("model.gguf", b"x")]);
    let content = String::from_utf8(content).unwrap().replace("\"size\":1", "\"size\":1048577");
    let bytes = member("manifest.json", content.as_bytes());
    assert_eq!(read(&bytes, sha384(content.as_bytes()), 512).err(), Some(PackError::TooLarge { limit: 1 << 20 }));
}

#[test]
fn a_manifest_with_an_unknown_member_or_a_duplicate_file_is_refused() {
    for (from, to) in [("\"version\"", "\"x\":1,\"version\""), ("card.md", "model.gguf"), ("card.md", "a/b")] {
        let content = String::from_utf8(manifest(FILES)).unwrap().replace(from, to);
        let bytes = member("manifest.json", content.as_bytes());
        assert_eq!(read(&bytes, sha384(content.as_bytes()), 512).err(), Some(PackError::Manifest), "{to}");
    }
}

proptest! {
    #[test]
    fn one_flipped_bit_never_gives_other_files(at in 0_usize..4096, bit in 0_u8..8) {
        let (mut bytes, digest) = archive(FILES, FILES);
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        // Mode, owner and time decide nothing; everywhere else a flip is refused.
        if let Ok((file, _)) = read(&bytes, digest, 999) {
            prop_assert_eq!(file, [7; 1500]);
        }
    }

    #[test]
    fn noise_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000), piece in 1_usize..700) {
        prop_assert!(read(&bytes, [0; 48], piece).is_err());
    }
}
