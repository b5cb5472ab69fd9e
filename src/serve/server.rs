//! The listener: accepts connections within their limits, and serves the routes on them.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use warp::http::{Request, Response};

use super::backends::{self, Backends};
use super::connection::{ClientStream, Connection, RequestActivity, TimedConnection};
use super::context::ServerContext;
use super::error::ServeError;
use super::ingest::{IngestHandler, IngestRules, TimeRules};
use super::new_cities::NewCityLimiter;
use super::plan::{ServeLimits, ServePlan};
use super::publisher::{self, Publisher};
use super::responses::{self, ResponsePermit};
use super::routes;
use super::security::{AccessGuard, PeerAddress};
use super::service_info::ServiceInfo;
use super::target;
use super::telemetry;
use super::tls::ServerTls;
use super::view::View;
use super::ws::SubscriberSessions;
use crate::fault::{RetryBackoff, limit_remedy};
use crate::panics::{self, CaughtPanic, PanicScope};

/// Bytes of the head of a request, URI included.
const MAX_HEAD_BYTES: usize = 16 * 1024;
const MAX_HEADERS: usize = 100;
/// Bytes that are read from and written to a socket at one time.
const BUFFER_BYTES: usize = 64 * 1024;
/// Connections over the limit that get a response at one time, at most; further ones are just
/// closed.
const MAX_CONCURRENT_REJECTIONS: usize = 64;
const REJECTION_TIMEOUT: Duration = Duration::from_secs(1);
const CERTIFICATE_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// Connections over the limit that get a response at one time. Each needs an open file, as those
/// within the limit do.
pub fn max_concurrent_rejections(connections: usize) -> usize {
    (connections / 8).clamp(8, MAX_CONCURRENT_REJECTIONS)
}

/// A socket that listens. Clients that connect wait until [`BoundServer::start_serving`].
pub struct BoundServer {
    plan: ServePlan,
    listener: std::net::TcpListener,
    address: SocketAddr,
    tls: Option<ServerTls>,
}

/// Loads the certificate and binds the socket.
///
/// # Errors
///
/// If the address cannot be bound, or the certificate or its key cannot be used.
pub fn bind_server(plan: ServePlan) -> Result<BoundServer, ServeError> {
    let tls = plan.tls.as_ref().map(ServerTls::load).transpose()?;
    let cannot_listen = |error| ServeError::Listen { address: plan.listen, error };
    let listener = std::net::TcpListener::bind(plan.listen).map_err(cannot_listen)?;
    listener.set_nonblocking(true).map_err(cannot_listen)?;
    let address = listener.local_addr().map_err(cannot_listen)?;
    Ok(BoundServer { plan, listener, address, tls })
}

/// A server that accepts connections.
pub struct RunningServer {
    publisher: Publisher,
    sessions: SubscriberSessions,
    connection_permits: Arc<Semaphore>,
    max_connections: usize,
    stop_sender: watch::Sender<bool>,
    abort_sender: watch::Sender<bool>,
}

impl BoundServer {
    /// The address with its port, also if the plan left the port to the system.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts connections from now on. Until an update says that replay is done, requests that
    /// need results are answered with `catching_up`.
    ///
    /// # Errors
    ///
    /// If the socket cannot be registered with the runtime, or a thread cannot be started.
    pub fn start_serving(
        self,
        runtime: &Handle,
        info: ServiceInfo,
        backends: Backends,
    ) -> Result<RunningServer, ServeError> {
        telemetry::install_recorder();
        let BoundServer { plan, listener, address, tls } = self;
        let _runtime_guard = runtime.enter();
        let listener =
            TcpListener::from_std(listener).map_err(|error| ServeError::Listen { address, error })?;
        let limits = plan.limits.clone();
        let Backends { queries, appender, hold_check, warn_ahead, history_store } =
            backends::make_panics_fatal(backends);
        let (read_options, ingest_log) = (info.read_options.clone(), info.ingest_log.clone());
        let view = View::new(info, &limits, queries);
        let rules = IngestRules {
            read_options,
            new_cities: NewCityLimiter::new(&view, ingest_log, limits.new_cities_percent),
            time_rules: TimeRules::new(view.clone(), warn_ahead),
        };
        let ingest = IngestHandler::new(appender, hold_check, rules, &limits);
        let sessions = SubscriberSessions::new(view.clone(), &limits);
        let (publisher, _) =
            publisher::spawn_publisher(view.clone(), sessions.clone()).map_err(ServeError::Thread)?;
        let max_connections = limits.connections.clamp(1, Semaphore::MAX_PERMITS);
        let connection_permits = Arc::new(Semaphore::new(max_connections));
        let (stop_sender, stop_signal) = watch::channel(false);
        let (abort_sender, abort_signal) = watch::channel(false);
        let server = Arc::new(ServerContext {
            view,
            sessions: sessions.clone(),
            ingest,
            access_guard: AccessGuard::new(&plan, address.ip()),
            limits,
            echo: plan.echo,
            connection_permits: connection_permits.clone(),
            response_budget: responses::response_budget(),
            history_store,
            stop_signal: stop_signal.clone(),
        });
        let acceptor = ConnectionAcceptor {
            server,
            tls: tls.map(Arc::new),
            rejection_permits: Arc::new(Semaphore::new(max_concurrent_rejections(max_connections))),
            stop_signal,
            abort_signal,
        };
        runtime.spawn(acceptor.accept_connections(listener));
        Ok(RunningServer {
            publisher,
            sessions,
            connection_permits,
            max_connections,
            stop_sender,
            abort_sender,
        })
    }
}

impl RunningServer {
    /// The publisher that updates are sent to.
    pub fn publisher(&self) -> Publisher {
        self.publisher.clone()
    }

    /// Stops accepting connections, ends WebSockets with code 1001, and finishes requests that have
    /// begun; connections that are still open after `grace` are aborted. The publisher's thread
    /// ends when the caller has dropped its publishers too.
    pub async fn stop_serving(self, grace: Duration) {
        self.stop_sender.send_replace(true);
        let all_permits = u32::try_from(self.max_connections).unwrap_or(u32::MAX);
        let all_ended = async {
            tokio::join!(
                self.sessions.close_all_sessions(),
                self.connection_permits.acquire_many(all_permits)
            )
        };
        if timeout(grace, all_ended).await.is_err() {
            let connections = self.max_connections - self.connection_permits.available_permits();
            tracing::warn!(connections, "connections did not end in time and are aborted");
        }
        self.abort_sender.send_replace(true);
    }
}

/// The accept loop, and what every connection needs.
struct ConnectionAcceptor {
    server: Arc<ServerContext>,
    tls: Option<Arc<ServerTls>>,
    rejection_permits: Arc<Semaphore>,
    stop_signal: watch::Receiver<bool>,
    /// True when connections that are still open are aborted.
    abort_signal: watch::Receiver<bool>,
}

impl ConnectionAcceptor {
    async fn accept_connections(self, listener: TcpListener) {
        let mut stop = self.stop_signal.clone();
        let mut retries = RetryBackoff::new("accept", "accept connections", "new ones wait");
        let service = TowerToHyperService::new(warp::service(routes::routes_filter(&self.server)));
        let mut metrics_upkeep = tokio::time::interval(telemetry::UPKEEP_INTERVAL);
        let mut certificate_check = tokio::time::interval(CERTIFICATE_CHECK_INTERVAL);
        loop {
            let pause = retries.remaining_delay();
            tokio::select! {
                biased;
                () = wait_until_true(&mut stop) => return,
                _ = metrics_upkeep.tick() => telemetry::run_upkeep(),
                _ = certificate_check.tick() => self.check_certificate(),
                accepted = listener.accept(), if pause.is_zero() => match accepted {
                    Ok((socket, _)) => {
                        retries.record_success();
                        self.admit_connection(socket, &service);
                    }
                    Err(error) => record_accept_error(&mut retries, &error),
                },
                () = sleep(pause), if !pause.is_zero() => {}
            }
        }
    }

    fn check_certificate(&self) {
        let Some(tls) = self.tls.clone() else { return };
        tokio::task::spawn_blocking(move || match tls.reload_if_changed() {
            Ok(true) => tracing::info!("the certificate has changed: new connections get it"),
            Ok(false) => {}
            Err(error) => tracing::warn!(
                "the files of the certificate have changed and cannot be used: new connections get the old \
                 certificate until they can: {error}"
            ),
        });
    }

    fn admit_connection(&self, socket: TcpStream, service: &impl SharedRouteService) {
        // Messages are put together before they are written, so no packet waits for more.
        let _ = socket.set_nodelay(true);
        let Ok(connection_permit) = self.server.connection_permits.clone().try_acquire_owned() else {
            telemetry::record_rejected_connection();
            if let (None, Ok(permit)) = (&self.tls, self.rejection_permits.clone().try_acquire_owned()) {
                let rejection = reject_connection(socket, permit);
                tokio::spawn(panics::catch_future_panic(PanicScope::Connection, rejection));
            }
            return;
        };
        let mut abort = self.abort_signal.clone();
        let accepted = AcceptedConnection {
            server: self.server.clone(),
            socket,
            tls: self.tls.clone(),
            permit: connection_permit,
            stop_signal: self.stop_signal.clone(),
        };
        let service = service.clone();
        tokio::spawn(panics::catch_future_panic(PanicScope::Connection, async move {
            tokio::select! {
                () = accepted.serve(service) => {}
                () = wait_until_true(&mut abort) => {}
            }
        }));
    }
}

/// Waits until the signal is true or its sender is dropped.
async fn wait_until_true(signal: &mut watch::Receiver<bool>) {
    let _ = signal.wait_for(|is_true| *is_true).await;
}

fn record_accept_error(retries: &mut RetryBackoff, error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    // These errors concern one connection; any other is likely to come again at once.
    if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        let remedy = limit_remedy(error).map_or(String::new(), |remedy| format!(": {remedy}"));
        retries.record_failure(&format_args!("{error}{remedy}"));
    }
}

/// Answers with a problem, as routes do, that there are too many connections.
async fn reject_connection(mut socket: TcpStream, _permit: OwnedSemaphorePermit) {
    const BODY: &str = r#"{"type":"urn:swelter:problem:overloaded","title":"The service cannot answer now","status":503,"code":"overloaded","detail":"there are too many connections: try again in a moment"}"#;
    let response = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\
         retry-after: 1\r\nconnection: close\r\n\r\n{BODY}",
        BODY.len()
    );
    let _ = timeout(REJECTION_TIMEOUT, async {
        socket.write_all(response.as_bytes()).await?;
        socket.shutdown().await?;
        // A socket with unread bytes is reset when it closes, and the response may be lost.
        let mut request = (&mut socket).take(MAX_HEAD_BYTES as u64);
        tokio::io::copy(&mut request, &mut tokio::io::sink()).await
    })
    .await;
}

/// A connection within the limit.
struct AcceptedConnection {
    server: Arc<ServerContext>,
    socket: TcpStream,
    tls: Option<Arc<ServerTls>>,
    permit: OwnedSemaphorePermit,
    stop_signal: watch::Receiver<bool>,
}

impl AcceptedConnection {
    /// Serves the connection from the TLS handshake to its end or its upgrade.
    async fn serve(self, service: impl SharedRouteService) {
        panics::panic_point("connection");
        let AcceptedConnection { server, socket, tls, permit, mut stop_signal } = self;
        let ServeLimits { header_time, send_time, idle_time, .. } = server.limits;
        let peer = socket.peer_addr().ok().map(|peer| PeerAddress(peer.ip()));
        let Some(stream) = client_stream(socket, tls, header_time).await else { return };
        let activity = Arc::new(RequestActivity::default());
        let connection = Connection::new(stream, permit);
        let timed = TimedConnection::new(connection, activity.clone(), header_time, send_time)
            .with_budget(server.response_budget.clone());
        let request_activity = activity.clone();
        let respond = service_fn(move |mut request: Request<Incoming>| {
            request_activity.begin_request();
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            handle_request(service.clone(), request_activity.clone(), request)
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            // A client may shut down its sending side and still wait for its response.
            .half_close(true)
            // From the end of a request to the head of the next. `TimedConnection` limits a head
            // that has begun.
            .header_read_timeout(idle_time.max(header_time))
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_HEAD_BYTES)
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(TokioIo::new(timed), respond)
            .with_upgrades();
        tokio::pin!(serving);
        let result = tokio::select! {
            result = &mut serving => result,
            () = wait_until_true(&mut stop_signal) => {
                if !activity.has_served_request() {
                    return;
                }
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a connection ended with an error");
        }
    }
}

/// The plain or decrypted stream of a client; `None` if the TLS handshake failed.
async fn client_stream(
    socket: TcpStream,
    tls: Option<Arc<ServerTls>>,
    handshake_time: Duration,
) -> Option<ClientStream> {
    let Some(tls) = tls else { return Some(ClientStream::Plain(socket)) };
    match timeout(handshake_time, tls.acceptor().accept(socket)).await {
        Ok(Ok(stream)) => Some(ClientStream::Tls(Box::new(stream))),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed: the connection is closed");
            None
        }
        Err(_) => {
            tracing::debug!("a TLS handshake took too long: the connection is closed");
            None
        }
    }
}

/// The routes as a service, cheap to clone.
trait SharedRouteService: RouteService + Clone + Send + Sync + 'static {}

impl<S: RouteService + Clone + Send + Sync + 'static> SharedRouteService for S {}

trait RouteService:
    Service<Request<Incoming>, Response = warp::reply::Response, Error = Infallible, Future: Send>
{
}

impl<S> RouteService for S where
    S: Service<Request<Incoming>, Response = warp::reply::Response, Error = Infallible, Future: Send>
{
}

async fn handle_request(
    service: impl SharedRouteService,
    activity: Arc<RequestActivity>,
    mut request: Request<Incoming>,
) -> Result<Response<impl Body<Data = Bytes, Error = warp::Error> + Send + Unpin>, Infallible> {
    let (started_at, method) = (Instant::now(), request.method().clone());
    let handled = panics::catch_future_panic(PanicScope::Request, async move {
        target::normalize_target(&mut request);
        service.call(request).await
    });
    let response = handled
        .await
        .unwrap_or_else(|CaughtPanic| Ok(ServerContext::internal_error(&method, started_at.elapsed())));
    activity.end_request();
    let (mut parts, body) = response?.into_parts();
    let permit = parts.extensions.remove();
    Ok(Response::from_parts(parts, PermitBody { body, rest: Bytes::new(), permit }))
}

/// A body that is sent in pieces, so that its memory counts until the client has read nearly all of
/// it.
struct PermitBody<B> {
    body: B,
    rest: Bytes,
    permit: Option<ResponsePermit>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for PermitBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.rest = bytes,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end => {
                    self.permit = None;
                    return Poll::Ready(end);
                }
            }
        }
        let piece = self.rest.len().min(BUFFER_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let hint = self.body.size_hint();
        let mut all = SizeHint::new();
        if let Some(upper) = hint.upper() {
            all.set_upper(upper + rest);
        }
        all.set_lower(hint.lower() + rest);
        all
    }
}
