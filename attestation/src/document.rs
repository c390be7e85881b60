//! The attestation document: parsed once, every field checked, nothing believed yet.
//!
//! Source of the fields and limits: AWS, "Verifying the root of trust" (attestation_process.md of
//! aws-nitro-enclaves-nsm-api), sections 2.2 and 3.2; where real documents differ, the constant says so.

use std::collections::BTreeMap;
use std::fmt;

use ring::digest::{SHA384, digest};

use crate::Pcr;
use crate::cbor::{CborError, MapLength, Reader};
use crate::cose::{self, CoseError, MAX_DOCUMENT, SIGNATURE_LENGTH, Sign1};

/// An attestation document of a Nitro enclave. Its shape is right; that it is genuine is [`crate::chain`]'s question.
#[derive(Clone, Debug)]
pub struct Document {
    payload: Vec<u8>,
    signature: [u8; SIGNATURE_LENGTH],
    fields: Fields,
}

#[derive(Clone, Debug)]
struct Fields {
    module_id: String,
    timestamp: UnixMillis,
    pcrs: BTreeMap<u8, Pcr>,
    certificate: Vec<u8>,
    cabundle: Vec<Vec<u8>>,
    public_key: Option<Vec<u8>>,
    user_data: Option<Vec<u8>>,
    nonce: Option<Vec<u8>>,
}

impl Document {
    /// Parses the bytes that the NSM returned.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        if bytes.len() > MAX_DOCUMENT {
            return Err(ParseError::TooLarge { found: bytes.len() });
        }
        let message = Sign1::parse(bytes)?;
        let fields = Fields::parse(message.payload())?;
        Ok(Self { payload: message.payload().to_vec(), signature: *message.signature(), fields })
    }

    /// The NSM's name, `i-<instance>-enc<enclave>`: one per life of an enclave.
    #[must_use]
    pub fn module_id(&self) -> &str {
        &self.fields.module_id
    }

    /// The identifier of the parent instance, `i-<hex>`, as the module id states it.
    #[must_use]
    pub fn instance_id(&self) -> &str {
        self.fields.module_id.split("-enc").next().unwrap_or_default()
    }

    /// When the hypervisor signed it.
    #[must_use]
    pub fn timestamp(&self) -> UnixMillis {
        self.fields.timestamp
    }

    /// All registers that were locked at that moment. Indices need not be contiguous.
    #[must_use]
    pub fn pcrs(&self) -> &BTreeMap<u8, Pcr> {
        &self.fields.pcrs
    }

    /// The enclave runs in debug mode: none of PCR0, PCR1 and PCR2 holds a measurement. PCR3 and PCR4 keep theirs.
    #[must_use]
    pub fn is_debug(&self) -> bool {
        self.fields.is_debug()
    }

    /// What the enclave put there. Absent and empty are different values.
    #[must_use]
    pub fn public_key(&self) -> Option<&[u8]> {
        self.fields.public_key.as_deref()
    }

    /// What the enclave put there. Absent and empty are different values.
    #[must_use]
    pub fn user_data(&self) -> Option<&[u8]> {
        self.fields.user_data.as_deref()
    }

    /// What the enclave put there. Absent and empty are different values.
    #[must_use]
    pub fn nonce(&self) -> Option<&[u8]> {
        self.fields.nonce.as_deref()
    }

    /// The certificate whose key signed the document, DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.fields.certificate
    }

    /// The issuers, DER, root first.
    #[must_use]
    pub fn cabundle(&self) -> &[Vec<u8>] {
        &self.fields.cabundle
    }

    /// SHA-384 of the signed bytes: what ties proofs to this document. (The signature would not do: it is malleable.)
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let mut fingerprint = [0; 48];
        fingerprint.copy_from_slice(digest(&SHA384, &self.payload).as_ref());
        Fingerprint(fingerprint)
    }

    pub(crate) fn payload(&self) -> &[u8] {
        &self.payload
    }

    pub(crate) fn signature(&self) -> &[u8; SIGNATURE_LENGTH] {
        &self.signature
    }
}

/// What a document of one's *own* module says, whoever signed it.
///
/// An enclave is no relying party of its own documents: KMS and clients verify them, the enclave asks its module for the
/// time, its name and its registers over a device that is the hypervisor's. So a module that cannot sign (an emulated one,
/// whose documents nobody else accepts) is read as well. There is no way from here to [`crate::chain`] or [`crate::Verified`].
#[derive(Clone, Debug)]
pub struct OwnDocument(Fields);

impl OwnDocument {
    /// Parses the bytes that our own module returned: strict as [`Document::parse`] in every field, but under any algorithm.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        if bytes.len() > MAX_DOCUMENT {
            return Err(ParseError::TooLarge { found: bytes.len() });
        }
        Fields::parse(cose::unsigned_payload(bytes)?).map(Self)
    }

    /// As [`Document::module_id`].
    #[must_use]
    pub fn module_id(&self) -> &str {
        &self.0.module_id
    }

    /// As [`Document::timestamp`].
    #[must_use]
    pub fn timestamp(&self) -> UnixMillis {
        self.0.timestamp
    }

    /// As [`Document::pcrs`].
    #[must_use]
    pub fn pcrs(&self) -> &BTreeMap<u8, Pcr> {
        &self.0.pcrs
    }

    /// As [`Document::is_debug`].
    #[must_use]
    pub fn is_debug(&self) -> bool {
        self.0.is_debug()
    }
}

impl Fields {
    fn is_debug(&self) -> bool {
        (0..=2).all(|index| self.pcrs.get(&index).is_none_or(|pcr| *pcr == [0; 48]))
    }

    fn parse(payload: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(payload);
        let length = reader.document_map(FIELD_COUNT)?;
        let mut raw = RawFields::default();
        let mut count = 0;
        loop {
            match length {
                MapLength::Definite(announced) if count == announced => break,
                MapLength::Indefinite if reader.at_break() => break,
                // Each name is accepted once, so an indefinite map ends after nine entries at the latest.
                _ => raw.entry(&mut reader)?,
            }
            count += 1;
        }
        reader.end()?;
        raw.complete()
    }
}

/// The nine fields while they arrive, in any order. The outer `Option` says whether the name was seen.
#[derive(Default)]
struct RawFields<'a> {
    module_id: Option<&'a str>,
    digest: Option<&'a str>,
    timestamp: Option<u64>,
    pcrs: Option<BTreeMap<u8, Pcr>>,
    certificate: Option<&'a [u8]>,
    cabundle: Option<Vec<&'a [u8]>>,
    public_key: Option<Option<&'a [u8]>>,
    user_data: Option<Option<&'a [u8]>>,
    nonce: Option<Option<&'a [u8]>>,
}

impl<'a> RawFields<'a> {
    fn entry(&mut self, reader: &mut Reader<'a>) -> Result<(), ParseError> {
        let name = reader.text(MAX_NAME)?;
        match name {
            "module_id" => set(&mut self.module_id, "module_id", reader.text(MAX_MODULE_ID)?),
            "digest" => set(&mut self.digest, "digest", reader.text(MAX_DIGEST)?),
            "timestamp" => set(&mut self.timestamp, "timestamp", reader.unsigned()?),
            "pcrs" => set(&mut self.pcrs, "pcrs", pcrs(reader)?),
            "certificate" => set(&mut self.certificate, "certificate", certificate(reader)?),
            "cabundle" => set(&mut self.cabundle, "cabundle", cabundle(reader)?),
            "public_key" => set(&mut self.public_key, "public_key", reader.optional_bytes(MAX_OPTIONAL)?),
            "user_data" => set(&mut self.user_data, "user_data", reader.optional_bytes(MAX_OPTIONAL)?),
            "nonce" => set(&mut self.nonce, "nonce", reader.optional_bytes(MAX_OPTIONAL)?),
            // Same envelope, root and chain: whoever took it for an enclave would let any EC2 instance pose as one.
            "nitrotpm_pcrs" => Err(ParseError::NitroTpm),
            other => Err(ParseError::UnknownField(other.to_owned())),
        }
    }

    fn complete(self) -> Result<Fields, ParseError> {
        let Self { module_id, digest, timestamp, pcrs, certificate, cabundle, public_key, user_data, nonce } = self;
        let module_id = module_id.ok_or(ParseError::Missing("module_id"))?;
        check_module_id(module_id)?;
        let digest = digest.ok_or(ParseError::Missing("digest"))?;
        if digest != DIGEST {
            return Err(ParseError::Digest(digest.to_owned()));
        }
        let timestamp = timestamp.ok_or(ParseError::Missing("timestamp"))?;
        if timestamp == 0 {
            return Err(ParseError::ZeroTimestamp);
        }
        // AWS's text says that optional fields are left out; the hardware writes null. Both mean absent.
        let public_key = public_key.flatten();
        if public_key.is_some_and(<[u8]>::is_empty) {
            return Err(ParseError::Empty("public_key"));
        }
        Ok(Fields {
            module_id: module_id.to_owned(),
            timestamp: UnixMillis(timestamp),
            pcrs: pcrs.ok_or(ParseError::Missing("pcrs"))?,
            certificate: certificate.ok_or(ParseError::Missing("certificate"))?.to_vec(),
            cabundle: cabundle.ok_or(ParseError::Missing("cabundle"))?.into_iter().map(<[u8]>::to_vec).collect(),
            public_key: public_key.map(<[u8]>::to_vec),
            user_data: user_data.flatten().map(<[u8]>::to_vec),
            nonce: nonce.flatten().map(<[u8]>::to_vec),
        })
    }
}

fn set<T>(field: &mut Option<T>, name: &'static str, value: T) -> Result<(), ParseError> {
    if field.replace(value).is_some() { Err(ParseError::Duplicate(name)) } else { Ok(()) }
}

fn pcrs(reader: &mut Reader<'_>) -> Result<BTreeMap<u8, Pcr>, ParseError> {
    let count = reader.map(MAX_PCRS)?;
    if count == 0 {
        return Err(ParseError::Empty("pcrs"));
    }
    let mut pcrs = BTreeMap::new();
    for _ in 0..count {
        let index = reader.unsigned()?;
        let index = u8::try_from(index).ok().filter(|index| *index < 32).ok_or(ParseError::PcrIndex(index))?;
        // 32 and 64 bytes belong to other digests; under SHA384 a register has 48.
        let value = reader.bytes(MAX_PCR_VALUE)?;
        let value = value.try_into().map_err(|_| ParseError::PcrLength { index, found: value.len() })?;
        if pcrs.insert(index, value).is_some() {
            return Err(ParseError::DuplicatePcr(index));
        }
    }
    Ok(pcrs)
}

fn cabundle<'a>(reader: &mut Reader<'a>) -> Result<Vec<&'a [u8]>, ParseError> {
    let count = reader.array(MAX_CABUNDLE)?;
    if count == 0 {
        return Err(ParseError::Empty("cabundle"));
    }
    (0..count).map(|_| certificate(reader)).collect()
}

fn certificate<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], ParseError> {
    let certificate = reader.bytes(MAX_CERTIFICATE)?;
    if certificate.is_empty() { Err(ParseError::Empty("certificate")) } else { Ok(certificate) }
}

/// `i-<8 or 17 hex>-enc<16 hex>`; a NitroTPM's ends `-tpm<16 hex>`.
fn check_module_id(module_id: &str) -> Result<(), ParseError> {
    let malformed = || ParseError::ModuleId(module_id.to_owned());
    let rest = module_id.strip_prefix("i-").ok_or_else(malformed)?;
    let (instance, module) = rest.split_once('-').ok_or_else(malformed)?;
    if module.starts_with("tpm") {
        return Err(ParseError::NitroTpm);
    }
    let enclave = module.strip_prefix("enc").ok_or_else(malformed)?;
    let is_hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_right = matches!(instance.len(), 8 | 17) && is_hex(instance) && enclave.len() == 16 && is_hex(enclave);
    if is_right { Ok(()) } else { Err(malformed()) }
}

/// Milliseconds since the beginning of 1970, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// Whole seconds since the beginning of 1970, rounded down.
    #[must_use]
    pub fn seconds(self) -> u64 {
        self.0 / 1000
    }
}

impl fmt::Display for UnixMillis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{:03} s since 1970", self.0 / 1000, self.0 % 1000)
    }
}

/// SHA-384 of the signed bytes of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 48]);

/// Why bytes are not an attestation document of an enclave.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// More bytes than any document has.
    #[error("{found} bytes, an attestation document has at most {MAX_DOCUMENT}")]
    TooLarge {
        /// Bytes given.
        found: usize,
    },
    /// The envelope is wrong.
    #[error(transparent)]
    Cose(#[from] CoseError),
    /// The payload is not strict CBOR of the expected types and lengths.
    #[error("malformed attestation document: {0}")]
    Cbor(#[from] CborError),
    /// A NitroTPM speaks for an ordinary EC2 instance.
    #[error("this is a NitroTPM document of an EC2 instance, not one of an enclave")]
    NitroTpm,
    /// A field that no enclave document has.
    #[error("unknown field {0:?}")]
    UnknownField(String),
    /// The same field twice.
    #[error("field {0} appears twice")]
    Duplicate(&'static str),
    /// A required field is not there.
    #[error("field {0} is missing")]
    Missing(&'static str),
    /// A field that must not be empty is.
    #[error("field {0} is empty")]
    Empty(&'static str),
    /// Not `i-<hex>-enc<hex>`.
    #[error("module id {0:?} is not of the form i-<hex>-enc<16 hex>")]
    ModuleId(String),
    /// Another digest than SHA384.
    #[error("digest is {0:?}, expected \"SHA384\"")]
    Digest(String),
    /// The timestamp is zero.
    #[error("the timestamp is zero")]
    ZeroTimestamp,
    /// A register that does not exist.
    #[error("PCR index {0}, expected 0 to 31")]
    PcrIndex(u64),
    /// The same register twice.
    #[error("PCR{0} appears twice")]
    DuplicatePcr(u8),
    /// A register of another length than SHA-384's.
    #[error("PCR{index} has {found} bytes, expected 48")]
    PcrLength {
        /// The register.
        index: u8,
        /// Its length.
        found: usize,
    },
}

const DIGEST: &str = "SHA384";
const FIELD_COUNT: usize = 9;
/// The longest name, `nitrotpm_pcrs`, has 13 bytes; some room so that an unknown one is named in the error.
const MAX_NAME: usize = 64;
/// Real ones have 39 bytes.
const MAX_MODULE_ID: usize = 64;
const MAX_DIGEST: usize = 16;
/// "pcrs: 1..32 entries".
const MAX_PCRS: usize = 32;
const MAX_PCR_VALUE: usize = 64;
/// "certificate: 1..1024 bytes", and so is each of cabundle.
const MAX_CERTIFICATE: usize = 1024;
/// The text sets no bound; real bundles have 4. [`crate::chain`] takes at most that many.
const MAX_CABUNDLE: usize = 10;
/// The CDDL says 1024, section 3.2.2.2 says 512; a genuine document has 746 bytes of user data.
const MAX_OPTIONAL: usize = 1024;
