//! Seals prompts, checks attestation documents, opens answers.
