//! Amazon Resource Names, as far as keys and principals need them.

use thiserror::Error;

/// Why a text is not the ARN that was needed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ArnError {
    /// Not of the six-part form `arn:partition:service:region:account:resource`.
    #[error("expected arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE, got {0:?}")]
    Shape(String),
    /// The partition is none of `aws`, `aws-cn`, `aws-us-gov`.
    #[error("unknown partition in {0:?}: expected aws, aws-cn or aws-us-gov")]
    Partition(String),
    /// The account is not twelve digits.
    #[error("expected an account of 12 digits in {0:?}")]
    Account(String),
    /// An ARN, but of another kind of thing.
    #[error("expected {expected}, got {got:?}")]
    Kind {
        /// What was needed.
        expected: &'static str,
        /// What came.
        got: String,
    },
}

/// The ARN of a KMS key: `arn:PARTITION:kms:REGION:ACCOUNT:key/ID`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyArn {
    text: String,
    region: String,
    account: String,
    id: String,
}

impl KeyArn {
    /// Reads a full key ARN; an alias or a bare key id is refused.
    pub fn parse(text: &str) -> Result<Self, ArnError> {
        let parts = Parts::split(text)?;
        let kind = || ArnError::Kind {
            expected: "a KMS key ARN (arn:PARTITION:kms:REGION:ACCOUNT:key/ID)",
            got: text.to_owned(),
        };
        let id = parts.resource.strip_prefix("key/").ok_or_else(kind)?;
        let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if parts.service != "kms" || !word(parts.region) || !word(id) {
            return Err(kind());
        }
        Ok(Self {
            text: text.to_owned(),
            region: parts.region.to_owned(),
            account: parts.account.to_owned(),
            id: id.to_owned(),
        })
    }

    /// The whole ARN.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The region that holds the key.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The account that owns the key.
    pub fn account(&self) -> &str {
        &self.account
    }

    /// The key id, without `key/`.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl std::fmt::Display for KeyArn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// The six parts of an ARN.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) service: &'a str,
    pub(crate) region: &'a str,
    pub(crate) account: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) partition: &'a str,
}

impl<'a> Parts<'a> {
    /// Splits an ARN whose partition and account are concrete.
    pub(crate) fn split(text: &'a str) -> Result<Self, ArnError> {
        let mut fields = text.splitn(6, ':');
        let mut next = || fields.next().ok_or_else(|| ArnError::Shape(text.to_owned()));
        let (arn, partition, service, region, account, resource) =
            (next()?, next()?, next()?, next()?, next()?, next()?);
        if arn != "arn" || service.is_empty() || resource.is_empty() {
            return Err(ArnError::Shape(text.to_owned()));
        }
        if !PARTITIONS.contains(&partition) {
            return Err(ArnError::Partition(text.to_owned()));
        }
        if !is_account(account) {
            return Err(ArnError::Account(text.to_owned()));
        }
        Ok(Self { service, region, account, resource, partition })
    }
}

/// Whether the text is an account number: twelve decimal digits.
pub(crate) fn is_account(text: &str) -> bool {
    text.len() == ACCOUNT_DIGITS && text.bytes().all(|b| b.is_ascii_digit())
}

/// Checks the ARN of an IAM role or user, written out in full: no wildcard, no session, no account root.
pub(crate) fn check_role_or_user(text: &str) -> Result<(), ArnError> {
    let kind = || ArnError::Kind {
        expected: "the full ARN of an IAM role or user (arn:PARTITION:iam::ACCOUNT:role/NAME)",
        got: text.to_owned(),
    };
    let parts = Parts::split(text)?;
    let name =
        parts.resource.strip_prefix("role/").or_else(|| parts.resource.strip_prefix("user/")).ok_or_else(kind)?;
    // IAM reference, "IAM identifiers": names take alphanumerics and + = , . @ - _ ; paths add the slash.
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"+=,.@-_/".contains(&b);
    let whole = !name.is_empty() && !name.starts_with('/') && !name.ends_with('/') && !name.contains("//");
    if parts.service != "iam"
        || !parts.region.is_empty()
        || !whole
        || !name.bytes().all(legal)
        || text.len() > MAX_PRINCIPAL_BYTES
    {
        return Err(kind());
    }
    Ok(())
}

/// The partitions that are known.
pub(crate) const PARTITIONS: [&str; 3] = ["aws", "aws-cn", "aws-us-gov"];
const ACCOUNT_DIGITS: usize = 12;
/// IAM reference: a path is at most 512 characters, a name at most 64; with the ARN's own parts this is ample.
const MAX_PRINCIPAL_BYTES: usize = 640;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_arn_is_read_into_its_parts() {
        let arn = KeyArn::parse("arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab").unwrap();
        assert_eq!(
            (arn.region(), arn.account(), arn.id()),
            ("us-east-1", "111122223333", "1234abcd-12ab-34cd-56ef-1234567890ab")
        );
    }

    #[test]
    fn aliases_bare_ids_and_other_services_are_no_key_arns() {
        for text in [
            "arn:aws:kms:us-east-1:111122223333:alias/mine",
            "1234abcd-12ab-34cd-56ef-1234567890ab",
            "arn:aws:s3:us-east-1:111122223333:key/a",
            "arn:aws:kms:us-east-1:1111:key/a",
            "arn:moon:kms:us-east-1:111122223333:key/a",
            "arn:aws:kms:us-east-1:111122223333:key/",
            "arn:aws:kms:us-east-1:111122223333:key/a/b",
            "arn:aws:kms::111122223333:key/a",
        ] {
            assert!(KeyArn::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_full_role_and_user_arns_pass_as_role_holders() {
        assert!(check_role_or_user("arn:aws:iam::111122223333:role/team/Writer").is_ok());
        assert!(check_role_or_user("arn:aws-us-gov:iam::111122223333:user/a.b@c").is_ok());
        for text in [
            "*",
            "111122223333",
            "arn:aws:iam::111122223333:root",
            "arn:aws:iam::111122223333:role/*",
            "arn:aws:iam::111122223333:role/a?",
            "arn:aws:iam::111122223333:role/",
            "arn:aws:iam::111122223333:role//a",
            "arn:aws:iam:us-east-1:111122223333:role/a",
            "arn:aws:sts::111122223333:assumed-role/a/s",
            "arn:aws:iam::111122223333:role/a\"",
        ] {
            assert!(check_role_or_user(text).is_err(), "{text}");
        }
    }
}
