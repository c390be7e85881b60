//! Attestation documents: any bytes as a document, as the payload of one, and as a certificate in one.
#![no_main]

use std::time::Duration;

use attestation::chain::{TrustAnchor, verify_signature};
use attestation::{Document, ParseError, UnixMillis};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_first() else { return };
    match mode % 3 {
        0 => drop(document(data)),
        1 => drop(document(&enveloped(data))),
        _ => certificate(data),
    }
});

/// What is accepted is one document, within the limits, and nobody signed it.
fn document(bytes: &[u8]) -> Result<Document, ParseError> {
    let document = Document::parse(bytes)?;
    assert!((1..=32).contains(&document.pcrs().len()));
    assert!(document.pcrs().keys().all(|index| *index < 32));
    assert!(document.timestamp() > UnixMillis(0));
    assert!(document.module_id().starts_with(document.instance_id()));
    for field in [document.public_key(), document.user_data(), document.nonce()] {
        assert!(field.is_none_or(|bytes| bytes.len() <= 1024));
    }
    assert!(Document::parse(&[bytes, &[0]].concat()).is_err());
    assert!(Document::parse(&bytes[..bytes.len() - 1]).is_err());
    assert!(verify_signature(&document, &TrustAnchor::aws(), document.timestamp(), Duration::ZERO).is_err());
    Ok(document)
}

/// Behind the genuine root, so that the certificate is looked at.
fn certificate(data: &[u8]) {
    let root = include_bytes!("../../../attestation/roots/aws-nitro-enclaves-root-g1.der");
    let Some((length, data)) = data.split_first() else { return };
    let (leaf, other) = data.split_at(data.len().min(usize::from(*length) * 4));
    let mut payload = HEAD.to_vec();
    payload.extend(b"\x6bcertificate");
    payload.extend(bytes(leaf));
    payload.extend(b"\x68cabundle");
    payload.push(if other.is_empty() { 0x81 } else { 0x82 });
    payload.extend(bytes(root));
    if !other.is_empty() {
        payload.extend(bytes(other));
    }
    payload.push(0xff);
    drop(document(&enveloped(&payload)));
}

fn enveloped(payload: &[u8]) -> Vec<u8> {
    let head = [0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xa0];
    [&head[..], &bytes(payload), &[0x58, 96], &[1; 96]].concat()
}

fn bytes(bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len();
    let head = match length {
        0..=23 => vec![0x40 | length as u8],
        24..=255 => vec![0x58, length as u8],
        _ => [&[0x59][..], &(length as u16).to_be_bytes()].concat(),
    };
    [head, bytes.to_vec()].concat()
}

/// The first four fields: module_id, digest, timestamp, one register.
const HEAD: &[u8] = b"\xbf\x69module_id\x78\x27i-0123456789abcdef0-enc0123456789abcdef\
\x66digest\x66SHA384\x69timestamp\x1b\x00\x00\x01\x9b\x55\xa6\x8b\xd2\
\x64pcrs\xa1\x00\x58\x30\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\
\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01";
