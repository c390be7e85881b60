//! The files of `deploy/`: examples that are taken as they are, and units that start what there is.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use subrosa_client::doctor::settings::{EnclaveSettings, parents_cid};
use tests::programs::{self, project};

fn read(name: &str) -> String {
    fs::read_to_string(project().join("deploy").join(name)).unwrap()
}

#[test]
fn the_example_configuration_is_one_that_the_enclave_takes() {
    let text = read("configuration.json");
    let taken = enclave::configuration::Configuration::parse(text.as_bytes()).unwrap();
    assert_eq!(taken.models.len(), 1);
    assert_eq!(taken.limits.tenant_concurrent_requests, 2);
}

#[test]
fn the_example_settings_agree_with_each_other() {
    let settings = EnclaveSettings::parse(&read("systemd/enclave.env")).unwrap();
    assert_eq!(settings.cid, parents_cid(&read("systemd/parent.env")));
    assert!(!settings.debug && settings.eif.is_some());
    let allocator = read("allocator.yaml");
    let memory = format!("memory_mib: {}", settings.memory_mib.unwrap());
    let cpus = format!("cpu_count: {}", settings.cpus.unwrap());
    assert!(allocator.lines().any(|line| line == memory) && allocator.lines().any(|line| line == cpus), "{allocator}");
    assert!(allocator.starts_with("---\n"), "the allocator's reader passes over everything before");
}

#[test]
fn the_parents_unit_uses_arguments_that_the_parent_has() {
    let help = Command::new(programs::path("subrosa-parent").unwrap()).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let used = [read("systemd/subrosa-parent.service"), read("systemd/parent.env")].join("\n");
    let lines = used.lines().filter(|line| line.starts_with("ExecStart=") || line.starts_with("ARGUMENTS="));
    let arguments: BTreeSet<&str> =
        lines.flat_map(|line| line.split([' ', '='])).filter(|word| word.starts_with("--")).collect();
    assert!(arguments.len() >= 6, "{arguments:?}");
    for argument in arguments {
        assert!(help.contains(&format!("{argument} ")) || help.contains(&format!("{argument}\n")), "{argument}");
    }
}

#[test]
fn the_units_give_away_as_little_as_they_can() {
    for unit in ["systemd/subrosa-parent.service", "systemd/subrosa-enclave.service"] {
        let text = read(unit);
        for line in [
            "NoNewPrivileges=yes",
            "ProtectSystem=strict",
            "CapabilityBoundingSet=",
            "DevicePolicy=closed",
            "RestartSec=2",
        ] {
            assert!(text.lines().any(|found| found == line), "{unit}: {line}");
        }
        assert!(text.contains("\nMemoryMax="), "{unit}");
    }
}

#[test]
fn systemd_takes_the_units() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        println!("NOT RUN: systemd-analyze is not installed here");
        return;
    };
    assert!(version.status.success());
    let folder = tempfile::tempdir().unwrap();
    for unit in ["subrosa-parent.service", "subrosa-enclave.service"] {
        // The programs are not installed here, and the unit's name must be its own.
        let text = read(&format!("systemd/{unit}"));
        let text = text
            .replace("/usr/bin/subrosa-parent", "/bin/true")
            .replace("/usr/libexec/subrosa/run-enclave", "/bin/true");
        fs::write(folder.path().join(unit), text).unwrap();
    }
    let units = ["subrosa-parent.service", "subrosa-enclave.service"].map(|unit| folder.path().join(unit));
    let verified = Command::new("systemd-analyze").arg("verify").args(units).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && !said.contains("subrosa-"), "{said}");
}

#[test]
fn the_roles_policy_is_json_and_lets_no_unattested_call_open_anything() {
    let policy: serde_json::Value = serde_json::from_str(&read("instance-role.json")).unwrap();
    for statement in policy["Statement"].as_array().unwrap() {
        let actions = statement["Action"].as_array().unwrap();
        let opens = |action: &serde_json::Value| {
            let action = action.as_str().unwrap();
            !matches!(action, "kms:DescribeKey" | "kms:GetKeyPolicy" | "kms:ListGrants")
        };
        if actions.iter().any(opens) {
            let attested = &statement["Condition"]["Null"]["kms:RecipientAttestation:ImageSha384"];
            assert_eq!(attested, "false", "{statement}");
        }
    }
}
