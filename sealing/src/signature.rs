//! The signature of suite 0x0578: ECDSA on P-384 with SHA-384 over header and body, streamed.

use aws_lc_rs::agreement;
use aws_lc_rs::digest::{Context, SHA384};
use aws_lc_rs::encoding::{AsBigEndian, EcPublicKeyCompressedBin};
use aws_lc_rs::signature::{
    ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::random::Random;

/// A compressed point of P-384: one byte of sign, 48 of x.
pub(crate) const COMPRESSED_POINT_LENGTH: usize = 49;

/// The longest DER form of an ECDSA signature on P-384: SEQUENCE of two INTEGERs of at most 49 bytes.
pub(crate) const MAX_SIGNATURE_LENGTH: u16 = 104;

/// Reads the public key of a signed message: base64 of a compressed point. Whether it lies on the curve is asked when
/// the signature is verified.
pub(crate) fn public_key(text: &str) -> Option<[u8; COMPRESSED_POINT_LENGTH]> {
    let point: [u8; COMPRESSED_POINT_LENGTH] = STANDARD.decode(text).ok()?.try_into().ok()?;
    matches!(point.first(), Some(2 | 3)).then_some(point)
}

/// Signs what passes, with a key made for this message alone.
pub(crate) struct Signer {
    key: EcdsaKeyPair,
    public_key: String,
    passed: Context,
}

impl Signer {
    /// A fresh key pair, its secret scalar from `random`. (The per-signature secret is aws-lc's own.)
    ///
    /// A scalar outside 1..n is drawn again (FIPS 186-5, A.2.2); for P-384 this happens once in 2^190 draws, so a source
    /// that gives only bad ones is broken.
    pub(crate) fn generate(random: &mut dyn Random) -> Option<Self> {
        const DRAWS: usize = 4;
        let mut scalar = Zeroizing::new([0_u8; 48]);
        (0..DRAWS).find_map(|_| {
            random.fill(&mut *scalar).ok()?;
            let point = agreement::PrivateKey::from_private_key(&agreement::ECDH_P384, &*scalar)
                .ok()?
                .compute_public_key()
                .ok()?;
            let key = EcdsaKeyPair::from_private_key_and_public_key(
                &ECDSA_P384_SHA384_ASN1_SIGNING,
                &*scalar,
                point.as_ref(),
            )
            .ok()?;
            let compressed: EcPublicKeyCompressedBin<'_> = key.public_key().as_be_bytes().ok()?;
            let public_key = STANDARD.encode(compressed.as_ref());
            Some(Self { key, public_key, passed: Context::new(&SHA384) })
        })
    }

    /// The public key as it stands in the encryption context.
    pub(crate) fn public_key(&self) -> &str {
        &self.public_key
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.passed.update(bytes);
    }

    /// The DER signature of everything that passed.
    pub(crate) fn sign(self) -> Option<Vec<u8>> {
        let signature = self.key.sign_digest(&self.passed.finish()).ok()?;
        Some(signature.as_ref().to_vec())
    }
}

/// Verifies what passed.
pub(crate) struct Verifier {
    public_key: [u8; COMPRESSED_POINT_LENGTH],
    passed: Context,
}

impl Verifier {
    pub(crate) fn new(public_key: [u8; COMPRESSED_POINT_LENGTH]) -> Self {
        Self { public_key, passed: Context::new(&SHA384) }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.passed.update(bytes);
    }

    /// The proof that `signature` is this key's signature of everything that passed.
    pub(crate) fn verify(self, signature: &[u8]) -> Option<Signed> {
        let key = UnparsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, self.public_key);
        key.verify_digest(&self.passed.finish(), signature).ok().map(|()| Signed(()))
    }
}

/// Proof that the signature of a message was verified.
pub(crate) struct Signed(());
