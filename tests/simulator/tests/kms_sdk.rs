//! An unmodified aws-sdk-kms finds in the simulated KMS what it would find in the real one.

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

use std::time::{Duration, Instant};

use aws_sdk_kms::error::ProvideErrorMetadata;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{DataKeySpec, GrantConstraints, GrantOperation, KeyState};
use aws_smithy_async::time::StaticTimeSource;
use kms_policies::ActionPattern;
use simulator::kms::{Lie, Principal, Server};
use stand::{
    ACCOUNT, ADMINISTRATOR, Attester, ENCLAVE, Image, SECRET, STRANGER, Stand, WRITER, code, context, recipient,
};

async fn new_key(stand: &Stand) -> String {
    let made = stand.client(ADMINISTRATOR).create_key().send().await.unwrap();
    made.key_metadata().unwrap().arn().unwrap().to_owned()
}

#[tokio::test]
async fn keys_are_made_described_and_governed_by_the_default_policy() {
    let stand = Stand::start().await;
    let client = stand.client(ADMINISTRATOR);
    let made = client.create_key().description("a key").send().await.unwrap();
    let metadata = made.key_metadata().unwrap();
    let arn = metadata.arn().unwrap();
    assert!(arn.starts_with(&format!("arn:aws:kms:us-east-1:{ACCOUNT}:key/")) && arn.ends_with(metadata.key_id()));
    assert_eq!((metadata.description(), metadata.key_state()), (Some("a key"), Some(&KeyState::Enabled)));
    for key_id in [arn, metadata.key_id()] {
        assert_eq!(client.describe_key().key_id(key_id).send().await.unwrap().key_metadata().unwrap().arn(), Some(arn));
    }
    let policy = client.get_key_policy().key_id(arn).send().await.unwrap().policy().unwrap().to_owned();
    assert!(policy.contains(&format!("arn:aws:iam::{ACCOUNT}:root")) && policy.contains("kms:*"));
    // The account delegates to IAM; without it there the same caller is refused.
    let poor = Principal::new("arn:aws:iam::111122223333:user/poor", SECRET)
        .unwrap()
        .with_iam(vec![ActionPattern::parse("kms:DescribeKey").unwrap()]);
    stand.kms.set_principal("POOR", poor);
    let poor = stand.client_with("POOR", SECRET, None);
    assert!(poor.describe_key().key_id(arn).send().await.is_ok());
    let refused = poor.get_key_policy().key_id(arn).send().await.unwrap_err();
    assert_eq!(refused.code(), Some("AccessDeniedException"));
    let message = format!(
        "User: arn:aws:iam::111122223333:user/poor is not authorized to perform: kms:GetKeyPolicy on resource: {arn} because no identity-based policy allows the kms:GetKeyPolicy action"
    );
    assert_eq!(refused.message(), Some(message.as_str()));
    assert_eq!(code(poor.create_key().send().await), "AccessDeniedException");
    assert_eq!(
        code(client.describe_key().key_id("1234abcd-12ab-34cd-56ef-1234567890ab").send().await),
        "NotFoundException"
    );
    assert_eq!(code(client.describe_key().key_id("alias/none").send().await), "NotFoundException");
    assert_eq!(
        code(client.describe_key().key_id(arn.replace("us-east-1", "eu-west-1")).send().await),
        "NotFoundException"
    );
}

#[tokio::test]
async fn what_was_encrypted_opens_under_its_own_key_and_context_only() {
    let stand = Stand::start().await;
    let client = stand.client(ADMINISTRATOR);
    let (key, other) = (new_key(&stand).await, new_key(&stand).await);
    let right = Some(context(&[("a", "1"), ("b", "2")]));
    let sealed = client
        .encrypt()
        .key_id(&key)
        .plaintext(Blob::new("hello"))
        .set_encryption_context(right.clone())
        .send()
        .await
        .unwrap();
    assert_eq!(sealed.key_id(), Some(key.as_str()));
    let blob = sealed.ciphertext_blob().unwrap().clone();
    let open = |key: Option<&str>, blob: Blob, context| {
        client.decrypt().set_key_id(key.map(str::to_owned)).ciphertext_blob(blob).set_encryption_context(context).send()
    };
    for key_id in [None, Some(key.as_str())] {
        let opened = open(key_id, blob.clone(), right.clone()).await.unwrap();
        assert_eq!((opened.key_id(), opened.plaintext().unwrap().as_ref()), (Some(key.as_str()), &b"hello"[..]));
        assert!(opened.ciphertext_for_recipient().is_none());
    }
    assert_eq!(code(open(Some(&other), blob.clone(), right.clone()).await), "IncorrectKeyException");
    for wrong in [None, Some(context(&[("a", "1")])), Some(context(&[("a", "1"), ("b", "3")]))] {
        assert_eq!(code(open(Some(&key), blob.clone(), wrong).await), "InvalidCiphertextException");
    }
    let mut bent = blob.clone().into_inner();
    *bent.last_mut().unwrap() ^= 1;
    assert_eq!(code(open(None, Blob::new(bent), right.clone()).await), "InvalidCiphertextException");
    assert_eq!(code(open(None, Blob::new("garbage"), right.clone()).await), "InvalidCiphertextException");
    assert_eq!(
        code(client.encrypt().key_id(&key).plaintext(Blob::new(vec![0; 4097])).send().await),
        "ValidationException"
    );
}

#[tokio::test]
async fn data_keys_random_bytes_and_re_encryption_work_as_documented() {
    let stand = Stand::start().await;
    let client = stand.client(ADMINISTRATOR);
    let (key, other) = (new_key(&stand).await, new_key(&stand).await);
    let c = Some(context(&[("a", "1")]));
    let made = client
        .generate_data_key()
        .key_id(&key)
        .key_spec(DataKeySpec::Aes256)
        .set_encryption_context(c.clone())
        .send()
        .await
        .unwrap();
    assert_eq!(made.plaintext().unwrap().as_ref().len(), 32);
    let opened = client
        .decrypt()
        .ciphertext_blob(made.ciphertext_blob().unwrap().clone())
        .set_encryption_context(c.clone())
        .send()
        .await
        .unwrap();
    assert_eq!(opened.plaintext(), made.plaintext());
    let hidden = client.generate_data_key_without_plaintext().key_id(&key).number_of_bytes(100).send().await.unwrap();
    let opened = client.decrypt().ciphertext_blob(hidden.ciphertext_blob().unwrap().clone()).send().await.unwrap();
    assert_eq!(opened.plaintext().unwrap().as_ref().len(), 100);
    let both = client.generate_data_key().key_id(&key).key_spec(DataKeySpec::Aes256).number_of_bytes(32);
    assert_eq!(code(both.send().await), "ValidationException");
    assert_eq!(code(client.generate_data_key().key_id(&key).send().await), "ValidationException");
    assert_eq!(
        client.generate_random().number_of_bytes(1024).send().await.unwrap().plaintext().unwrap().as_ref().len(),
        1024
    );
    assert_eq!(code(client.generate_random().number_of_bytes(1025).send().await), "ValidationException");
    let moved = client
        .re_encrypt()
        .ciphertext_blob(made.ciphertext_blob().unwrap().clone())
        .set_source_encryption_context(c.clone())
        .destination_key_id(&other)
        .destination_encryption_context("z", "9")
        .send()
        .await
        .unwrap();
    assert_eq!((moved.source_key_id(), moved.key_id()), (Some(key.as_str()), Some(other.as_str())));
    let opened = client
        .decrypt()
        .key_id(&other)
        .ciphertext_blob(moved.ciphertext_blob().unwrap().clone())
        .encryption_context("z", "9")
        .send()
        .await
        .unwrap();
    assert_eq!(opened.plaintext(), made.plaintext());
    assert_eq!(
        code(client.generate_data_key().key_id(&key).key_spec(DataKeySpec::Aes256).dry_run(true).send().await),
        "DryRunOperationException"
    );
}

#[tokio::test]
async fn grants_allow_within_their_constraints_until_revoked_and_never_against_a_deny() {
    let stand = Stand::start().await;
    let (administrator, key) = (stand.client(ADMINISTRATOR), new_key(&stand).await);
    stand
        .kms
        .set_principal("POOR", Principal::new("arn:aws:iam::111122223333:role/Poor", SECRET).unwrap().with_iam(vec![]));
    let poor = stand.client_with("POOR", SECRET, None);
    let generate = |value: &str| {
        poor.generate_data_key().key_id(&key).key_spec(DataKeySpec::Aes256).encryption_context("a", value).send()
    };
    assert_eq!(code(generate("1").await), "AccessDeniedException");
    let grant = administrator
        .create_grant()
        .key_id(&key)
        .grantee_principal("arn:aws:iam::111122223333:role/Poor")
        .operations(GrantOperation::GenerateDataKey)
        .constraints(GrantConstraints::builder().encryption_context_subset("a", "1").build())
        .name("one")
        .send()
        .await
        .unwrap();
    assert!(generate("1").await.is_ok());
    assert_eq!(code(generate("2").await), "AccessDeniedException");
    assert_eq!(
        code(poor.encrypt().key_id(&key).plaintext(Blob::new("x")).encryption_context("a", "1").send().await),
        "AccessDeniedException"
    );
    let grants = administrator.list_grants().key_id(&key).send().await.unwrap();
    assert_eq!((grants.grants().len(), grants.grants()[0].name()), (1, Some("one")));
    let deny = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"kms:*","Resource":"*"},
        {"Effect":"Deny","Principal":"*","Action":"kms:GenerateDataKey","Resource":"*"}]}"#;
    administrator.put_key_policy().key_id(&key).policy(deny).send().await.unwrap();
    assert_eq!(code(generate("1").await), "AccessDeniedException");
    administrator
        .put_key_policy()
        .key_id(&key)
        .policy(deny.replace("kms:GenerateDataKey\"", "kms:Encrypt\""))
        .send()
        .await
        .unwrap();
    assert!(generate("1").await.is_ok());
    administrator.revoke_grant().key_id(&key).grant_id(grant.grant_id().unwrap()).send().await.unwrap();
    assert_eq!(code(generate("1").await), "AccessDeniedException");
    assert_eq!(code(administrator.revoke_grant().key_id(&key).grant_id("none").send().await), "NotFoundException");
}

#[tokio::test]
async fn a_policy_that_locks_its_author_out_is_refused_unless_the_check_is_bypassed() {
    let stand = Stand::start().await;
    let (client, key) = (stand.client(ADMINISTRATOR), new_key(&stand).await);
    let others = format!(
        r#"{{"Version":"2012-10-17","Statement":{{"Effect":"Allow","Principal":{{"AWS":"{WRITER}"}},"Action":"kms:*","Resource":"*"}}}}"#
    );
    assert_eq!(code(client.create_key().policy(&others).send().await), "MalformedPolicyDocumentException");
    assert_eq!(
        code(client.put_key_policy().key_id(&key).policy(&others).send().await),
        "MalformedPolicyDocumentException"
    );
    assert_eq!(
        code(client.put_key_policy().key_id(&key).policy("{}").send().await),
        "MalformedPolicyDocumentException"
    );
    client.put_key_policy().key_id(&key).policy(&others).bypass_policy_lockout_safety_check(true).send().await.unwrap();
    let refused = client.describe_key().key_id(&key).send().await.unwrap_err();
    let session = "arn:aws:sts::111122223333:assumed-role/Administrator/session";
    let message = format!(
        "User: {session} is not authorized to perform: kms:DescribeKey on resource: {key} because no resource-based policy allows the kms:DescribeKey action"
    );
    assert_eq!(refused.message(), Some(message.as_str()));
    assert_eq!(
        stand.client(WRITER).get_key_policy().key_id(&key).send().await.unwrap().policy(),
        Some(others.as_str())
    );
}

#[tokio::test]
async fn signatures_sessions_and_clocks_are_checked_as_aws_checks_them() {
    let stand = Stand::start().await;
    let key = new_key(&stand).await;
    let describe = |client: aws_sdk_kms::Client| client.describe_key().key_id(&key).send();
    assert_eq!(code(describe(stand.client_with("Nobody", SECRET, None)).await), "UnrecognizedClientException");
    assert_eq!(code(describe(stand.client_with("Administrator", "other", None)).await), "InvalidSignatureException");
    let session = || Principal::new("arn:aws:sts::111122223333:assumed-role/Administrator/s", SECRET).unwrap();
    stand.kms.set_principal("ASIA", session().with_session("token", stand::now().0 + 60_000));
    assert!(describe(stand.client_with("ASIA", SECRET, Some("token"))).await.is_ok());
    assert_eq!(code(describe(stand.client_with("ASIA", SECRET, Some("other"))).await), "UnrecognizedClientException");
    stand.kms.set_principal("ASIA", session().with_session("token", stand::now().0));
    assert_eq!(code(describe(stand.client_with("ASIA", SECRET, Some("token"))).await), "ExpiredTokenException");
    for seconds in [-400_i64, 400] {
        let at = i64::try_from(stand::now().seconds()).unwrap() + seconds;
        let late = stand
            .configuration("Administrator", SECRET, None)
            .time_source(StaticTimeSource::from_secs(u64::try_from(at).unwrap()));
        assert_eq!(code(describe(aws_sdk_kms::Client::from_conf(late.build())).await), "InvalidSignatureException");
    }
}

#[tokio::test]
async fn documents_that_are_stale_foreign_damaged_or_without_rsa_key_are_validation_errors() {
    let stand = Stand::start().await;
    let (client, key) = (stand.client(ADMINISTRATOR), new_key(&stand).await);
    let mut enclave = Attester::start(&stand.authority, &Image::good());
    let spki = enclave.spki();
    let ago = |seconds: u64| attestation::UnixMillis(stand::now().0 - seconds * 1000);
    let generate = |document: Vec<u8>| {
        client.generate_data_key().key_id(&key).key_spec(DataKeySpec::Aes256).recipient(recipient(document)).send()
    };
    assert!(generate(enclave.document()).await.is_ok());
    assert!(generate(enclave.document_with(Some(&spki), ago(290))).await.is_ok());
    let mut damaged = enclave.document();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    let other_authority = std::sync::Arc::new(simulator::authority::Authority::ephemeral().unwrap());
    for (what, document) in [
        ("stale", enclave.document_with(Some(&spki), ago(310))),
        ("from the future", enclave.document_with(Some(&spki), attestation::UnixMillis(stand::now().0 + 70_000))),
        ("damaged", damaged),
        ("foreign", Attester::start(&other_authority, &Image::good()).document()),
        ("without key", enclave.document_with(None, stand::now())),
        ("with another key", enclave.document_with(Some(&[4; 65]), stand::now())),
        ("cut", enclave.document()[..200].to_vec()),
        ("not one", b"{}".to_vec()),
    ] {
        assert_eq!(code(generate(document).await), "ValidationException", "{what}");
    }
    let no_algorithm =
        aws_sdk_kms::types::RecipientInfo::builder().attestation_document(Blob::new(enclave.document())).build();
    assert_eq!(
        code(client.generate_random().number_of_bytes(8).recipient(no_algorithm).send().await),
        "ValidationException"
    );
    stand.kms.faults().set_attestation_clock_ahead(Duration::from_secs(301));
    assert_eq!(code(generate(enclave.document()).await), "ValidationException");
}

#[tokio::test]
async fn nitro_tpm_documents_are_told_apart_and_refused() {
    let Some(vectors) = vectors::folder() else {
        assert!(std::env::var_os("CI").is_none(), "the third-party vectors are missing (set SUBROSA_VECTORS)");
        return;
    };
    let stand = Stand::start().await;
    let document = std::fs::read(vectors.join("attestation/nitrotpm-2026-08.bin")).unwrap();
    let refused = stand
        .client(ADMINISTRATOR)
        .generate_random()
        .number_of_bytes(8)
        .recipient(recipient(document))
        .send()
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some("ValidationException"));
    assert!(refused.message().unwrap().contains("NitroTPM"));
}

#[tokio::test]
async fn a_kms_with_a_notary_takes_only_what_nobody_has_signed() {
    let folder = tempfile::tempdir().unwrap();
    let authority = std::sync::Arc::new(simulator::authority::Authority::ephemeral().unwrap());
    let mut settings = stand::settings(&folder, &authority);
    settings.danger_notary = Some(simulator::notary::Notary::new(authority.clone(), "us-east-1"));
    let stand = Stand { kms: simulator::kms::Server::start(settings).await.unwrap(), authority, folder };
    let signed = Attester::start(&stand.authority, &Image::good()).document();
    let call = stand.client(ADMINISTRATOR).generate_random().number_of_bytes(8).recipient(recipient(signed));
    let refused = call.send().await.unwrap_err();
    assert_eq!(refused.code(), Some("ValidationException"));
    assert!(refused.message().unwrap().contains("notary"), "{refused:?}");
}

#[tokio::test]
async fn faults_and_lies_happen_when_asked_for_and_only_then() {
    let stand = Stand::start().await;
    let (client, key) = (stand.client(ADMINISTRATOR), new_key(&stand).await);
    let mut enclave = Attester::start(&stand.authority, &Image::good());
    let faults = stand.kms.faults();
    let describe = || client.describe_key().key_id(&key).send();
    faults.throttle_next(2);
    assert_eq!([code(describe().await), code(describe().await)], ["ThrottlingException", "ThrottlingException"]);
    faults.fail_next(1);
    assert_eq!(code(describe().await), "KMSInternalException");
    faults.drop_next(1);
    assert!(matches!(describe().await, Err(aws_sdk_kms::error::SdkError::DispatchFailure(_))));
    faults.delay_next(1, Duration::from_millis(300));
    let started = Instant::now();
    assert!(describe().await.is_ok() && started.elapsed() >= Duration::from_millis(300));
    let generate =
        |recipient| client.generate_data_key().key_id(&key).key_spec(DataKeySpec::Aes256).recipient(recipient).send();
    for lie in
        [Lie::Plaintext, Lie::PlaintextBeside, Lie::OtherKeyId, Lie::OtherPlaintext, Lie::GarbageEnvelope, Lie::Nothing]
    {
        faults.lie_next(1, "GenerateDataKey", lie);
        let told = generate(enclave.recipient()).await.unwrap();
        let (plaintext, envelope) =
            (told.plaintext().is_some_and(|blob| !blob.as_ref().is_empty()), told.ciphertext_for_recipient());
        assert_eq!(plaintext, matches!(lie, Lie::Plaintext | Lie::PlaintextBeside), "{lie:?}");
        assert_eq!(envelope.is_none(), matches!(lie, Lie::Plaintext | Lie::Nothing), "{lie:?}");
        assert_eq!(told.key_id() != Some(key.as_str()), lie == Lie::OtherKeyId, "{lie:?}");
        assert_eq!(envelope.is_some_and(|e| e.as_ref()[..2] != [0x30, 0x80]), lie == Lie::GarbageEnvelope, "{lie:?}");
    }
    let truth = generate(enclave.recipient()).await.unwrap();
    assert!(
        truth.plaintext().is_none()
            && truth.ciphertext_for_recipient().is_some()
            && truth.key_id() == Some(key.as_str())
    );
}

#[tokio::test]
async fn the_journal_tells_who_called_what_attested_or_not_and_how_it_ended() {
    let stand = Stand::start().await;
    let key = new_key(&stand).await;
    let image = Image::good();
    let mut enclave = Attester::start(&stand.authority, &image);
    stand.kms.journal().clear();
    let client = stand.client(ADMINISTRATOR);
    let generate =
        || client.generate_data_key().key_id(&key).key_spec(DataKeySpec::Aes256).encryption_context("a", "1");
    generate().recipient(enclave.recipient()).send().await.unwrap();
    code(stand.client(ENCLAVE).generate_data_key().key_id(&key).key_spec(DataKeySpec::Aes256).send().await);
    let entries = stand.kms.journal().of("GenerateDataKey");
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[0].principal.as_deref(), Some("arn:aws:sts::111122223333:assumed-role/Administrator/session"));
    assert_eq!(
        (entries[0].key.as_deref(), entries[0].outcome.as_str(), entries[0].attested),
        (Some(key.as_str()), "ok", true)
    );
    assert_eq!(entries[0].pcr0, Some(hex::encode(image.pcr(0))));
    assert_eq!(entries[0].context["a"], "1");
    assert_eq!((entries[1].outcome.as_str(), entries[1].attested), ("AccessDeniedException", false));
}

#[tokio::test]
async fn keys_policies_grants_and_ca_survive_a_restart() {
    let stand = Stand::start().await;
    let key = new_key(&stand).await;
    let client = stand.client(ADMINISTRATOR);
    let sealed = client
        .encrypt()
        .key_id(&key)
        .plaintext(Blob::new("kept"))
        .send()
        .await
        .unwrap()
        .ciphertext_blob()
        .unwrap()
        .clone();
    client
        .create_grant()
        .key_id(&key)
        .grantee_principal(STRANGER)
        .operations(GrantOperation::Encrypt)
        .send()
        .await
        .unwrap();
    let Stand { kms, authority, folder } = stand;
    let ca = kms.ca_pem().to_owned();
    drop(kms);
    let kms = Server::start(stand::settings(&folder, &authority)).await.unwrap();
    assert_eq!(kms.ca_pem(), ca);
    let stand = Stand { kms, authority, folder };
    let client = stand.client(ADMINISTRATOR);
    assert_eq!(client.decrypt().ciphertext_blob(sealed).send().await.unwrap().plaintext().unwrap().as_ref(), b"kept");
    assert_eq!(client.list_grants().key_id(&key).send().await.unwrap().grants().len(), 1);
}

#[tokio::test]
async fn a_server_that_others_could_reach_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let authority = simulator::authority::Authority::ephemeral().unwrap();
    let mut settings = stand::settings(&folder, &authority);
    settings.listen = "0.0.0.0:0".parse().unwrap();
    assert!(matches!(Server::start(settings).await, Err(simulator::kms::StartError::NotLoopback(_))));
}
