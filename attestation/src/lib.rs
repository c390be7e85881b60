//! Reads and checks AWS Nitro Enclaves attestation documents.
