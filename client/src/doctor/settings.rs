//! The settings of `subrosa-enclave.service` and `subrosa-parent.service`: `NAME=VALUE`, as systemd reads them.

use std::collections::BTreeMap;

/// How the enclave is to be started: `deploy/systemd/enclave.env`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnclaveSettings {
    /// The image.
    pub eif: Option<String>,
    /// CPUs.
    pub cpus: Option<u64>,
    /// MiB.
    pub memory_mib: Option<u64>,
    /// The enclave's address.
    pub cid: Option<u64>,
    /// In debug mode.
    pub debug: bool,
}

impl EnclaveSettings {
    /// Reads the file's text.
    ///
    /// # Errors
    /// Names what is no number, or no setting at all.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        let mut settings = Self::default();
        for (name, value) in pairs(text)? {
            let number = || value.parse().ok().filter(|number| *number > 0);
            let number = || number().map(Some).ok_or_else(|| SettingsError::Number { name: name.clone() });
            match name.as_str() {
                "EIF" => settings.eif = Some(value),
                "CPUS" => settings.cpus = number()?,
                "MEMORY" => settings.memory_mib = number()?,
                "CID" => settings.cid = number()?,
                "DEBUG" => settings.debug = !matches!(value.as_str(), "" | "0"),
                _ => return Err(SettingsError::Unknown { name }),
            }
        }
        Ok(settings)
    }
}

/// `ENCLAVE` of `deploy/systemd/parent.env`: the CID in `vsock:CID:PORT`.
#[must_use]
pub fn parents_cid(text: &str) -> Option<u64> {
    let settings = pairs(text).ok()?;
    settings.get("ENCLAVE")?.strip_prefix("vsock:")?.split(':').next()?.parse().ok()
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SettingsError {
    /// No `=`.
    #[error("line {line} is not NAME=VALUE")]
    Form {
        /// From 1.
        line: usize,
    },
    /// Not a number above 0.
    #[error("{name} should be a whole number above 0")]
    Number {
        /// The setting.
        name: String,
    },
    /// Not a setting.
    #[error("{name} is not a setting: EIF, CPUS, MEMORY, CID and DEBUG are")]
    Unknown {
        /// As it stands there.
        name: String,
    },
}

/// systemd.exec(5), `EnvironmentFile=`: lines of `NAME=VALUE`; empty ones and those that begin with `#` or `;` are passed over.
fn pairs(text: &str) -> Result<BTreeMap<String, String>, SettingsError> {
    let mut pairs = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or(SettingsError::Form { line: number + 1 })?;
        let value = value.trim();
        let bare = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        pairs.insert(name.trim().to_owned(), bare.to_owned());
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_systemd_reads_them() {
        let text = "# comment\n; too\n\nEIF=/var/lib/subrosa/a.eif\nCPUS=2\nMEMORY=\"512\"\nCID=16\nDEBUG=0\n";
        let expected = EnclaveSettings {
            eif: Some("/var/lib/subrosa/a.eif".into()),
            cpus: Some(2),
            memory_mib: Some(512),
            cid: Some(16),
            debug: false,
        };
        assert_eq!(EnclaveSettings::parse(text).unwrap(), expected);
        assert!(EnclaveSettings::parse("DEBUG=1").unwrap().debug);
        assert_eq!(EnclaveSettings::parse("MEMORY=much"), Err(SettingsError::Number { name: "MEMORY".into() }));
        assert_eq!(EnclaveSettings::parse("CPUS=0"), Err(SettingsError::Number { name: "CPUS".into() }));
        assert_eq!(EnclaveSettings::parse("\nMEMORY"), Err(SettingsError::Form { line: 2 }));
        assert_eq!(EnclaveSettings::parse("MEMROY=1"), Err(SettingsError::Unknown { name: "MEMROY".into() }));
        assert_eq!(parents_cid("ENCLAVE=vsock:16:5000\nLISTEN=x"), Some(16));
        assert_eq!(parents_cid("ENCLAVE=unix:/run/x:5000"), None);
    }
}
