//! Who calls the simulated KMS, and with which credentials. Nobody outside the simulation knows them.

use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use serde_json::{Map, json};
use simulator::kms;

/// The one account.
pub const ACCOUNT: &str = "111122223333";
/// The one region.
pub const REGION: &str = "us-east-1";

/// Somebody with credentials.
pub struct Identity {
    /// The name of the IAM role.
    pub role: &'static str,
    access_key: &'static str,
    iam_allows: &'static [&'static str],
}

/// Makes keys and sets their policies; has no cryptographic right.
pub const ADMINISTRATOR: Identity =
    Identity { role: "KeyAdministrator", access_key: "AKIASUBROSAADMIN0001", iam_allows: &["kms:CreateKey"] };
/// Seals model packs.
pub const MODEL_SUPPLIER: Identity =
    Identity { role: "ModelSupplier", access_key: "AKIASUBROSASUPPLY002", iam_allows: &[] };
/// Seals prompts.
pub const PROMPT_WRITER: Identity =
    Identity { role: "PromptWriter", access_key: "AKIASUBROSAWRITER003", iam_allows: &[] };
/// Opens answers.
pub const ANSWER_READER: Identity =
    Identity { role: "AnswerReader", access_key: "AKIASUBROSAREADER004", iam_allows: &[] };
/// Seals prompts and opens answers.
pub const APPLICATION: Identity = Identity { role: "Application", access_key: "AKIASUBROSAAPPLIC006", iam_allows: &[] };
/// The role of the parent instance: everything that IAM can give, because the parent is the adversary.
pub const ENCLAVE: Identity =
    Identity { role: "ParentInstance", access_key: "AKIASUBROSAPARENT005", iam_allows: &["kms:*"] };

impl Identity {
    /// The role's ARN.
    pub fn arn(&self) -> String {
        format!("arn:aws:iam::{ACCOUNT}:role/{}", self.role)
    }

    fn secret(&self) -> String {
        format!("secret-of-{}", self.role)
    }
}

pub(super) fn principals() -> Result<kms::Principals, kms::PrincipalsError> {
    let table: Map<String, serde_json::Value> =
        [ADMINISTRATOR, MODEL_SUPPLIER, PROMPT_WRITER, ANSWER_READER, APPLICATION, ENCLAVE]
            .into_iter()
            .map(|who| {
                (
                    who.access_key.to_owned(),
                    json!({"secret": who.secret(), "arn": who.arn(), "iam_allows": who.iam_allows}),
                )
            })
            .collect();
    kms::Principals::parse(&serde_json::Value::Object(table).to_string())
}

pub(super) fn credentials(who: &Identity) -> Vec<(String, String)> {
    let pairs = [("AWS_ACCESS_KEY_ID", who.access_key.to_owned()), ("AWS_SECRET_ACCESS_KEY", who.secret())];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

pub(super) fn environment(kms: &kms::Handle, who: &Identity) -> Vec<(String, String)> {
    let mut environment = credentials(who);
    let settings = [
        ("AWS_REGION", REGION.to_owned()),
        ("AWS_ENDPOINT_URL_KMS", kms.url()),
        ("AWS_CA_BUNDLE", kms.ca_path().display().to_string()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
    ];
    environment.extend(settings.map(|(name, value)| (name.to_owned(), value)));
    environment
}

pub(super) fn kms_client(kms: &kms::Handle, who: &Identity) -> aws_sdk_kms::Client {
    let trust = TrustStore::empty().with_pem_certificate(kms.ca_pem().as_bytes());
    let tls = TlsContext::builder().with_trust_store(trust).build().expect("the simulator's own CA");
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .tls_context(tls)
        .build_https();
    let configuration = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(kms.url())
        .credentials_provider(Credentials::new(who.access_key, who.secret(), None, None, "simulation"))
        .http_client(http)
        .build();
    aws_sdk_kms::Client::from_conf(configuration)
}
