//! Documents of an own authority with the hardware's profile, and each way to spoil them.

use std::collections::BTreeMap;

use rcgen::{BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use time::{Duration, OffsetDateTime};

use attestation::{UnixMillis, cose};

/// Second at which the generated leaf begins, and the document's time 3 s later.
pub const LEAF_NOT_BEFORE: i64 = 1_763_000_000;
pub const TIMESTAMP: UnixMillis = UnixMillis(1_763_000_003_000);
pub const LEAF_SECONDS: i64 = 10_803;

/// What one certificate is to be, before it is signed.
pub struct Draft {
    pub params: CertificateParams,
}

/// A root and what it issued, root first.
pub struct Authority {
    pub certificates: Vec<Vec<u8>>,
    leaf: KeyPair,
}

impl Authority {
    /// Root, regional, zonal, instance and leaf as the hardware has them.
    pub fn new() -> Self {
        Self::with(|_, _| ())
    }

    /// The same, each certificate changed by `spoil(position, draft)` before it is signed.
    pub fn with(spoil: impl Fn(usize, &mut Draft)) -> Self {
        Self::of_length(5, spoil)
    }

    /// A chain of `count` certificates.
    pub fn of_length(count: usize, spoil: impl Fn(usize, &mut Draft)) -> Self {
        let mut certificates = Vec::new();
        let mut issuer: Option<(CertificateParams, KeyPair)> = None;
        for position in 0..count {
            let mut draft = Draft { params: params(position, count) };
            spoil(position, &mut draft);
            let key = key();
            let certificate = match &issuer {
                None => draft.params.self_signed(&key),
                Some((params, issuer)) => draft.params.signed_by(&key, &Issuer::from_params(params, issuer)),
            };
            certificates.push(certificate.unwrap().der().to_vec());
            issuer = Some((draft.params, key));
        }
        Self { certificates, leaf: issuer.unwrap().1 }
    }

    pub fn root(&self) -> &[u8] {
        &self.certificates[0]
    }

    /// A document of these fields, certificates filled in.
    pub fn document(&self, fields: &Fields) -> Vec<u8> {
        self.sign(&self.payload(fields))
    }

    pub fn payload(&self, fields: &Fields) -> Vec<u8> {
        let (leaf, bundle) = self.certificates.split_last().unwrap();
        fields.payload(leaf, bundle)
    }

    /// The envelope around any payload.
    pub fn sign(&self, payload: &[u8]) -> Vec<u8> {
        let rng = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &self.leaf.serialize_der(), &rng).unwrap();
        let signature = key.sign(&rng, &cose::to_be_signed(payload)).unwrap();
        [&[0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xa0][..], &bytes(payload), &bytes(signature.as_ref())].concat()
    }
}

fn key() -> KeyPair {
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &SystemRandom::new()).unwrap();
    let der = rcgen::KeyPair::try_from(pkcs8.as_ref()).unwrap().serialize_der();
    KeyPair::from_pkcs8_der_and_sign_algo(&der.as_slice().into(), &rcgen::PKCS_ECDSA_P384_SHA384).unwrap()
}

fn params(position: usize, count: usize) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("certificate {position}.test"));
    let not_before = OffsetDateTime::from_unix_timestamp(LEAF_NOT_BEFORE).unwrap();
    if position + 1 == count {
        params.not_before = not_before;
        params.not_after = not_before + Duration::seconds(LEAF_SECONDS);
        params.is_ca = IsCa::NoCa;
        params.custom_extensions.push(basic_constraints(&[0x30, 0x00]));
        // digitalSignature and nonRepudiation, not critical.
        params.custom_extensions.push(key_usage(&[0x03, 0x02, 0x06, 0xc0]));
    } else {
        params.not_before = not_before - Duration::days(1);
        params.not_after = not_before + Duration::days(1);
        let below = count - 2 - position;
        params.is_ca = IsCa::Ca(match position {
            0 => BasicConstraints::Unconstrained,
            _ => BasicConstraints::Constrained(u8::try_from(below).unwrap()),
        });
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    }
    params
}

pub fn basic_constraints(der: &[u8]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 19], der.to_vec());
    extension.set_criticality(true);
    extension
}

pub fn key_usage(der: &[u8]) -> CustomExtension {
    CustomExtension::from_oid_content(&[2, 5, 29, 15], der.to_vec())
}

/// The fields of a document, and where its encoding differs from the usual.
#[derive(Clone)]
pub struct Fields {
    pub module_id: String,
    pub digest: String,
    pub timestamp: UnixMillis,
    pub pcrs: BTreeMap<u64, Vec<u8>>,
    pub public_key: Option<Vec<u8>>,
    pub user_data: Option<Vec<u8>>,
    pub nonce: Option<Vec<u8>>,
    pub indefinite: bool,
    /// Entries (key and value, encoded) that follow the nine.
    pub extra: Vec<Vec<u8>>,
    /// Names that are left out.
    pub without: Vec<&'static str>,
}

impl Fields {
    pub fn new() -> Self {
        let mut pcrs: BTreeMap<u64, Vec<u8>> = (0..16).map(|index| (index, vec![0; 48])).collect();
        (0..3).for_each(|index| drop(pcrs.insert(index, vec![0xa0 | u8::try_from(index).unwrap(); 48])));
        Self {
            module_id: "i-0123456789abcdef0-enc0123456789abcdef".to_owned(),
            digest: "SHA384".to_owned(),
            timestamp: TIMESTAMP,
            pcrs,
            public_key: None,
            user_data: None,
            nonce: None,
            indefinite: true,
            extra: Vec::new(),
            without: Vec::new(),
        }
    }

    pub fn payload(&self, certificate: &[u8], cabundle: &[Vec<u8>]) -> Vec<u8> {
        let mut pcrs = vec![0xb8, u8::try_from(self.pcrs.len()).unwrap()];
        if self.pcrs.len() < 24 {
            pcrs = vec![0xa0 | u8::try_from(self.pcrs.len()).unwrap()];
        }
        for (index, value) in &self.pcrs {
            pcrs.extend(unsigned(*index));
            pcrs.extend(bytes(value));
        }
        let mut bundle = vec![0x80 | u8::try_from(cabundle.len()).unwrap()];
        cabundle.iter().for_each(|der| bundle.extend(bytes(der)));
        let entries = [
            ("module_id", text(&self.module_id)),
            ("digest", text(&self.digest)),
            ("timestamp", unsigned(self.timestamp.0)),
            ("pcrs", pcrs),
            ("certificate", bytes(certificate)),
            ("cabundle", bundle),
            ("public_key", optional(self.public_key.as_deref())),
            ("user_data", optional(self.user_data.as_deref())),
            ("nonce", optional(self.nonce.as_deref())),
        ];
        let entries: Vec<Vec<u8>> = entries
            .into_iter()
            .filter(|(name, _)| !self.without.contains(name))
            .map(|(name, value)| [text(name), value].concat())
            .chain(self.extra.iter().cloned())
            .collect();
        let head = if self.indefinite { 0xbf } else { 0xa0 | u8::try_from(entries.len()).unwrap() };
        let end: &[u8] = if self.indefinite { &[0xff] } else { &[] };
        [&[head][..], &entries.concat(), end].concat()
    }
}

pub fn text(text: &str) -> Vec<u8> {
    [head(0x60, text.len() as u64), text.as_bytes().to_vec()].concat()
}

pub fn bytes(bytes: &[u8]) -> Vec<u8> {
    [head(0x40, bytes.len() as u64), bytes.to_vec()].concat()
}

pub fn optional(value: Option<&[u8]>) -> Vec<u8> {
    value.map_or(vec![0xf6], bytes)
}

pub fn unsigned(value: u64) -> Vec<u8> {
    head(0x00, value)
}

fn head(major: u8, value: u64) -> Vec<u8> {
    match value {
        0..=23 => vec![major | value as u8],
        24..=0xff => vec![major | 24, value as u8],
        0x100..=0xffff => [&[major | 25][..], &(value as u16).to_be_bytes()].concat(),
        0x1_0000..=0xffff_ffff => [&[major | 26][..], &(value as u32).to_be_bytes()].concat(),
        _ => [&[major | 27][..], &value.to_be_bytes()].concat(),
    }
}
