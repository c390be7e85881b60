//! HTTP for aws-sdk-kms over the parent's blind tunnel: TLS ends here, so the parent relays what it can neither read nor
//! forge.
//!
//! The SDK has no public hook for a connector of one's own, so this implements its `HttpClient`: a pool of
//! `hyper_util`'s client over our stream. Only one host is ever asked for, and only over TLS.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use address::{Address, Stream};
use aws_smithy_async::time::TimeSource;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{ServerName, UnixTime};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::platform::Clock;

/// The way to KMS: the parent's tunnel, the one name that its certificate must have, and the roots that vouch for it.
#[derive(Clone)]
pub struct Tunnel {
    address: Address,
    host: Arc<str>,
    name: ServerName<'static>,
    tls: TlsConnector,
}

impl Tunnel {
    /// A tunnel to `host`, with the roots of the measured image and the time of the platform.
    pub fn new(address: Address, host: &str, roots: RootCertStore, clock: Arc<dyn Clock>) -> Result<Self, TunnelError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_details(provider, Arc::new(TlsClock(clock)))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = ServerName::try_from(host.to_owned()).map_err(|_| TunnelError::Name)?;
        Ok(Self { address, host: host.into(), name, tls: TlsConnector::from(Arc::new(tls)) })
    }

    /// A stream on which the other end has proven to be KMS.
    pub async fn connect(&self) -> io::Result<TunnelStream> {
        let handshake = async {
            let stream = address::dial_parent(&self.address).await.map_err(io::Error::other)?;
            self.tls.connect(self.name.clone(), stream).await
        };
        let stream = tokio::time::timeout(CONNECT_DEADLINE, handshake).await??;
        Ok(TunnelStream(TokioIo::new(stream)))
    }

    /// What aws-sdk-kms sends its requests through.
    pub fn http_client(&self) -> TunnelClient {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_IDLE_MAX)
            .build(self.clone());
        TunnelClient { client }
    }
}

impl tower::Service<Uri> for Tunnel {
    type Response = TunnelStream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TunnelStream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tunnel = self.clone();
        Box::pin(async move {
            if uri.scheme_str() != Some("https") || uri.host() != Some(&*tunnel.host) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "only KMS is spoken to, and only over TLS"));
            }
            tunnel.connect().await
        })
    }
}

/// TLS over the tunnel.
pub struct TunnelStream(TokioIo<TlsStream<Stream>>);

impl Connection for TunnelStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for TunnelStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl Write for TunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The SDK's HTTP client.
#[derive(Clone)]
pub struct TunnelClient {
    client: Client<Tunnel, SdkBody>,
}

impl fmt::Debug for TunnelClient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TunnelClient")
    }
}

impl HttpClient for TunnelClient {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for TunnelClient {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(error) => return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into()))),
        };
        let answer = self.client.request(request);
        HttpConnectorFuture::new(async move {
            match tokio::time::timeout(HEAD_DEADLINE, answer).await {
                Err(late) => Err(ConnectorError::timeout(late.into())),
                // A certificate that is refused once is refused the next time; a broken pipe may be a passing thing.
                Ok(Err(error)) if is_tls_refusal(&error) => Err(ConnectorError::other(error.into(), None)),
                Ok(Err(error)) => Err(ConnectorError::io(error.into())),
                Ok(Ok(response)) => HttpResponse::try_from(response.map(SdkBody::from_body_1_x))
                    .map_err(|error| ConnectorError::other(error.into(), None)),
            }
        })
    }
}

/// Whether TLS refused the other end, anywhere in the chain of causes.
pub fn is_tls_refusal(error: &(dyn Error + 'static)) -> bool {
    let mut current = Some(error);
    while let Some(error) = current {
        // `source` of an `io::Error` skips its own payload, so that is looked into here.
        let payload = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if error.is::<rustls::Error>() || payload.is_some_and(|payload| payload.is::<rustls::Error>()) {
            return true;
        }
        current = error.source();
    }
    false
}

/// The platform's clock, as rustls wants it.
#[derive(Debug)]
struct TlsClock(Arc<dyn Clock>);

impl TimeProvider for TlsClock {
    fn current_time(&self) -> Option<UnixTime> {
        let since = self.0.now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}

/// The platform's clock, as the SDK wants it.
#[derive(Debug)]
pub struct SdkClock(pub Arc<dyn Clock>);

impl TimeSource for SdkClock {
    fn now(&self) -> SystemTime {
        self.0.now()
    }
}

/// Why there can be no tunnel. None of these passes by itself.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// rustls refuses its own settings.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// Not a host name.
    #[error("the host name of KMS is not a host name")]
    Name,
}

/// Dial and TLS handshake.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// From the request to the head of the answer. KMS answers in tens of milliseconds.
const HEAD_DEADLINE: Duration = Duration::from_secs(6);
/// KMS closes idle connections after some time of its own; ours are gone before.
const POOL_IDLE: Duration = Duration::from_secs(20);
const POOL_IDLE_MAX: usize = 8;
