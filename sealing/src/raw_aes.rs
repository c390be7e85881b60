//! The raw AES keyring of the Encryption SDK: a data key wrapped by AES-256-GCM under a key that both sides hold.
//!
//! One-time reply keys are of this kind: [`REPLY_NAMESPACE`], [`REPLY_NAME`] (`docs/PROTOCOL.md`, section 6).

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroize;

use crate::frame::{IV_LENGTH, TAG_LENGTH};
use crate::message::{DataKey, EncryptedDataKey, EncryptionContext};
use crate::random::{Random, RandomError};

/// Provider id of an answer under a reply key.
pub const REPLY_NAMESPACE: &str = "subrosa";

/// Key name of an answer under a reply key.
pub const REPLY_NAME: &str = "reply";

/// A wrapping key with its public names. The key is wiped on drop; it cannot be printed or cloned.
pub struct Keyring {
    namespace: String,
    name: String,
    key: WrappingKey,
}

/// 32 secret bytes that wrap data keys.
pub struct WrappingKey([u8; WrappingKey::LENGTH]);

/// Why a data key could not be wrapped or unwrapped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RawAesError {
    /// A namespace that belongs to somebody else, or names that do not fit.
    #[error("the namespace {0:?} cannot be used: it must be 1..=128 bytes, the name at most 1024, and not aws-kms")]
    Names(String),
    /// A wrapping key of another length.
    #[error("a wrapping key must have 32 bytes, this one has {0}")]
    KeyLength(usize),
    /// None of the encrypted data keys is under this namespace and name.
    #[error("no encrypted data key is under namespace {namespace:?} and name {name:?}")]
    NoneOurs {
        /// The namespace that was looked for.
        namespace: String,
        /// The key name that was looked for.
        name: String,
    },
    /// A key or a context other than the one it was wrapped with, or changed bytes.
    #[error("the encrypted data key does not open: wrong key, wrong encryption context, or changed bytes")]
    DoesNotOpen,
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
}

impl WrappingKey {
    /// AES-256.
    pub const LENGTH: usize = 32;

    /// A fresh wrapping key.
    ///
    /// # Errors
    /// [`RandomError`] when `random` gives none.
    pub fn generate(random: &mut dyn Random) -> Result<Self, RandomError> {
        let mut key = Self([0; Self::LENGTH]);
        random.fill(&mut key.0)?;
        Ok(key)
    }

    /// The wrapping key with these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    /// The wrapping key with these bytes.
    ///
    /// # Errors
    /// [`RawAesError::KeyLength`] when there are not exactly 32.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, RawAesError> {
        bytes.try_into().map(Self).map_err(|_| RawAesError::KeyLength(bytes.len()))
    }

    /// The secret bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }

    fn aead(&self) -> Result<LessSafeKey, RawAesError> {
        UnboundKey::new(&AES_256_GCM, &self.0).map(LessSafeKey::new).map_err(|_| RawAesError::KeyLength(self.0.len()))
    }
}

impl Drop for WrappingKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Keyring {
    /// A keyring of these names.
    ///
    /// # Errors
    /// [`RawAesError::Names`]: "a raw keyring must not use `aws-kms` as its namespace" (AWS Encryption SDK developer
    /// guide, *Raw AES keyrings*), and the lengths are bounded.
    pub fn new(namespace: &str, name: &str, key: WrappingKey) -> Result<Self, RawAesError> {
        let fits = (1..=MAX_NAMESPACE_LENGTH).contains(&namespace.len()) && name.len() <= MAX_NAME_LENGTH;
        if !fits || namespace.starts_with("aws-kms") {
            return Err(RawAesError::Names(namespace.to_owned()));
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned(), key })
    }

    /// The keyring of a request's one-time reply key.
    #[must_use]
    pub fn reply(key: WrappingKey) -> Self {
        Self { namespace: REPLY_NAMESPACE.to_owned(), name: REPLY_NAME.to_owned(), key }
    }

    /// Wraps a data key. `context` is the whole encryption context of the message; it is authenticated.
    ///
    /// # Errors
    /// [`RawAesError::Random`].
    pub fn wrap(
        &self,
        data_key: &DataKey,
        context: &EncryptionContext,
        random: &mut dyn Random,
    ) -> Result<EncryptedDataKey, RawAesError> {
        let mut iv = [0; IV_LENGTH];
        random.fill(&mut iv)?;
        let mut ciphertext = Vec::with_capacity(WRAPPED_LENGTH);
        ciphertext.extend_from_slice(data_key.expose());
        // 32 bytes always fit AES-GCM; should it fail all the same, the copy of the key is wiped.
        let nonce = Nonce::assume_unique_for_key(iv);
        if self.key.aead()?.seal_in_place_append_tag(nonce, Aad::from(context.to_bytes()), &mut ciphertext).is_err() {
            ciphertext.zeroize();
            return Err(RawAesError::DoesNotOpen);
        }
        Ok(EncryptedDataKey {
            provider_id: self.namespace.clone(),
            provider_info: [self.name.as_bytes(), &PARAMETERS, &iv].concat(),
            ciphertext,
        })
    }

    /// Unwraps the first encrypted data key that is under these names. There is no second try with another.
    ///
    /// # Errors
    /// [`RawAesError::NoneOurs`], [`RawAesError::DoesNotOpen`].
    pub fn unwrap(&self, keys: &[EncryptedDataKey], context: &EncryptionContext) -> Result<DataKey, RawAesError> {
        let (key, iv) = keys
            .iter()
            .find_map(|key| Some((key, self.iv_of(key)?)))
            .ok_or_else(|| RawAesError::NoneOurs { namespace: self.namespace.clone(), name: self.name.clone() })?;
        let mut wrapped: zeroize::Zeroizing<[u8; WRAPPED_LENGTH]> =
            key.ciphertext.as_slice().try_into().map(zeroize::Zeroizing::new).map_err(|_| RawAesError::DoesNotOpen)?;
        let nonce = Nonce::assume_unique_for_key(iv);
        let plain = self
            .key
            .aead()?
            .open_in_place(nonce, Aad::from(context.to_bytes()), wrapped.as_mut_slice())
            .map_err(|_| RawAesError::DoesNotOpen)?;
        DataKey::from_slice(plain).map_err(|_| RawAesError::DoesNotOpen)
    }

    /// The IV of an encrypted data key, if it is under these names: provider info is `name || tag length in bits ||
    /// IV length in bytes || IV` (AWS Encryption SDK specification, `framework/raw-aes-keyring.md`).
    fn iv_of(&self, key: &EncryptedDataKey) -> Option<[u8; IV_LENGTH]> {
        let EncryptedDataKey { provider_id, provider_info, ciphertext: _ } = key;
        (*provider_id == self.namespace).then_some(())?;
        provider_info.strip_prefix(self.name.as_bytes())?.strip_prefix(&PARAMETERS)?.try_into().ok()
    }
}

/// Tag length in bits (128), IV length in bytes (12), each in four bytes.
const PARAMETERS: [u8; 8] = [0, 0, 0, 128, 0, 0, 0, 12];

const WRAPPED_LENGTH: usize = DataKey::LENGTH + TAG_LENGTH;

/// Ours: what [`crate::reader`] accepts as a provider id.
const MAX_NAMESPACE_LENGTH: usize = 128;

/// Ours: leaves room for parameters and IV inside what [`crate::reader`] accepts as provider info.
const MAX_NAME_LENGTH: usize = 1_024;
