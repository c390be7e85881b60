//! Key ARNs, regions and accounts, and the one host name that follows from a region.

use std::fmt;

/// A full ARN of a KMS key: `arn:PARTITION:kms:REGION:ACCOUNT:key/ID`. Never an alias.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyArn {
    text: Box<str>,
    region: Region,
    account: Account,
}

impl KeyArn {
    /// Reads an ARN. The partition must be the region's.
    pub fn parse(text: &str) -> Result<Self, ArnError> {
        if text.len() > ARN_BYTES_MAX {
            return Err(ArnError::Form);
        }
        let parts: Vec<&str> = text.split(':').collect();
        let ["arn", partition, "kms", region, account, resource] = parts.as_slice() else {
            return Err(ArnError::Form);
        };
        let region = Region::parse(region)?;
        if *partition != region.partition() {
            return Err(ArnError::Partition);
        }
        let account = Account::parse(account)?;
        let id = resource.strip_prefix("key/").ok_or(ArnError::Resource)?;
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(ArnError::Resource);
        }
        Ok(Self { text: text.into(), region, account })
    }

    /// The ARN as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its region.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Its account.
    pub fn account(&self) -> &Account {
        &self.account
    }
}

/// An AWS region, such as `eu-central-1`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Region(Box<str>);

impl Region {
    /// Reads a region: lower-case words and digits between hyphens.
    pub fn parse(text: &str) -> Result<Self, ArnError> {
        let words: Vec<&str> = text.split('-').collect();
        let well_formed = words.len() >= 3
            && text.len() <= REGION_BYTES_MAX
            && words
                .iter()
                .all(|word| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
        if well_formed { Ok(Self(text.into())) } else { Err(ArnError::Region) }
    }

    /// The region as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The partition that the region belongs to.
    pub fn partition(&self) -> &'static str {
        if self.0.starts_with("cn-") {
            "aws-cn"
        } else if self.0.starts_with("us-gov-") {
            "aws-us-gov"
        } else {
            "aws"
        }
    }

    /// The host name of KMS in this region: the name that TLS checks.
    pub fn kms_host(&self) -> String {
        let suffix = if self.partition() == "aws-cn" { ".cn" } else { "" };
        format!("kms.{}.amazonaws.com{suffix}", self.0)
    }
}

/// An AWS account: twelve digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Account(Box<str>);

impl Account {
    /// Reads an account.
    pub fn parse(text: &str) -> Result<Self, ArnError> {
        let well_formed = text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit());
        if well_formed { Ok(Self(text.into())) } else { Err(ArnError::Account) }
    }
}

impl fmt::Display for KeyArn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// Why a text is no key ARN, region or account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArnError {
    /// Not six parts, or another service.
    #[error("expected arn:PARTITION:kms:REGION:ACCOUNT:key/ID")]
    Form,
    /// The partition is not the region's.
    #[error("the partition does not match the region")]
    Partition,
    /// Not a region.
    #[error("expected a region such as eu-central-1")]
    Region,
    /// Not an account.
    #[error("expected an account of twelve digits")]
    Account,
    /// An alias, or something that is no key.
    #[error("expected key/ID; an alias is refused, because it may point elsewhere tomorrow")]
    Resource,
}

/// "KeyId: Length Constraints: Minimum length of 1. Maximum length of 2048"; real key ARNs have about 75.
const ARN_BYTES_MAX: usize = 256;
/// A label of a host name.
const REGION_BYTES_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "arn:aws:kms:us-east-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab";

    #[test]
    fn a_full_key_arn_is_read() {
        let arn = KeyArn::parse(GOOD).unwrap();
        assert_eq!(arn.region().kms_host(), "kms.us-east-1.amazonaws.com");
        assert_eq!(arn.account(), &Account::parse("111122223333").unwrap());
        assert_eq!(Region::parse("cn-north-1").unwrap().kms_host(), "kms.cn-north-1.amazonaws.com.cn");
    }

    #[test]
    fn anything_but_a_full_key_arn_is_refused() {
        for bad in [
            "1234abcd-12ab-34cd-56ef-1234567890ab",
            "arn:aws:kms:us-east-1:111122223333:alias/prompts",
            "arn:aws:kms:us-east-1:111122223333:key/",
            "arn:aws:kms:us-east-1:111122223333:key/a/b",
            "arn:aws:kms:us-east-1:111122223333:key/a:b",
            "arn:aws-cn:kms:us-east-1:111122223333:key/a",
            "arn:aws:s3:us-east-1:111122223333:key/a",
            "arn:aws:kms:us-east-1.evil.example:111122223333:key/a",
            "arn:aws:kms:US-EAST-1:111122223333:key/a",
            "arn:aws:kms:us-east-1:1111:key/a",
            " arn:aws:kms:us-east-1:111122223333:key/a",
        ] {
            assert!(KeyArn::parse(bad).is_err(), "{bad}");
        }
    }
}
