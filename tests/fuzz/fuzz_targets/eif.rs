//! Enclave image files: any bytes as a file, a changed good image, any signature, any last ramdisk. The checksum is always
//! mended, because it stops nobody who means it.
#![no_main]

use std::sync::LazyLock;

use attestation::certificate::Certificate;
use attestation::image::{Image, MAX_CONFIGURATION};
use attestation::measurement::h48_of_parts;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_first() else { return };
    let good = &*GOOD_IMAGE;
    match mode % 4 {
        0 => read(&mended(data.to_vec()), good),
        1 => changed(data, good),
        2 => read(&file(&[(3, b"ramdisk"), (4, data)]), good),
        _ => read(&file(&[(3, b"ramdisk"), (3, data)]), good),
    }
});

/// Some bytes of the good image are replaced, or more are put there.
fn changed(data: &[u8], good: &Image<'_>) {
    let Some((place, data)) = data.split_first_chunk::<3>() else { return };
    let at = usize::from(u16::from_be_bytes([place[0], place[1]])) % GOOD.len();
    let end = (at + usize::from(place[2])).min(GOOD.len());
    read(&mended([&GOOD[..at], data, &GOOD[end..]].concat()), good);
}

/// What is accepted is one file in one reading, and nobody signed it but who signed the good one.
fn read(file: &[u8], good: &Image<'_>) {
    let Ok(image) = Image::parse(file) else { return };
    assert!(image.is_intact());
    let mut end = HEADER;
    for section in image.sections() {
        assert_eq!(section.offset(), end);
        end += 12 + section.content().len();
    }
    assert_eq!(end, file.len());
    assert!(Image::parse(&[file, &[0]].concat()).is_err());
    assert!(Image::parse(&file[..file.len() - 1]).is_err());
    let ramdisks: Vec<&[u8]> = image.ramdisks().collect();
    let boot = [image.kernel(), image.command_line()];
    let measurements = image.measurements();
    assert_eq!(measurements.pcr0, h48_of_parts(&[&boot[..], &ramdisks].concat()));
    assert_eq!(measurements.pcr1, h48_of_parts(&[&boot[..], &ramdisks[..1]].concat()));
    assert_eq!(measurements.pcr2, h48_of_parts(&ramdisks[1..]));
    match image.signature() {
        Some(Ok(signature)) => {
            assert_eq!(measurements.pcr0, good.measurements().pcr0);
            assert_eq!(measurements.pcr8, Some(signature.pcr8()));
            // Around the key everybody can write another certificate; it makes another register.
            let (found, signer) = (signature.certificate(), signer(good));
            assert_eq!(found.public_key(), signer.public_key());
            assert_eq!(found == signer, measurements.pcr8 == good.measurements().pcr8);
        }
        Some(Err(error)) => {
            assert!(!error.to_string().is_empty());
            assert_eq!(measurements.pcr8, None);
        }
        None => assert_eq!(measurements.pcr8, None),
    }
    if let Ok(Some(configuration)) = image.configuration() {
        assert!(configuration.len() <= MAX_CONFIGURATION);
    }
}

fn signer<'a>(image: &'a Image<'_>) -> &'a Certificate {
    image.signature().expect("it is signed").expect("its signature is good").certificate()
}

/// A kernel, a command line and these.
fn file(sections: &[(u16, &[u8])]) -> Vec<u8> {
    let sections = [&[(1, &b"kernel"[..]), (2, b"quiet")], sections].concat();
    let (mut offsets, mut sizes, mut body) = (vec![0; 256], vec![0; 256], Vec::new());
    for (index, (kind, content)) in sections.iter().enumerate() {
        let place = index * 8..index * 8 + 8;
        offsets[place.clone()].copy_from_slice(&((HEADER + body.len()) as u64).to_be_bytes());
        sizes[place].copy_from_slice(&(content.len() as u64).to_be_bytes());
        body.extend(kind.to_be_bytes());
        body.extend([0; 2]);
        body.extend((content.len() as u64).to_be_bytes());
        body.extend(*content);
    }
    let count = (sections.len() as u16).to_be_bytes();
    mended([b".eif\x00\x04\x00\x00", &[0; 18][..], &count, &offsets, &sizes, &[0; 8], &body].concat())
}

fn mended(mut file: Vec<u8>) -> Vec<u8> {
    if file.len() >= HEADER {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&file[..HEADER - 4]);
        crc.update(&file[HEADER..]);
        file[HEADER - 4..HEADER].copy_from_slice(&crc.finalize().to_be_bytes());
    }
    file
}

const HEADER: usize = 548;
static GOOD_IMAGE: LazyLock<Image<'static>> = LazyLock::new(|| Image::parse(GOOD).expect("the good image is good"));
/// Signed on P-384, with metadata and an image configuration.
const GOOD: &[u8] = include_bytes!("../../../attestation/tests/images/signed.eif");
