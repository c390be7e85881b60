//! Compares `subrosa measure --json` with AWS's crate `aws-nitro-enclaves-image-format`, which `nitro-cli` is made of.
//!
//! `eif-oracle SUBROSA [IMAGE.eif]...`: builds images with the crate, good ones and spoilt ones, reads each with both and
//! compares what they say; then the images that are named.

mod described;
mod images;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde_json::Value;

use images::{Built, Expected};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let Some(subrosa) = arguments.next() else {
        println!("usage: eif-oracle SUBROSA [IMAGE.eif]...");
        return ExitCode::from(2);
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let named = arguments.map(|path| Built { expected: Expected::AsTheOracle, path });
    let (mut passed, mut failed) = (0, 0);
    for Built { path, expected } in images::build(folder.path()).into_iter().chain(named) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match compare(&subrosa, &path, expected) {
            Ok(told) => {
                println!("same: {name}: {told}");
                passed += 1;
            }
            Err(difference) => {
                println!("DIFFERENT: {name}: {difference}");
                failed += 1;
            }
        }
    }
    println!("eif-oracle: {passed} the same, {failed} different");
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What both say; or where they differ.
fn compare(subrosa: &Path, image: &Path, expected: Expected) -> Result<String, String> {
    let output = Command::new(subrosa).arg("measure").arg("--json").arg(image).output();
    let output = output.map_err(|error| format!("{} does not run: {error}", subrosa.display()))?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let ours: Value = serde_json::from_slice(&output.stdout).map_err(|error| format!("no JSON ({error}): {stderr}"))?;
    let theirs = described::describe(image);
    let code = output.status.code();
    match expected {
        Expected::AsTheOracle => {
            same(&ours, &theirs?)?;
            expect(code, Some(0), &stderr)?;
            // nitro-cli asks this of a signed image before it starts it.
            let startable = described::startable(image);
            if stderr.contains("EXPIRED") != startable.as_ref().is_err_and(|error| error.contains("expired")) {
                return Err(format!("the certificate's validity: {startable:?}, ours: {stderr}"));
            }
        }
        Expected::Damaged => {
            same(&ours, &theirs?)?;
            expect(code, Some(1), &stderr)?;
        }
        Expected::SignedForAnother => {
            same(&ours, &without_signer(theirs?))?;
            expect(code, Some(5), &stderr)?;
        }
        Expected::BadSignature => {
            // The oracle tells nothing at all then.
            if theirs.is_ok() {
                return Err("the oracle accepts it".to_owned());
            }
            unsigned(&ours)?;
            expect(code, Some(5), &stderr)?;
        }
        Expected::Unsupported => {
            // The one difference: ES512 is good for the oracle, and not for us.
            same(&ours, &refused(without_signer(theirs?)))?;
            expect(code, Some(5), &stderr)?;
        }
    }
    Ok(summary(&ours, code))
}

fn same(ours: &Value, theirs: &Value) -> Result<(), String> {
    let (mut ours, mut theirs) = (ours.clone(), theirs.clone());
    // The oracle prints the Debug text of a hasher, which is another one in each version of the hasher.
    let mut hash = [&mut ours, &mut theirs].map(|object| object["Measurements"]["HashAlgorithm"].take());
    if hash[0].take() != "Sha384 { ... }" {
        return Err("HashAlgorithm is not what nitro-cli's documentation shows".to_owned());
    }
    if ours == theirs { Ok(()) } else { Err(format!("\nours:   {ours}\noracle: {theirs}")) }
}

/// An object of the oracle without what our command leaves out when a signature is not good.
fn without_signer(mut described: Value) -> Value {
    described.as_object_mut().map(|object| object.remove("SigningCertificate"));
    described["Measurements"].as_object_mut().map(|object| object.remove("PCR8"));
    described
}

fn refused(mut described: Value) -> Value {
    described["SignatureCheck"] = Value::Bool(false);
    described
}

fn unsigned(ours: &Value) -> Result<(), String> {
    let is_refused = ours["IsSigned"] == true && ours["SignatureCheck"] == false;
    let is_silent = ours.get("SigningCertificate").is_none() && ours["Measurements"].get("PCR8").is_none();
    if is_refused && is_silent { Ok(()) } else { Err(format!("a bad signature is told as {ours}")) }
}

fn expect(found: Option<i32>, expected: Option<i32>, stderr: &str) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("exit {found:?}, expected {expected:?}: {stderr}")) }
}

fn summary(ours: &Value, code: Option<i32>) -> String {
    let pcr0 = ours["Measurements"]["PCR0"].as_str().unwrap_or_default();
    let signed = &ours["SignatureCheck"];
    format!("PCR0 {}..., CRC {}, signature {signed}, exit {}", &pcr0[..12], ours["CheckCRC"], code.unwrap_or(-1))
}
