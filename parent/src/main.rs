//! `subrosa-parent`: the untrusted relay on the parent instance.

use std::{
    io::Write as _,
    net::SocketAddr,
    os::{linux::net::SocketAddrExt as _, unix::net as unix},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use address::{Address, HOST_SERVICES_PORT, KMS_TUNNEL_PORT};
use clap::Parser;
use parent::{Deadlines, Limits, Parent, Settings};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Carries sealed requests to a Nitro enclave and its answers back, and can read neither.
///
/// It offers three things. To clients: POST /v1/sealed, GET /v1/attestation, /healthz, /readyz and /metrics, by HTTP/1.1
/// and h2c; put TLS before it if you want to hide sizes and times from the network. To its enclave: the configuration
/// document, AWS credentials of this instance's role (from the AWS SDK's default chain), and sealed model packs. And a
/// tunnel to the KMS endpoint of the one region, in which the enclave's TLS passes unread.
///
/// The enclave need not run yet: until it does, requests get 503 with Retry-After.
#[derive(Parser)]
#[command(
    name = "subrosa-parent",
    version,
    after_help = "Examples:
  subrosa-parent --enclave vsock:16:5000 --configuration /etc/subrosa/configuration.json --model-packs /var/lib/subrosa
  subrosa-parent --listen 127.0.0.1:0 --enclave unix:/run/subrosa/enclave.sock:5000 --configuration c.json --model-packs .

Signals: SIGTERM or SIGINT stop it in order: /readyz says 503, requests under way may end, then it closes.
With systemd use Type=notify. Exit codes: 0 stopped as told, 1 cannot start, 2 usage."
)]
struct Arguments {
    /// Where clients connect
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The enclave's door: vsock:CID:PORT on a Nitro instance, unix:PATH:PORT for a hybrid socket
    #[arg(long, value_name = "ADDRESS")]
    enclave: Address,
    /// The port on which the enclave finds its host's services
    #[arg(long, value_name = "PORT", default_value_t = HOST_SERVICES_PORT)]
    host_port: u32,
    /// The port on which the enclave finds the tunnel to KMS
    #[arg(long, value_name = "PORT", default_value_t = KMS_TUNNEL_PORT)]
    kms_port: u32,
    /// The configuration document; the enclave measures it into PCR17
    #[arg(long, value_name = "FILE")]
    configuration: PathBuf,
    /// The folder of sealed model packs; links in it are not followed
    #[arg(long, value_name = "DIR")]
    model_packs: PathBuf,
    /// The AWS region [default: the one in the configuration document]
    #[arg(long)]
    region: Option<String>,
    /// The only destination of the tunnel [default: kms.REGION.amazonaws.com:443]
    #[arg(long, value_name = "HOST:PORT")]
    kms_endpoint: Option<String>,
    /// Connections of clients at once; more get 503 busy
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections)]
    max_connections: usize,
    /// Requests under way to the enclave at once; more get 503 busy
    #[arg(long, value_name = "N", default_value_t = Limits::default().requests)]
    max_requests: usize,
    /// Bytes of one sealed request; more get 413 too-large
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().body_bytes)]
    max_body: u64,
    /// How long the enclave may take for the first byte of an answer
    #[arg(long, value_name = "S", default_value_t = Deadlines::default().first_byte.as_secs())]
    first_byte_seconds: u64,
    /// How long the enclave may pause within an answer
    #[arg(long, value_name = "S", default_value_t = Deadlines::default().idle.as_secs())]
    idle_seconds: u64,
    /// How long a client may stop reading its answer
    #[arg(long, value_name = "S", default_value_t = Deadlines::default().stalled.as_secs())]
    stalled_seconds: u64,
    /// After a signal: go on for this long with /readyz at 503, so that balancers turn away
    #[arg(long, value_name = "S", default_value_t = 0)]
    lame_duck_seconds: u64,
    /// After that: how long requests under way may take to end
    #[arg(long, value_name = "S", default_value_t = Deadlines::default().drain.as_secs())]
    drain_seconds: u64,
    /// Log one JSON object per line
    #[arg(long)]
    json_logs: bool,
    /// How much to log: error, warn, info or debug. No level logs a byte of a body or a credential
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = ["error", "warn", "info", "debug"])]
    log: String,
}

impl Arguments {
    fn settings(self) -> Settings {
        let mut settings = Settings::new(self.listen, self.enclave, self.configuration, self.model_packs);
        settings.host_port = self.host_port;
        settings.kms_port = self.kms_port;
        settings.region = self.region;
        settings.kms_endpoint = self.kms_endpoint;
        settings.limits.connections = self.max_connections;
        settings.limits.requests = self.max_requests;
        settings.limits.body_bytes = self.max_body;
        settings.deadlines.first_byte = Duration::from_secs(self.first_byte_seconds);
        settings.deadlines.idle = Duration::from_secs(self.idle_seconds);
        settings.deadlines.stalled = Duration::from_secs(self.stalled_seconds);
        settings.deadlines.lame_duck = Duration::from_secs(self.lame_duck_seconds);
        settings.deadlines.drain = Duration::from_secs(self.drain_seconds);
        settings
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log_to_stderr(&arguments);
    match serve(arguments.settings()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If stderr is gone, nobody reads this.
            let _ = writeln!(std::io::stderr(), "subrosa-parent: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(settings: Settings) -> Result<(), Box<dyn std::error::Error>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let parent = Parent::bind(settings).await?;
    tracing::info!(listen = %parent.local_addr()?, "listening");
    tell_systemd("READY=1");
    parent
        .run(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tell_systemd("STOPPING=1");
        })
        .await;
    Ok(())
}

/// Only our own records go beyond warnings: what libraries say in detail may quote what they carry.
fn log_to_stderr(arguments: &Arguments) {
    let level = &arguments.log;
    let filter = EnvFilter::new(format!("error,parent={level},subrosa_parent={level}"));
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    if arguments.json_logs {
        registry.with(layer.json()).init();
    } else {
        registry.with(layer).init();
    }
}

/// sd_notify(3): a datagram to the socket named in `$NOTIFY_SOCKET`, which may be abstract (`@`). Without systemd there
/// is none, and without one nothing is lost.
fn tell_systemd(state: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = unix::UnixDatagram::unbound().and_then(|socket| {
        let name = name.as_encoded_bytes();
        let to = match name.strip_prefix(b"@") {
            Some(name) => unix::SocketAddr::from_abstract_name(name)?,
            None => unix::SocketAddr::from_pathname(String::from_utf8_lossy(name).as_ref())?,
        };
        socket.send_to_addr(state.as_bytes(), &to)
    });
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot tell systemd");
    }
}
