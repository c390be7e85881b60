//! Documents of exactly the hardware's shape: an indefinite map of nine fields with nulls, in an untagged COSE_Sign1.

use std::collections::BTreeMap;

use attestation::{Pcr, UnixMillis};
use aws_nitro_enclaves_cose::CoseSign1;
use aws_nitro_enclaves_cose::crypto::{Hash, MessageDigest, SignatureAlgorithm, SigningPrivateKey, SigningPublicKey};
use aws_nitro_enclaves_cose::error::CoseError;
use aws_nitro_enclaves_cose::header_map::HeaderMap;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P384_SHA384_FIXED, EcdsaKeyPair, KeyPair, UnparsedPublicKey};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_bytes::Bytes;

use super::ModuleError;
use crate::authority::Credentials;

/// What a document says, beside its certificates.
pub(crate) struct Statement<'a> {
    pub(crate) module_id: &'a str,
    pub(crate) timestamp: UnixMillis,
    pub(crate) pcrs: BTreeMap<u8, Pcr>,
    pub(crate) public_key: Option<&'a [u8]>,
    pub(crate) user_data: Option<&'a [u8]>,
    pub(crate) nonce: Option<&'a [u8]>,
}

/// Writes and signs a document.
pub(crate) fn sign(statement: &Statement<'_>, credentials: &Credentials) -> Result<Vec<u8>, ModuleError> {
    let payload = payload(statement, credentials)?;
    let message = CoseSign1::new::<Deferred>(&payload, &HeaderMap::new(), &Key(&credentials.key));
    message.and_then(|message| message.as_bytes(false)).map_err(|_| ModuleError::Encoding)
}

/// What is signed.
pub(crate) fn payload(statement: &Statement<'_>, credentials: &Credentials) -> Result<Vec<u8>, ModuleError> {
    serde_cbor::to_vec(&Payload { statement, credentials }).map_err(|_| ModuleError::Encoding)
}

struct Payload<'a> {
    statement: &'a Statement<'a>,
    credentials: &'a Credentials,
}

impl Serialize for Payload<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Statement { module_id, timestamp, pcrs, public_key, user_data, nonce } = self.statement;
        let bundle: Vec<_> = self.credentials.cabundle.iter().map(|der| Bytes::new(der)).collect();
        // Without a length serde_cbor writes `bf .. ff`, as the hardware has done since 2025.
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("module_id", module_id)?;
        map.serialize_entry("digest", "SHA384")?;
        map.serialize_entry("timestamp", &timestamp.0)?;
        map.serialize_entry(
            "pcrs",
            &pcrs.iter().map(|(index, pcr)| (index, Bytes::new(pcr))).collect::<BTreeMap<_, _>>(),
        )?;
        map.serialize_entry("certificate", Bytes::new(&self.credentials.certificate))?;
        map.serialize_entry("cabundle", &bundle)?;
        map.serialize_entry("public_key", &public_key.map(Bytes::new))?;
        map.serialize_entry("user_data", &user_data.map(Bytes::new))?;
        map.serialize_entry("nonce", &nonce.map(Bytes::new))?;
        map.end()
    }
}

/// The COSE crate hashes and then signs the hash; ring hashes by itself. So nothing is hashed before.
struct Deferred;

impl Hash for Deferred {
    fn hash(_: MessageDigest, data: &[u8]) -> Result<Vec<u8>, CoseError> {
        Ok(data.to_vec())
    }
}

struct Key<'a>(&'a EcdsaKeyPair);

impl SigningPublicKey for Key<'_> {
    fn get_parameters(&self) -> Result<(SignatureAlgorithm, MessageDigest), CoseError> {
        Ok((SignatureAlgorithm::ES384, MessageDigest::Sha384))
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> Result<bool, CoseError> {
        let key = UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, self.0.public_key());
        Ok(key.verify(message, signature).is_ok())
    }
}

impl SigningPrivateKey for Key<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CoseError> {
        let signature = self.0.sign(&SystemRandom::new(), message).map_err(|_| CoseError::UnimplementedError)?;
        Ok(signature.as_ref().to_vec())
    }
}
