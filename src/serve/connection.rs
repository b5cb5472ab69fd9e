//! The connection of one client, plain or TLS, with its time limits.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep};
use tokio_rustls::server::TlsStream;

use super::budget::MemoryBudget;
use super::read_rate::ReadRateMeter;

/// How long bytes that a client still sends after the last response are read before the connection
/// is closed: closing it with unread bytes would reset it, and the response could be lost.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// How many such bytes are read at most.
const MAX_LINGER_BYTES: usize = 4 << 20;

/// A connection, with its permit among those that are allowed.
pub(super) struct Connection {
    stream: ClientStream,
    _permit: OwnedSemaphorePermit,
}

pub(super) enum ClientStream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection {
    pub(super) fn new(stream: ClientStream, permit: OwnedSemaphorePermit) -> Connection {
        Connection { stream, _permit: permit }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stream {
            ClientStream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            ClientStream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            ClientStream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            ClientStream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            ClientStream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            ClientStream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            ClientStream::Plain(stream) => stream.is_write_vectored(),
            ClientStream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            ClientStream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            ClientStream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            ClientStream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            ClientStream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Whether a connection is handling a request, on which its time limits depend.
#[derive(Default)]
pub(super) struct RequestActivity {
    /// True from the head of a request to the head of its response.
    is_handling_request: AtomicBool,
    /// Whether there has been a request.
    has_served_request: AtomicBool,
}

impl RequestActivity {
    pub(super) fn begin_request(&self) {
        self.is_handling_request.store(true, Ordering::Relaxed);
        self.has_served_request.store(true, Ordering::Relaxed);
    }

    pub(super) fn end_request(&self) {
        self.is_handling_request.store(false, Ordering::Relaxed);
    }

    pub(super) fn has_served_request(&self) -> bool {
        self.has_served_request.load(Ordering::Relaxed)
    }
}

/// A connection that ends if the head of a request does not arrive in time, or if the client reads
/// a response too slowly. hyper limits how long it may be idle, and ingest how long a body may
/// take.
pub(super) struct TimedConnection<C> {
    inner: C,
    activity: Arc<RequestActivity>,
    header_time: Duration,
    send_time: Duration,
    /// When the head that is arriving must be complete.
    header_deadline: Option<Instant>,
    /// Made if a head does not arrive at once.
    header_timer: Option<Pin<Box<Sleep>>>,
    write_timer: Option<Pin<Box<Sleep>>>,
    read_rate: ReadRateMeter,
    /// Since when the client has read nothing, though data waits for it.
    blocked_since: Option<Instant>,
    /// When its read rate is checked next.
    rate_check_timer: Option<Pin<Box<Sleep>>>,
    /// The memory of responses, which others may wait for.
    memory_budget: Option<Arc<MemoryBudget>>,
    lingering_close: Option<LingeringClose>,
}

struct LingeringClose {
    timer: Pin<Box<Sleep>>,
    bytes: usize,
}

impl<C> TimedConnection<C> {
    pub(super) fn new(
        inner: C,
        activity: Arc<RequestActivity>,
        header_time: Duration,
        send_time: Duration,
    ) -> TimedConnection<C> {
        TimedConnection {
            inner,
            activity,
            header_time,
            send_time,
            header_deadline: Some(Instant::now() + header_time),
            header_timer: None,
            write_timer: None,
            read_rate: ReadRateMeter::new(send_time),
            blocked_since: None,
            rate_check_timer: None,
            memory_budget: None,
            lingering_close: None,
        }
    }

    /// Responses take memory of a budget that others may wait for.
    pub(super) fn with_budget(self, budget: Arc<MemoryBudget>) -> TimedConnection<C> {
        TimedConnection { memory_budget: Some(budget), ..self }
    }

    /// Whether the head that is arriving is late; if it is not, the task is woken when it will be.
    fn is_head_late(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(deadline) = self.header_deadline else { return false };
        let timer = self.header_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx).is_ready()
    }

    pub(super) fn into_inner(self) -> C {
        self.inner
    }

    /// Ends the connection if its client reads nothing for too long, or too little.
    fn check_write<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        match &written {
            Poll::Ready(Ok(result)) => {
                let is_too_slow = self.record_read_is_too_slow(bytes(result));
                (self.write_timer, self.blocked_since, self.rate_check_timer) = (None, None, None);
                return if is_too_slow { Poll::Ready(Err(ErrorKind::TimedOut.into())) } else { written };
            }
            Poll::Ready(Err(_)) => return written,
            Poll::Pending => {}
        }
        self.blocked_since.get_or_insert_with(Instant::now);
        loop {
            let next = self.read_rate.next_check_after();
            let check = self.rate_check_timer.get_or_insert_with(|| Box::pin(sleep(next)));
            if check.as_mut().poll(cx).is_pending() {
                break;
            }
            self.rate_check_timer = None;
            if self.record_read_is_too_slow(0) {
                return Poll::Ready(Err(ErrorKind::TimedOut.into()));
            }
        }
        let send_time = self.send_time;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(sleep(send_time)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }

    /// Records that the client has read `bytes` since the last check; true if it reads too slowly.
    fn record_read_is_too_slow(&mut self, bytes: usize) -> bool {
        let now = Instant::now();
        let waited = self.blocked_since.replace(now).map_or(Duration::ZERO, |since| now - since);
        let is_contended = self.memory_budget.as_ref().is_some_and(|budget| budget.has_waiters());
        self.read_rate.record_is_too_slow(waited, bytes, is_contended)
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for TimedConnection<C> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.inner).poll_read(cx, buf);
        if this.activity.is_handling_request.load(Ordering::Relaxed) {
            this.header_deadline = None;
            return read;
        }
        if read.is_ready() && buf.filled().len() == before {
            return read;
        }
        // Checked on progress too, so that a byte now and then does not extend the limit.
        let is_late = match &read {
            Poll::Ready(_) => {
                let now = Instant::now();
                *this.header_deadline.get_or_insert(now + this.header_time) <= now
            }
            Poll::Pending => this.is_head_late(cx),
        };
        if is_late { Poll::Ready(Err(ErrorKind::TimedOut.into())) } else { read }
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TimedConnection<C> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write(cx, buf);
        // A response is written only once the head of its request has arrived.
        this.header_deadline = None;
        this.check_write(cx, written, |bytes| *bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.header_deadline = None;
        this.check_write(cx, written, |bytes| *bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.inner).poll_flush(cx);
        this.check_write(cx, flushed, |()| 0)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingering_close.is_none() {
            let shutdown = Pin::new(&mut this.inner).poll_shutdown(cx);
            ready!(this.check_write(cx, shutdown, |()| 0))?;
        }
        let timer = || Box::pin(tokio::time::sleep_until(Instant::now() + LINGER_TIMEOUT));
        let linger = this.lingering_close.get_or_insert_with(|| LingeringClose { timer: timer(), bytes: 0 });
        while linger.bytes < MAX_LINGER_BYTES && linger.timer.as_mut().poll(cx).is_pending() {
            let mut space = [0; 4096];
            let mut buf = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => linger.bytes += buf.filled().len(),
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const LIMIT: Duration = Duration::from_secs(10);

    fn timed<C>(inner: C) -> (TimedConnection<C>, Arc<RequestActivity>) {
        let activity = Arc::new(RequestActivity::default());
        (TimedConnection::new(inner, activity.clone(), LIMIT, LIMIT), activity)
    }

    fn paused() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[test]
    fn stalled_reader_times_out() {
        paused().block_on(async {
            let (client, server) = duplex(16);
            let activity = Arc::new(RequestActivity::default());
            let mut server = TimedConnection::new(server, activity, LIMIT, Duration::from_millis(20));
            let error = server.write_all(&[0; 100]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            drop(client);
        });
    }

    #[test]
    fn trickled_bytes_do_not_extend_header_timeout() {
        paused().block_on(async {
            let (mut client, server) = duplex(16);
            let activity = Arc::new(RequestActivity::default());
            let mut server = TimedConnection::new(server, activity, Duration::from_millis(50), LIMIT);
            let feed = async {
                while client.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let read = async {
                let mut space = [0; 8];
                loop {
                    if let Err(error) = server.read(&mut space).await {
                        return error.kind();
                    }
                }
            };
            tokio::select! {
                () = feed => panic!("the reader was dropped"),
                kind = read => assert_eq!(kind, ErrorKind::TimedOut),
            }
        });
    }

    #[test]
    fn response_is_delivered_before_connection_closes() {
        paused().block_on(async {
            let (mut client, server) = duplex(16);
            let (mut server, activity) = timed(server);
            activity.begin_request();
            assert!(activity.has_served_request());
            let sent = tokio::spawn(async move {
                client.write_all(&[0; 1000]).await.unwrap();
                let mut response = Vec::new();
                client.read_to_end(&mut response).await.unwrap();
                response
            });
            server.write_all(b"413").await.unwrap();
            server.shutdown().await.unwrap();
            drop(server);
            assert_eq!(sent.await.unwrap(), b"413");
        });
    }
}
