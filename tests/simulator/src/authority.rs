//! The simulated hypervisor's certificate authority: an own P-384 root, made once into a folder, and the four
//! certificates under it that each enclave gets.
//!
//! No production verifier trusts this root; whoever wants to must name its file under a `danger` flag.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use attestation::chain::{TrustAnchor, TrustAnchorError};
use rcgen::{
    BasicConstraints, CertificateParams, CrlDistributionPoint, CustomExtension, DistinguishedName, DnType, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

/// A root key with its certificate.
pub struct Authority {
    key: KeyPair,
    root: CertificateDer<'static>,
}

impl Authority {
    /// The authority of a folder, made there if there is none yet.
    ///
    /// `root.key` (mode 0600) holds key and certificate, so that both appear at once; `root.pem` is the certificate for
    /// whoever verifies.
    pub fn open_or_create(folder: &Path) -> Result<Self, AuthorityError> {
        fs::create_dir_all(folder)?;
        let secret = folder.join(SECRET_FILE);
        if !secret.exists() {
            let made = Self::ephemeral()?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.as_file().set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(pem("PRIVATE KEY", &made.key.serialize_der()).as_bytes())?;
            file.write_all(pem("CERTIFICATE", &made.root).as_bytes())?;
            match file.persist_noclobber(&secret) {
                Ok(_) => {}
                // Another hypervisor was faster: its authority counts.
                Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.error.into()),
            }
        }
        let authority = Self::from_pem(&fs::read(&secret)?)?;
        authority.publish(folder)?;
        Ok(authority)
    }

    /// An authority that lives in memory alone.
    pub fn ephemeral() -> Result<Self, AuthorityError> {
        let key = p384_key()?;
        let root = root_params(OffsetDateTime::now_utc()).self_signed(&key)?;
        Ok(Self { key, root: root.into() })
    }

    fn from_pem(pem: &[u8]) -> Result<Self, AuthorityError> {
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| AuthorityError::Malformed)?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P384_SHA384)?;
        let root = CertificateDer::from_pem_slice(pem).map_err(|_| AuthorityError::Malformed)?;
        Ok(Self { key, root: root.into_owned() })
    }

    fn publish(&self, folder: &Path) -> Result<(), AuthorityError> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.as_file().set_permissions(Permissions::from_mode(0o644))?;
        file.write_all(self.root_pem().as_bytes())?;
        let _: File = file.persist(folder.join(ROOT_FILE)).map_err(|error| error.error)?;
        Ok(())
    }

    /// The root certificate, DER.
    #[must_use]
    pub fn root_der(&self) -> &[u8] {
        &self.root
    }

    /// The root certificate, PEM.
    #[must_use]
    pub fn root_pem(&self) -> String {
        pem("CERTIFICATE", &self.root)
    }

    /// The root as the verifier takes it.
    pub fn trust_anchor(&self) -> Result<TrustAnchor, TrustAnchorError> {
        TrustAnchor::danger_from_der(&self.root)
    }

    /// Regional, zonal, instance and leaf certificate for one enclave, the leaf valid from 3 s before `now` for 3 h.
    pub fn issue(&self, name: &EnclaveName, now: OffsetDateTime) -> Result<Credentials, AuthorityError> {
        let EnclaveName { region, instance_id, module_id } = name;
        let now = now.replace_nanosecond(0).unwrap_or(now);
        let mut bundle = vec![self.root.to_vec()];

        let regional_name = amazon(&format!("d3c9df74fdeb2ba5.{region}.{SUFFIX}"), None);
        let mut regional = authority_params(regional_name, 2, now - Duration::days(3), REGIONAL_LIFE);
        regional.crl_distribution_points = vec![crl("regional")];
        let (regional, regional_key) = self.add(&mut bundle, regional, &root_params(now), &self.key)?;

        let zonal_name = zonal_name(&format!("db5d852a812a3d1e.zonal.{region}.{SUFFIX}"));
        let mut zonal = authority_params(zonal_name, 1, now - Duration::days(1), ZONAL_LIFE);
        zonal.crl_distribution_points = vec![crl("zonal")];
        let (zonal, zonal_key) = self.add(&mut bundle, zonal, &regional, &regional_key)?;

        let instance_name = amazon(&format!("{instance_id}.{region}.{SUFFIX}"), Some("Washington"));
        let mut instance = authority_params(instance_name, 0, now - Duration::minutes(31), INSTANCE_LIFE);
        instance.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let (instance, instance_key) = self.add(&mut bundle, instance, &zonal, &zonal_key)?;

        let key = p384_key()?;
        let leaf = leaf_params(amazon(&format!("{module_id}.{region}.aws"), Some("Washington")), now);
        let leaf = leaf.signed_by(&key, &Issuer::from_params(&instance, &instance_key))?;
        let rng = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &key.serialize_der(), &rng)
            .map_err(|_| AuthorityError::Key)?;
        Ok(Credentials { cabundle: bundle, certificate: leaf.der().to_vec(), key, not_after: now + LEAF_AHEAD })
    }

    fn add(
        &self,
        bundle: &mut Vec<Vec<u8>>,
        params: CertificateParams,
        issuer: &CertificateParams,
        issuer_key: &KeyPair,
    ) -> Result<(CertificateParams, KeyPair), AuthorityError> {
        let key = p384_key()?;
        let certificate = params.signed_by(&key, &Issuer::from_params(issuer, issuer_key))?;
        bundle.push(certificate.der().to_vec());
        Ok((params, key))
    }
}

/// Whom a chain is for.
#[derive(Clone, Debug)]
pub struct EnclaveName {
    /// Of AWS, `us-east-1`.
    pub region: String,
    /// Of the parent, `i-<17 hex>`.
    pub instance_id: String,
    /// Of the enclave, `<instance>-enc<16 hex>`.
    pub module_id: String,
}

/// What signs the documents of one enclave until `not_after`.
pub struct Credentials {
    pub(crate) cabundle: Vec<Vec<u8>>,
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: EcdsaKeyPair,
    pub(crate) not_after: OffsetDateTime,
}

fn p384_key() -> Result<KeyPair, AuthorityError> {
    let rng = SystemRandom::new();
    let pkcs8 =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &rng).map_err(|_| AuthorityError::Key)?;
    let pkcs8 = PrivatePkcs8KeyDer::from(pkcs8.as_ref());
    Ok(KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &PKCS_ECDSA_P384_SHA384)?)
}

fn root_params(now: OffsetDateTime) -> CertificateParams {
    let name = amazon(SUFFIX, None);
    let not_before = now.replace_nanosecond(0).unwrap_or(now) - Duration::days(30);
    let mut params = authority_params(name, 0, not_before, ROOT_LIFE);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.use_authority_key_identifier_extension = false;
    params
}

fn authority_params(
    name: DistinguishedName,
    path_length: u8,
    not_before: OffsetDateTime,
    life: Duration,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.not_before = not_before;
    params.not_after = not_before + life;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

/// "nothing else": critical CA=FALSE, key usage not critical, no identifier of any key.
fn leaf_params(name: DistinguishedName, now: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.not_before = now - LEAF_BACK;
    params.not_after = now + LEAF_AHEAD;
    params.is_ca = IsCa::NoCa;
    let mut constraints = CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 0x00]);
    constraints.set_criticality(true);
    // digitalSignature and nonRepudiation: the first two bits of eight.
    let usage = CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![0x03, 0x02, 0x06, 0xc0]);
    params.custom_extensions = vec![constraints, usage];
    params
}

fn amazon(common_name: &str, state: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CountryName, "US");
    if let Some(state) = state {
        name.push(DnType::StateOrProvinceName, state);
        name.push(DnType::LocalityName, "Seattle");
    }
    name.push(DnType::OrganizationName, "Simulated");
    name.push(DnType::OrganizationalUnitName, "Subrosa");
    name.push(DnType::CommonName, common_name);
    name
}

/// The zonal certificate names itself in another order than the rest: common name first.
fn zonal_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name.push(DnType::OrganizationalUnitName, "Subrosa");
    name.push(DnType::OrganizationName, "Simulated");
    name.push(DnType::CountryName, "US");
    name.push(DnType::StateOrProvinceName, "WA");
    name.push(DnType::LocalityName, "Seattle");
    name
}

fn crl(name: &str) -> CrlDistributionPoint {
    CrlDistributionPoint { uris: vec![format!("http://crl.invalid/{name}.crl")] }
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// Why there is no authority or certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// The folder cannot be read or written.
    #[error("the authority's folder: {0}")]
    Folder(#[from] io::Error),
    /// What is in `root.key` is not a key and a certificate.
    #[error("{SECRET_FILE} does not hold a key and a certificate; remove the folder to make a new authority")]
    Malformed,
    /// A key could not be made or read.
    #[error("a P-384 key could not be made or read")]
    Key,
    /// A certificate could not be made.
    #[error("a certificate could not be made: {0}")]
    Certificate(#[from] rcgen::Error),
}

/// The root's certificate in an authority's folder.
pub const ROOT_FILE: &str = "root.pem";
const SECRET_FILE: &str = "root.key";
const SUFFIX: &str = "simulated.nitro-enclaves";
/// Lifetimes of the hardware's certificates, as seen in genuine documents.
const ROOT_LIFE: Duration = Duration::days(30 * 365);
const REGIONAL_LIFE: Duration = Duration::seconds(1_731_599);
const ZONAL_LIFE: Duration = Duration::seconds(507_600);
const INSTANCE_LIFE: Duration = Duration::hours(24);
const LEAF_BACK: Duration = Duration::seconds(3);
const LEAF_AHEAD: Duration = Duration::hours(3);
