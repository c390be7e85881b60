//! Who signed this request: Signature Version 4, recomputed over what was received.
//!
//! AWS General Reference, "Elements of an AWS API request signature". The canonical request and the signature are the crate
//! `aws-sigv4`'s, fed with exactly the headers that `SignedHeaders` names.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningParams, SigningSettings, sign};
use aws_sigv4::sign::v4;
use http::HeaderMap;
use time::PrimitiveDateTime;
use time::macros::format_description;

use super::error::KmsError;
use super::principals::{Principal, Principals};

/// A request whose signature is to be verified.
pub(super) struct Received<'a> {
    pub(super) method: &'a str,
    pub(super) path_and_query: &'a str,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
    pub(super) now_ms: u64,
}

/// The signer of a request, known by a good signature.
pub(super) struct Authenticated {
    pub(super) principal: Principal,
    pub(super) region: String,
}

/// Verifies the signature of a request.
pub(super) fn authenticate(
    request: &Received<'_>,
    principals: &Principals,
    regions: &[String],
) -> Result<Authenticated, KmsError> {
    let header = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
    let authorization = header("authorization")
        .ok_or_else(|| KmsError::new("MissingAuthenticationTokenException", "Missing Authentication Token"))?;
    let authorization = Authorization::parse(authorization)?;
    let date = header("x-amz-date").ok_or_else(|| {
        incomplete("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
    })?;
    let signed_at = parse_date(date)
        .ok_or_else(|| incomplete(&format!("Date must be in ISO-8601 'basic format'. Got '{date}'.")))?;
    let Scope { date: scope_date, region, service } = authorization.scope;
    let mismatch = |message: String| KmsError::new("InvalidSignatureException", message);
    if service != "kms" {
        return Err(mismatch(format!("Credential should be scoped to correct service: 'kms'. (got '{service}')")));
    }
    if !regions.iter().any(|known| known == region) {
        return Err(mismatch(format!("Credential should be scoped to a valid region. (got '{region}')")));
    }
    if !date.starts_with(scope_date) {
        return Err(mismatch(format!(
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{scope_date}' != '{date}'."
        )));
    }
    check_skew(date, signed_at, request.now_ms)?;
    let unknown =
        || KmsError::new("UnrecognizedClientException", "The security token included in the request is invalid.");
    let principal = principals.get(authorization.access_key_id).ok_or_else(unknown)?;
    check_token(principal, header("x-amz-security-token"), request.now_ms, unknown)?;
    let recomputed = recompute(request, principal, &authorization, signed_at)?;
    verify_slices_are_equal(recomputed.as_bytes(), authorization.signature.as_bytes()).map_err(|_| {
        mismatch("The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details.".to_owned())
    })?;
    Ok(Authenticated { principal: principal.clone(), region: region.to_owned() })
}

fn check_skew(date: &str, signed_at: SystemTime, now_ms: u64) -> Result<(), KmsError> {
    let now = UNIX_EPOCH + Duration::from_millis(now_ms);
    // The words are the service's own; both directions are refused beyond five minutes.
    let (late, early) =
        (now.duration_since(signed_at).unwrap_or_default(), signed_at.duration_since(now).unwrap_or_default());
    if late > MAX_SKEW {
        return Err(KmsError::new(
            "InvalidSignatureException",
            format!("Signature expired: {date} is now earlier than the server's time less 5 min."),
        ));
    }
    if early > MAX_SKEW {
        return Err(KmsError::new(
            "InvalidSignatureException",
            format!("Signature not yet current: {date} is still later than the server's time plus 5 min."),
        ));
    }
    Ok(())
}

fn check_token(
    principal: &Principal,
    token: Option<&str>,
    now_ms: u64,
    unknown: impl Fn() -> KmsError,
) -> Result<(), KmsError> {
    match (&principal.session, token) {
        (None, None) => Ok(()),
        (Some(session), Some(token)) => {
            verify_slices_are_equal(session.token.as_bytes(), token.as_bytes()).map_err(|_| unknown())?;
            if now_ms >= session.expires_ms {
                return Err(KmsError::new(
                    "ExpiredTokenException",
                    "The security token included in the request is expired",
                ));
            }
            Ok(())
        }
        _ => Err(unknown()),
    }
}

fn recompute(
    request: &Received<'_>,
    principal: &Principal,
    authorization: &Authorization<'_>,
    signed_at: SystemTime,
) -> Result<String, KmsError> {
    let Authorization { access_key_id, scope, signed_headers, signature: _ } = authorization;
    let mut headers = Vec::new();
    for name in signed_headers.split(';') {
        for value in request.headers.get_all(name) {
            headers.push((name, value.to_str().map_err(|_| incomplete("A signed header is not text."))?));
        }
    }
    let must_sign = |name: &str| signed_headers.split(';').any(|signed| signed == name);
    // A header that KMS acts upon and that is not signed could be exchanged on the way.
    for name in ["host", "x-amz-date", "x-amz-target"] {
        if !must_sign(name) {
            return Err(KmsError::new(
                "InvalidSignatureException",
                format!("'{name}' must be a 'SignedHeader' in the AWS Authorization."),
            ));
        }
    }
    let token = principal.session.as_ref().map(|session| session.token.to_string());
    let identity = Credentials::new(*access_key_id, principal.secret.as_str(), token, None, "simulator").into();
    let mut settings = SigningSettings::default();
    settings.excluded_headers = None;
    let failed = |error: &dyn std::fmt::Display| {
        KmsError::new("IncompleteSignatureException", format!("The request cannot be signed: {error}"))
    };
    let parameters: SigningParams<'_> = v4::SigningParams::builder()
        .identity(&identity)
        .region(scope.region)
        .name(scope.service)
        .time(signed_at)
        .settings(settings)
        .build()
        .map_err(|error| failed(&error))?
        .into();
    let signable = SignableRequest::new(
        request.method,
        request.path_and_query,
        headers.into_iter(),
        SignableBody::Bytes(request.body),
    );
    let output = sign(signable.map_err(|error| failed(&error))?, &parameters).map_err(|error| failed(&error))?;
    Ok(output.signature().to_owned())
}

/// `AWS4-HMAC-SHA256 Credential=ID/DATE/REGION/SERVICE/aws4_request, SignedHeaders=a;b, Signature=HEX`.
struct Authorization<'a> {
    access_key_id: &'a str,
    scope: Scope<'a>,
    signed_headers: &'a str,
    signature: &'a str,
}

#[derive(Clone, Copy)]
struct Scope<'a> {
    date: &'a str,
    region: &'a str,
    service: &'a str,
}

impl<'a> Authorization<'a> {
    fn parse(text: &'a str) -> Result<Self, KmsError> {
        let rest = text
            .strip_prefix("AWS4-HMAC-SHA256 ")
            .ok_or_else(|| incomplete("The algorithm is not AWS4-HMAC-SHA256."))?;
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for part in rest.split(',') {
            let slot = match part.trim().split_once('=') {
                Some(("Credential", value)) => (&mut credential, value),
                Some(("SignedHeaders", value)) => (&mut signed_headers, value),
                Some(("Signature", value)) => (&mut signature, value),
                _ => return Err(incomplete("Authorization header holds something unknown.")),
            };
            if slot.0.replace(slot.1).is_some() {
                return Err(incomplete("Authorization header holds a part twice."));
            }
        }
        let missing = |name: &str| incomplete(&format!("Authorization header requires '{name}' parameter."));
        let credential: &str = credential.ok_or_else(|| missing("Credential"))?;
        let [access_key_id, date, region, service, "aws4_request"] = *credential.split('/').collect::<Vec<_>>() else {
            return Err(incomplete("Credential must have exactly 5 slash-delimited elements and end in aws4_request."));
        };
        Ok(Self {
            access_key_id,
            scope: Scope { date, region, service },
            signed_headers: signed_headers.ok_or_else(|| missing("SignedHeaders"))?,
            signature: signature.ok_or_else(|| missing("Signature"))?,
        })
    }
}

fn incomplete(message: &str) -> KmsError {
    KmsError::new("IncompleteSignatureException", message)
}

fn parse_date(text: &str) -> Option<SystemTime> {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    let seconds = PrimitiveDateTime::parse(text, format).ok()?.assume_utc().unix_timestamp();
    Some(UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?))
}

const MAX_SKEW: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const NOW: u64 = 1_790_000_000_000;
    const BODY: &[u8] = b"{}";

    fn principals() -> Principals {
        let mut table = Principals::default();
        table.insert("AKID", Principal::new("arn:aws:iam::111122223333:user/u", "secret").unwrap());
        let session = Principal::new("arn:aws:sts::111122223333:assumed-role/R/s", "secret").unwrap();
        table.insert("ASIA", session.with_session("token", NOW + 1));
        table
    }

    /// Headers as aws-sigv4 signs them; `region` and time may be wrong.
    fn signed(id: &str, secret: &str, token: Option<&str>, region: &str, at_ms: u64) -> HeaderMap {
        let mut request = http::Request::post("https://localhost/").body(()).unwrap();
        let headers = [
            ("host", "localhost"),
            ("x-amz-target", "TrentService.Decrypt"),
            ("content-type", "application/x-amz-json-1.1"),
        ];
        for (name, value) in headers {
            request.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        let identity = Credentials::new(id, secret, token.map(str::to_owned), None, "test").into();
        let parameters: SigningParams<'_> = v4::SigningParams::builder()
            .identity(&identity)
            .region(region)
            .name("kms")
            .time(UNIX_EPOCH + Duration::from_millis(at_ms))
            .settings(SigningSettings::default())
            .build()
            .unwrap()
            .into();
        let signable =
            SignableRequest::new("POST", "https://localhost/", headers.into_iter(), SignableBody::Bytes(BODY)).unwrap();
        let (instructions, _) = sign(signable, &parameters).unwrap().into_parts();
        instructions.apply_to_request_http1x(&mut request);
        request.into_parts().0.headers
    }

    fn outcome(headers: &HeaderMap, body: &[u8]) -> Result<String, &'static str> {
        let received = Received { method: "POST", path_and_query: "/", headers, body, now_ms: NOW };
        let done = authenticate(&received, &principals(), &["us-east-1".to_owned(), "eu-west-1".to_owned()]);
        done.map(|who| format!("{} {}", who.principal.caller.arn(), who.region)).map_err(|error| error.code)
    }

    #[test]
    fn a_good_signature_tells_who_and_where() {
        assert_eq!(
            outcome(&signed("AKID", "secret", None, "eu-west-1", NOW), BODY).unwrap(),
            "arn:aws:iam::111122223333:user/u eu-west-1"
        );
        assert!(outcome(&signed("ASIA", "secret", Some("token"), "us-east-1", NOW), BODY).is_ok());
        for at in [NOW - 299_000, NOW + 299_000] {
            assert!(outcome(&signed("AKID", "secret", None, "us-east-1", at), BODY).is_ok());
        }
    }

    #[test]
    fn wrong_credentials_are_refused_as_aws_refuses_them() {
        for (id, secret, token, region, at, code) in [
            ("NOBODY", "secret", None, "us-east-1", NOW, "UnrecognizedClientException"),
            ("AKID", "other", None, "us-east-1", NOW, "InvalidSignatureException"),
            ("AKID", "secret", Some("token"), "us-east-1", NOW, "UnrecognizedClientException"),
            ("ASIA", "secret", None, "us-east-1", NOW, "UnrecognizedClientException"),
            ("ASIA", "secret", Some("other"), "us-east-1", NOW, "UnrecognizedClientException"),
            ("AKID", "secret", None, "us-west-2", NOW, "InvalidSignatureException"),
            ("AKID", "secret", None, "us-east-1", NOW - 302_000, "InvalidSignatureException"),
            ("AKID", "secret", None, "us-east-1", NOW + 302_000, "InvalidSignatureException"),
        ] {
            assert_eq!(
                outcome(&signed(id, secret, token, region, at), BODY).unwrap_err(),
                code,
                "{id} {secret} {token:?} {region} {at}"
            );
        }
    }

    #[test]
    fn a_session_past_its_end_is_refused() {
        let mut table = principals();
        let session = Principal::new("arn:aws:sts::111122223333:assumed-role/R/s", "secret").unwrap();
        table.insert("ASIA", session.with_session("token", NOW));
        let headers = signed("ASIA", "secret", Some("token"), "us-east-1", NOW);
        let received = Received { method: "POST", path_and_query: "/", headers: &headers, body: BODY, now_ms: NOW };
        let refused = authenticate(&received, &table, &["us-east-1".to_owned()]).err().unwrap();
        assert_eq!(refused.code, "ExpiredTokenException");
    }

    #[test]
    fn any_change_to_what_was_signed_is_refused() {
        let good = signed("AKID", "secret", None, "us-east-1", NOW);
        assert_eq!(outcome(&good, b"{ }").unwrap_err(), "InvalidSignatureException");
        for (name, value) in
            [("x-amz-target", "TrentService.Encrypt"), ("host", "elsewhere"), ("content-type", "text/plain")]
        {
            let mut changed = good.clone();
            changed.insert(name, HeaderValue::from_static(value));
            assert_eq!(outcome(&changed, BODY).unwrap_err(), "InvalidSignatureException", "{name}");
            let mut doubled = good.clone();
            doubled.append(name, HeaderValue::from_static(value));
            assert_eq!(outcome(&doubled, BODY).unwrap_err(), "InvalidSignatureException", "{name}");
        }
        let mut unsigned = good.clone();
        unsigned.insert("user-agent", HeaderValue::from_static("anything"));
        assert!(outcome(&unsigned, BODY).is_ok(), "what is not signed may change");
    }

    #[test]
    fn what_is_no_signature_is_refused_without_looking_at_secrets() {
        let good = signed("AKID", "secret", None, "us-east-1", NOW);
        let authorization = good["authorization"].to_str().unwrap().to_owned();
        let without = |name: &str| {
            let mut headers = good.clone();
            headers.remove(name);
            outcome(&headers, BODY).unwrap_err()
        };
        assert_eq!(without("authorization"), "MissingAuthenticationTokenException");
        assert_eq!(without("x-amz-date"), "IncompleteSignatureException");
        assert_eq!(without("x-amz-target"), "InvalidSignatureException");
        for (from, to, code) in [
            ("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256", "IncompleteSignatureException"),
            ("/aws4_request", "", "IncompleteSignatureException"),
            ("Signature=", "Sig=", "IncompleteSignatureException"),
            ("Signature=", "Signature=0, Signature=", "IncompleteSignatureException"),
            ("x-amz-target", "x-amz-other", "InvalidSignatureException"),
            (";x-amz-target", "", "InvalidSignatureException"),
            ("/kms/", "/s3/", "InvalidSignatureException"),
            ("20260921", "20260920", "InvalidSignatureException"),
        ] {
            assert!(authorization.contains(from), "{from} is not in {authorization}");
            let mut headers = good.clone();
            headers.insert("authorization", HeaderValue::from_str(&authorization.replace(from, to)).unwrap());
            assert_eq!(outcome(&headers, BODY).unwrap_err(), code, "{from} -> {to}");
        }
    }
}
