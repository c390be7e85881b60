//! What is wrong with this parent instance, and how to mend it.
//!
//! Each check looks at one thing and says one of four words. Nothing is concluded from what cannot be seen: then the
//! word is [`Verdict::NotChecked`], with the reason. The checks change nothing and start nothing. Of the machine they
//! read files alone, all below a [`Root`], so that they can be tried on a folder; KMS is asked only on demand.

pub mod cloud;
pub mod configuration;
pub mod image;
pub mod machine;
pub mod packs;
pub mod root;
pub mod settings;

use serde::Serialize;

pub use root::Root;

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// The word.
    pub verdict: Verdict,
    /// What was seen there; why it was not looked at.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// The word of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It could not be seen.
    NotChecked,
    /// It works, but should be better.
    Warning,
    /// It does not work.
    Wrong,
}

impl Finding {
    /// As it should be.
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, found: found.into(), mend: None }
    }

    /// It could not be seen, and `why`.
    pub fn not_checked(check: &'static str, why: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::NotChecked, found: why.into(), mend: None }
    }

    /// It works, but should be better.
    pub fn warning(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warning, found: found.into(), mend: Some(mend.into()) }
    }

    /// It does not work.
    pub fn wrong(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Wrong, found: found.into(), mend: Some(mend.into()) }
    }
}

impl Verdict {
    /// The word, as it is shown.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NotChecked => "not checked",
            Self::Warning => "warning",
            Self::Wrong => "wrong",
        }
    }
}
