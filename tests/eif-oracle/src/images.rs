//! Images made with the crate, and what somebody could do to them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use aws_nitro_enclaves_image_format::defs::{EIF_HDR_ARCH_ARM64, EifBuildInfo, EifIdentityInfo};
use aws_nitro_enclaves_image_format::utils::{EifBuilder, EifSigner, SignKeyData};
use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::x509::{X509Builder, X509NameBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha384};

/// An image on disk.
pub struct Built {
    pub path: PathBuf,
    pub expected: Expected,
}

/// What our reader should say about it.
#[derive(Clone, Copy)]
pub enum Expected {
    /// Exactly what the oracle says.
    AsTheOracle,
    /// The same, and that the checksum is wrong.
    Damaged,
    /// The same but for the signer, and that the signature is another image's.
    SignedForAnother,
    /// That the signature does not verify, of which the oracle makes an error.
    BadSignature,
    /// That the signature cannot be verified, which the oracle can.
    Unsupported,
}

/// All of them, in a folder.
pub fn build(folder: &Path) -> Vec<Built> {
    let p384 = Some((Nid::SECP384R1, 0));
    let p256 = Some((Nid::X9_62_PRIME256V1, 0));
    let p521 = Some((Nid::SECP521R1, 0));
    let expired = Some((Nid::SECP384R1, 30));
    let custom = json!({"Toolchain": {"rustc": "1.95.0", "é": [1, 2.5, null]}, "Zulu": true});
    let mut built = vec![
        image(folder, "plain", 2, None, 0, Value::Null),
        image(folder, "one-ramdisk", 1, None, 0, Value::Null),
        image(folder, "many-ramdisks", 28, None, 0, custom.clone()),
        image(folder, "aarch64", 3, None, EIF_HDR_ARCH_ARM64, json!({})),
        image(folder, "signed-p384", 2, p384, 0, custom),
        image(folder, "signed-p256", 2, p256, 0, Value::Null),
        image(folder, "signed-expired", 2, expired, 0, Value::Null),
        image(folder, "signed-p521", 2, p521, 0, Value::Null),
    ];
    built[7].expected = Expected::Unsupported;
    built.push(signed_later(folder));
    let spoilt = |from: &str, name: &str, expected, spoil: &dyn Fn(&mut Vec<u8>), mend| {
        let path = folder.join(format!("{name}.eif"));
        let mut bytes = fs::read(folder.join(format!("{from}.eif"))).unwrap();
        spoil(&mut bytes);
        fs::write(&path, bytes).unwrap();
        if mend {
            signer(folder, "mending", Nid::SECP384R1, 0).update_crc(&path.to_string_lossy()).unwrap();
        }
        Built { path, expected }
    };
    // The kernel's first byte.
    let kernel = |bytes: &mut Vec<u8>| bytes[548 + 12] ^= 1;
    let last = |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1;
    built.push(spoilt("plain", "damaged", Expected::Damaged, &kernel, false));
    built.push(spoilt("plain", "changed-and-mended", Expected::AsTheOracle, &kernel, true));
    built.push(spoilt("signed-p384", "signed-then-changed", Expected::SignedForAnother, &kernel, true));
    built.push(spoilt("signed-p384", "signature-changed", Expected::BadSignature, &last, true));
    built
}

/// As `nitro-cli build-enclave` makes it.
fn image(folder: &Path, name: &str, ramdisks: u8, sign: Option<(Nid, u32)>, flags: u16, custom_info: Value) -> Built {
    let kernel = folder.join("kernel");
    fs::write(&kernel, b"a kernel of some bytes".repeat(1000)).unwrap();
    let key = sign.map(|(curve, days_ago)| key_data(folder, name, curve, days_ago));
    let identity = EifIdentityInfo {
        img_name: format!("{name} \"quoted\""),
        img_version: "1.0".to_owned(),
        build_info: EifBuildInfo {
            build_time: "2026-11-21T10:00:00+00:00".to_owned(),
            build_tool: "eif-oracle".to_owned(),
            build_tool_version: "0.1.0".to_owned(),
            img_os: "Linux".to_owned(),
            img_kernel: "6.12.0".to_owned(),
        },
        docker_info: json!({"Config": {"Cmd": ["/init"]}}),
        custom_info,
    };
    let cmdline = "console=ttyS0 panic=1 rootfstype=ramfs".to_owned();
    let mut builder = EifBuilder::new(&kernel, cmdline, key, Sha384::new(), flags, identity);
    for index in 0..ramdisks {
        let ramdisk = folder.join(format!("ramdisk-{index}"));
        fs::write(&ramdisk, vec![index; 1001 + usize::from(index)]).unwrap();
        builder.add_ramdisk(&ramdisk);
    }
    let path = folder.join(format!("{name}.eif"));
    builder.write_to(&mut File::create(&path).unwrap());
    Built { path, expected: Expected::AsTheOracle }
}

/// As `nitro-cli sign-eif` signs an image that is there already.
fn signed_later(folder: &Path) -> Built {
    let built = image(folder, "signed-later", 2, None, 0, Value::Null);
    signer(folder, "signed-later", Nid::SECP384R1, 0).sign_image(&built.path.to_string_lossy()).unwrap();
    built
}

fn signer(folder: &Path, name: &str, curve: Nid, days_ago: u32) -> EifSigner {
    EifSigner::new(Some(key_data(folder, name, curve, days_ago))).unwrap()
}

/// A new key with a certificate of its own that was valid for a week, that many days ago (0: is valid now).
fn key_data(folder: &Path, name: &str, curve: Nid, days_ago: u32) -> SignKeyData {
    let key = EcKey::generate(&EcGroup::from_curve_name(curve).unwrap()).unwrap();
    let key = PKey::from_ec_key(key).unwrap();
    let mut subject = X509NameBuilder::new().unwrap();
    for (attribute, value) in [
        ("C", "DE"),
        ("ST", "Some State"),
        ("L", "Some Place"),
        ("O", "Images, \"quoted\" & Söhne"),
        ("OU", "Builders"),
        ("CN", "signer.test"),
        ("emailAddress", "signer@example.org"),
    ] {
        subject.append_entry_by_text(attribute, value).unwrap();
    }
    let subject = subject.build();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let begin = now - i64::from(days_ago) * 86_400 - 3600;
    let mut certificate = X509Builder::new().unwrap();
    certificate.set_version(2).unwrap();
    certificate.set_serial_number(&BigNum::from_u32(7).unwrap().to_asn1_integer().unwrap()).unwrap();
    certificate.set_subject_name(&subject).unwrap();
    certificate.set_issuer_name(&subject).unwrap();
    certificate.set_pubkey(&key).unwrap();
    certificate.set_not_before(&Asn1Time::from_unix(begin).unwrap()).unwrap();
    certificate.set_not_after(&Asn1Time::from_unix(begin + 7 * 86_400).unwrap()).unwrap();
    certificate.sign(&key, MessageDigest::sha384()).unwrap();
    let (key_path, certificate_path) = (folder.join(format!("{name}.key")), folder.join(format!("{name}.pem")));
    fs::write(&key_path, key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    fs::write(&certificate_path, certificate.build().to_pem().unwrap()).unwrap();
    SignKeyData::new(&key_path.to_string_lossy(), &certificate_path).unwrap()
}
