//! ECDSA signatures from the form that KMS gives (RFC 3279, section 2.2.3) to the one that COSE wants (RFC 9053, section 2.1).

/// r and s on P-384 as 48 bytes each, from `SEQUENCE { INTEGER, INTEGER }` in DER.
pub(crate) fn fixed(der: &[u8]) -> Option<Vec<u8>> {
    let (body, rest) = element(der, SEQUENCE)?;
    let (r, after) = element(body, INTEGER)?;
    let (s, end) = element(after, INTEGER)?;
    if !rest.is_empty() || !end.is_empty() {
        return None;
    }
    let mut out = Vec::with_capacity(2 * COORDINATE_BYTES);
    for number in [r, s] {
        // A leading zero keeps the number positive and is not part of it.
        let number = number.strip_prefix(&[0]).unwrap_or(number);
        out.resize(out.len() + COORDINATE_BYTES.checked_sub(number.len())?, 0);
        out.extend_from_slice(number);
    }
    Some(out)
}

/// The content of the element at the start, and what follows it. No element here is longer than 127 bytes.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    match bytes {
        [found, length @ 0..0x80, rest @ ..] if *found == tag => rest.split_at_checked(usize::from(*length)),
        _ => None,
    }
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const COORDINATE_BYTES: usize = 48;

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{
        ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P384_SHA384_FIXED, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
    };

    use super::*;

    #[test]
    fn a_signature_says_the_same_in_both_forms() {
        let pair = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING).unwrap();
        let public_key = UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, pair.public_key());
        // Some of them have a short r or s.
        for message in 0..600_u32 {
            let signature = pair.sign(&SystemRandom::new(), &message.to_be_bytes()).unwrap();
            let signature = fixed(signature.as_ref()).unwrap();
            assert_eq!(signature.len(), 96);
            public_key.verify(&message.to_be_bytes(), &signature).unwrap();
        }
    }

    #[test]
    fn what_is_no_signature_is_refused() {
        let pair = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING).unwrap();
        let signature = pair.sign(&SystemRandom::new(), b"").unwrap();
        let good = signature.as_ref();
        for cut in 0..good.len() {
            assert_eq!(fixed(&good[..cut]), None, "cut at {cut}");
        }
        assert_eq!(fixed(&[good, &[0]].concat()), None);
        let long = [&[0x30, 55, 2, 50][..], &[1; 50], &[2, 1, 1]].concat();
        assert_eq!(fixed(&long), None, "r has 50 bytes");
    }
}
