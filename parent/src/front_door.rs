//! Where clients connect: HTTP/1.1 and h2c on one port.

use std::{convert::Infallible, pin::pin, sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    connection::{Activity, Attended},
    link::STREAM_WINDOW,
    routes::Routes,
};

/// Takes connections until `stop`, then lets those that are open end, and gives them up after `drain`.
pub(crate) async fn serve(listener: TcpListener, routes: Arc<Routes>, stop: CancellationToken, drain: Duration) {
    let places = Arc::new(Semaphore::new(routes.limits().connections));
    let farewells = Arc::new(Semaphore::new(FAREWELLS));
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = open.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match Arc::clone(&places).try_acquire_owned() {
                    Ok(place) => {
                        let connection = serve_connection(stream, Arc::clone(&routes), stop.clone());
                        open.spawn(async move {
                            connection.await;
                            drop(place);
                        });
                    }
                    Err(_) => {
                        let refusal = routes.turn_away();
                        if let Ok(farewell) = Arc::clone(&farewells).try_acquire_owned() {
                            open.spawn(async move {
                                // Best effort, for a second.
                                let _ = timeout(Duration::from_secs(1), say(stream, refusal)).await;
                                drop(farewell);
                            });
                        }
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    if timeout(drain, async { while open.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!(connections = open.len(), "gave up connections that did not end in time");
        open.shutdown().await;
    }
}

async fn serve_connection(stream: TcpStream, routes: Arc<Routes>, stop: CancellationToken) {
    let _present = routes.metrics().connections.enter();
    routes.metrics().connections_total.fetch_add(1, Relaxed);
    // Tokens are small; without this they would wait for each other. A failure costs time, not correctness.
    let _ = stream.set_nodelay(true);
    let deadlines = *routes.deadlines();
    let builder = builder(deadlines.header, streams(routes.limits().requests));
    let activity = Activity::new();
    let service = {
        let activity = Arc::clone(&activity);
        service_fn(move |request| {
            let (routes, busy) = (Arc::clone(&routes), activity.busy());
            async move { Ok::<_, Infallible>(routes.answer(request, busy).await) }
        })
    };
    let io = TokioIo::new(Attended::new(stream, deadlines.stalled));
    let mut connection = pin!(builder.serve_connection(io, service));
    let told = tokio::select! {
        ended = connection.as_mut() => return log(ended),
        () = stop.cancelled() => true,
        () = activity.rested_for(deadlines.header) => false,
    };
    connection.as_mut().graceful_shutdown();
    if told {
        // The drain deadline above bounds this.
        log(connection.await);
    } else if let Ok(ended) = timeout(GOODBYE, connection).await {
        log(ended);
    }
}

/// An eighth of the places at the enclave, so that one connection never takes them all from the others.
fn streams(requests: usize) -> u32 {
    u32::try_from(requests / 8).unwrap_or(STREAMS).clamp(1, STREAMS)
}

fn builder(header: Duration, streams: u32) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW * 2)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(streams)
        .max_header_list_size(MAX_HEAD as u32)
        .max_send_buf_size(MAX_HEAD)
        .keep_alive_interval(Some(PING))
        .keep_alive_timeout(PING);
    builder
}

/// Says a few bytes to a client that is not served, and reads a little of what it sends, so that it can read them.
async fn say(mut stream: TcpStream, bytes: String) -> std::io::Result<()> {
    stream.write_all(bytes.as_bytes()).await?;
    stream.shutdown().await?;
    let mut sink = [0; 1024];
    for _ in 0..64 {
        if stream.read(&mut sink).await? == 0 {
            break;
        }
    }
    Ok(())
}

fn log(ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = ended {
        tracing::debug!(error, "a client's connection ended with an error");
    }
}

/// Bytes of a request's head, and of what hyper gathers before it writes.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// The most streams at once on one HTTP/2 connection of a client, which may be a gateway for many.
const STREAMS: u32 = 128;
/// Bytes of request bodies that one HTTP/2 connection may have under way.
const CONNECTION_WINDOW: u32 = 1 << 20;
const PING: Duration = Duration::from_secs(20);
/// Clients turned away that are still being told.
const FAREWELLS: usize = 64;
/// How long a connection that rested too long may take for its goodbye.
const GOODBYE: Duration = Duration::from_secs(1);
/// After a failure such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
