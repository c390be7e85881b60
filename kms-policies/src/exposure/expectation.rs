//! What a key is for, and which code may have it: what a policy is judged against.

use std::collections::{BTreeMap, BTreeSet};

use crate::Pcr;
use crate::arn::{KeyArn, Parts};

/// Registers and their values.
pub type Registers = BTreeMap<u8, Pcr>;

/// What a policy is judged against.
#[derive(Debug, Clone, Default)]
pub struct Expectation {
    /// What the key is for.
    pub kind: KeyKind,
    /// The accepted images. PCR0 is required: it covers the whole image, so an image without it, or with a zero one, is not accepted.
    /// PCR16 (the models) and PCR17 (the configuration) are optional.
    pub images: Vec<Registers>,
    /// The accepted NitroTPM machines, if the key is for such.
    pub nitro_tpms: Vec<Registers>,
    /// What the encryption context must be beside the purpose: `subrosa:tenant` for a customer's key.
    pub context: BTreeMap<String, String>,
    /// The roles whose credentials the enclave uses, by ARN. The parent, against whom the enclave defends, has these credentials.
    pub enclave_roles: Vec<String>,
    /// Who may read answers. `None`: whoever the policy names one by one.
    pub answer_readers: Option<Vec<String>>,
    /// The key, if it is known: then resources are judged, and not assumed.
    pub key: Option<KeyArn>,
}

/// What a key is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KeyKind {
    /// Prompts, for the attested image alone, and answers, for those whom the customer names.
    #[default]
    Customer,
    /// Model packs, for the attested image alone.
    ModelPack,
    /// Anything, for attested code alone.
    Attested,
}

impl Expectation {
    /// PCR0 of every accepted image.
    pub(super) fn image_digests(&self) -> BTreeSet<Pcr> {
        self.accepted_images().filter_map(|image| image.get(&0).copied()).collect()
    }

    /// The images that can be accepted at all: a zero PCR0 is every debug enclave of anybody.
    pub(super) fn accepted_images(&self) -> impl Iterator<Item = &Registers> {
        self.images.iter().filter(|image| image.get(&0).is_some_and(|value| *value != ZERO))
    }

    pub(super) fn is_enclave_role(&self, arn: &str) -> bool {
        self.enclave_roles.iter().any(|role| role == arn)
    }

    pub(super) fn enclave_accounts(&self) -> BTreeSet<&str> {
        self.enclave_roles.iter().filter_map(|arn| Parts::split(arn).ok()).map(|parts| parts.account).collect()
    }

    /// The purposes of this key's messages, in its encryption context (docs/PROTOCOL.md, section 4).
    pub(super) fn purposes(&self) -> &'static [&'static str] {
        match self.kind {
            KeyKind::Customer => &[INFERENCE, ANSWER],
            KeyKind::ModelPack => &[MODEL_PACK],
            KeyKind::Attested => &[],
        }
    }

    /// The keys that the encryption context of this key's messages can have; none: any.
    pub(super) fn context_keys(&self) -> &'static [&'static str] {
        match self.kind {
            KeyKind::Customer => &[PURPOSE, "subrosa:tenant", "aws-crypto-public-key"],
            KeyKind::ModelPack => &[PURPOSE, "subrosa:model", "subrosa:version", "aws-crypto-public-key"],
            KeyKind::Attested => &[],
        }
    }
}

pub(super) const ZERO: Pcr = [0; 48];
pub(super) const PURPOSE: &str = "subrosa:purpose";
pub(super) const INFERENCE: &str = "inference";
pub(super) const ANSWER: &str = "answer";
pub(super) const MODEL_PACK: &str = "model-pack";
