//! Data keys, plain and encrypted.

use zeroize::Zeroize;

use crate::random::{Random, RandomError};

/// The 32 secret bytes from which the keys of a message are derived. Wiped on drop; cannot be printed or cloned.
pub struct DataKey([u8; Self::LENGTH]);

impl DataKey {
    /// Both suites derive from a 256-bit data key.
    pub const LENGTH: usize = 32;

    /// A fresh data key.
    ///
    /// # Errors
    /// [`RandomError`] when `random` gives none.
    pub fn generate(random: &mut dyn Random) -> Result<Self, RandomError> {
        let mut key = Self([0; Self::LENGTH]);
        random.fill(&mut key.0)?;
        Ok(key)
    }

    /// The data key with these bytes. The caller's copy is the caller's to wipe.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    /// The data key with these bytes, as KMS returns them.
    ///
    /// # Errors
    /// [`DataKeyLengthError`] when there are not exactly 32.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, DataKeyLengthError> {
        match bytes.try_into() {
            Ok(bytes) => Ok(Self(bytes)),
            Err(_) => Err(DataKeyLengthError(bytes.len())),
        }
    }

    /// The secret bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }
}

impl Drop for DataKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// A data key of the wrong length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a data key must have 32 bytes, this one has {0}")]
pub struct DataKeyLengthError(pub usize);

/// A data key under some key of a provider, as it stands in a header.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EncryptedDataKey {
    /// Who can open it: `aws-kms`, or the namespace of a raw keyring.
    pub provider_id: String,
    /// With which key: the key ARN for `aws-kms`; name and IV for a raw AES keyring.
    pub provider_info: Vec<u8>,
    /// The data key under that key.
    pub ciphertext: Vec<u8>,
}
