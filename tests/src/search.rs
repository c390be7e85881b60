//! Searches bytes for any 12-byte window of what must not be there, in every form in which it could leak.
//!
//! The haystack is decoded rather than the windows encoded: each run of hexadecimal or base64 characters is decoded at
//! every alignment, JSON escapes are resolved, and the result is searched like the raw bytes. So one window is found
//! wherever it stands in a longer encoded text.

use std::collections::BTreeMap;

/// The shortest piece of a secret that counts as a leak.
pub const WINDOW: usize = 12;

/// What must not be found, as the set of its windows.
pub struct Secrets {
    windows: Vec<(Window, u8)>,
    names: Vec<String>,
    filter: Vec<u64>,
}

type Window = [u8; WINDOW];

impl Secrets {
    /// Gathers the windows of each named secret. Windows that say too little to be told from chance (fewer than six
    /// different bytes: padding, white space, zeros) are left out.
    pub fn new(secrets: &[(&str, &[u8])]) -> Secrets {
        let mut windows: Vec<(Window, u8)> = Vec::new();
        for (number, (_, bytes)) in (0u8..).zip(secrets) {
            windows.extend(bytes.windows(WINDOW).filter_map(|w| w.try_into().ok()).filter(tells).map(|w| (w, number)));
        }
        windows.sort_unstable();
        windows.dedup_by_key(|(window, _)| *window);
        let mut filter = vec![0u64; 1 << (FILTER_BITS - 6)];
        for (window, _) in &windows {
            let bit = hash(window);
            if let Some(word) = filter.get_mut(bit >> 6) {
                *word |= 1 << (bit & 63);
            }
        }
        Secrets { windows, names: secrets.iter().map(|(name, _)| (*name).to_owned()).collect(), filter }
    }

    /// How many different windows are looked for.
    pub fn len(&self) -> usize {
        self.windows.len()
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// Which secrets stand in `haystack`, in which form, and how many windows of each.
    pub fn search(&self, haystack: &[u8]) -> Findings {
        let mut findings = Findings::default();
        self.scan(haystack, "raw", &mut findings);
        self.scan(&json_unescaped(haystack), "JSON-escaped", &mut findings);
        for skip in 0..2 {
            self.scan(&hex_decoded(haystack, skip), "hex", &mut findings);
        }
        for skip in 0..4 {
            self.scan(&base64_decoded(haystack, skip), "base64", &mut findings);
        }
        findings
    }

    fn scan(&self, haystack: &[u8], form: &'static str, findings: &mut Findings) {
        for window in haystack.windows(WINDOW) {
            let Ok(window) = Window::try_from(window) else { continue };
            let bit = hash(&window);
            if self.filter.get(bit >> 6).is_some_and(|word| word >> (bit & 63) & 1 == 1)
                && let Ok(found) = self.windows.binary_search_by(|(known, _)| known.cmp(&window))
                && let Some(name) = self.windows.get(found).and_then(|(_, number)| self.names.get(usize::from(*number)))
            {
                *findings.0.entry((name.clone(), form)).or_default() += 1;
            }
        }
    }
}

/// How many windows of which secret were found in which form.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Findings(BTreeMap<(String, &'static str), usize>);

impl Findings {
    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a secret was found in any form.
    pub fn has(&self, secret: &str) -> bool {
        self.0.keys().any(|(name, _)| name == secret)
    }

    /// Whether a secret was found in this form.
    pub fn has_form(&self, secret: &str, form: &str) -> bool {
        self.0.keys().any(|(name, found)| name == secret && *found == form)
    }

    /// Adds what another search found.
    pub fn merge(&mut self, other: Findings) {
        for (key, count) in other.0 {
            *self.0.entry(key).or_default() += count;
        }
    }
}

impl std::fmt::Display for Findings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing found");
        }
        for (number, ((name, form), count)) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{count} windows of the {name} ({form})")?;
        }
        Ok(())
    }
}

/// A run of bytes decoded from `haystack`; runs too short to hold a window are left out, others end with a separator that no
/// window of a secret crosses by chance more than any other bytes do.
fn decoded_runs(
    haystack: &[u8],
    shortest: usize,
    digit: impl Fn(u8) -> Option<u8>,
    decode: impl Fn(&[u8], &mut Vec<u8>),
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut digits = Vec::new();
    let mut flush = |digits: &mut Vec<u8>| {
        if digits.len() >= shortest {
            decode(digits, &mut out);
            out.extend_from_slice(&[0; WINDOW]);
        }
        digits.clear();
    };
    for byte in haystack {
        match digit(*byte) {
            Some(value) => digits.push(value),
            None => flush(&mut digits),
        }
    }
    flush(&mut digits);
    out
}

fn hex_decoded(haystack: &[u8], skip: usize) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).and_then(|value| u8::try_from(value).ok());
    decoded_runs(haystack, 2 * WINDOW, digit, |digits, out| {
        let digits = digits.get(skip..).unwrap_or_default();
        out.extend(digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)));
    })
}

/// The standard and the URL-safe alphabet at once: their two differing characters stand for the same values.
fn base64_decoded(haystack: &[u8], skip: usize) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' | b'-' => Some(62),
        b'/' | b'_' => Some(63),
        _ => None,
    };
    decoded_runs(haystack, 4 * WINDOW / 3, digit, |digits, out| {
        let digits = digits.get(skip..).unwrap_or_default();
        for four in digits.chunks_exact(4) {
            let bits = four.iter().fold(0u32, |bits, digit| bits << 6 | u32::from(*digit));
            let [_, bytes @ ..] = bits.to_be_bytes();
            out.extend_from_slice(&bytes);
        }
    })
}

/// RFC 8259, section 7: the two-character escapes and `\uXXXX`.
fn json_unescaped(haystack: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(haystack.len());
    let mut rest = haystack;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let Some((&escape, after)) = rest.split_first() else { break };
        let plain = match escape {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'b' => 8,
            b'f' => 12,
            b'u' => {
                let code = after
                    .get(..4)
                    .and_then(|four| std::str::from_utf8(four).ok())
                    .and_then(|four| u32::from_str_radix(four, 16).ok());
                if let Some(character) = code.and_then(char::from_u32) {
                    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                    rest = after.get(4..).unwrap_or_default();
                }
                continue;
            }
            other => other,
        };
        out.push(plain);
        rest = after;
    }
    out
}

fn tells(window: &Window) -> bool {
    let mut bytes = *window;
    bytes.sort_unstable();
    bytes.windows(2).filter(|pair| pair.first() != pair.last()).count() >= 5
}

fn hash(window: &Window) -> usize {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *window;
    let low = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let high = u64::from(u32::from_le_bytes([i, j, k, l]));
    let mixed =
        (low ^ high.rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ high.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    usize::try_from(mixed >> (64 - FILTER_BITS)).unwrap_or(0)
}

/// 32 MiB of filter: at 8 million windows one look-up in thirty goes on to the sorted list.
const FILTER_BITS: u32 = 28;

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

    const SECRET: &[u8] = b"patient \"K\xc3\xb6nig\"\nhas severe chest pain";

    fn found_in(haystack: &[u8], form: &str) {
        let findings = Secrets::new(&[("note", SECRET)]).search(haystack);
        assert!(findings.has_form("note", form), "{form}: {findings}");
    }

    #[test]
    fn a_window_is_found_raw_in_the_middle_of_other_bytes() {
        found_in(&[&[0xff; 7], &SECRET[9..9 + WINDOW], b"zzz"].concat(), "raw");
    }

    #[test]
    fn a_window_is_found_in_hex_of_either_case_at_either_alignment() {
        for pad in ["", "f"] {
            found_in(format!("x{pad}{}", hex::encode(SECRET)).as_bytes(), "hex");
            found_in(format!("x{pad}{}", hex::encode_upper(SECRET)).as_bytes(), "hex");
        }
    }

    #[test]
    fn a_window_is_found_in_base64_at_each_alignment_of_bytes_and_characters() {
        for lead in 0..3 {
            let bytes = [&vec![7; lead], SECRET].concat();
            for pad in ["", "A", "AB", "ABC"] {
                found_in(format!("\"{pad}{}\"", STANDARD.encode(&bytes)).as_bytes(), "base64");
                found_in(format!("\"{pad}{}\"", URL_SAFE_NO_PAD.encode(&bytes)).as_bytes(), "base64");
            }
        }
    }

    #[test]
    fn a_window_is_found_behind_json_escapes() {
        let escaped = serde_json::to_string(&String::from_utf8_lossy(SECRET)).unwrap();
        found_in(escaped.as_bytes(), "JSON-escaped");
        found_in(b"\\u0070atient \\\"K\\u00f6nig\\\"", "JSON-escaped");
    }

    #[test]
    fn eleven_bytes_of_a_secret_and_random_bytes_are_not_findings() {
        let secrets = Secrets::new(&[("note", SECRET)]);
        assert!(secrets.search(&SECRET[..WINDOW - 1]).is_empty());
        let noise: Vec<u8> = (0u32..200_000).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        assert!(secrets.search(&noise).is_empty());
    }
}
