//! The simulated module behaves as nsm-check demands of the hardware, and its documents are like the hardware's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests"
)]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attestation::chain::{SignatureError, TrustAnchor, verify_signature};
use attestation::measurement::{ZERO, extend};
use attestation::nsm::{ClientNonce, DocumentRequest, Exchange, Nsm, NsmError};
use attestation::{Document, UnixMillis, keyset};
use aws_nitro_enclaves_nsm_api::api::{ErrorCode, Request, Response};
use serde_bytes::ByteBuf;
use simulator::authority::Authority;
use simulator::nsm::{Client, Module, ModuleSettings, Registers, serve};

fn now() -> UnixMillis {
    UnixMillis(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap())
}

fn settings() -> ModuleSettings {
    let registers = Registers { pcr0: [0xa0; 48], pcr1: [0xa1; 48], pcr2: [0xa2; 48], role_arn: None };
    ModuleSettings {
        region: "us-east-1".to_owned(),
        instance_id: "i-0123456789abcdef0".to_owned(),
        registers,
        debug: false,
    }
}

fn module() -> (Arc<Authority>, Module) {
    let authority = Arc::new(Authority::ephemeral().unwrap());
    let module = Module::new(Arc::clone(&authority), &settings(), now()).unwrap();
    (authority, module)
}

fn attest(module: &mut Module, at: UnixMillis) -> Vec<u8> {
    let request = Request::Attestation { user_data: None, nonce: None, public_key: None };
    match module.handle(request, at) {
        Response::Attestation { document } => document,
        other => panic!("{other:?}"),
    }
}

fn describe(module: &mut Module, index: u16) -> (bool, Vec<u8>) {
    match module.handle(Request::DescribePCR { index }, now()) {
        Response::DescribePCR { lock, data } => (lock, data),
        other => panic!("{other:?}"),
    }
}

fn refusal(module: &mut Module, request: Request) -> ErrorCode {
    match module.handle(request, now()) {
        Response::Error(code) => code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn documents_verify_under_the_simulators_root_and_are_refused_under_awss() {
    let (authority, mut module) = module();
    let at = now();
    let document = Document::parse(&attest(&mut module, at)).unwrap();
    assert_eq!(document.timestamp(), at);
    assert_eq!(document.module_id(), module.module_id());
    let proof = verify_signature(&document, &authority.trust_anchor().unwrap(), at, Duration::ZERO).unwrap();
    assert!(!proof.is_aws_root());
    let refused = verify_signature(&document, &TrustAnchor::aws(), at, Duration::ZERO);
    assert!(matches!(refused, Err(SignatureError::ForeignRoot { .. })));
}

#[test]
fn documents_have_the_hardwares_odd_shape() {
    let (_, mut module) = module();
    let bytes = attest(&mut module, now());
    assert_eq!(
        bytes[..8],
        [0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xa0, 0x59],
        "untagged, ES384, empty unprotected header"
    );
    assert_eq!(bytes[10], 0xbf, "the top map has an indefinite length");
    let end = bytes.len() - 98;
    assert_eq!(bytes[end - 1..end + 2], [0xff, 0x58, 96]);
    let nulls = [&b"\x6apublic_key\xf6"[..], b"\x69user_data\xf6", b"\x65nonce\xf6\xff"].concat();
    assert_eq!(bytes[end - nulls.len()..end], nulls, "absent fields are there, and null");
    let document = Document::parse(&bytes).unwrap();
    assert_eq!(document.pcrs().keys().copied().collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
    assert_eq!(document.cabundle().len(), 4);
}

#[test]
fn a_leaf_lives_3_h_and_3_s_and_is_renewed_15_minutes_before_its_end() {
    let (authority, mut module) = module();
    let anchor = authority.trust_anchor().unwrap();
    let at = now();
    let first = Document::parse(&attest(&mut module, at)).unwrap();
    let proof = verify_signature(&first, &anchor, at, Duration::ZERO).unwrap();
    let (not_before, not_after) = proof.valid_seconds();
    assert_eq!(not_after - not_before, 10_803);
    assert!(at.seconds() - not_before <= 5);
    let before = UnixMillis((not_after - 15 * 60 - 1) * 1000);
    assert_eq!(Document::parse(&attest(&mut module, before)).unwrap().certificate(), first.certificate());
    let after = UnixMillis((not_after - 15 * 60) * 1000);
    let renewed = Document::parse(&attest(&mut module, after)).unwrap();
    assert_ne!(renewed.certificate(), first.certificate());
    assert!(verify_signature(&renewed, &anchor, after, Duration::ZERO).is_ok());
}

#[test]
fn debug_mode_zeroes_pcr0_to_pcr2_and_keeps_pcr3_and_pcr4() {
    let authority = Arc::new(Authority::ephemeral().unwrap());
    let role = "arn:aws:iam::111122223333:role/Parent".to_owned();
    let mut settings = ModuleSettings { debug: true, ..settings() };
    settings.registers.role_arn = Some(role.clone());
    let mut module = Module::new(authority, &settings, now()).unwrap();
    let document = Document::parse(&attest(&mut module, now())).unwrap();
    assert!(document.is_debug());
    assert_eq!(document.pcrs()[&3], extend(&ZERO, role.as_bytes()));
    assert_eq!(document.pcrs()[&4], extend(&ZERO, b"i-0123456789abcdef0"));
}

#[test]
fn registers_0_to_15_are_locked_at_boot_and_16_to_31_are_zero_and_open() {
    let (_, mut module) = module();
    for index in 0..32 {
        let (lock, value) = describe(&mut module, index);
        assert_eq!(lock, index < 16, "PCR{index}");
        assert!(index < 16 || value == ZERO);
    }
    assert_eq!(describe(&mut module, 2).1, [0xa2; 48]);
    assert!(matches!(refusal(&mut module, Request::DescribePCR { index: 32 }), ErrorCode::InvalidIndex));
}

#[test]
fn extending_hashes_old_value_and_raw_data_until_the_register_is_locked() {
    let (_, mut module) = module();
    for data in [&b"one"[..], b"two"] {
        let before: [u8; 48] = describe(&mut module, 16).1.try_into().unwrap();
        let Response::ExtendPCR { data: value } =
            module.handle(Request::ExtendPCR { index: 16, data: data.to_vec() }, now())
        else {
            panic!()
        };
        assert_eq!(value, extend(&before, data));
    }
    // Not locked yet, so not in a document.
    assert!(!Document::parse(&attest(&mut module, now())).unwrap().pcrs().contains_key(&16));
    assert!(matches!(module.handle(Request::LockPCR { index: 16 }, now()), Response::LockPCR));
    let locked = describe(&mut module, 16);
    assert!(matches!(refusal(&mut module, Request::ExtendPCR { index: 16, data: vec![1] }), ErrorCode::ReadOnlyIndex));
    assert_eq!(describe(&mut module, 16), locked);
    assert_eq!(Document::parse(&attest(&mut module, now())).unwrap().pcrs()[&16].to_vec(), locked.1);
    assert!(matches!(refusal(&mut module, Request::ExtendPCR { index: 0, data: vec![1] }), ErrorCode::ReadOnlyIndex));
    assert!(matches!(refusal(&mut module, Request::ExtendPCR { index: 32, data: vec![1] }), ErrorCode::InvalidIndex));
}

#[test]
fn a_register_is_locked_once_and_a_range_may_include_locked_ones() {
    let (_, mut module) = module();
    assert!(matches!(refusal(&mut module, Request::LockPCR { index: 0 }), ErrorCode::ReadOnlyIndex));
    assert!(matches!(module.handle(Request::LockPCR { index: 20 }, now()), Response::LockPCR));
    assert!(matches!(refusal(&mut module, Request::LockPCR { index: 20 }), ErrorCode::ReadOnlyIndex));
    assert!(matches!(refusal(&mut module, Request::LockPCR { index: 32 }), ErrorCode::InvalidIndex));
    assert!(matches!(module.handle(Request::LockPCRs { range: 18 }, now()), Response::LockPCRs));
    assert!(describe(&mut module, 17).0 && !describe(&mut module, 18).0);
    assert!(matches!(module.handle(Request::LockPCRs { range: 32 }, now()), Response::LockPCRs));
    assert!(matches!(refusal(&mut module, Request::LockPCRs { range: 33 }), ErrorCode::InvalidIndex));
}

#[test]
fn a_document_lists_locked_registers_with_gaps() {
    let (_, mut module) = module();
    assert!(matches!(module.handle(Request::LockPCR { index: 17 }, now()), Response::LockPCR));
    let document = Document::parse(&attest(&mut module, now())).unwrap();
    assert!(document.pcrs().contains_key(&17) && !document.pcrs().contains_key(&16));
    assert_eq!(document.pcrs().len(), 17);
}

#[test]
fn each_field_of_a_document_takes_1024_bytes_all_at_once_and_not_one_more() {
    let (_, mut module) = module();
    let field = |length: usize| Some(ByteBuf::from(vec![7; length]));
    let request =
        |length: usize| Request::Attestation { user_data: field(1024), nonce: field(1024), public_key: field(length) };
    let Response::Attestation { document } = module.handle(request(1024), now()) else { panic!() };
    let document = Document::parse(&document).unwrap();
    assert_eq!([document.user_data(), document.nonce(), document.public_key()], [Some(&[7; 1024][..]); 3]);
    assert!(matches!(refusal(&mut module, request(1025)), ErrorCode::InputTooLarge));
}

#[test]
fn entropy_comes_256_bytes_at_a_time_and_never_twice() {
    let (_, mut module) = module();
    let mut draw = || match module.handle(Request::GetRandom, now()) {
        Response::GetRandom { random } => random,
        other => panic!("{other:?}"),
    };
    let (one, two) = (draw(), draw());
    assert_eq!((one.len(), two.len()), (256, 256));
    assert_ne!(one, two);
}

#[test]
fn an_enclave_talks_to_its_module_over_the_socket_as_to_the_device() {
    let (authority, mut module) = module();
    let module_id = module.module_id().to_owned();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || serve(theirs, &mut module, now));
    let client = Client::new(ours);
    assert_eq!(client.describe().unwrap().module_id, module_id);
    assert_eq!(client.describe().unwrap().locked_pcrs, (0..16).collect());
    let mut entropy = [0; 1000];
    client.random(&mut entropy).unwrap();
    assert_ne!(entropy[..500], entropy[500..]);
    assert_eq!(client.extend_pcr(17, b"configuration").unwrap(), extend(&ZERO, b"configuration"));
    client.lock_pcr(17).unwrap();
    assert!(matches!(client.lock_pcr(17), Err(NsmError::Refused(ErrorCode::ReadOnlyIndex))));
    assert_eq!(client.describe_pcr(17).unwrap(), (true, extend(&ZERO, b"configuration")));
    let nonce = ClientNonce::new(&[9; 32]).unwrap();
    let document = client.document(&DocumentRequest::for_client(nonce, &keyset::Digest::of(b"keyset"))).unwrap();
    let document = Document::parse(&document).unwrap();
    assert_eq!(document.nonce(), Some(&[9; 32][..]));
    assert_eq!(document.user_data(), Some(&keyset::Digest::of(b"keyset").as_bytes()[..]));
    assert_eq!(document.public_key(), None);
    assert!(verify_signature(&document, &authority.trust_anchor().unwrap(), now(), Duration::ZERO).is_ok());
    // The driver's limit: 4096 bytes a request.
    let large = client.exchange(Request::ExtendPCR { index: 18, data: vec![0; 5000] }).unwrap();
    assert!(matches!(large, Response::Error(ErrorCode::InputTooLarge)));
    drop(client);
    server.join().unwrap().unwrap();
}

#[test]
fn an_authority_is_made_once_with_a_key_that_only_its_owner_reads() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("authority");
    let first = Authority::open_or_create(&folder).unwrap();
    let again = Authority::open_or_create(&folder).unwrap();
    assert_eq!(first.root_der(), again.root_der());
    let mode = std::fs::metadata(folder.join("root.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let published = std::fs::read(folder.join("root.pem")).unwrap();
    assert_eq!(TrustAnchor::danger_from_pem(&published).unwrap(), again.trust_anchor().unwrap());
    assert!(!String::from_utf8(published).unwrap().contains("PRIVATE"));
    // What it issues after it was read again verifies under the same root.
    let mut module = Module::new(Arc::new(again), &settings(), now()).unwrap();
    let document = Document::parse(&attest(&mut module, now())).unwrap();
    assert!(verify_signature(&document, &first.trust_anchor().unwrap(), now(), Duration::ZERO).is_ok());
}
