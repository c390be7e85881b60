//! The signature of an image, from which the security module makes PCR8.
//!
//! AWS signs PCR0 with ES384 in a COSE_Sign1 and keeps it beside the certificate in PEM (aws-nitro-enclaves-image-format,
//! `PcrSignature`: a CBOR list of one, in which byte strings are lists of numbers).

use attestation::Pcr;
use aws_config::BehaviorVersion;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, ParsedPublicKey};
use aws_nitro_enclaves_cose::CoseSign1;
use aws_nitro_enclaves_cose::crypto::{Hash, MessageDigest, SignatureAlgorithm, SigningPrivateKey, SigningPublicKey};
use aws_nitro_enclaves_cose::error::CoseError;
use aws_nitro_enclaves_cose::header_map::HeaderMap;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{MessageType, SigningAlgorithmSpec};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::der;

/// Who signs an image.
pub struct Signer {
    key: Key,
    certificate_pem: Vec<u8>,
    public_key: ParsedPublicKey,
}

enum Key {
    File(EcdsaKeyPair),
    Kms { runtime: tokio::runtime::Runtime, client: aws_sdk_kms::Client, key_arn: String },
}

/// Why an image cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// Not a private key.
    #[error("the signing key must be a private key on P-384 in PEM (openssl ecparam -name secp384r1 -genkey)")]
    Key,
    /// Not a certificate.
    #[error("the signing certificate must be one X.509 certificate in PEM with a key on P-384")]
    Certificate,
    /// KMS did not sign.
    #[error("KMS did not sign with {key_arn}: {reason}")]
    Kms {
        /// The key.
        key_arn: String,
        /// What the SDK says.
        reason: String,
    },
    /// The certificate is another key's.
    #[error("the signing certificate does not belong to the signing key")]
    Mismatch,
    /// The runtime for KMS's client did not start.
    #[error("KMS's client does not start: {0}")]
    Runtime(#[from] std::io::Error),
    /// The envelope could not be made.
    #[error("the signature cannot be written")]
    Envelope,
}

impl Signer {
    /// A key of a file: PEM of PKCS #8 or of SEC 1 (RFC 5915).
    pub fn of_file(key_pem: &[u8], certificate_pem: Vec<u8>) -> Result<Self, SignError> {
        let der = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| SignError::Key)?;
        let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P384_SHA384_FIXED_SIGNING, der.secret_der());
        Self::new(Key::File(pair.map_err(|_| SignError::Key)?), certificate_pem)
    }

    /// A key of KMS (`ECC_NIST_P384`, `SIGN_VERIFY`), under the usual AWS settings.
    pub fn of_kms(key_arn: String, certificate_pem: Vec<u8>) -> Result<Self, SignError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let configuration = runtime.block_on(aws_config::load_defaults(BehaviorVersion::latest()));
        let client = aws_sdk_kms::Client::new(&configuration);
        Self::new(Key::Kms { runtime, client, key_arn }, certificate_pem)
    }

    fn new(key: Key, certificate_pem: Vec<u8>) -> Result<Self, SignError> {
        let der = CertificateDer::from_pem_slice(&certificate_pem).map_err(|_| SignError::Certificate)?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| SignError::Certificate)?;
        let public_key = ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, certificate.public_key().raw)
            .map_err(|_| SignError::Certificate)?;
        Ok(Self { key, certificate_pem, public_key })
    }

    /// The content of the signature section. It is checked against the certificate before it is given out.
    pub fn sign(&self, pcr0: &Pcr) -> Result<Vec<u8>, SignError> {
        let register = PcrInfo { register_index: 0, register_value: pcr0.to_vec() };
        let payload = serde_cbor::to_vec(&register).map_err(|_| SignError::Envelope)?;
        // The envelope's crate asks for a signature in the middle of its work; what went wrong is kept aside.
        let wrong = std::cell::RefCell::new(None);
        let deferred = Deferring { signer: self, wrong: &wrong };
        let envelope = CoseSign1::new::<Unhashed>(&payload, &HeaderMap::new(), &deferred)
            .and_then(|envelope| envelope.as_bytes(false));
        let signature = match envelope {
            Ok(bytes) => bytes,
            Err(_) => return Err(wrong.take().unwrap_or(SignError::Envelope)),
        };
        let entry = PcrSignature { signing_certificate: self.certificate_pem.clone(), signature };
        serde_cbor::to_vec(&[entry]).map_err(|_| SignError::Envelope)
    }

    /// r and s, 48 bytes each (RFC 9053, section 2.1).
    fn sign_message(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let signature = match &self.key {
            Key::File(pair) => {
                let signed = pair.sign(&SystemRandom::new(), message);
                signed.map_err(|_| SignError::Key)?.as_ref().to_vec()
            }
            Key::Kms { runtime, client, key_arn } => {
                let refused = |reason: String| SignError::Kms { key_arn: key_arn.clone(), reason };
                let request = client
                    .sign()
                    .key_id(key_arn)
                    .message(Blob::new(message))
                    .message_type(MessageType::Raw)
                    .signing_algorithm(SigningAlgorithmSpec::EcdsaSha384);
                let answer = runtime.block_on(request.send());
                let answer =
                    answer.map_err(|error| refused(aws_sdk_kms::error::DisplayErrorContext(&error).to_string()))?;
                let der = answer.signature.map(Blob::into_inner).unwrap_or_default();
                der::fixed(&der).ok_or_else(|| refused("the answer is not an ECDSA signature on P-384".to_owned()))?
            }
        };
        self.public_key.verify_sig(message, &signature).map_err(|_| SignError::Mismatch)?;
        Ok(signature)
    }
}

#[derive(Serialize)]
struct PcrInfo {
    register_index: i32,
    register_value: Vec<u8>,
}

#[derive(Serialize)]
struct PcrSignature {
    signing_certificate: Vec<u8>,
    signature: Vec<u8>,
}

/// The envelope's crate hashes and then signs the hash; a key here hashes by itself. So nothing is hashed before.
struct Unhashed;

impl Hash for Unhashed {
    fn hash(_: MessageDigest, data: &[u8]) -> Result<Vec<u8>, CoseError> {
        Ok(data.to_vec())
    }
}

struct Deferring<'a> {
    signer: &'a Signer,
    wrong: &'a std::cell::RefCell<Option<SignError>>,
}

impl SigningPublicKey for Deferring<'_> {
    fn get_parameters(&self) -> Result<(SignatureAlgorithm, MessageDigest), CoseError> {
        Ok((SignatureAlgorithm::ES384, MessageDigest::Sha384))
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> Result<bool, CoseError> {
        Ok(self.signer.public_key.verify_sig(message, signature).is_ok())
    }
}

impl SigningPrivateKey for Deferring<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CoseError> {
        self.signer.sign_message(message).map_err(|error| {
            *self.wrong.borrow_mut() = Some(error);
            CoseError::UnverifiedSignature
        })
    }
}
