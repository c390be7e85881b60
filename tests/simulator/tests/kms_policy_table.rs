//! The rows of the key policies' truth tables, each as a call over the wire with real documents; and what comes back opens.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "tests stop at the first surprise"
)]

mod stand;

use std::collections::HashMap;

use aws_sdk_kms::Client;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{DataKeySpec, GrantOperation, RecipientInfo};
use kms_policies::templates::{CustomerRoles, Measurements, ModelPackRoles, customer_key, model_pack_key};
use simulator::kms::{Layout, Lie};
use stand::{ADMINISTRATOR, Attester, ENCLAVE, Image, READER, STRANGER, Stand, WRITER, code, context, name};

const ROLES: [&str; 5] = [WRITER, ENCLAVE, READER, ADMINISTRATOR, STRANGER];

/// How a call is attested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attestation {
    None,
    Right,
    Wrong(u8),
    Unlocked(u8),
    Debug,
}

const ATTESTATIONS: [Attestation; 10] = [
    Attestation::None,
    Attestation::Right,
    Attestation::Wrong(0),
    Attestation::Wrong(1),
    Attestation::Wrong(2),
    Attestation::Wrong(16),
    Attestation::Wrong(17),
    Attestation::Unlocked(16),
    Attestation::Unlocked(17),
    Attestation::Debug,
];

/// One enclave for each way to be attested.
struct Enclaves(HashMap<String, Attester>);

impl Enclaves {
    fn start(stand: &Stand) -> Self {
        let mut all = HashMap::new();
        for attestation in ATTESTATIONS {
            let mut image = Image::good();
            match attestation {
                Attestation::None => continue,
                Attestation::Right => {}
                Attestation::Wrong(index @ 0..=2) => image.pcrs[usize::from(index)] = [0x5A; 48],
                Attestation::Wrong(index) => image.extended.get_mut(&index.into()).unwrap().0 = b"other",
                Attestation::Unlocked(index) => image.extended.get_mut(&index.into()).unwrap().1 = false,
                Attestation::Debug => image.debug = true,
            }
            all.insert(format!("{attestation:?}"), Attester::start(&stand.authority, &image));
        }
        Self(all)
    }

    fn recipient(&mut self, attestation: Attestation) -> Option<RecipientInfo> {
        self.0.get_mut(&format!("{attestation:?}")).map(Attester::recipient)
    }
}

fn measurements(registers: &[u8]) -> Measurements {
    Measurements { pcrs: registers.iter().map(|index| (*index, vec![[7; 48], Image::good().pcr(*index)])).collect() }
}

/// A key with a blob sealed under each context, made before the policy is put (afterwards nobody may Encrypt).
async fn key_with_blobs(stand: &Stand, contexts: &[HashMap<String, String>], policy: &str) -> (String, Vec<Blob>) {
    let administrator = stand.client(ADMINISTRATOR);
    let key = administrator.create_key().send().await.unwrap().key_metadata().unwrap().arn().unwrap().to_owned();
    let mut blobs = Vec::new();
    for context in contexts {
        let sealed = administrator
            .encrypt()
            .key_id(&key)
            .plaintext(Blob::new([9; 32]))
            .set_encryption_context(Some(context.clone()))
            .send();
        blobs.push(sealed.await.unwrap().ciphertext_blob().unwrap().clone());
    }
    administrator.put_key_policy().key_id(&key).policy(policy).send().await.unwrap();
    (key, blobs)
}

/// Every role x {Decrypt, GenerateDataKey} x context x attestation, compared with `expected(role, operation, context index, attestation)`.
async fn check(
    stand: &Stand,
    contexts: &[HashMap<String, String>],
    policy: &str,
    expected: fn(&str, &str, usize, Attestation) -> bool,
) -> usize {
    let (key, blobs) = key_with_blobs(stand, contexts, policy).await;
    let mut enclaves = Enclaves::start(stand);
    let mut rows = 0;
    for role in ROLES {
        let client = stand.client(role);
        for (i, (context, blob)) in contexts.iter().zip(&blobs).enumerate() {
            for attestation in ATTESTATIONS {
                let context = Some(context.clone());
                let opened =
                    client.decrypt().key_id(&key).ciphertext_blob(blob.clone()).set_encryption_context(context.clone());
                let opened = opened.set_recipient(enclaves.recipient(attestation)).send().await;
                let row = format!("{} Decrypt context {i} {attestation:?}", name(role));
                if expected(role, "Decrypt", i, attestation) {
                    let opened = opened.unwrap_or_else(|error| panic!("{row}: {error:?}"));
                    assert_eq!(opened.plaintext().is_none(), attestation != Attestation::None, "{row}");
                    assert_eq!(opened.ciphertext_for_recipient().is_some(), attestation != Attestation::None, "{row}");
                } else {
                    assert_eq!(code(opened), "AccessDeniedException", "{row}");
                }
                let made = client
                    .generate_data_key()
                    .key_id(&key)
                    .key_spec(DataKeySpec::Aes256)
                    .set_encryption_context(context);
                let made = made.set_recipient(enclaves.recipient(attestation)).send().await;
                let row = format!("{} GenerateDataKey context {i} {attestation:?}", name(role));
                if expected(role, "GenerateDataKey", i, attestation) {
                    let made = made.unwrap_or_else(|error| panic!("{row}: {error:?}"));
                    assert_eq!(made.plaintext().is_none(), attestation != Attestation::None, "{row}");
                } else {
                    assert_eq!(code(made), "AccessDeniedException", "{row}");
                }
                rows += 2;
            }
        }
        rows += check_other_operations(&client, role, &key, policy).await;
    }
    rows
}

async fn check_other_operations(client: &Client, role: &str, key: &str, policy: &str) -> usize {
    let plaintext = Blob::new("x");
    assert_eq!(code(client.encrypt().key_id(key).plaintext(plaintext).send().await), "AccessDeniedException");
    assert_eq!(
        code(client.generate_data_key_without_plaintext().key_id(key).key_spec(DataKeySpec::Aes256).send().await),
        "AccessDeniedException"
    );
    let grant = client.create_grant().key_id(key).grantee_principal(STRANGER).operations(GrantOperation::Decrypt);
    assert_eq!(code(grant.send().await), "AccessDeniedException");
    // Into the key, from a key that the caller may use: the destination refuses.
    if let Ok(own) = client.create_key().send().await {
        let own = own.key_metadata().unwrap().arn().unwrap().to_owned();
        let sealed = client.encrypt().key_id(&own).plaintext(Blob::new("x")).send().await.unwrap();
        let moved = client
            .re_encrypt()
            .source_key_id(&own)
            .ciphertext_blob(sealed.ciphertext_blob().unwrap().clone())
            .destination_key_id(key);
        assert_eq!(code(moved.send().await), "AccessDeniedException");
    }
    let may = role == ADMINISTRATOR;
    assert_eq!(client.describe_key().key_id(key).send().await.is_ok(), may);
    let may_read = may || role == ENCLAVE;
    assert_eq!(client.get_key_policy().key_id(key).send().await.is_ok(), may_read);
    assert_eq!(client.list_grants().key_id(key).send().await.is_ok(), may_read);
    assert_eq!(client.put_key_policy().key_id(key).policy(policy).send().await.is_ok(), may);
    8
}

#[tokio::test]
async fn each_row_of_the_customer_keys_table_holds_over_the_wire() {
    let stand = Stand::start().await;
    let one = |arn: &str| vec![arn.to_owned()];
    let roles = CustomerRoles {
        prompt_writers: one(WRITER),
        enclaves: one(ENCLAVE),
        answer_readers: one(READER),
        administrators: one(ADMINISTRATOR),
    };
    let policy = customer_key(&roles, &measurements(&[0, 1, 2, 16, 17]), &["t".to_owned()]).unwrap().to_json();
    let contexts = ["inference", "answer", "model-pack", "Inference"]
        .map(|purpose| context(&[("subrosa:tenant", "t"), ("subrosa:purpose", purpose)]));
    let mut contexts = contexts.to_vec();
    contexts.push(context(&[("subrosa:tenant", "another"), ("subrosa:purpose", "inference")]));
    contexts.push(context(&[]));
    let rows =
        check(&stand, &contexts, &policy, |role, operation, context, attestation| match (role, operation, context) {
            (WRITER, "GenerateDataKey", 0) | (READER, "Decrypt", 1) => attestation == Attestation::None,
            (ENCLAVE, "Decrypt", 0) | (ENCLAVE, "GenerateDataKey", 1) => attestation == Attestation::Right,
            _ => false,
        })
        .await;
    assert_eq!(rows, 5 * (6 * 10 * 2 + 8));
}

#[tokio::test]
async fn each_row_of_the_model_pack_keys_table_holds_over_the_wire() {
    let stand = Stand::start().await;
    let one = |arn: &str| vec![arn.to_owned()];
    // The supplier of this table is the stand's Writer.
    let roles =
        ModelPackRoles { model_suppliers: one(WRITER), enclaves: one(ENCLAVE), administrators: one(ADMINISTRATOR) };
    let policy = model_pack_key(&roles, &measurements(&[0, 1, 2, 17]), &["m".to_owned()]).unwrap().to_json();
    let pack = |purpose: &str, model: &str| {
        context(&[("subrosa:purpose", purpose), ("subrosa:model", model), ("subrosa:version", "1")])
    };
    let contexts = [pack("model-pack", "m"), pack("model-pack", "other"), pack("inference", "m"), context(&[])];
    check(&stand, &contexts, &policy, |role, operation, context, attestation| match (role, operation, context) {
        (WRITER, "GenerateDataKey", 0) => attestation == Attestation::None,
        // PCR16 holds the packs themselves: it cannot guard them.
        (ENCLAVE, "Decrypt", 0) => {
            matches!(attestation, Attestation::Right | Attestation::Wrong(16) | Attestation::Unlocked(16))
        }
        _ => false,
    })
    .await;
}

#[tokio::test]
async fn openssl_opens_what_the_recipient_gets_in_both_layouts() {
    if std::process::Command::new("openssl").arg("version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "this test needs openssl (Debian, Ubuntu: apt install openssl)");
        return;
    }
    let stand = Stand::start().await;
    let client = stand.client(ADMINISTRATOR);
    let key = client.create_key().send().await.unwrap().key_metadata().unwrap().arn().unwrap().to_owned();
    let mut enclave = Attester::start(&stand.authority, &Image::good());
    for length in [1, 16, 32, 1024] {
        let plaintext: Vec<u8> = (0..length).map(|i: u32| u8::try_from(i % 251).unwrap()).collect();
        let sealed = client
            .encrypt()
            .key_id(&key)
            .plaintext(Blob::new(plaintext.clone()))
            .send()
            .await
            .unwrap()
            .ciphertext_blob()
            .unwrap()
            .clone();
        for layout in [Layout::Constructed, Layout::Primitive] {
            stand.kms.faults().set_layout(layout);
            let opened = client
                .decrypt()
                .key_id(&key)
                .ciphertext_blob(sealed.clone())
                .recipient(enclave.recipient())
                .send()
                .await
                .unwrap();
            let envelope = opened.ciphertext_for_recipient().unwrap();
            assert_eq!(openssl(&stand, &enclave, envelope.as_ref()), plaintext, "{layout:?} {length}");
        }
    }
    stand.kms.faults().lie_next(1, "Decrypt", Lie::OtherPlaintext);
    let sealed = client
        .encrypt()
        .key_id(&key)
        .plaintext(Blob::new([1; 32]))
        .send()
        .await
        .unwrap()
        .ciphertext_blob()
        .unwrap()
        .clone();
    let told =
        client.decrypt().key_id(&key).ciphertext_blob(sealed).recipient(enclave.recipient()).send().await.unwrap();
    let other = openssl(&stand, &enclave, told.ciphertext_for_recipient().unwrap().as_ref());
    assert!(other.len() == 32 && other != [1; 32], "the lie is well-formed: only an AEAD can tell");
}

fn openssl(stand: &Stand, enclave: &Attester, envelope: &[u8]) -> Vec<u8> {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    let (key, input) = (stand.folder.path().join("recipient.der"), stand.folder.path().join("envelope.ber"));
    std::fs::write(&key, AsDer::<Pkcs8V1Der<'_>>::as_der(&enclave.private_key).unwrap().as_ref()).unwrap();
    std::fs::write(&input, envelope).unwrap();
    let mut command = std::process::Command::new("openssl");
    command
        .args(["cms", "-decrypt", "-binary", "-inform", "DER", "-keyform", "DER", "-inkey"])
        .arg(&key)
        .arg("-in")
        .arg(&input);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
