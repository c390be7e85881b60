//! Wildcards: `*` is any run of characters, `?` any one.

/// Whether `text` matches `pattern`, case and all.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where to go on after a mismatch: behind the last star, one character of text later. This keeps the work at |pattern| x |text|.
    let mut retry: Option<(usize, usize)> = None;
    while let Some(c) = text.get(t) {
        match pattern.get(p) {
            Some('*') => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(w) if *w == '?' || w == c => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                Some((after_star, from)) => {
                    (p, t) = (after_star, from + 1);
                    retry = Some((after_star, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|w| *w == '*')
}

/// Whether an ARN matches a pattern of an ARN.
///
/// IAM reference, "ARN condition operators": "Each of the six colon-delimited components of the ARN is checked separately and each can
/// include multi-character match wildcards (\*) or single-character match wildcards (?)."
pub(crate) fn arn_matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<&str>, Vec<&str>) = (pattern.splitn(6, ':').collect(), text.splitn(6, ':').collect());
    pattern.len() == 6 && text.len() == 6 && pattern.iter().zip(&text).all(|(p, t)| matches(p, t))
}

/// Which KMS actions a statement, or somebody's IAM policy, means: `kms:Decrypt`, `kms:ReEncrypt*`, `kms:*` or `*`.
///
/// IAM reference, "Action": "The prefix and the action name are case insensitive."
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActionPattern(String);

impl ActionPattern {
    /// Reads a pattern; `None` if it is neither `*` nor of the form `kms:NAME`.
    pub fn parse(text: &str) -> Option<Self> {
        let name =
            text.split_once(':').filter(|(service, _)| service.eq_ignore_ascii_case("kms")).map(|(_, name)| name);
        let legal =
            |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'*' || b == b'?');
        (text == "*" || name.is_some_and(legal)).then(|| Self(text.to_owned()))
    }

    /// Whether the pattern means this action (`kms:Decrypt`).
    pub fn matches(&self, action: &str) -> bool {
        matches(&self.0.to_ascii_lowercase(), &action.to_ascii_lowercase())
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks_match_as_documented() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a*c", "abbbc", true),
            ("a*c", "abbbcd", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*a*b*", "xxayyb", true),
            ("*a*b", "ab ab a", false),
            ("é?", "éé", true),
            ("A", "a", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_does_not_explode() {
        assert!(!matches(&"*a".repeat(200), &"a".repeat(199)));
        assert!(!matches(&format!("{}b", "a*".repeat(500)), &"a".repeat(2_000)));
    }

    #[test]
    fn a_star_in_an_arn_does_not_cross_a_colon() {
        assert!(arn_matches("arn:aws:iam::*:role/R", "arn:aws:iam::111122223333:role/R"));
        assert!(!arn_matches("arn:aws:*:role/R", "arn:aws:iam::111122223333:role/R"));
        assert!(!arn_matches("*", "arn:aws:iam::111122223333:role/R"));
    }

    #[test]
    fn action_patterns_ignore_case_and_refuse_other_services() {
        assert!(ActionPattern::parse("kms:ReEncrypt*").unwrap().matches("kms:reencryptFrom"));
        assert!(ActionPattern::parse("KMS:decrypt").unwrap().matches("kms:Decrypt"));
        assert!(ActionPattern::parse("*").unwrap().matches("kms:Decrypt"));
        assert!(!ActionPattern::parse("kms:Decrypt").unwrap().matches("kms:DecryptX"));
        for text in ["s3:*", "k*", "kms", "kms:", "", "kms:De crypt", "k*:Decrypt"] {
            assert!(ActionPattern::parse(text).is_none(), "{text}");
        }
    }
}
