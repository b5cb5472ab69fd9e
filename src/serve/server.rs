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

use super::connection::{Activity, Connection, Stream, Timed};
use super::ingest::{Ingest, TimeRules};
use super::new_cities::NewCities;
use super::publish::{self, Publisher};
use super::routes::{self, Room, Server};
use super::security::{Guard, PeerAddress};
use super::target;
use super::tls::Tls;
use super::view::View;
use super::ws::Sessions;
use super::{Facts, Limits, Ports, ServeError, ServePlan, backends, telemetry};
use crate::fault::{Retries, limit_remedy};
use crate::panics::{self, Panicked, Scope};

/// Of a request's head, URI included.
const HEAD_BYTES: usize = 16 * 1024;
const HEADERS: usize = 100;
/// What is read from and written to a socket at once.
const BUFFER_BYTES: usize = 64 * 1024;
/// Connections over the limit that are told so at once, at most; further ones are just closed.
const TURNED_AWAY: usize = 64;
const TURN_AWAY_TIME: Duration = Duration::from_secs(1);
const CERTIFICATE_CHECK: Duration = Duration::from_secs(30);

/// Connections over a limit that are told so at once: each needs an open file, too.
pub fn turned_away_at_once(connections: usize) -> usize {
    (connections / 8).clamp(8, TURNED_AWAY)
}

/// A socket that listens; clients wait until [`Bound::start`].
pub struct Bound {
    plan: ServePlan,
    listener: std::net::TcpListener,
    address: SocketAddr,
    tls: Option<Tls>,
}

/// Binds the socket and reads what else can fail.
pub fn bind(plan: ServePlan) -> Result<Bound, ServeError> {
    let tls = plan.tls.as_ref().map(Tls::load).transpose()?;
    let refused = |error| ServeError::Listen { address: plan.listen, error };
    let listener = std::net::TcpListener::bind(plan.listen).map_err(refused)?;
    listener.set_nonblocking(true).map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    Ok(Bound { plan, listener, address, tls })
}

/// A server that runs.
pub struct Serving {
    publisher: Publisher,
    sessions: Sessions,
    slots: Arc<Semaphore>,
    connections: usize,
    stop: watch::Sender<bool>,
    cut: watch::Sender<bool>,
}

impl Bound {
    /// With the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves from now on. Before the first update all but ingest answers that the service is catching up.
    pub fn start(self, runtime: &Handle, facts: Facts, ports: Ports) -> Result<Serving, ServeError> {
        telemetry::install();
        let Bound { plan, listener, address, tls } = self;
        let _inside = runtime.enter();
        let listener =
            TcpListener::from_std(listener).map_err(|error| ServeError::Listen { address, error })?;
        let limits = plan.limits.clone();
        let ports = backends::marked(ports);
        let (read, ingest_log) = (facts.read.clone(), facts.ingest_log.clone());
        let view = View::new(facts, &limits, ports.ask);
        let new_cities = NewCities::new(&view, ingest_log, limits.new_cities_percent);
        let times = TimeRules::new(view.clone(), ports.warn_ahead);
        let ingest = Ingest::new(ports.appender, ports.holds, new_cities, read, times, &limits);
        let sessions = Sessions::new(view.clone(), &limits);
        let (publisher, _) = publish::spawn(view.clone(), sessions.clone()).map_err(ServeError::Thread)?;
        let connections = limits.connections.clamp(1, Semaphore::MAX_PERMITS);
        let slots = Arc::new(Semaphore::new(connections));
        let (stop, stopping) = watch::channel(false);
        let (cut, cutting) = watch::channel(false);
        let server = Arc::new(Server {
            view,
            sessions: sessions.clone(),
            ingest,
            guard: Guard::new(&plan, address.ip()),
            limits,
            echo: plan.echo,
            slots: slots.clone(),
            answers: routes::answers_room(),
            stop: stopping.clone(),
        });
        let accepting = Accepting {
            server,
            tls: tls.map(Arc::new),
            refusals: Arc::new(Semaphore::new(turned_away_at_once(connections))),
            stop: stopping,
            cut: cutting,
        };
        runtime.spawn(accepting.run(listener));
        Ok(Serving { publisher, sessions, slots, connections, stop, cut })
    }
}

impl Serving {
    /// Where updates go.
    pub fn publisher(&self) -> Publisher {
        self.publisher.clone()
    }

    /// Stops accepting, ends WebSockets with 1001, and finishes requests that are under way; after `grace` what is left is
    /// cut off. The publisher's thread ends when the caller has dropped its publishers too.
    pub async fn stop(self, grace: Duration) {
        self.stop.send_replace(true);
        let all = u32::try_from(self.connections).unwrap_or(u32::MAX);
        let ended = async { tokio::join!(self.sessions.close_all(), self.slots.acquire_many(all)) };
        if timeout(grace, ended).await.is_err() {
            let left = self.connections - self.slots.available_permits();
            tracing::warn!("{left} connections did not end in time and are cut off");
        }
        self.cut.send_replace(true);
    }
}

/// The accept loop, and what each connection gets.
struct Accepting {
    server: Arc<Server>,
    tls: Option<Arc<Tls>>,
    refusals: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
    /// Time is up: connections are dropped as they are.
    cut: watch::Receiver<bool>,
}

impl Accepting {
    async fn run(self, listener: TcpListener) {
        let mut stop = self.stop.clone();
        let mut retries = Retries::new("accept", "accept connections", "new ones wait");
        let service = TowerToHyperService::new(warp::service(routes::filter(self.server.clone())));
        let mut upkeep = tokio::time::interval(telemetry::UPKEEP);
        let mut certificate = tokio::time::interval(CERTIFICATE_CHECK);
        loop {
            let pause = retries.delay();
            tokio::select! {
                biased;
                () = told(&mut stop) => return,
                _ = upkeep.tick() => telemetry::upkeep(),
                _ = certificate.tick() => self.check_certificate(),
                accepted = listener.accept(), if pause.is_zero() => match accepted {
                    Ok((socket, _)) => {
                        retries.succeeded();
                        self.admit(socket, &service);
                    }
                    Err(error) => note_accept_error(&mut retries, &error),
                },
                () = sleep(pause), if !pause.is_zero() => {}
            }
        }
    }

    fn check_certificate(&self) {
        let Some(tls) = self.tls.clone() else { return };
        tokio::task::spawn_blocking(move || match tls.reload() {
            Ok(true) => tracing::info!("the certificate has changed: new connections get it"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!("the certificate's files have changed and are not used yet: {error}")
            }
        });
    }

    fn admit(&self, socket: TcpStream, service: &impl Routes) {
        // What is sent is sent at once: messages are put together before.
        let _ = socket.set_nodelay(true);
        let Ok(slot) = self.server.slots.clone().try_acquire_owned() else {
            telemetry::turned_away();
            if let (None, Ok(place)) = (&self.tls, self.refusals.clone().try_acquire_owned()) {
                tokio::spawn(panics::catch_future(Scope::Connection, turn_away(socket, place)));
            }
            return;
        };
        let (server, service, tls) = (self.server.clone(), service.clone(), self.tls.clone());
        let (stop, mut cut) = (self.stop.clone(), self.cut.clone());
        tokio::spawn(panics::catch_future(Scope::Connection, async move {
            tokio::select! {
                () = connect(server, service, socket, tls, slot, stop) => {}
                () = told(&mut cut) => {}
            }
        }));
    }
}

/// Waits until it is true, or nobody is left who could say so.
async fn told(word: &mut watch::Receiver<bool>) {
    let _ = word.wait_for(|word| *word).await;
}

fn note_accept_error(retries: &mut Retries, error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    // Of the connection alone; anything else is likely to come again at once.
    if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        let remedy = limit_remedy(error).map_or(String::new(), |remedy| format!(": {remedy}"));
        retries.failed(&format_args!("{error}{remedy}"));
    }
}

/// Says that there are too many connections, in the words of any other answer.
async fn turn_away(mut socket: TcpStream, _place: OwnedSemaphorePermit) {
    const BODY: &str = r#"{"type":"urn:swelter:problem:overloaded","title":"The service cannot answer now","status":503,"code":"overloaded","detail":"there are too many connections: try again in a moment"}"#;
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\
         retry-after: 1\r\nconnection: close\r\n\r\n{BODY}",
        BODY.len()
    );
    let _ = timeout(TURN_AWAY_TIME, async {
        socket.write_all(answer.as_bytes()).await?;
        socket.shutdown().await?;
        // A socket with unread bytes is reset when it closes, and the answer may be lost.
        let mut request = (&mut socket).take(HEAD_BYTES as u64);
        tokio::io::copy(&mut request, &mut tokio::io::sink()).await
    })
    .await;
}

/// One connection, from the TLS handshake to its end or its upgrade.
async fn connect(
    server: Arc<Server>,
    service: impl Routes,
    socket: TcpStream,
    tls: Option<Arc<Tls>>,
    slot: OwnedSemaphorePermit,
    mut stop: watch::Receiver<bool>,
) {
    panics::fail_point("connection");
    let Limits { header_time, send_time, idle_time, .. } = server.limits;
    let peer = socket.peer_addr().ok().map(|peer| PeerAddress(peer.ip()));
    let stream = match tls {
        None => Stream::Plain(socket),
        Some(tls) => match timeout(header_time, tls.acceptor().accept(socket)).await {
            Ok(Ok(stream)) => Stream::Tls(Box::new(stream)),
            Ok(Err(error)) => return tracing::debug!("a TLS handshake failed: {error}"),
            Err(_) => return tracing::debug!("a TLS handshake took too long"),
        },
    };
    let activity = Arc::new(Activity::default());
    let timed = Timed::new(Connection::new(stream, slot), activity.clone(), header_time, send_time);
    let timed = timed.sharing(server.answers.clone());
    let begun = activity.clone();
    let answer = service_fn(move |request| {
        begun.begin();
        let mut request: Request<Incoming> = request;
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        answer(service.clone(), begun.clone(), request)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        // A client may say that it sends no more and still wait for its answer.
        .half_close(true)
        // From the end of a request to the head of the next; a head that has begun is limited by `Timed`.
        .header_read_timeout(idle_time.max(header_time))
        .max_headers(HEADERS)
        .max_header_size(HEAD_BYTES)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(timed), answer)
        .with_upgrades();
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = told(&mut stop) => {
            if !activity.is_used() {
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
trait Routes: Route + Clone + Send + Sync + 'static {}

impl<S: Route + Clone + Send + Sync + 'static> Routes for S {}

trait Route:
    Service<Request<Incoming>, Response = warp::reply::Response, Error = Infallible, Future: Send>
{
}

impl<S> Route for S where
    S: Service<Request<Incoming>, Response = warp::reply::Response, Error = Infallible, Future: Send>
{
}

async fn answer(
    service: impl Routes,
    activity: Arc<Activity>,
    mut request: Request<Incoming>,
) -> Result<Response<impl Body<Data = Bytes, Error = warp::Error> + Send + Unpin>, Infallible> {
    let (began, method) = (Instant::now(), request.method().clone());
    let routed = panics::catch_future(Scope::Request, async move {
        target::normalize(&mut request);
        service.call(request).await
    });
    let response =
        routed.await.unwrap_or_else(|Panicked| Ok(Server::internal_error(&method, began.elapsed())));
    activity.end();
    let (mut parts, body) = response?.into_parts();
    let room = parts.extensions.remove();
    Ok(Response::from_parts(parts, Sent { body, rest: Bytes::new(), room }))
}

/// A body handed on in pieces, so that what it holds is held until nearly all of it has been taken.
struct Sent<B> {
    body: B,
    rest: Bytes,
    room: Option<Room>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Sent<B> {
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
                    self.room = None;
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
