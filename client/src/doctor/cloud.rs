//! Key, policy, role and clock, by asking KMS.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use attestation::measurement::{ZERO, extend};
use aws_sdk_kms::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_kms::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kms::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_kms::types::{KeySpec, KeyState, KeyUsageType};
use kms_policies::arn::KeyArn;
use kms_policies::exposure::{self, Expectation, KeyKind, Kind};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::configuration::Known;
use super::{Finding, Root, image};
use crate::data_key::causes;

/// The checks that are left out unless they are asked for.
#[must_use]
pub fn not_asked(root: &Root) -> Vec<Finding> {
    let why = "KMS was not asked: give --aws";
    let clock = if root.has(SYNCHRONISED) {
        Finding::ok("clock", "systemd-timesyncd says that it is synchronised")
    } else {
        Finding::not_checked("clock", "give --aws to compare it with KMS's, or look at `chronyc tracking`")
    };
    let mut findings: Vec<Finding> = ["role", "key", "key policy"].map(|check| Finding::not_checked(check, why)).into();
    findings.push(clock);
    findings
}

/// Asks KMS about the key of each model of the configuration.
pub async fn examine(
    kms: &aws_sdk_kms::Client,
    configuration: Option<&Known>,
    image: Option<&image::Known>,
    roles: &[String],
) -> Vec<Finding> {
    let Some(configuration) = configuration else {
        let why = "without a good configuration it is not known which keys there are";
        return ["role", "key", "key policy", "clock"].map(|check| Finding::not_checked(check, why)).into();
    };
    let keys: BTreeSet<&KeyArn> = configuration.models.iter().map(|model| &model.key).collect();
    let clock = Clock::default();
    let mut findings = Vec::new();
    let mut role = None;
    for key in keys {
        let described = kms.describe_key().key_id(key.as_str()).customize().interceptor(clock.clone()).send().await;
        role = role.or_else(|| signed(&described));
        findings.push(described_key(key, described));
        let policy = kms.get_key_policy().key_id(key.as_str()).send().await;
        match policy {
            Ok(answer) => findings.extend(judge(key, answer.policy().unwrap_or_default(), configuration, image, roles)),
            Err(error) => findings.push(Finding::not_checked(
                "key policy",
                format!("{key}: {}; who administers the key can: subrosa policy check", said(&error)),
            )),
        }
    }
    let none = || Finding::not_checked("role", "no key is configured, so nothing was asked");
    findings.insert(0, role.unwrap_or_else(none));
    findings.push(clock.finding());
    findings
}

/// Whether KMS knew who asked.
fn signed<T, E: ProvideErrorMetadata + std::error::Error + 'static>(
    answer: &Result<T, SdkError<E>>,
) -> Option<Finding> {
    const CHECK: &str = "role";
    let mend = "attach an instance profile with the role (curl cannot show it where IMDSv2 needs a token: aws sts \
                get-caller-identity can), or set the usual AWS variables for the parent";
    match answer {
        Ok(_) => Some(Finding::ok(CHECK, "KMS took its credentials")),
        Err(SdkError::ServiceError(error)) => {
            let code = error.err().code().unwrap_or("no code");
            Some(match code {
                "UnrecognizedClientException"
                | "InvalidSignatureException"
                | "ExpiredTokenException"
                | "InvalidClientTokenId"
                | "MissingAuthenticationTokenException"
                | "IncompleteSignatureException" => Finding::wrong(
                    CHECK,
                    format!("KMS refuses the credentials: {}", said(answer.as_ref().err()?)),
                    mend,
                ),
                _ => Finding::ok(CHECK, format!("KMS took its credentials, and answered {code}")),
            })
        }
        Err(error @ SdkError::DispatchFailure(failure)) if failure.is_io() || failure.is_timeout() => {
            Some(Finding::not_checked(CHECK, format!("KMS was not reached: {}", said(error))))
        }
        Err(error) => Some(Finding::wrong(CHECK, format!("KMS could not be asked: {}", said(error)), mend)),
    }
}

fn described_key(
    key: &KeyArn,
    answer: Result<
        aws_sdk_kms::operation::describe_key::DescribeKeyOutput,
        SdkError<aws_sdk_kms::operation::describe_key::DescribeKeyError>,
    >,
) -> Finding {
    const CHECK: &str = "key";
    let metadata = match &answer {
        Ok(answer) => answer.key_metadata(),
        Err(SdkError::ServiceError(error)) if error.err().is_not_found_exception() => {
            let mend =
                "correct key_arn in the configuration document, or look into which account and region the key is in";
            return Finding::wrong(CHECK, format!("{key} does not exist"), mend);
        }
        Err(error) => return Finding::not_checked(CHECK, format!("{key}: {}", said(error))),
    };
    let Some(metadata) = metadata else {
        return Finding::not_checked(CHECK, format!("{key}: KMS answered without metadata"));
    };
    if metadata.key_spec() != Some(&KeySpec::SymmetricDefault)
        || metadata.key_usage() != Some(&KeyUsageType::EncryptDecrypt)
    {
        let mend =
            "make a symmetric key for encryption (SYMMETRIC_DEFAULT, ENCRYPT_DECRYPT), and seal the pack under it";
        return Finding::wrong(CHECK, format!("{key} is no symmetric encryption key"), mend);
    }
    match metadata.key_state() {
        Some(KeyState::Enabled) => Finding::ok(CHECK, format!("{key} is enabled")),
        state => {
            let state = state.map_or("in no known state", KeyState::as_str);
            Finding::wrong(CHECK, format!("{key} is {state}"), "aws kms enable-key, or cancel-key-deletion first")
        }
    }
}

/// What the policy of a model pack's key leaves open, and whether it lets this image in.
fn judge(
    key: &KeyArn,
    policy: &str,
    configuration: &Known,
    image: Option<&image::Known>,
    roles: &[String],
) -> Vec<Finding> {
    const CHECK: &str = "key policy";
    let Some(image) = image else {
        return vec![Finding::not_checked(CHECK, format!("{key}: without the image its measurements are not known"))];
    };
    let mut registers: exposure::Registers = image.pcrs.iter().copied().collect();
    // docs/PROTOCOL.md, section 9: PCR17 := SHA384(PCR17 || SHA384(document)).
    registers.insert(17, extend(&ZERO, &configuration.sha384));
    let expectation = Expectation {
        kind: KeyKind::ModelPack,
        images: vec![registers],
        enclave_roles: roles.to_vec(),
        key: Some(key.clone()),
        ..Expectation::default()
    };
    let assessment = exposure::assess(policy, None, &expectation);
    let mut findings = Vec::new();
    for finding in &assessment.open {
        findings.push(Finding::wrong(
            CHECK,
            format!("{key}: {} ({})", one_line(&finding.reason), finding.kind.name()),
            &*finding.fix,
        ));
    }
    let refused = |kind| matches!(kind, Kind::ImageRefused | Kind::RoleEmpty | Kind::BadExpectation);
    for finding in assessment.weaknesses.iter().chain(&assessment.could_open) {
        let found = format!("{key}: {} ({})", one_line(&finding.reason), finding.kind.name());
        findings.push(if refused(finding.kind) {
            Finding::wrong(CHECK, found, &*finding.fix)
        } else {
            Finding::warning(CHECK, found, &*finding.fix)
        });
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            CHECK,
            format!("{key} opens to this image under this configuration alone; grants were not looked at"),
        ));
    }
    findings
}

/// Words from a stranger's policy: they must not steer the terminal.
fn one_line(words: &str) -> String {
    words.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// An error on one line.
fn said<E: ProvideErrorMetadata + std::error::Error + 'static>(error: &SdkError<E>) -> String {
    match error {
        SdkError::ServiceError(answer) => {
            let (code, message) =
                (answer.err().code().unwrap_or("no code"), answer.err().message().unwrap_or_default());
            one_line(&format!("KMS says {code}: {message}"))
        }
        error => causes(error),
    }
}

/// Notes the `Date` of KMS's answers beside our own time.
#[derive(Clone, Debug, Default)]
struct Clock(Arc<Mutex<Option<(OffsetDateTime, OffsetDateTime)>>>);

impl Clock {
    fn finding(&self) -> Finding {
        const CHECK: &str = "clock";
        let noted = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((theirs, ours)) = noted else {
            return Finding::not_checked(CHECK, "KMS's answer told no time");
        };
        let apart = (ours - theirs).abs();
        let found = format!("{} s from KMS's", apart.whole_seconds());
        let mend = "systemctl enable --now chronyd (Amazon Linux asks 169.254.169.123), and look at `chronyc tracking`";
        if apart > WRONG {
            Finding::wrong(CHECK, format!("{found}; KMS refuses what is signed more than 5 minutes off"), mend)
        } else if apart > LATE {
            Finding::warning(CHECK, found, mend)
        } else {
            Finding::ok(CHECK, found)
        }
    }
}

impl Intercept for Clock {
    fn name(&self) -> &'static str {
        "clock"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        if let Some(theirs) = date.and_then(|date| OffsetDateTime::parse(date, &Rfc2822).ok()) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((theirs, OffsetDateTime::now_utc()));
        }
        Ok(())
    }
}

/// systemd-timesyncd.service(8): "touched ... on each successful synchronization".
const SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";
/// AWS, "Signature Version 4": requests are refused when their time is more than 5 minutes off.
const WRONG: time::Duration = time::Duration::minutes(5);
/// The enclave stops serving at a drift of 60 s from its security module.
const LATE: time::Duration = time::Duration::seconds(30);

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_clock_is_judged_by_how_far_it_is_from_kmss() {
        let ours = OffsetDateTime::UNIX_EPOCH;
        for (apart, verdict) in [(0, Verdict::Ok), (30, Verdict::Ok), (31, Verdict::Warning), (301, Verdict::Wrong)] {
            for theirs in [ours + time::Duration::seconds(apart), ours - time::Duration::seconds(apart)] {
                let clock = Clock(Arc::new(Mutex::new(Some((theirs, ours)))));
                assert_eq!(clock.finding().verdict, verdict, "{apart}");
            }
        }
        assert_eq!(Clock::default().finding().verdict, Verdict::NotChecked);
    }

    #[test]
    fn words_of_a_stranger_stay_on_their_line() {
        assert_eq!(one_line("a\u{1b}[2Jb\nc"), "a [2Jb c");
    }
}
