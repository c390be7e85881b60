//! What the reader of the configuration inside an image promises.
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

use attestation::image::{ConfigurationError, Image};
use images::{Draft, RAMDISK, configured, newc, trailer};

const FILE: u32 = 0o100_644;
const FOLDER: u32 = 0o040_755;
const PATH: &str = "etc/subrosa/image.toml";

fn configuration(ramdisk: Vec<u8>) -> Result<Option<Vec<u8>>, ConfigurationError> {
    let file = Draft::golden().without(RAMDISK).with(RAMDISK, "the program's").with(RAMDISK, ramdisk).file();
    Image::parse(&file).unwrap().configuration().map(|found| found.map(<[u8]>::to_vec))
}

#[test]
fn the_configuration_is_found_in_the_last_ramdisk() {
    let found = Ok(Some(b"release = 1".to_vec()));
    assert_eq!(configuration(configured("release = 1")), found);
    let folders = [("etc", FOLDER, 2, &b""[..]), ("etc/subrosa", FOLDER, 2, b""), (PATH, FILE, 1, b"release = 1")];
    for first in 0..3 {
        let mut ramdisk = [newc(&folders[first..]), trailer()].concat();
        assert_eq!(configuration(ramdisk.clone()), found);
        ramdisk.resize(ramdisk.len() + 300, 0);
        assert_eq!(configuration(ramdisk), found);
    }
}

#[test]
fn images_of_other_people_have_no_configuration() {
    let other = [newc(&[("etc/hostname", FILE, 1, b"x")]), trailer()].concat();
    for ramdisk in [other, b"\x1f\x8b etc/subrosa/image.toml".to_vec(), Vec::new(), b"070701".to_vec()] {
        assert_eq!(configuration(ramdisk), Ok(None));
    }
    let first = Draft::golden().without(RAMDISK).with(RAMDISK, configured("release = 1")).with(RAMDISK, "opaque");
    assert_eq!(Image::parse(&first.file()).unwrap().configuration(), Ok(None));
}

/// A kernel reads all ramdisks as one: a file of the second, whose stated length is that of the third, swallows the third.
#[test]
fn a_configuration_in_another_than_the_second_of_two_ramdisks_is_not_believed() {
    for before in [0, 2, 3] {
        let mut image = Draft::golden().without(RAMDISK);
        for _ in 0..before {
            image = image.with(RAMDISK, "opaque");
        }
        let file = image.with(RAMDISK, configured("release = 1")).file();
        let expected = Err(ConfigurationError::Ramdisks { count: before + 1 });
        assert_eq!(Image::parse(&file).unwrap().configuration(), expected);
    }
}

/// A kernel unpacks all of it, and the last file of a name stays.
#[test]
fn a_configuration_with_anything_beside_it_is_not_believed() {
    let toml = (PATH, FILE, 1, &b"release = 1"[..]);
    let archive = |entries: &[(&str, u32, u32, &[u8])]| [newc(entries), trailer()].concat();
    let entry = |expected| Err(ConfigurationError::Entry { expected });
    assert_eq!(configuration(archive(&[toml, toml])), entry("TRAILER!!!"));
    assert_eq!(configuration(archive(&[toml, ("etc/other", FILE, 1, b"")])), entry("TRAILER!!!"));
    assert_eq!(configuration(archive(&[("etc/other", FILE, 1, b""), toml])), entry(PATH));
    assert_eq!(configuration(archive(&[("etc", 0o120_777, 1, b"elsewhere"), toml])), entry(PATH));
    assert_eq!(configuration(archive(&[(PATH, 0o120_777, 1, b"/elsewhere")])), entry(PATH));
    assert_eq!(configuration(archive(&[(PATH, FILE, 2, b"release = 1")])), entry(PATH));
    assert_eq!(configuration(archive(&[("./etc/subrosa/image.toml", FILE, 1, b"release = 1")])), entry(PATH));
    let second = [configured("release = 1"), b"\x1f\x8b another archive".to_vec()].concat();
    assert_eq!(configuration(second), Err(ConfigurationError::Trailing));
    let large = "x".repeat(256 * 1024 + 1);
    assert_eq!(configuration(configured(&large)), Err(ConfigurationError::TooLarge { length: large.len() }));
}

#[test]
fn a_cut_or_spoilt_configuration_archive_is_an_error() {
    let ramdisk = configured("release = 1");
    let named = ramdisk.windows(PATH.len()).position(|window| window == PATH.as_bytes()).unwrap() + PATH.len();
    for length in named..ramdisk.len() - 3 {
        assert!(configuration(ramdisk[..length].to_vec()).is_err(), "{length}");
    }
    for size in ["ffffffff", "80000000", "0000001G", "-0000001"] {
        for field in [54, 94] {
            let mut spoilt = ramdisk.clone();
            spoilt[field..field + 8].copy_from_slice(size.as_bytes());
            assert!(configuration(spoilt).is_err(), "{size} at {field}");
        }
    }
}
