//! What an enclave says about the policy of a key, as its keyset and its answers carry it (docs/PROTOCOL.md, section 7).

use serde_json::Value;

/// A verdict: an attested enclave's word about one moment. IAM policies are outside it.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyPolicyVerdict(Value);

impl KeyPolicyVerdict {
    /// Reads a verdict. Words that are not JSON are kept as words.
    #[must_use]
    pub fn read(text: &str) -> Self {
        Self(serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)))
    }

    /// The verdicts of a keyset, one for each key of a model pack.
    #[must_use]
    pub fn read_list(text: &str) -> Vec<Self> {
        match Self::read(text).0 {
            Value::Array(list) => list.into_iter().map(Self).collect(),
            other => vec![Self(other)],
        }
    }

    /// The verdict as JSON.
    #[must_use]
    pub fn to_json(&self) -> &Value {
        &self.0
    }

    /// How many ways to plaintext are open now; `None` where the enclave could not see the policy.
    #[must_use]
    pub fn open(&self) -> Option<u64> {
        match self.0.get("open")? {
            Value::Array(ways) => Some(ways.len() as u64),
            number => number.as_u64(),
        }
    }

    /// One line for a person: no control characters, whoever wrote the policy.
    #[must_use]
    pub fn to_line(&self) -> String {
        let status = self.0.get("status").and_then(Value::as_str).unwrap_or("unknown");
        match self.open() {
            Some(0) => {
                let grants = self.0.get("grants_seen") == Some(&Value::Bool(true));
                let unseen = if grants { "" } else { "; grants were NOT seen" };
                format!("no way to plaintext is open but through an accepted image ({}{unseen})", status.escape_debug())
            }
            Some(open) => {
                let ways = self.0.get("open").and_then(Value::as_array).into_iter().flatten();
                let way = |way: &Value| {
                    let of = |name: &str| way.get(name).and_then(Value::as_str).unwrap_or("?").to_owned();
                    let who = way.get("principals").and_then(Value::as_array).into_iter().flatten();
                    let who: Vec<&str> = who.filter_map(Value::as_str).collect();
                    format!("{} by {} for {}", of("kind"), of("statement"), who.join(", "))
                };
                let ways: Vec<String> = ways.map(way).collect();
                format!("OPEN to others in {open} ways: {}", ways.join("; ")).escape_debug().to_string()
            }
            None => format!("not judged by the enclave ({})", status.escape_debug()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_way_is_named_and_counted_in_both_forms() {
        let long = KeyPolicyVerdict::read(
            r#"{"status":"checked","open":[{"kind":"unattested","statement":"One","principals":["arn:aws:iam::1:role/a"]}]}"#,
        );
        assert_eq!(long.open(), Some(1));
        assert!(long.to_line().contains("unattested by One for arn:aws:iam::1:role/a"), "{}", long.to_line());
        assert_eq!(KeyPolicyVerdict::read(r#"{"status":"checked","open":3}"#).open(), Some(3));
    }

    #[test]
    fn what_was_not_seen_is_not_called_closed() {
        for text in [r#"{"status":"not-visible","checked_at":1}"#, "words", "{}"] {
            let verdict = KeyPolicyVerdict::read(text);
            assert_eq!(verdict.open(), None, "{text}");
            assert!(verdict.to_line().contains("not judged"), "{}", verdict.to_line());
        }
    }
}
