//! What this package promises, each on documents of an own authority.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "tests"
)]

mod generated;

use std::collections::BTreeMap;
use std::time::Duration;

use attestation::chain::{ProfileError, SignatureError, TrustAnchor, verify_signature};
use attestation::freshness::{self, Freshness, FreshnessError};
use attestation::keyset::{self, Keyset, KeysetError};
use attestation::measurement::{self, Expected, MeasurementError};
use attestation::{Document, MixedProofs, ParseError, UnixMillis, Verified};
use generated::{Authority, Fields, LEAF_NOT_BEFORE, LEAF_SECONDS, TIMESTAMP, bytes, text, unsigned};
use proptest::prelude::*;
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};

fn parse(fields: &Fields) -> Result<Document, ParseError> {
    // The parser does not look into certificates.
    let payload = fields.payload(b"leaf", &[b"root".to_vec()]);
    Document::parse(&enveloped(&payload))
}

fn enveloped(payload: &[u8]) -> Vec<u8> {
    [&[0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xa0][..], &bytes(payload), &bytes(&[1; 96])].concat()
}

fn with(change: impl FnOnce(&mut Fields)) -> Fields {
    let mut fields = Fields::new();
    change(&mut fields);
    fields
}

fn signature(authority: &Authority, at: UnixMillis) -> Result<(), SignatureError> {
    let document = Document::parse(&authority.document(&Fields::new())).unwrap();
    verify_signature(&document, &trusted(authority), at, Duration::ZERO).map(drop)
}

fn trusted(authority: &Authority) -> TrustAnchor {
    TrustAnchor::danger_from_der(authority.root()).unwrap()
}

// --- the document -------------------------------------------------------------------------------------------------

#[test]
fn the_hardwares_map_is_read_with_definite_and_with_indefinite_length() {
    for indefinite in [true, false] {
        let document = parse(&with(|fields| fields.indefinite = indefinite)).unwrap();
        assert_eq!(document.module_id(), "i-0123456789abcdef0-enc0123456789abcdef");
        assert_eq!(document.instance_id(), "i-0123456789abcdef0");
        assert_eq!(document.timestamp(), TIMESTAMP);
        assert_eq!(document.pcrs().len(), 16);
        assert_eq!(document.pcrs()[&1], [0xa1; 48]);
    }
}

#[test]
fn absent_null_and_empty_are_told_apart() {
    let null = parse(&Fields::new()).unwrap();
    assert_eq!((null.public_key(), null.user_data(), null.nonce()), (None, None, None));
    let missing = parse(&with(|fields| fields.without = vec!["public_key", "user_data", "nonce"])).unwrap();
    assert_eq!((missing.public_key(), missing.user_data(), missing.nonce()), (None, None, None));
    let empty = parse(&with(|fields| fields.user_data = Some(Vec::new()))).unwrap();
    assert_eq!(empty.user_data(), Some(&[][..]));
    let no_key = with(|fields| fields.public_key = Some(Vec::new()));
    assert_eq!(parse(&no_key).unwrap_err(), ParseError::Empty("public_key"));
}

#[test]
fn optional_fields_hold_1024_bytes_and_not_one_more() {
    let set: [fn(&mut Fields, usize); 3] = [
        |fields, length| fields.public_key = Some(vec![1; length]),
        |fields, length| fields.user_data = Some(vec![1; length]),
        |fields, length| fields.nonce = Some(vec![1; length]),
    ];
    for set in set {
        assert!(parse(&with(|fields| set(fields, 1024))).is_ok());
        assert!(matches!(parse(&with(|fields| set(fields, 1025))), Err(ParseError::Cbor(_))));
    }
}

#[test]
fn a_nitrotpm_document_is_told_apart_from_an_enclaves() {
    let tpm = |value: &[u8]| [text("nitrotpm_pcrs"), value.to_vec()].concat();
    let instead = with(|fields| {
        fields.without = vec!["pcrs"];
        fields.extra = vec![tpm(&[0xa0])];
    });
    let beside = with(|fields| fields.extra = vec![tpm(&[0xa0])]);
    let by_name = with(|fields| fields.module_id = "i-000fa553dad58a9f1-tpm0000000000000000".to_owned());
    for fields in [instead, beside, by_name] {
        assert_eq!(parse(&fields).unwrap_err(), ParseError::NitroTpm);
    }
}

#[test]
fn missing_unknown_and_duplicate_fields_are_refused() {
    for name in ["module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"] {
        assert_eq!(parse(&with(|fields| fields.without = vec![name])).unwrap_err(), ParseError::Missing(name));
    }
    for indefinite in [true, false] {
        let twice = with(|fields| {
            fields.indefinite = indefinite;
            fields.without = vec!["nonce"];
            fields.extra = vec![[text("user_data"), vec![0xf6]].concat()];
        });
        assert_eq!(parse(&twice).unwrap_err(), ParseError::Duplicate("user_data"));
        let unknown = with(|fields| {
            fields.indefinite = indefinite;
            fields.without = vec!["nonce"];
            fields.extra = vec![[text("extra"), vec![0xf6]].concat()];
        });
        assert_eq!(parse(&unknown).unwrap_err(), ParseError::UnknownField("extra".to_owned()));
    }
}

#[test]
fn registers_are_0_to_31_of_48_bytes_each_once() {
    let one = |index: u64, length: usize| with(|fields| fields.pcrs = BTreeMap::from([(index, vec![1; length])]));
    assert!(parse(&one(31, 48)).is_ok());
    assert_eq!(parse(&one(32, 48)).unwrap_err(), ParseError::PcrIndex(32));
    assert_eq!(parse(&one(256, 48)).unwrap_err(), ParseError::PcrIndex(256));
    for found in [0, 32, 47, 64] {
        assert_eq!(parse(&one(0, found)).unwrap_err(), ParseError::PcrLength { index: 0, found });
    }
    assert_eq!(parse(&with(|fields| fields.pcrs.clear())).unwrap_err(), ParseError::Empty("pcrs"));
    let all = with(|fields| fields.pcrs = (0..32).map(|index| (index, vec![1; 48])).collect());
    assert_eq!(parse(&all).unwrap().pcrs().len(), 32);
    let twice = [text("pcrs"), vec![0xa2], unsigned(7), bytes(&[1; 48]), unsigned(7), bytes(&[2; 48])].concat();
    let twice = with(|fields| {
        fields.without = vec!["pcrs"];
        fields.extra = vec![twice];
    });
    assert_eq!(parse(&twice).unwrap_err(), ParseError::DuplicatePcr(7));
}

#[test]
fn odd_values_are_refused_by_name() {
    for name in ["", "i-0123456789abcdef0", "i-0123456789ABCDEF0-enc0123456789abcdef", "i-0123456789abcdef0-enc0123"] {
        let fields = with(|fields| fields.module_id = name.to_owned());
        assert_eq!(parse(&fields).unwrap_err(), ParseError::ModuleId(name.to_owned()));
    }
    for digest in ["SHA256", "SHA512", "sha384"] {
        let fields = with(|fields| fields.digest = digest.to_owned());
        assert_eq!(parse(&fields).unwrap_err(), ParseError::Digest(digest.to_owned()));
    }
    assert_eq!(parse(&with(|fields| fields.timestamp = UnixMillis(0))).unwrap_err(), ParseError::ZeroTimestamp);
    assert_eq!(Document::parse(&[0; 17_000]).unwrap_err(), ParseError::TooLarge { found: 17_000 });
    let long = Fields::new().payload(&[1; 1025], &[vec![1]]);
    assert!(matches!(Document::parse(&enveloped(&long)), Err(ParseError::Cbor(_))));
    assert_eq!(
        Document::parse(&enveloped(&Fields::new().payload(b"", &[vec![1]]))).unwrap_err(),
        ParseError::Empty("certificate")
    );
    assert_eq!(
        Document::parse(&enveloped(&Fields::new().payload(b"a", &[]))).unwrap_err(),
        ParseError::Empty("cabundle")
    );
}

// --- signature and chain ------------------------------------------------------------------------------------------

#[test]
fn a_document_of_the_hardwares_form_verifies_under_its_own_root_and_under_no_other() {
    let authority = Authority::new();
    let document = Document::parse(&authority.document(&Fields::new())).unwrap();
    let proof = verify_signature(&document, &trusted(&authority), TIMESTAMP, Duration::ZERO).unwrap();
    assert!(!proof.is_aws_root());
    let not_before = LEAF_NOT_BEFORE as u64;
    assert_eq!(proof.valid_seconds(), (not_before, not_before + LEAF_SECONDS as u64));
    let error = verify_signature(&document, &TrustAnchor::aws(), TIMESTAMP, Duration::ZERO).unwrap_err();
    assert!(matches!(error, SignatureError::ForeignRoot { .. }));
}

#[test]
fn the_chain_is_valid_to_the_second_and_clock_problems_say_so() {
    let authority = Authority::new();
    let (first, last) = (LEAF_NOT_BEFORE as u64, (LEAF_NOT_BEFORE + LEAF_SECONDS) as u64);
    assert_eq!(signature(&authority, UnixMillis(first * 1000)), Ok(()));
    assert_eq!(signature(&authority, UnixMillis(last * 1000)), Ok(()));
    let early = signature(&authority, UnixMillis((first - 1) * 1000)).unwrap_err();
    assert_eq!(early, SignatureError::NotYetValid { position: 4, not_before: first, at: first - 1 });
    let late = signature(&authority, UnixMillis((last + 1) * 1000)).unwrap_err();
    assert_eq!(late, SignatureError::Expired { position: 4, not_after: last, at: last + 1 });
    assert!(early.is_about_time() && early.to_string().contains("clock"));
    assert!(late.is_about_time() && late.to_string().contains("clock"));
}

#[test]
fn a_live_verifier_may_allow_leeway_that_stored_evidence_does_not_get() {
    let authority = Authority::new();
    let document = Document::parse(&authority.document(&Fields::new())).unwrap();
    let slow = UnixMillis(TIMESTAMP.0 - 60_000);
    let leeway = Duration::from_secs(60);
    assert!(verify_signature(&document, &trusted(&authority), slow, leeway).is_ok());
    assert!(verify_signature(&document, &trusted(&authority), slow, Duration::ZERO).unwrap_err().is_about_time());
}

#[test]
fn certificates_outside_the_profile_are_refused() {
    type Spoil = fn(&mut generated::Draft);
    let cases: [(usize, Spoil, ProfileError); 9] = [
        (2, |draft| draft.params.is_ca = IsCa::ExplicitNoCa, ProfileError::BasicConstraints),
        (2, |draft| draft.params.is_ca = IsCa::NoCa, ProfileError::BasicConstraints),
        (1, |draft| draft.params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1)), ProfileError::PathLength),
        (3, |draft| draft.params.key_usages = vec![KeyUsagePurpose::DigitalSignature], ProfileError::KeyUsage),
        (3, |draft| draft.params.key_usages.clear(), ProfileError::KeyUsage),
        (
            3,
            |draft| draft.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            ProfileError::ExtendedKeyUsage,
        ),
        (
            4,
            |draft| draft.params.custom_extensions[0] = generated::basic_constraints(&[0x30, 0x03, 0x01, 0x01, 0xff]),
            ProfileError::BasicConstraints,
        ),
        (
            4,
            |draft| draft.params.custom_extensions[1] = generated::key_usage(&[0x03, 0x02, 0x06, 0x40]),
            ProfileError::KeyUsage,
        ),
        (4, |draft| draft.params.custom_extensions.truncate(1), ProfileError::KeyUsage),
    ];
    for (number, (position, spoil, reason)) in cases.into_iter().enumerate() {
        let authority = Authority::with(|at, draft| {
            if at == position {
                spoil(draft)
            }
        });
        assert_eq!(
            signature(&authority, TIMESTAMP),
            Err(SignatureError::Certificate { position, reason }),
            "case {number}"
        );
    }
}

#[test]
fn an_unknown_critical_extension_is_refused() {
    let authority = Authority::with(|at, draft| {
        if at == 3 {
            let mut extension = rcgen::CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![0x05, 0x00]);
            extension.set_criticality(true);
            draft.params.custom_extensions.push(extension);
        }
    });
    let error = signature(&authority, TIMESTAMP).unwrap_err();
    assert_eq!(error, SignatureError::Path(webpki::Error::UnsupportedCriticalExtension));
}

#[test]
fn the_chain_has_at_most_five_certificates_and_each_names_the_one_before() {
    assert_eq!(
        signature(&Authority::of_length(6, |_, _| ()), TIMESTAMP),
        Err(SignatureError::ChainLength { found: 6 })
    );
    assert_eq!(signature(&Authority::of_length(2, |_, _| ()), TIMESTAMP), Ok(()));
    // Without path lengths, so that only the names speak against another order.
    let mut shuffled = Authority::with(|at, draft| {
        if at < 4 {
            draft.params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
    });
    assert_eq!(signature(&shuffled, TIMESTAMP), Ok(()));
    shuffled.certificates.swap(1, 2);
    assert_eq!(signature(&shuffled, TIMESTAMP), Err(SignatureError::Names { position: 1 }));
}

#[test]
fn a_chain_of_another_authority_with_the_same_names_is_refused() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let mut grafted = theirs;
    grafted.certificates[0] = ours.root().to_vec();
    let document = Document::parse(&grafted.document(&Fields::new())).unwrap();
    let error = verify_signature(&document, &trusted(&ours), TIMESTAMP, Duration::ZERO).unwrap_err();
    assert!(matches!(error, SignatureError::Path(_)), "{error}");
}

#[test]
fn a_certificate_that_expired_before_another_began_makes_the_chain_never_valid() {
    let authority = Authority::with(|at, draft| {
        if at == 2 {
            draft.params.not_after = time::OffsetDateTime::from_unix_timestamp(LEAF_NOT_BEFORE - 1).unwrap();
        }
    });
    assert_eq!(signature(&authority, TIMESTAMP), Err(SignatureError::NeverValid));
}

#[test]
fn a_document_with_any_bit_of_any_byte_flipped_is_refused() {
    let authority = Authority::new();
    let genuine = authority.document(&with(|fields| fields.nonce = Some(vec![7; 32])));
    let trusted = trusted(&authority);
    let accepts = |bytes: &[u8]| {
        Document::parse(bytes)
            .is_ok_and(|document| verify_signature(&document, &trusted, TIMESTAMP, Duration::ZERO).is_ok())
    };
    assert!(accepts(&genuine));
    let mut changed = genuine.clone();
    for at in 0..genuine.len() {
        changed[at] ^= 1 << (at % 8);
        assert!(!accepts(&changed), "byte {at}");
        changed[at] = genuine[at];
    }
}

// --- freshness ----------------------------------------------------------------------------------------------------

fn freshness_of(
    document: &Document,
    now: u64,
    max_age: Option<u64>,
    nonce: Option<&[u8]>,
) -> Result<(), FreshnessError> {
    let max_age = max_age.map(Duration::from_secs);
    let demanded = Freshness { now: UnixMillis(now), max_age, nonce, max_ahead: freshness::MAX_AHEAD };
    freshness::check(document, &demanded).map(drop)
}

#[test]
fn a_document_older_than_allowed_is_stale_and_one_ahead_of_the_clock_is_refused() {
    let document = parse(&Fields::new()).unwrap();
    let at = TIMESTAMP.0;
    assert_eq!(freshness_of(&document, at + 300_000, Some(300), None), Ok(()));
    assert!(matches!(freshness_of(&document, at + 300_001, Some(300), None), Err(FreshnessError::Stale { .. })));
    assert_eq!(freshness_of(&document, at + 999_999_999, None, None), Ok(()));
    assert_eq!(freshness_of(&document, at - 60_000, Some(300), None), Ok(()));
    for max_age in [None, Some(300)] {
        let ahead = freshness_of(&document, at - 60_001, max_age, None);
        assert!(matches!(ahead, Err(FreshnessError::AheadOfClock { .. })));
    }
}

#[test]
fn a_foreign_nonce_or_none_is_refused() {
    let mine = parse(&with(|fields| fields.nonce = Some(vec![7; 32]))).unwrap();
    let none = parse(&Fields::new()).unwrap();
    assert_eq!(freshness_of(&mine, TIMESTAMP.0, None, Some(&[7; 32])), Ok(()));
    for foreign in [&[8; 32][..], &[7; 31], &[7; 33], &[]] {
        assert_eq!(freshness_of(&mine, TIMESTAMP.0, None, Some(foreign)), Err(FreshnessError::ForeignNonce));
    }
    assert_eq!(freshness_of(&none, TIMESTAMP.0, None, Some(&[7; 32])), Err(FreshnessError::NoNonce));
    let empty = parse(&with(|fields| fields.nonce = Some(Vec::new()))).unwrap();
    assert_eq!(freshness_of(&empty, TIMESTAMP.0, None, Some(&[7; 32])), Err(FreshnessError::ForeignNonce));
}

// --- measurements -------------------------------------------------------------------------------------------------

fn expecting(pcrs: &[(u8, &[[u8; 48]])]) -> Expected {
    Expected { pcrs: pcrs.iter().map(|(index, values)| (*index, values.to_vec())).collect(), danger_allow_debug: false }
}

fn measured(document: &Document, expected: &Expected) -> Result<(), MeasurementError> {
    measurement::check(document, expected).map(drop)
}

#[test]
fn any_of_the_accepted_values_is_accepted_and_no_other() {
    let document = parse(&Fields::new()).unwrap();
    assert_eq!(measured(&document, &expecting(&[(0, &[[0xa0; 48]]), (2, &[[1; 48], [0xa2; 48]])])), Ok(()));
    let mismatch = measured(&document, &expecting(&[(0, &[[0xa0; 48]]), (1, &[[1; 48]])])).unwrap_err();
    assert_eq!(mismatch, MeasurementError::Mismatch { index: 1, found: [0xa1; 48], accepted: vec![[1; 48]] });
    assert_eq!(measured(&document, &expecting(&[(16, &[[1; 48]])])), Err(MeasurementError::Missing { index: 16 }));
    assert_eq!(measured(&document, &expecting(&[(0, &[])])), Err(MeasurementError::NoValue { index: 0 }));
    assert_eq!(measured(&document, &expecting(&[])), Err(MeasurementError::NothingExpected));
}

#[test]
fn debug_mode_is_refused_unless_danger_allows_it() {
    let debug = parse(&with(|fields| {
        (0..3).for_each(|index| drop(fields.pcrs.insert(index, vec![0; 48])));
        fields.pcrs.insert(4, vec![4; 48]);
    }))
    .unwrap();
    assert!(debug.is_debug());
    let mut expected = expecting(&[(4, &[[4; 48]])]);
    assert_eq!(measured(&debug, &expected), Err(MeasurementError::Debug));
    assert_eq!(measured(&debug, &expecting(&[])), Err(MeasurementError::Debug));
    expected.danger_allow_debug = true;
    assert_eq!(measured(&debug, &expected), Ok(()));
    // Registers that are not there measure nothing either.
    let none = parse(&with(|fields| fields.pcrs = BTreeMap::from([(4, vec![4; 48])]))).unwrap();
    assert_eq!(measured(&none, &expecting(&[(4, &[[4; 48]])])), Err(MeasurementError::Debug));
}

#[test]
fn an_expected_zero_is_refused_before_it_can_match() {
    let document = parse(&with(|fields| drop(fields.pcrs.insert(1, vec![0; 48])))).unwrap();
    let expected = expecting(&[(1, &[[0; 48]])]);
    assert_eq!(measured(&document, &expected), Err(MeasurementError::ZeroExpected { index: 1 }));
}

// --- together -----------------------------------------------------------------------------------------------------

fn verified(authority: &Authority, fields: &Fields) -> Verified {
    let document = Document::parse(&authority.document(fields)).unwrap();
    let (signature, fresh, measured) = proofs(authority, &document);
    Verified::new(document, signature, fresh, measured).unwrap()
}

fn proofs(
    authority: &Authority,
    document: &Document,
) -> (attestation::chain::SignatureVerified, freshness::Fresh, measurement::Measured) {
    let demanded = Freshness {
        now: TIMESTAMP,
        max_age: Some(Duration::from_secs(300)),
        nonce: None,
        max_ahead: freshness::MAX_AHEAD,
    };
    (
        verify_signature(document, &trusted(authority), TIMESTAMP, Duration::ZERO).unwrap(),
        freshness::check(document, &demanded).unwrap(),
        measurement::check(document, &expecting(&[(0, &[[0xa0; 48]])])).unwrap(),
    )
}

#[test]
fn proofs_about_different_documents_do_not_go_together() {
    let authority = Authority::new();
    let one = Document::parse(&authority.document(&Fields::new())).unwrap();
    let other = Document::parse(&authority.document(&with(|fields| fields.nonce = Some(vec![1; 16])))).unwrap();
    let ((signature, fresh, measured), (_, other_fresh, _)) = (proofs(&authority, &one), proofs(&authority, &other));
    assert_eq!(Verified::new(one.clone(), signature.clone(), other_fresh, measured.clone()).unwrap_err(), MixedProofs);
    assert_eq!(Verified::new(other, signature.clone(), fresh.clone(), measured.clone()).unwrap_err(), MixedProofs);
    assert!(Verified::new(one, signature, fresh, measured).is_ok());
}

#[test]
fn a_keyset_is_taken_only_if_the_verified_document_binds_it() {
    let keyset = Keyset {
        version: 1,
        ohttp_key_configuration: None,
        receipt_key: None,
        models: BTreeMap::from([("subrosa-intake".to_owned(), [1; 48])]),
        guardrails: None,
        configuration: [2; 48],
        release: 1,
        model_key_policy: None,
        not_after: 1_800_000_000,
    };
    let authority = Authority::new();
    let digest = keyset.digest().as_bytes().to_vec();
    let bound = verified(&authority, &with(|fields| fields.user_data = Some(digest.clone())));
    assert_eq!(keyset::of_verified(&bound, &keyset.to_cbor()), Ok(keyset.clone()));
    let other = Keyset { release: 2, ..keyset.clone() };
    assert_eq!(keyset::of_verified(&bound, &other.to_cbor()), Err(KeysetError::NotBound));
    let unbound = verified(&authority, &Fields::new());
    assert_eq!(keyset::of_verified(&unbound, &keyset.to_cbor()), Err(KeysetError::NotBound));
    let for_kms = verified(
        &authority,
        &with(|fields| {
            fields.user_data = Some(digest);
            fields.public_key = Some(vec![1; 294]);
        }),
    );
    assert_eq!(keyset::of_verified(&for_kms, &keyset.to_cbor()), Err(KeysetError::ForeignPurpose));
}

// --- bad input of every kind --------------------------------------------------------------------------------------

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = Document::parse(&bytes);
        let _ = Document::parse(&enveloped(&bytes));
        let _ = attestation::cbor::check(&bytes, 8);
        let _ = attestation::nsm::wire_decode_response(&bytes);
        let _ = TrustAnchor::danger_from_der(&bytes);
        let _ = TrustAnchor::danger_from_pem(&bytes);
    }

    #[test]
    fn no_certificate_makes_the_verifier_panic(
        leaf in proptest::collection::vec(any::<u8>(), 1..300),
        cut in 0_usize..600,
        at in any::<u64>(),
    ) {
        let anchor = TrustAnchor::aws();
        let root = include_bytes!("../roots/aws-nitro-enclaves-root-g1.der");
        let cut = &root[..root.len() - cut.min(root.len() - 1)];
        for leaf in [&leaf[..], cut] {
            let payload = Fields::new().payload(leaf, &[root.to_vec()]);
            let document = Document::parse(&enveloped(&payload)).unwrap();
            let result = verify_signature(&document, &anchor, UnixMillis(at), Duration::from_secs(at));
            prop_assert!(result.is_err());
        }
    }

    #[test]
    fn cut_documents_are_refused(length in 0_usize..2500) {
        let whole = enveloped(&Fields::new().payload(&[1; 600], &[vec![2; 500]]));
        prop_assert!(length >= whole.len() || Document::parse(&whole[..length]).is_err());
    }
}
