//! A parent, from its sockets to its end.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use address::{ListenError, Listener, listen_for_enclave};
use tokio::{net::TcpListener, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    front_door,
    host_services::HostServices,
    metrics::Metrics,
    routes::Routes,
    settings::{Checked, Settings, SettingsError},
    tunnel::Tunnel,
};

/// A parent with its sockets bound. From here on clients and enclave can connect; [`Parent::run`] serves them.
pub struct Parent {
    checked: Checked,
    front: TcpListener,
    host: Listener,
    kms: Listener,
}

/// Why a parent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings do not hold together.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// No folder.
    #[error("cannot serve model packs from {}: {error}", path.display())]
    ModelPacks {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Clients cannot connect.
    #[error("cannot listen on {listen}: {error}")]
    Listen {
        /// Where.
        listen: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The enclave cannot connect.
    #[error(transparent)]
    ListenForEnclave(#[from] ListenError),
}

impl Parent {
    /// Checks the settings and binds the three listening sockets. The enclave need not be there yet.
    pub async fn bind(settings: Settings) -> Result<Self, StartError> {
        let checked = Checked::new(settings)?;
        let settings = &checked.settings;
        let packs = &settings.model_packs;
        std::fs::read_dir(packs).map_err(|error| StartError::ModelPacks { path: packs.clone(), error })?;
        let listen = settings.listen;
        let front = TcpListener::bind(listen).await.map_err(|error| StartError::Listen { listen, error })?;
        let host = listen_for_enclave(&settings.enclave.with_port(settings.host_port)).await?;
        let kms = listen_for_enclave(&settings.enclave.with_port(settings.kms_port)).await?;
        Ok(Self { checked, front, host, kms })
    }

    /// Where clients connect, with the port that the system chose if it was asked to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.front.local_addr()
    }

    /// Serves until `shutdown` resolves, then leaves in order: `/readyz` says 503 (for the lame-duck time new requests
    /// are still taken), no new connections, requests under way end within the drain deadline, and last the enclave's
    /// own connections are closed, which those requests may have needed.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self { checked, front, host, kms } = self;
        let deadlines = checked.settings.deadlines;
        let metrics = Arc::new(Metrics::default());
        let (leaving, stop) = (CancellationToken::new(), CancellationToken::new());
        // Dropped with this future, and all tasks with it.
        let mut behind = JoinSet::new();
        behind.spawn(HostServices::new(&checked, Arc::clone(&metrics)).serve(host));
        behind.spawn(Tunnel::new(&checked, Arc::clone(&metrics)).serve(kms));
        let routes = Arc::new(Routes::new(&checked.settings, metrics, leaving.clone()));
        let mut before = JoinSet::new();
        before.spawn(front_door::serve(front, routes, stop.clone(), deadlines.drain));
        tracing::info!(enclave = %checked.settings.enclave, kms = %checked.kms.host, region = %checked.region, "serving");
        shutdown.await;
        tracing::info!("stopping");
        leaving.cancel();
        sleep(deadlines.lame_duck).await;
        stop.cancel();
        while before.join_next().await.is_some() {}
        behind.shutdown().await;
        tracing::info!("stopped");
    }
}

/// Binds and runs a [`Parent`].
pub async fn run(settings: Settings, shutdown: impl Future<Output = ()>) -> Result<(), StartError> {
    Parent::bind(settings).await?.run(shutdown).await;
    Ok(())
}
