//! Enclave image files, written without the reader's code, and each way to spoil them.

use rcgen::{CertificateParams, DnType, IsCa, KeyPair, SignatureAlgorithm};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
};
use time::{Duration, OffsetDateTime};

pub const KERNEL: u16 = 1;
pub const COMMAND_LINE: u16 = 2;
pub const RAMDISK: u16 = 3;
pub const SIGNATURE: u16 = 4;
pub const METADATA: u16 = 5;

pub const HEADER: usize = 548;
/// Begin of the validity of signing certificates, and its length.
pub const NOT_BEFORE: i64 = 1_793_527_200;
pub const SECONDS: i64 = 86_400;

/// An image before it is written.
#[derive(Clone)]
pub struct Draft {
    pub version: u16,
    pub flags: u16,
    pub sections: Vec<(u16, Vec<u8>)>,
}

impl Draft {
    /// Kernel, command line, metadata and three ramdisks, of fixed content.
    pub fn golden() -> Self {
        let sections = vec![
            (KERNEL, b"a kernel".to_vec()),
            (COMMAND_LINE, b"console=ttyS0 panic=1".to_vec()),
            (METADATA, b"{\"ImageName\":\"golden\"}".to_vec()),
            (RAMDISK, b"the first ramdisk\0\0\0".to_vec()),
            (RAMDISK, b"the second ramdisk\0\0".to_vec()),
            (RAMDISK, b"the last".to_vec()),
        ];
        Self { version: 4, flags: 0, sections }
    }

    pub fn with(mut self, kind: u16, content: impl Into<Vec<u8>>) -> Self {
        self.sections.push((kind, content.into()));
        self
    }

    pub fn without(mut self, kind: u16) -> Self {
        self.sections.retain(|(other, _)| *other != kind);
        self
    }

    /// The file, with the checksum that belongs to it.
    pub fn file(&self) -> Vec<u8> {
        let mut offset = HEADER as u64;
        let (mut offsets, mut sizes) = ([0_u64; 32], [0_u64; 32]);
        for (index, (_, content)) in self.sections.iter().enumerate().take(32) {
            (offsets[index], sizes[index]) = (offset, content.len() as u64);
            offset += 12 + content.len() as u64;
        }
        let mut file = b".eif".to_vec();
        file.extend(self.version.to_be_bytes());
        file.extend(self.flags.to_be_bytes());
        file.extend((1_u64 << 30).to_be_bytes());
        file.extend(2_u64.to_be_bytes());
        file.extend(0_u16.to_be_bytes());
        file.extend(u16::try_from(self.sections.len()).unwrap().to_be_bytes());
        offsets.iter().chain(&sizes).for_each(|value| file.extend(value.to_be_bytes()));
        file.extend([0; 8]);
        for (kind, content) in &self.sections {
            file.extend(kind.to_be_bytes());
            file.extend([0; 2]);
            file.extend((content.len() as u64).to_be_bytes());
            file.extend(content);
        }
        fix_crc(&mut file);
        file
    }
}

/// Writes the checksum that belongs to a file into its header.
pub fn fix_crc(file: &mut [u8]) {
    let mut crc = !0_u32;
    for byte in file[..HEADER - 4].iter().chain(&file[HEADER..]) {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    file[HEADER - 4..HEADER].copy_from_slice(&(!crc).to_be_bytes());
}

/// A key and its certificate.
pub struct Signer {
    pub pem: String,
    pub der: Vec<u8>,
    key: Vec<u8>,
    algorithm: &'static EcdsaSigningAlgorithm,
    pub protected: Vec<u8>,
}

impl Signer {
    /// On P-384, for ES384.
    pub fn p384() -> Self {
        Self::of(&ECDSA_P384_SHA384_FIXED_SIGNING, &rcgen::PKCS_ECDSA_P384_SHA384, &[0xa1, 1, 0x38, 0x22])
    }

    /// On P-256, for ES256.
    pub fn p256() -> Self {
        Self::of(&ECDSA_P256_SHA256_FIXED_SIGNING, &rcgen::PKCS_ECDSA_P256_SHA256, &[0xa1, 1, 0x26])
    }

    /// A certificate on P-521, as for ES512; what it signs is no signature.
    pub fn p521() -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        let other = Self::p384();
        Self { pem: certificate(&key).pem(), der: Vec::new(), protected: vec![0xa1, 1, 0x38, 0x23], ..other }
    }

    fn of(algorithm: &'static EcdsaSigningAlgorithm, named: &'static SignatureAlgorithm, protected: &[u8]) -> Self {
        let key = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).unwrap().as_ref().to_vec();
        let der = KeyPair::try_from(key.as_slice()).unwrap().serialize_der();
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&der.as_slice().into(), named).unwrap();
        let certificate = certificate(&pair);
        let (pem, der) = (certificate.pem(), certificate.der().to_vec());
        Self { pem, der, key, algorithm, protected: protected.to_vec() }
    }

    /// The signature section for an image with this PCR0.
    pub fn section(&self, pcr0: &[u8]) -> Vec<u8> {
        section(&[entry(self.pem.as_bytes(), &self.envelope(&payload(0, pcr0)))])
    }

    /// COSE_Sign1 over a payload.
    pub fn envelope(&self, payload: &[u8]) -> Vec<u8> {
        let signed = [b"\x84\x6aSignature1", &bytes(&self.protected)[..], b"\x40", &bytes(payload)].concat();
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(self.algorithm, &self.key, &random).unwrap();
        let signature = key.sign(&random, &signed).unwrap();
        [b"\x84", &bytes(&self.protected)[..], b"\xa0", &bytes(payload), &bytes(signature.as_ref())].concat()
    }
}

fn certificate(key: &KeyPair) -> rcgen::Certificate {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CountryName, "DE");
    params.distinguished_name.push(DnType::OrganizationName, "An \"Image\" Builder");
    params.distinguished_name.push(DnType::CommonName, "signer.test");
    params.is_ca = IsCa::NoCa;
    params.not_before = OffsetDateTime::from_unix_timestamp(NOT_BEFORE).unwrap();
    params.not_after = params.not_before + Duration::seconds(SECONDS);
    params.self_signed(key).unwrap()
}

/// The PEM of a certificate.
pub fn pem(der: &[u8]) -> String {
    let digits: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+', '/']).collect();
    let quads = der.chunks(3).map(|chunk| {
        let bits = chunk.iter().chain(&[0; 2]).take(3).fold(0, |bits, byte| bits << 8 | usize::from(*byte));
        let digit = |index: usize| if index > chunk.len() { '=' } else { digits[bits >> (18 - 6 * index) & 63] };
        (0..4).map(digit).collect::<String>()
    });
    let lines = quads.collect::<Vec<_>>().chunks(16).map(|line| line.concat() + "\n").collect::<String>();
    format!("-----BEGIN CERTIFICATE-----\n{lines}-----END CERTIFICATE-----\n")
}

/// What is signed: `{"register_index": index, "register_value": [...]}`.
pub fn payload(index: u8, value: &[u8]) -> Vec<u8> {
    assert!(index < 24);
    [b"\xa2\x6eregister_index", &[index][..], b"\x6eregister_value", &integers(value)].concat()
}

/// One entry of a signature section.
pub fn entry(pem: &[u8], envelope: &[u8]) -> Vec<u8> {
    [b"\xa2\x73signing_certificate", &integers(pem)[..], b"\x69signature", &integers(envelope)].concat()
}

/// A signature section of these entries.
pub fn section(entries: &[Vec<u8>]) -> Vec<u8> {
    [vec![0x80 | u8::try_from(entries.len()).unwrap()], entries.concat()].concat()
}

/// Bytes as AWS's tools write them there: an array of integers.
fn integers(content: &[u8]) -> Vec<u8> {
    let mut out = head(0x80, content.len());
    content.iter().for_each(|byte| out.extend(head(0, usize::from(*byte))));
    out
}

/// A byte string.
pub fn bytes(content: &[u8]) -> Vec<u8> {
    [head(0x40, content.len()), content.to_vec()].concat()
}

fn head(major: u8, length: usize) -> Vec<u8> {
    match length {
        0..=23 => vec![major | u8::try_from(length).unwrap()],
        24..=255 => vec![major | 24, u8::try_from(length).unwrap()],
        _ => [vec![major | 25], u16::try_from(length).unwrap().to_be_bytes().to_vec()].concat(),
    }
}

/// An archive of the format "newc" of (name, mode, links, content), without its end.
pub fn newc(entries: &[(&str, u32, u32, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, mode, links, content) in entries {
        out.extend(b"070701");
        let (size, name_size) = (u32::try_from(content.len()).unwrap(), u32::try_from(name.len() + 1).unwrap());
        for number in [1, *mode, 0, 0, *links, 0, size, 0, 0, 0, 0, name_size, 0] {
            out.extend(format!("{number:08x}").bytes());
        }
        out.extend(name.bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(*content);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// The end of an archive.
pub fn trailer() -> Vec<u8> {
    newc(&[("TRAILER!!!", 0, 1, b"")])
}

/// A ramdisk with this image configuration and nothing else.
pub fn configured(toml: &str) -> Vec<u8> {
    [newc(&[("etc/subrosa/image.toml", 0o100_644, 1, toml.as_bytes())]), trailer()].concat()
}
