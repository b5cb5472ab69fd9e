//! Counts a client's bytes until they are a whole message: the bytes of all unfinished messages are
//! limited.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::serve::budget::{ByteQuota, QuotaShare};

/// Bytes of unfinished messages of all WebSockets, at least.
const MIN_UNFINISHED_BYTES: usize = 64 << 20;

/// Bytes of unfinished messages of all WebSockets. One socket may hold an eighth, and reserves
/// twice the bytes that it has read, so the longest message must fit 16 times.
pub fn unfinished_bytes(message_bytes: usize) -> usize {
    MIN_UNFINISHED_BYTES.max(16 * message_bytes)
}
/// Bytes of an unfinished message that are not counted: those that fit into its socket's buffer.
pub const UNCOUNTED_MESSAGE_BYTES: usize = 8 << 10;

/// A stream that fails if its unfinished message would exceed its share.
pub struct MeteredStream<S> {
    inner: S,
    begun_bytes: usize,
    quota_share: QuotaShare,
    is_refused: bool,
}

impl<S> MeteredStream<S> {
    /// `begun_bytes` of the stream were read before.
    pub fn new(inner: S, begun_bytes: usize, unfinished: &Arc<ByteQuota>) -> MeteredStream<S> {
        MeteredStream { inner, begun_bytes, quota_share: unfinished.new_share(), is_refused: false }
    }

    /// A whole message was read.
    pub(super) fn end_message(&mut self) {
        self.begun_bytes = 0;
        self.quota_share.shrink(usize::MAX);
    }

    /// Whether reading failed because all unfinished messages together are too long.
    pub(super) fn is_over_quota(&self) -> bool {
        self.is_refused
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for MeteredStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.begun_bytes += buf.filled().len() - before;
        let missing =
            self.begun_bytes.saturating_sub(UNCOUNTED_MESSAGE_BYTES).saturating_sub(self.quota_share.bytes());
        // Buffers grow by doubling.
        if missing > 0 && !self.quota_share.try_grow(2 * missing) {
            self.is_refused = true;
            return Poll::Ready(Err(io::Error::other("unfinished messages take too much memory")));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for MeteredStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
