//! Errors as KMS sends them: a status, a code, a message.

use serde_json::{Value, json};

/// One refusal of KMS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KmsError {
    pub(super) status: u16,
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl KmsError {
    /// A refusal with status 400, which is all of them but the server's own faults.
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { status: 400, code, message: message.into() }
    }

    pub(super) fn validation(message: impl Into<String>) -> Self {
        Self::new("ValidationException", message)
    }

    /// A member that must be there is not; the words are the service's own.
    pub(super) fn missing(member: &str) -> Self {
        Self::validation(format!(
            "1 validation error detected: Value null at '{member}' failed to satisfy constraint: Member must not be null"
        ))
    }

    /// KMS API reference, Decrypt: "From the Decrypt or ReEncrypt operation, the request was rejected because the specified ciphertext,
    /// or additional authenticated data incorporated into the ciphertext, such as the encryption context, is corrupted, missing, or
    /// otherwise invalid." The service sends no message.
    pub(super) fn invalid_ciphertext() -> Self {
        Self::new("InvalidCiphertextException", "")
    }

    pub(super) fn throttled() -> Self {
        Self::new(
            "ThrottlingException",
            "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.",
        )
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self { status: 500, code: "KMSInternalException", message: message.into() }
    }

    pub(super) fn body(&self) -> Value {
        json!({"__type": self.code, "message": self.message})
    }
}
