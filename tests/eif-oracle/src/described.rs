//! What the crate says about an image, put together as `nitro-cli describe-eif` (1.4) does it.

use std::path::Path;

use aws_nitro_enclaves_image_format::defs::EifIdentityInfo;
use aws_nitro_enclaves_image_format::utils::PcrSignatureChecker;
use aws_nitro_enclaves_image_format::utils::eif_reader::EifReader;
use serde_json::{Map, Value, json};

/// The object that `describe-eif` prints.
pub fn describe(image: &Path) -> Result<Value, String> {
    let mut reader = EifReader::from_eif(image.to_string_lossy().into_owned())?;
    let measurements = reader.get_measurements()?;
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| drop(object.insert(name.to_owned(), value));
    put("EifVersion", reader.get_header().version.into());
    put("Measurements", json!(measurements));
    put("IsSigned", measurements.contains_key("PCR8").into());
    put("CheckCRC", reader.check_crc().into());
    if measurements.contains_key("PCR8") {
        put("SigningCertificate", json!(reader.get_certificate_info(measurements)?));
        put("SignatureCheck", json!(reader.sign_check));
    }
    if let Some(metadata) = reader.get_metadata() {
        put("ImageName", metadata.img_name.clone().into());
        put("ImageVersion", metadata.img_version.clone().into());
        put("Metadata", shown(metadata));
    }
    Ok(Value::Object(object))
}

/// Whether `nitro-cli run-enclave` would accept the signature: good, and the certificate valid today.
pub fn startable(image: &Path) -> Result<(), String> {
    let mut checker = PcrSignatureChecker::from_eif(&image.to_string_lossy())?;
    if checker.is_empty() { Ok(()) } else { checker.verify() }
}

/// `MetadataDescribeInfo`: the builder's own members stand among the others.
fn shown(metadata: EifIdentityInfo) -> Value {
    let mut shown = json!(metadata.build_info);
    shown["DockerInfo"] = metadata.docker_info;
    if let (Some(shown), Value::Object(custom)) = (shown.as_object_mut(), metadata.custom_info) {
        shown.extend(custom);
    }
    shown
}
