//! What the reader of enclave images promises.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "tests"
)]

mod images;

use attestation::image::{Algorithm, Header, Image, ImageError, Kind, SignatureError};
use attestation::measurement::{ZERO, h48};
use images::{
    COMMAND_LINE, Draft, HEADER, KERNEL, METADATA, NOT_BEFORE, RAMDISK, SECONDS, SIGNATURE, Signer, bytes, configured,
    entry, fix_crc, payload, pem, section,
};
use proptest::prelude::*;

fn refused(file: &[u8]) -> ImageError {
    Image::parse(file).unwrap_err()
}

/// The golden image signed by `section`, which is given its PCR0.
fn signed(section: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let golden = Draft::golden();
    let pcr0 = Image::parse(&golden.file()).unwrap().measurements().pcr0;
    golden.with(SIGNATURE, section(&pcr0)).file()
}

fn verdict(file: &[u8]) -> Result<(), SignatureError> {
    let image = Image::parse(file).unwrap();
    let verdict = image.signature().expect("there is a signature").map(drop).map_err(Clone::clone);
    // No register by a signature that is not good.
    assert_eq!(image.measurements().pcr8.is_some(), verdict.is_ok());
    verdict
}

/// Computed with Python's hashlib and zlib from the same contents.
#[test]
fn the_registers_are_those_of_the_formula() {
    let file = Draft::golden().file();
    let image = Image::parse(&file).unwrap();
    let measurements = image.measurements();
    assert_eq!(
        hex::encode(measurements.pcr0),
        "5d3f7fbc72a06aa79caa3b555810a0e6b668fc48554ce2869ed6076b8ad7d53b3adb7bd21ff421c81be74da1e60f03ed"
    );
    assert_eq!(
        hex::encode(measurements.pcr1),
        "709f37fe523b094c0e056c676956a1441ba0cd5b6552ce74c60180101f0dd1e2e8cb5c3c95ef30bbf425aedf957ba237"
    );
    assert_eq!(
        hex::encode(measurements.pcr2),
        "4972ecf0d6077f9b4c603178550316c17bc1811d935f42f43c2ed701f25ccda5beb07184a0a818af14a38cddc11711af"
    );
    assert_eq!((measurements.pcr8, image.signature().is_none()), (None, true));
    assert_eq!((image.crc32(), image.header().crc32(), image.is_intact()), (0x4c12_3aa3, 0x4c12_3aa3, true));
    assert_eq!((file.len(), image.header().version()), (719, 4));
    assert_eq!(image.command_line(), b"console=ttyS0 panic=1");
    assert_eq!(image.kernel(), b"a kernel");
    assert_eq!(image.ramdisks().count(), 3);
    assert_eq!(image.metadata(), Some(&b"{\"ImageName\":\"golden\"}"[..]));
}

#[test]
fn an_image_of_one_ramdisk_has_the_register_of_nothing_as_pcr2() {
    let file =
        Draft { version: 2, flags: 1, sections: Draft::golden().without(METADATA).sections[..3].to_vec() }.file();
    let measurements = Image::parse(&file).unwrap().measurements();
    assert_eq!((measurements.pcr0, measurements.pcr2), (measurements.pcr1, h48(b"")));
}

#[test]
fn the_metadata_and_its_place_change_no_register() {
    let pcrs = |draft: &Draft| Image::parse(&draft.file()).unwrap().measurements();
    let golden = Draft::golden();
    let expected = pcrs(&golden);
    assert_eq!(pcrs(&golden.clone().without(METADATA)), expected);
    assert_eq!(pcrs(&golden.without(METADATA).with(METADATA, "not even JSON")), expected);
}

/// What docs/THREAT_MODEL.md says about registers: they do not hold the lengths of what they are made of.
#[test]
fn bytes_that_move_from_one_section_to_the_next_change_no_register() {
    let golden = Draft::golden();
    let mut moved = golden.clone();
    let start = moved.sections[1].1.drain(..14).collect::<Vec<_>>();
    moved.sections[0].1.extend(start);
    let (golden, moved) = (golden.file(), moved.file());
    let (golden, moved) = (Image::parse(&golden).unwrap(), Image::parse(&moved).unwrap());
    assert_eq!(moved.command_line(), b"panic=1");
    assert_eq!(moved.measurements(), golden.measurements());
}

#[test]
fn a_section_of_a_later_version_is_refused() {
    let draft = |version, kind| {
        let draft = Draft { version, ..Draft::golden().without(METADATA) };
        draft.with(kind, "x").file()
    };
    assert_eq!(refused(&draft(3, METADATA)), ImageError::TooNew { kind: Kind::Metadata, version: 3 });
    assert_eq!(refused(&draft(2, SIGNATURE)), ImageError::TooNew { kind: Kind::Signature, version: 2 });
    assert!(Image::parse(&draft(3, SIGNATURE)).unwrap().signature().unwrap().is_err());
    for version in [0, 1, 5, u16::MAX] {
        assert_eq!(refused(&Draft { version, ..Draft::golden() }.file()), ImageError::Version { found: version });
    }
}

#[test]
fn every_shorter_and_every_longer_file_is_refused() {
    let file = Draft::golden().file();
    for length in 0..file.len() {
        match refused(&file[..length]) {
            ImageError::NoHeader { length: found } => assert!(length < HEADER && found == length as u64),
            ImageError::OutOfRange { length: found, .. } => assert!(length >= HEADER && found == length as u64),
            other => panic!("{length}: {other}"),
        }
    }
    assert_eq!(refused(&[&file[..], &[0]].concat()), ImageError::Trailing { count: 1 });
    // The header alone tells so too, before the rest is read.
    assert_eq!(Header::parse(&file[..HEADER], u64::MAX), Err(ImageError::Trailing { count: u64::MAX - 719 }));
}

#[test]
fn every_section_must_follow_the_one_before_it() {
    let spoilt = |at: usize, value: u64| {
        let mut file = Draft::golden().file();
        file[at..at + 8].copy_from_slice(&value.to_be_bytes());
        fix_crc(&mut file);
        refused(&file)
    };
    let (second_offset, second_size) = (28 + 8, 28 + 32 * 8 + 8);
    assert_eq!(spoilt(second_offset, 567), ImageError::Overlap { index: 1, offset: 567, end: 568 });
    assert_eq!(spoilt(second_offset, 0), ImageError::Overlap { index: 1, offset: 0, end: 568 });
    assert_eq!(spoilt(second_offset, 569), ImageError::Gap { index: 1, offset: 569, end: 568 });
    assert_eq!(spoilt(28, 0), ImageError::Overlap { index: 0, offset: 0, end: 548 });
    for size in [u64::MAX, u64::MAX - 580, 1 << 40, 140] {
        let expected = ImageError::OutOfRange { index: 1, offset: 568, size, length: 719 };
        assert_eq!(spoilt(second_size, size), expected);
    }
    assert_eq!(spoilt(second_size, 20), ImageError::Gap { index: 2, offset: 601, end: 600 });
    assert_eq!(spoilt(28 + 6 * 8, 719), ImageError::UnusedEntry { index: 6 });
    assert_eq!(spoilt(28 + (32 + 31) * 8, 1), ImageError::UnusedEntry { index: 31 });
    // The section's own header says something else.
    assert_eq!(spoilt(568 + 4, 20), ImageError::SectionSize { index: 1, found: 20, expected: 21 });
}

#[test]
fn what_may_be_there_once_is_refused_twice() {
    for (kind, number) in [
        (Kind::Kernel, KERNEL),
        (Kind::CommandLine, COMMAND_LINE),
        (Kind::Metadata, METADATA),
        (Kind::Signature, SIGNATURE),
    ] {
        let once = Draft::golden().without(SIGNATURE).with(SIGNATURE, "x");
        let file = once.with(number, "x").file();
        assert_eq!(refused(&file), ImageError::Duplicate { index: 7, kind });
    }
}

#[test]
fn what_has_no_meaning_is_refused() {
    let golden = Draft::golden();
    for found in [0, 6, 7, 0x0100, u16::MAX] {
        let file = golden.clone().with(found, "x").file();
        assert_eq!(refused(&file), ImageError::UnknownSection { index: 6, found });
    }
    for found in [2, 3, 0x8000] {
        assert_eq!(refused(&Draft { flags: found, ..golden.clone() }.file()), ImageError::HeaderFlags { found });
    }
    let spoilt = |at: usize, value: u8| {
        let mut file = golden.file();
        file[at] = value;
        fix_crc(&mut file);
        refused(&file)
    };
    assert_eq!(spoilt(24, 1), ImageError::Reserved);
    assert_eq!(spoilt(543, 1), ImageError::Reserved);
    assert_eq!(spoilt(548 + 3, 1), ImageError::SectionFlags { index: 0, found: 1 });
    assert_eq!(spoilt(0, b'E'), ImageError::NotAnImage);
    assert_eq!(spoilt(26, 0xff), ImageError::TooManySections { found: 0xff06 });
}

#[test]
fn without_kernel_command_line_and_ramdisk_in_their_order_there_is_no_image() {
    let golden = Draft::golden();
    let missing = |kind| refused(&Draft { sections: Vec::new(), ..golden.clone() }.with(kind, "x").file());
    assert_eq!(missing(KERNEL), ImageError::Missing { kind: Kind::CommandLine });
    let found = Kind::Ramdisk;
    assert_eq!(missing(RAMDISK), ImageError::Order { index: 0, found, expected: Kind::Kernel });
    let empty = Draft { sections: Vec::new(), ..golden.clone() };
    assert_eq!(refused(&empty.file()), ImageError::Missing { kind: Kind::Kernel });
    assert_eq!(refused(&golden.clone().without(RAMDISK).file()), ImageError::Missing { kind: Kind::Ramdisk });
    let mut swapped = golden;
    swapped.sections.swap(0, 1);
    let found = Kind::CommandLine;
    assert_eq!(refused(&swapped.file()), ImageError::Order { index: 0, found, expected: Kind::Kernel });
}

#[test]
fn sections_beyond_their_limit_are_refused() {
    for (kind, number, limit) in [
        (Kind::CommandLine, COMMAND_LINE, 4096),
        (Kind::Signature, SIGNATURE, 64 * 1024),
        (Kind::Metadata, METADATA, 1024 * 1024),
    ] {
        let draft = |size: usize| {
            let mut sections = Draft::golden().without(number).sections;
            sections.insert(1, (number, vec![b' '; size]));
            Draft { sections, ..Draft::golden() }.file()
        };
        let size = limit + 1;
        assert_eq!(refused(&draft(size)), ImageError::TooLarge { kind, size, limit });
        let within = draft(limit);
        assert!(!matches!(Image::parse(&within), Err(ImageError::TooLarge { .. })), "{kind}");
    }
}

/// Everything that is told about an image.
fn told(file: &[u8]) -> Result<String, ImageError> {
    let image = Image::parse(file)?;
    let header = image.header();
    Ok(format!(
        "{:?} {:?} {:?} {:?} {}",
        (header.version(), header.architecture(), header.default_memory(), header.default_cpus()),
        image.sections(),
        image.measurements(),
        image.signature().map(|verdict| verdict.is_ok()),
        image.is_intact(),
    ))
}

#[test]
fn every_flipped_byte_of_the_headers_is_an_error_or_another_report() {
    let file = signed(|pcr0| Signer::p384().section(pcr0));
    let expected = told(&file).unwrap();
    let sections: Vec<usize> = Image::parse(&file).unwrap().sections().iter().map(|section| section.offset()).collect();
    let places = (0..HEADER).chain(sections.into_iter().flat_map(|offset| offset..offset + 12));
    for at in places {
        for flip in 1..=255_u8 {
            let mut flipped = file.clone();
            flipped[at] ^= flip;
            if let Ok(image) = Image::parse(&flipped) {
                assert!(!image.is_intact(), "byte {at} ^ {flip}: same checksum");
            }
            // Somebody who means it mends the checksum.
            let is_of_checksum = (HEADER - 4..HEADER).contains(&at);
            if (flip.count_ones() == 1 || flip == 255) && !is_of_checksum {
                fix_crc(&mut flipped);
                assert_ne!(told(&flipped).as_ref(), Ok(&expected), "byte {at} ^ {flip}: same report");
            }
        }
    }
}

#[test]
fn a_good_signature_gives_the_register_of_its_certificate() {
    for (signer, algorithm) in [(Signer::p384(), Algorithm::Es384), (Signer::p256(), Algorithm::Es256)] {
        let file = signed(|pcr0| signer.section(pcr0));
        let image = Image::parse(&file).unwrap();
        let signature = image.signature().unwrap().unwrap();
        assert_eq!(signature.algorithm(), algorithm);
        assert_eq!(signature.certificate().der(), signer.der);
        assert_eq!(image.measurements().pcr8, Some(h48(&signer.der)));
        let name = [("countryName", "DE"), ("organizationName", "An \"Image\" Builder"), ("commonName", "signer.test")];
        assert_eq!(signature.certificate().subject(), &name.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}

/// Made with OpenSSL 3.0 and Python. PCR8 is SHA384(48 zero bytes || SHA384(DER)) by sha384sum.
#[test]
fn an_image_signed_by_openssl_is_good() {
    let image = Image::parse(include_bytes!("images/signed.eif")).unwrap();
    assert_eq!(image.signature().unwrap().unwrap().algorithm(), Algorithm::Es384);
    assert_eq!(
        hex::encode(image.measurements().pcr8.unwrap()),
        "12585f08ae86e09a1e09b9783fdb1f38e8274638f88fce39d462615159bff59fc88e64ea5f6ffc842a7d7726d4df30d9"
    );
    assert_eq!(image.configuration(), Ok(Some(&b"release = 1\nkms_roots = \"\"\n"[..])));
}

#[test]
fn a_text_before_the_certificate_and_a_tag_before_the_envelope_are_taken() {
    let signer = Signer::p384();
    let file = signed(|pcr0| {
        let envelope = [&[0xd2][..], &signer.envelope(&payload(0, pcr0))].concat();
        section(&[entry(format!("Bag Attributes\n{}", signer.pem).as_bytes(), &envelope)])
    });
    assert_eq!(verdict(&file), Ok(()));
}

/// The signature does not cover the certificate: without the key one can rename the signer, and gets another PCR8 by that.
#[test]
fn a_certificate_with_other_names_around_the_same_key_is_another_register() {
    let signer = Signer::p384();
    let good = signed(|pcr0| signer.section(pcr0));
    let mut renamed = signer.der.clone();
    let name = renamed.windows(6).rposition(|window| window == b"signer").unwrap();
    renamed[name] = b'S';
    let file = signed(|pcr0| section(&[entry(pem(&renamed).as_bytes(), &signer.envelope(&payload(0, pcr0)))]));
    let (good, file) = (Image::parse(&good).unwrap(), Image::parse(&file).unwrap());
    let subject = file.signature().unwrap().unwrap().certificate().subject();
    assert_eq!(subject.last().unwrap().1, "Signer.test");
    assert_eq!(file.measurements().pcr0, good.measurements().pcr0);
    assert_eq!(file.measurements().pcr8, Some(h48(&renamed)));
    assert_ne!(file.measurements().pcr8, good.measurements().pcr8);
}

#[test]
fn a_certificate_is_valid_in_its_first_and_in_its_last_second() {
    use attestation::certificate::Validity::{Expired, NotYetValid, Valid};
    let file = signed(|pcr0| Signer::p384().section(pcr0));
    let image = Image::parse(&file).unwrap();
    let certificate = image.signature().unwrap().unwrap().certificate().clone();
    let at = [NOT_BEFORE - 1, NOT_BEFORE, NOT_BEFORE + SECONDS, NOT_BEFORE + SECONDS + 1];
    assert_eq!(at.map(|second| certificate.validity_at(second)), [NotYetValid, Valid, Valid, Expired]);
}

#[test]
fn a_signature_of_another_image_is_an_error_of_its_own() {
    let signer = Signer::p384();
    let file = signed(|_| signer.section(&[7; 48]));
    let found = Image::parse(&file).unwrap().measurements().pcr0;
    assert_eq!(verdict(&file), Err(SignatureError::OtherImage { signed: [7; 48], found }));
    let register =
        |index| signed(|pcr0| section(&[entry(signer.pem.as_bytes(), &signer.envelope(&payload(index, pcr0)))]));
    assert_eq!(verdict(&register(1)), Err(SignatureError::OtherRegister { index: 1 }));
    let short = signed(|pcr0| signer.section(&pcr0[..47]));
    assert_eq!(verdict(&short), Err(SignatureError::RegisterLength { found: 47 }));
}

#[test]
fn a_signature_that_does_not_verify_is_an_error() {
    let (signer, other) = (Signer::p384(), Signer::p384());
    let with = |pem: &str, change: &dyn Fn(&mut Vec<u8>)| {
        signed(|pcr0| {
            let mut envelope = signer.envelope(&payload(0, pcr0));
            change(&mut envelope);
            section(&[entry(pem.as_bytes(), &envelope)])
        })
    };
    assert_eq!(verdict(&with(&signer.pem, &|_| ())), Ok(()));
    assert_eq!(verdict(&with(&other.pem, &|_| ())), Err(SignatureError::Bad));
    for flip in 1..=255 {
        let last = |envelope: &mut Vec<u8>| *envelope.last_mut().unwrap() ^= flip;
        assert_eq!(verdict(&with(&signer.pem, &last)), Err(SignatureError::Bad));
    }
    // Inside the signed register: it no longer is what was signed, whatever it says.
    let payload = |envelope: &mut Vec<u8>| envelope[60] ^= 1;
    assert_eq!(verdict(&with(&signer.pem, &payload)), Err(SignatureError::Bad));
    let short = |envelope: &mut Vec<u8>| {
        let signature = envelope.split_off(envelope.len() - 96);
        let at = envelope.len() - 1;
        envelope[at] = 95;
        envelope.extend(&signature[..95]);
    };
    assert_eq!(verdict(&with(&signer.pem, &short)), Err(SignatureError::Bad));
}

#[test]
fn the_algorithm_must_be_that_of_the_certificates_key() {
    let (small, large) = (Signer::p256(), Signer::p384());
    let crossed = |pem: &Signer, envelope: &Signer| {
        signed(|pcr0| section(&[entry(pem.pem.as_bytes(), &envelope.envelope(&payload(0, pcr0)))]))
    };
    let key = |algorithm, key| Err(SignatureError::Key { algorithm, key });
    assert_eq!(verdict(&crossed(&small, &large)), key("ES384", "a P-256 key"));
    assert_eq!(verdict(&crossed(&large, &small)), key("ES256", "a P-384 key"));
    let huge = Signer::p521();
    assert_eq!(verdict(&crossed(&huge, &huge)), Err(SignatureError::Unsupported));
    assert_eq!(verdict(&crossed(&large, &huge)), key("ES512", "a P-384 key"));
    for protected in [&[][..], &[0xa0], &[0xa1, 1, 0x27], &[0xa2, 1, 0x38, 0x22, 4, 0x40]] {
        let mut strange = Signer::p384();
        strange.protected = protected.to_vec();
        assert_eq!(verdict(&crossed(&large, &strange)), Err(SignatureError::UnknownAlgorithm));
    }
}

#[test]
fn a_signature_section_of_another_shape_is_an_error() {
    let signer = Signer::p384();
    let pcr0 = Image::parse(&Draft::golden().file()).unwrap().measurements().pcr0;
    let envelope = signer.envelope(&payload(0, &pcr0));
    let good = entry(signer.pem.as_bytes(), &envelope);
    let of = |section: Vec<u8>| verdict(&signed(|_| section)).unwrap_err();
    assert_eq!(of(section(&[])), SignatureError::Count { found: 0 });
    assert_eq!(of(section(&[good.clone(), good.clone()])), SignatureError::Count { found: 2 });
    assert!(matches!(of(Vec::new()), SignatureError::Cbor(_)));
    assert!(matches!(of([section(std::slice::from_ref(&good)), vec![0]].concat()), SignatureError::Cbor(_)));
    assert!(matches!(of(section(&[entry(b"no certificate", &envelope)])), SignatureError::Certificate(_)));
    assert!(matches!(of(section(&[entry(&[b'x'; 16 * 1024 + 1], &envelope)])), SignatureError::Cbor(_)));
    let strings =
        [b"\xa2\x73signing_certificate", &bytes(signer.pem.as_bytes())[..], b"\x69signature", &bytes(&envelope)];
    assert!(matches!(of(section(&[strings.concat()])), SignatureError::Cbor(_)));
    let mut renamed = good.clone();
    renamed[5] ^= 1;
    assert_eq!(of(section(&[renamed])), SignatureError::Shape { expected: "signing_certificate" });
    let mut unprotected = envelope.clone();
    unprotected.splice(6..7, [0xa1, 0x04, 0x40]);
    assert!(matches!(of(section(&[entry(signer.pem.as_bytes(), &unprotected)])), SignatureError::Cbor(_)));
    // Wherever it ends: an error.
    for length in 0..good.len() {
        of(section(&[good[..length].to_vec()]));
    }
}

proptest! {
    /// Any change of a signed and configured image is read to an end.
    #[test]
    fn no_change_of_an_image_stops_the_reader(
        at in any::<prop::sample::Index>(),
        length in 0_usize..24,
        new in prop::collection::vec(any::<u8>(), 0..24),
    ) {
        let mut file = Draft::golden()
            .with(SIGNATURE, Signer::p384().section(&ZERO))
            .with(RAMDISK, configured("release = 1"))
            .file();
        let start = at.index(file.len());
        let end = (start + length).min(file.len());
        file.splice(start..end, new);
        if file.len() > HEADER {
            fix_crc(&mut file);
        }
        if let Ok(image) = Image::parse(&file) {
            prop_assert!(image.is_intact());
            prop_assert!(image.measurements().pcr8.is_none());
            let _ = image.configuration();
        }
    }
}
