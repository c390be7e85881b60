//! The inner request.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::head::{Fields, HttpError, NO_FIELDS, decimal, head_length, syntax, write_field};
use super::{ANSWER_SUITE, CONTENT_LENGTH, CONTENT_TYPE, ENCLAVE, EXPIRES, MAX_FIELDS, MAX_HEAD_LENGTH, REPLY_KEY};
use crate::message::Suite;
use crate::raw_aes::WrappingKey;
use crate::secret::SecretBytes;

/// The methods that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `GET`: without a body.
    Get,
    /// `POST`: with a body, whose length is stated.
    Post,
}

/// One whole inner request. Its parts point into the plaintext; it cannot be printed or cloned.
pub struct Request<'a> {
    method: Method,
    target: &'a str,
    fields: Fields<'a>,
    body: &'a [u8],
    expires: u64,
    reply_key: Option<WrappingKey>,
    enclave: Option<&'a str>,
    answer_suite: Suite,
}

impl<'a> Request<'a> {
    /// Reads exactly one request (`docs/PROTOCOL.md`, section 5).
    ///
    /// # Errors
    /// [`HttpError`] for anything else, one byte after it included.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, HttpError> {
        let head = head_length(bytes)?.ok_or(HttpError::HeadLength)?;
        let (head, body) = bytes.split_at_checked(head).ok_or(HttpError::HeadLength)?;
        let mut fields = NO_FIELDS;
        let mut parsed = httparse::Request::new(&mut fields);
        match parsed.parse(head).map_err(syntax)? {
            httparse::Status::Complete(length) if length == head.len() => {}
            _ => return Err(HttpError::Syntax("the empty line does not end it")),
        }
        if parsed.version != Some(1) {
            return Err(HttpError::Syntax("the version must be HTTP/1.1"));
        }
        let method = match parsed.method {
            Some("GET") => Method::Get,
            Some("POST") => Method::Post,
            _ => return Err(HttpError::Method),
        };
        let target = parsed.path.filter(|target| is_origin_form(target)).ok_or(HttpError::Target)?;
        let fields = Fields::check(parsed.headers)?;
        fields.only_known(&[EXPIRES, REPLY_KEY, ENCLAVE, ANSWER_SUITE])?;
        check_body(method, fields.content_length()?, body)?;
        Ok(Self {
            method,
            target,
            body,
            expires: fields.get(EXPIRES).map(expires).ok_or(HttpError::Missing(EXPIRES))??,
            reply_key: fields.get(REPLY_KEY).map(reply_key).transpose()?,
            enclave: fields.get(ENCLAVE).map(enclave).transpose()?,
            answer_suite: fields.get(ANSWER_SUITE).map_or(Ok(Suite::Commit), answer_suite)?,
            fields,
        })
    }

    /// The method.
    #[must_use]
    pub fn method(&self) -> Method {
        self.method
    }

    /// The request target as it was written: path, and query if there is one.
    #[must_use]
    pub fn target(&self) -> &'a str {
        self.target
    }

    /// The path, without the query.
    #[must_use]
    pub fn path(&self) -> &'a str {
        self.target.split_once('?').map_or(self.target, |(path, _)| path)
    }

    /// The first value of a header field; names are compared without regard to case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.fields.get(name)
    }

    /// The body: exactly as long as `Content-Length` says.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// `Subrosa-Expires`, in Unix seconds. Whether that is past, or too far ahead, is for whoever knows the time.
    #[must_use]
    pub fn expires(&self) -> u64 {
        self.expires
    }

    /// Takes `Subrosa-Reply-Key` out; it is there once.
    #[must_use]
    pub fn take_reply_key(&mut self) -> Option<WrappingKey> {
        self.reply_key.take()
    }

    /// `Subrosa-Enclave`.
    #[must_use]
    pub fn enclave(&self) -> Option<&'a str> {
        self.enclave
    }

    /// `Subrosa-Answer-Suite`; 0x0478 when it is not there.
    #[must_use]
    pub fn answer_suite(&self) -> Suite {
        self.answer_suite
    }
}

/// Writes an inner request that [`Request::parse`] accepts.
pub struct RequestWriter {
    method: Method,
    head: SecretBytes,
}

impl RequestWriter {
    /// A request for `target` that must not be acted upon after `expires` (Unix seconds).
    ///
    /// # Errors
    /// [`HttpError::Target`] for anything that is not in origin-form.
    pub fn new(method: Method, target: &str, expires: u64) -> Result<Self, HttpError> {
        if !is_origin_form(target) {
            return Err(HttpError::Target);
        }
        let mut head = SecretBytes::with_capacity(1_024);
        let name = match method {
            Method::Get => "GET ",
            Method::Post => "POST ",
        };
        [name, target, " HTTP/1.1\r\n"].iter().for_each(|part| head.extend(part.as_bytes()));
        write_field(&mut head, EXPIRES, &expires.to_string())?;
        Ok(Self { method, head })
    }

    /// Adds a header field.
    ///
    /// # Errors
    /// [`HttpError::Syntax`] when it is not one.
    pub fn header(mut self, name: &str, value: &str) -> Result<Self, HttpError> {
        write_field(&mut self.head, name, value)?;
        Ok(self)
    }

    /// Says what the body is.
    ///
    /// # Errors
    /// [`HttpError::Syntax`] when it is not a field value.
    pub fn content_type(self, value: &str) -> Result<Self, HttpError> {
        self.header(CONTENT_TYPE, value)
    }

    /// Asks for the answer under a one-time key.
    ///
    /// # Errors
    /// None that a key could cause.
    pub fn reply_key(self, key: &WrappingKey) -> Result<Self, HttpError> {
        let text = Zeroizing::new(STANDARD.encode(key.expose()));
        self.header(REPLY_KEY, &text)
    }

    /// Pins the one enclave that may act on it.
    ///
    /// # Errors
    /// [`HttpError::Syntax`] when it is not a field value.
    pub fn enclave(self, module_id: &str) -> Result<Self, HttpError> {
        self.header(ENCLAVE, module_id)
    }

    /// Asks for the answer under a suite.
    ///
    /// # Errors
    /// None that a suite could cause.
    pub fn answer_suite(self, suite: Suite) -> Result<Self, HttpError> {
        self.header(ANSWER_SUITE, &format!("{:04x}", suite.id()))
    }

    /// The whole request.
    ///
    /// # Errors
    /// [`HttpError`] when [`Request::parse`] would refuse it: a field twice, a forbidden one, a body under `GET`.
    pub fn finish(mut self, body: &[u8]) -> Result<SecretBytes, HttpError> {
        if self.method == Method::Post || !body.is_empty() {
            write_field(&mut self.head, CONTENT_LENGTH, &body.len().to_string())?;
        }
        self.head.extend(b"\r\n");
        self.head.extend(body);
        Request::parse(self.head.as_bytes())?;
        Ok(self.head)
    }
}

/// RFC 9112, 3.2.1: "origin-form = absolute-path [ "?" query ]".
fn is_origin_form(target: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"#\"<>\\^`{|}".contains(&byte);
    target.starts_with('/') && !target.starts_with("//") && target.bytes().all(plain)
}

/// "`Content-Length` required and exact" (`docs/PROTOCOL.md`, section 5); a `GET` has no body.
fn check_body(method: Method, length: Option<u64>, body: &[u8]) -> Result<(), HttpError> {
    let found = u64::try_from(body.len()).unwrap_or(u64::MAX);
    let expected = match (method, length) {
        (Method::Post, None) => return Err(HttpError::Missing(CONTENT_LENGTH)),
        (Method::Get, Some(1..)) => return Err(HttpError::Value(CONTENT_LENGTH)),
        (Method::Get, _) => 0,
        (Method::Post, Some(length)) => length,
    };
    if found == expected { Ok(()) } else { Err(HttpError::BodyLength { expected, found }) }
}

fn expires(value: &str) -> Result<u64, HttpError> {
    decimal(value).ok_or(HttpError::Value(EXPIRES))
}

fn reply_key(value: &str) -> Result<WrappingKey, HttpError> {
    let bytes = STANDARD.decode(value).map(Zeroizing::new).map_err(|_| HttpError::Value(REPLY_KEY))?;
    WrappingKey::from_slice(&bytes).map_err(|_| HttpError::Value(REPLY_KEY))
}

/// Module ids of the NSM are `i-...-enc...`: bounded here to 128 bytes without spaces.
fn enclave(value: &str) -> Result<&str, HttpError> {
    let fits = (1..=128).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then_some(value).ok_or(HttpError::Value(ENCLAVE))
}

fn answer_suite(value: &str) -> Result<Suite, HttpError> {
    match value {
        "0478" => Ok(Suite::Commit),
        "0578" => Ok(Suite::CommitSigned),
        _ => Err(HttpError::Value(ANSWER_SUITE)),
    }
}

const _: () = assert!(MAX_FIELDS == 64 && MAX_HEAD_LENGTH == 16_384, "HttpError states these limits in words");
