//! Who a request belongs to: the pair of the key ARN that KMS returned and the tenant of the encryption context.

use ring::digest;

use crate::kms::arn::KeyArn;

/// A tenant. The context alone authenticates nobody: two customers may both write `subrosa:tenant=clinic`, but each has
/// its own key. Every cache, quota, replay set and log key uses the pair.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tenant {
    key_arn: KeyArn,
    name: Box<str>,
}

impl Tenant {
    /// The tenant of a message whose header names `name` and was authenticated under a data key of `key_arn`.
    pub fn new(key_arn: KeyArn, name: &str) -> Self {
        Self { key_arn, name: name.into() }
    }

    /// The key.
    pub fn key_arn(&self) -> &KeyArn {
        &self.key_arn
    }

    /// The value of `subrosa:tenant`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 over both, for the log. The parent sees both parts in every header, so the hash hides nothing from it.
    pub fn sha256(&self) -> [u8; 32] {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(self.key_arn.as_str().as_bytes());
        context.update(b"\n");
        context.update(self.name.as_bytes());
        let mut out = [0; 32];
        out.copy_from_slice(context.finish().as_ref());
        out
    }
}
