//! One client's connection: plain or TLS, within its time limits.

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

use super::budget::Budget;
use super::least_rate::Pace;

/// What a client still sends after the last answer is read for so long and no further: closing earlier would reset the
/// connection, and the answer could be lost on its way.
const LINGER_TIME: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 << 20;

/// A connection with its place among those that are allowed.
pub(super) struct Connection {
    stream: Stream,
    _slot: OwnedSemaphorePermit,
}

pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection {
    pub(super) fn new(stream: Stream, slot: OwnedSemaphorePermit) -> Connection {
        Connection { stream, _slot: slot }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// What a connection is doing, as far as its time limits depend on it.
#[derive(Default)]
pub(super) struct Activity {
    /// Between the head of a request and that of its answer.
    answering: AtomicBool,
    /// There has been a request.
    used: AtomicBool,
}

impl Activity {
    pub(super) fn begin(&self) {
        self.answering.store(true, Ordering::Relaxed);
        self.used.store(true, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.answering.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }
}

/// A connection that ends where the head of a request does not come in time, or an answer is not taken. How long it may be
/// idle and how long a body may take, is limited elsewhere.
pub(super) struct Timed<C> {
    inner: C,
    activity: Arc<Activity>,
    head_time: Duration,
    write_time: Duration,
    /// Of the head that is coming.
    head_due: Option<Instant>,
    /// Made where a head does not come at once.
    head_timer: Option<Pin<Box<Sleep>>>,
    write_due: Option<Pin<Box<Sleep>>>,
    pace: Pace,
    /// Since when the client has taken nothing, though there is something to take.
    blocked: Option<Instant>,
    /// When its pace is looked at next.
    look: Option<Pin<Box<Sleep>>>,
    /// What answers are held in.
    budget: Option<Arc<Budget>>,
    linger: Option<Linger>,
}

struct Linger {
    due: Pin<Box<Sleep>>,
    bytes: usize,
}

impl<C> Timed<C> {
    pub(super) fn new(
        inner: C,
        activity: Arc<Activity>,
        head_time: Duration,
        write_time: Duration,
    ) -> Timed<C> {
        let head_due = Some(Instant::now() + head_time);
        let (head_timer, write_due, linger) = (None, None, None);
        let (pace, blocked, look, budget) = (Pace::new(write_time), None, None, None);
        Timed {
            inner,
            activity,
            head_time,
            write_time,
            head_due,
            head_timer,
            write_due,
            pace,
            blocked,
            look,
            budget,
            linger,
        }
    }

    /// What is written is held in a budget that others may wait for.
    pub(super) fn sharing(self, budget: Arc<Budget>) -> Timed<C> {
        Timed { budget: Some(budget), ..self }
    }

    /// Whether the head that is coming takes too long; if not, the task is woken when it does.
    fn is_head_late(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(due) = self.head_due else { return false };
        let timer = self.head_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(cx).is_ready()
    }

    pub(super) fn into_inner(self) -> C {
        self.inner
    }

    /// Ends a connection whose client takes nothing for too long, or too little.
    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        match &written {
            Poll::Ready(Ok(done)) => {
                let is_too_slow = self.is_too_slow(bytes(done));
                (self.write_due, self.blocked, self.look) = (None, None, None);
                return if is_too_slow { Poll::Ready(Err(ErrorKind::TimedOut.into())) } else { written };
            }
            Poll::Ready(Err(_)) => return written,
            Poll::Pending => {}
        }
        self.blocked.get_or_insert_with(Instant::now);
        loop {
            let next = self.pace.next_look();
            let look = self.look.get_or_insert_with(|| Box::pin(sleep(next)));
            if look.as_mut().poll(cx).is_pending() {
                break;
            }
            self.look = None;
            if self.is_too_slow(0) {
                return Poll::Ready(Err(ErrorKind::TimedOut.into()));
            }
        }
        let write_time = self.write_time;
        let due = self.write_due.get_or_insert_with(|| Box::pin(sleep(write_time)));
        ready!(due.as_mut().poll(cx));
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }

    /// Notes what the client has taken since it was looked at last.
    fn is_too_slow(&mut self, bytes: usize) -> bool {
        let now = Instant::now();
        let waited = self.blocked.replace(now).map_or(Duration::ZERO, |since| now - since);
        let short = self.budget.as_ref().is_some_and(|budget| budget.is_short());
        self.pace.is_too_slow(waited, bytes, short)
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Timed<C> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.inner).poll_read(cx, buf);
        if this.activity.answering.load(Ordering::Relaxed) {
            this.head_due = None;
            return read;
        }
        if read.is_ready() && buf.filled().len() == before {
            return read;
        }
        // Checked on progress too: a byte now and then does not keep the head coming for ever.
        let late = match &read {
            Poll::Ready(_) => {
                let now = Instant::now();
                *this.head_due.get_or_insert(now + this.head_time) <= now
            }
            Poll::Pending => this.is_head_late(cx),
        };
        if late { Poll::Ready(Err(ErrorKind::TimedOut.into())) } else { read }
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Timed<C> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write(cx, buf);
        // Something is answered only once its request has come.
        this.head_due = None;
        this.written(cx, written, |bytes| *bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.head_due = None;
        this.written(cx, written, |bytes| *bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.inner).poll_flush(cx);
        this.written(cx, flushed, |()| 0)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            let shut = Pin::new(&mut this.inner).poll_shutdown(cx);
            ready!(this.written(cx, shut, |()| 0))?;
        }
        let due = || Box::pin(tokio::time::sleep_until(Instant::now() + LINGER_TIME));
        let linger = this.linger.get_or_insert_with(|| Linger { due: due(), bytes: 0 });
        while linger.bytes < LINGER_BYTES && linger.due.as_mut().poll(cx).is_pending() {
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

    fn timed<C>(inner: C) -> (Timed<C>, Arc<Activity>) {
        let activity = Arc::new(Activity::default());
        (Timed::new(inner, activity.clone(), LIMIT, LIMIT), activity)
    }

    fn paused() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[test]
    fn nobody_waits_long_for_who_does_not_take() {
        paused().block_on(async {
            let (client, server) = duplex(16);
            let activity = Arc::new(Activity::default());
            let mut server = Timed::new(server, activity, LIMIT, Duration::from_millis(20));
            let error = server.write_all(&[0; 100]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            drop(client);
        });
    }

    #[test]
    fn bytes_now_and_then_do_not_extend_the_time_of_a_head() {
        paused().block_on(async {
            let (mut client, server) = duplex(16);
            let activity = Arc::new(Activity::default());
            let mut server = Timed::new(server, activity, Duration::from_millis(50), LIMIT);
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
                () = feed => panic!("the reader is there"),
                kind = read => assert_eq!(kind, ErrorKind::TimedOut),
            }
        });
    }

    #[test]
    fn the_end_is_heard_before_the_connection_closes() {
        paused().block_on(async {
            let (mut client, server) = duplex(16);
            let (mut server, activity) = timed(server);
            activity.begin();
            assert!(activity.is_used());
            let sent = tokio::spawn(async move {
                client.write_all(&[0; 1000]).await.unwrap();
                let mut answer = Vec::new();
                client.read_to_end(&mut answer).await.unwrap();
                answer
            });
            server.write_all(b"413").await.unwrap();
            server.shutdown().await.unwrap();
            drop(server);
            assert_eq!(sent.await.unwrap(), b"413");
        });
    }
}
