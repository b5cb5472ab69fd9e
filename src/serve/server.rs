//! The listener: accepts connections within limits and serves the routes on them.

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

use super::connection::{ClientStream, Connection, RequestActivity, TimedConnection};
use super::ingest::{IngestHandler, TimeRules};
use super::new_cities::NewCityLimiter;
use super::publisher::{self, Publisher};
use super::routes::{self, ResponsePermit, ServerContext};
use super::security::{AccessGuard, PeerAddress};
use super::target;
use super::tls::ServerTls;
use super::view::View;
use super::ws::SubscriberSessions;
use super::{Backends, ServeError, ServeLimits, ServePlan, ServiceInfo, backends, telemetry};
use crate::fault::{RetryBackoff, limit_remedy};
use crate::panics::{self, CaughtPanic, PanicScope};

/// Of a request's head, URI included.
const MAX_HEAD_BYTES: usize = 16 * 1024;
const MAX_HEADERS: usize = 100;
/// What is read from and written to a socket at once.
const BUFFER_BYTES: usize = 64 * 1024;
/// Connections over the limit that are told so at once, at most; further ones are just closed.
const MAX_CONCURRENT_REJECTIONS: usize = 64;
const REJECTION_TIMEOUT: Duration = Duration::from_secs(1);
const CERTIFICATE_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// Connections over a limit that are told so at once: each needs an open file, too.
pub fn max_concurrent_rejections(connections: usize) -> usize {
    (connections / 8).clamp(8, MAX_CONCURRENT_REJECTIONS)
}

/// A socket that listens; clients wait until [`Bound::start`].
pub struct BoundServer {
    plan: ServePlan,
    listener: std::net::TcpListener,
    address: SocketAddr,
    tls: Option<ServerTls>,
}

/// Binds the socket and reads what else can fail.
pub fn bind_server(plan: ServePlan) -> Result<BoundServer, ServeError> {
    let tls = plan.tls.as_ref().map(ServerTls::load).transpose()?;
    let refused = |error| ServeError::Listen { address: plan.listen, error };
    let listener = std::net::TcpListener::bind(plan.listen).map_err(refused)?;
    listener.set_nonblocking(true).map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    Ok(BoundServer { plan, listener, address, tls })
}

/// A server that runs.
pub struct RunningServer {
    publisher: Publisher,
    sessions: SubscriberSessions,
    connection_permits: Arc<Semaphore>,
    max_connections: usize,
    stop_signal: watch::Sender<bool>,
    abort: watch::Sender<bool>,
}

impl BoundServer {
    /// With the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves from now on. Before the first update all but ingest answers that the service is catching up.
    pub fn start_serving(
        self,
        runtime: &Handle,
        facts: ServiceInfo,
        ports: Backends,
    ) -> Result<RunningServer, ServeError> {
        telemetry::install_recorder();
        let BoundServer { plan, listener, address, tls } = self;
        let _inside = runtime.enter();
        let listener =
            TcpListener::from_std(listener).map_err(|error| ServeError::Listen { address, error })?;
        let limits = plan.limits.clone();
        let ports = backends::make_panics_fatal(ports);
        let (read, ingest_log) = (facts.read_options.clone(), facts.ingest_log.clone());
        let view = View::new(facts, &limits, ports.queries);
        let new_cities = NewCityLimiter::new(&view, ingest_log, limits.new_cities_percent);
        let times = TimeRules::new(view.clone(), ports.warn_ahead);
        let ingest = IngestHandler::new(ports.appender, ports.hold_check, new_cities, read, times, &limits);
        let sessions = SubscriberSessions::new(view.clone(), &limits);
        let (publisher, _) =
            publisher::spawn_publisher(view.clone(), sessions.clone()).map_err(ServeError::Thread)?;
        let connections = limits.connections.clamp(1, Semaphore::MAX_PERMITS);
        let slots = Arc::new(Semaphore::new(connections));
        let (stop, stopping) = watch::channel(false);
        let (cut, cutting) = watch::channel(false);
        let server = Arc::new(ServerContext {
            view,
            sessions: sessions.clone(),
            ingest,
            access_guard: AccessGuard::new(&plan, address.ip()),
            limits,
            echo: plan.echo,
            connection_permits: slots.clone(),
            response_budget: routes::response_budget(),
            stop_signal: stopping.clone(),
        });
        let accepting = ConnectionAcceptor {
            server,
            tls: tls.map(Arc::new),
            rejection_permits: Arc::new(Semaphore::new(max_concurrent_rejections(connections))),
            stop_signal: stopping,
            abort: cutting,
        };
        runtime.spawn(accepting.accept_connections(listener));
        Ok(RunningServer {
            publisher,
            sessions,
            connection_permits: slots,
            max_connections: connections,
            stop_signal: stop,
            abort: cut,
        })
    }
}

impl RunningServer {
    /// Where updates go.
    pub fn publisher(&self) -> Publisher {
        self.publisher.clone()
    }

    /// Stops accepting, ends WebSockets with 1001, and finishes requests that are under way; after `grace` what is left is
    /// cut off. The publisher's thread ends when the caller has dropped its publishers too.
    pub async fn stop_serving(self, grace: Duration) {
        self.stop_signal.send_replace(true);
        let all = u32::try_from(self.max_connections).unwrap_or(u32::MAX);
        let ended = async {
            tokio::join!(self.sessions.close_all_sessions(), self.connection_permits.acquire_many(all))
        };
        if timeout(grace, ended).await.is_err() {
            let left = self.max_connections - self.connection_permits.available_permits();
            tracing::warn!("{left} connections did not end in time and are cut off");
        }
        self.abort.send_replace(true);
    }
}

/// The accept loop, and what each connection gets.
struct ConnectionAcceptor {
    server: Arc<ServerContext>,
    tls: Option<Arc<ServerTls>>,
    rejection_permits: Arc<Semaphore>,
    stop_signal: watch::Receiver<bool>,
    /// Time is up: connections are dropped as they are.
    abort: watch::Receiver<bool>,
}

impl ConnectionAcceptor {
    async fn accept_connections(self, listener: TcpListener) {
        let mut stop = self.stop_signal.clone();
        let mut retries = RetryBackoff::new("accept", "accept connections", "new ones wait");
        let service = TowerToHyperService::new(warp::service(routes::routes_filter(self.server.clone())));
        let mut upkeep = tokio::time::interval(telemetry::UPKEEP_INTERVAL);
        let mut certificate = tokio::time::interval(CERTIFICATE_CHECK_INTERVAL);
        loop {
            let pause = retries.remaining_delay();
            tokio::select! {
                biased;
                () = wait_until_true(&mut stop) => return,
                _ = upkeep.tick() => telemetry::run_upkeep(),
                _ = certificate.tick() => self.check_certificate(),
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
            Err(error) => {
                tracing::warn!("the certificate's files have changed and are not used yet: {error}")
            }
        });
    }

    fn admit_connection(&self, socket: TcpStream, service: &impl SharedRouteService) {
        // What is sent is sent at once: messages are put together before.
        let _ = socket.set_nodelay(true);
        let Ok(slot) = self.server.connection_permits.clone().try_acquire_owned() else {
            telemetry::record_rejected_connection();
            if let (None, Ok(place)) = (&self.tls, self.rejection_permits.clone().try_acquire_owned()) {
                tokio::spawn(panics::catch_future_panic(
                    PanicScope::Connection,
                    reject_connection(socket, place),
                ));
            }
            return;
        };
        let (server, service, tls) = (self.server.clone(), service.clone(), self.tls.clone());
        let (stop, mut cut) = (self.stop_signal.clone(), self.abort.clone());
        tokio::spawn(panics::catch_future_panic(PanicScope::Connection, async move {
            tokio::select! {
                () = serve_connection(server, service, socket, tls, slot, stop) => {}
                () = wait_until_true(&mut cut) => {}
            }
        }));
    }
}

/// Waits until it is true, or nobody is left who could say so.
async fn wait_until_true(word: &mut watch::Receiver<bool>) {
    let _ = word.wait_for(|word| *word).await;
}

fn record_accept_error(retries: &mut RetryBackoff, error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    // Of the connection alone; anything else is likely to come again at once.
    if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        let remedy = limit_remedy(error).map_or(String::new(), |remedy| format!(": {remedy}"));
        retries.record_failure(&format_args!("{error}{remedy}"));
    }
}

/// Says that there are too many connections, in the words of any other answer.
async fn reject_connection(mut socket: TcpStream, _place: OwnedSemaphorePermit) {
    const BODY: &str = r#"{"type":"urn:swelter:problem:overloaded","title":"The service cannot answer now","status":503,"code":"overloaded","detail":"there are too many connections: try again in a moment"}"#;
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\
         retry-after: 1\r\nconnection: close\r\n\r\n{BODY}",
        BODY.len()
    );
    let _ = timeout(REJECTION_TIMEOUT, async {
        socket.write_all(answer.as_bytes()).await?;
        socket.shutdown().await?;
        // A socket with unread bytes is reset when it closes, and the answer may be lost.
        let mut request = (&mut socket).take(MAX_HEAD_BYTES as u64);
        tokio::io::copy(&mut request, &mut tokio::io::sink()).await
    })
    .await;
}

/// One connection, from the TLS handshake to its end or its upgrade.
async fn serve_connection(
    server: Arc<ServerContext>,
    service: impl SharedRouteService,
    socket: TcpStream,
    tls: Option<Arc<ServerTls>>,
    permit: OwnedSemaphorePermit,
    mut stop: watch::Receiver<bool>,
) {
    panics::panic_point("connection");
    let ServeLimits { header_time, send_time, idle_time, .. } = server.limits;
    let peer = socket.peer_addr().ok().map(|peer| PeerAddress(peer.ip()));
    let stream = match tls {
        None => ClientStream::Plain(socket),
        Some(tls) => match timeout(header_time, tls.acceptor().accept(socket)).await {
            Ok(Ok(stream)) => ClientStream::Tls(Box::new(stream)),
            Ok(Err(error)) => return tracing::debug!("a TLS handshake failed: {error}"),
            Err(_) => return tracing::debug!("a TLS handshake took too long"),
        },
    };
    let activity = Arc::new(RequestActivity::default());
    let timed =
        TimedConnection::new(Connection::new(stream, permit), activity.clone(), header_time, send_time);
    let timed = timed.with_budget(server.response_budget.clone());
    let begun = activity.clone();
    let answer = service_fn(move |request| {
        begun.begin_request();
        let mut request: Request<Incoming> = request;
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        handle_request(service.clone(), begun.clone(), request)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        // A client may say that it sends no more and still wait for its answer.
        .half_close(true)
        // From the end of a request to the head of the next; a head that has begun is limited by `Timed`.
        .header_read_timeout(idle_time.max(header_time))
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEAD_BYTES)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(timed), answer)
        .with_upgrades();
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = wait_until_true(&mut stop) => {
            if !activity.has_served_request() {
                return;
            }
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a connection ended: {error}");
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
    let (began, method) = (Instant::now(), request.method().clone());
    let routed = panics::catch_future_panic(PanicScope::Request, async move {
        target::normalize_target(&mut request);
        service.call(request).await
    });
    let response = routed
        .await
        .unwrap_or_else(|CaughtPanic| Ok(ServerContext::internal_error(&method, began.elapsed())));
    activity.end_request();
    let (mut parts, body) = response?.into_parts();
    let room = parts.extensions.remove();
    Ok(Response::from_parts(parts, PermitBody { body, rest: Bytes::new(), permit: room }))
}

/// A body handed on in pieces, so that what it holds is held until nearly all of it has been taken.
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
