//! Writing to a subscriber: messages of the session, and rows, which are encoded as the client
//! reads them, never all at once.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::selection::Selection;
use super::shared::SessionsShared;
use super::socket::{CloseCause, FRAGMENT_BYTES, TimedSocket};
use crate::codec;
use crate::model::{EventTime, OutputUnits};
use crate::serve::encoding_turns::ROWS_PER_TURN;
use crate::serve::wire::{self, ServerMessage};

/// Bytes of a part of a snapshot, before its end is written.
const SNAPSHOT_PART_BYTES: usize = FRAGMENT_BYTES - 1024;

/// Writes to one subscriber, and counts what is sent.
pub(super) struct SessionWriter<S> {
    shared: Arc<SessionsShared>,
    pub(super) socket: TimedSocket<S>,
}

/// A snapshot that is written in parts.
pub(super) struct SnapshotWriter {
    id: Arc<str>,
    digest: u64,
    units: OutputUnits,
    as_of: u64,
    text: Vec<u8>,
    rows: u64,
    /// Parts that are complete and not written yet, with their numbers of rows.
    full_parts: Vec<(Vec<u8>, u64)>,
}

/// The rows of a merged `changes` message.
pub(super) struct MergedChanges<R> {
    pub(super) as_of: u64,
    pub(super) upserts: Vec<R>,
    pub(super) removals: Vec<(Arc<str>, EventTime)>,
}

impl<R> MergedChanges<R> {
    pub(super) fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removals.is_empty()
    }
}

impl SnapshotWriter {
    pub(super) fn new(id: Arc<str>, selection: &Selection, as_of: u64) -> SnapshotWriter {
        let mut snapshot = SnapshotWriter {
            id,
            digest: selection.digest(),
            units: selection.units,
            as_of,
            text: Vec::new(),
            rows: 0,
            full_parts: Vec::new(),
        };
        snapshot.begin_part();
        snapshot
    }

    fn begin_part(&mut self) {
        self.rows = 0;
        wire::begin_snapshot(&mut self.text, &self.id, self.as_of, self.units);
    }

    pub(super) fn add_row(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.text.len() >= SNAPSHOT_PART_BYTES {
            self.text.extend_from_slice(b"],\"complete\":false}");
            self.end_part();
            self.begin_part();
        }
        push_comma(&mut self.text, self.rows);
        write(&mut self.text);
        self.rows += 1;
    }

    fn end_part(&mut self) {
        self.full_parts.push((std::mem::take(&mut self.text), self.rows));
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> SessionWriter<S> {
    pub(super) fn new(shared: Arc<SessionsShared>, socket: TimedSocket<S>) -> SessionWriter<S> {
        SessionWriter { shared, socket }
    }

    /// Writes a message of the session itself.
    pub(super) async fn send_message(&mut self, message: ServerMessage<'_>) -> Result<(), CloseCause> {
        let text = message.to_json();
        self.record_sent(text.len(), 0);
        self.socket.feed_message(Message::Text(text.into())).await?;
        self.socket.flush_socket().await
    }

    pub(super) fn record_sent(&self, bytes: usize, rows: u64) {
        let metrics = &self.shared.metrics;
        metrics.messages.increment(1);
        metrics.rows.increment(rows);
        metrics.bytes.increment(bytes as u64);
    }

    /// Writes the parts that are complete.
    pub(super) async fn write_full_parts(&mut self, snapshot: &mut SnapshotWriter) -> Result<(), CloseCause> {
        for (text, rows) in snapshot.full_parts.drain(..) {
            self.record_sent(text.len(), rows);
            self.send_json(text).await?;
            self.socket.flush_socket().await?;
        }
        Ok(())
    }

    /// Writes the last part.
    pub(super) async fn finish_snapshot(&mut self, mut snapshot: SnapshotWriter) -> Result<(), CloseCause> {
        snapshot.text.extend_from_slice(b"],\"complete\":true,\"token\":\"");
        self.shared.resume_tokens.push_token(&mut snapshot.text, snapshot.as_of, snapshot.digest);
        snapshot.text.extend_from_slice(b"\"}");
        snapshot.end_part();
        self.write_full_parts(&mut snapshot).await
    }

    /// Writes a snapshot of rows that are all in memory.
    pub(super) async fn write_snapshot<R>(
        &mut self,
        id: &Arc<str>,
        selection: &Selection,
        as_of: u64,
        rows: impl Iterator<Item = R>,
        write: impl Fn(&mut Vec<u8>, &R),
    ) -> Result<(), CloseCause> {
        let view = self.shared.view.clone();
        let mut snapshot = SnapshotWriter::new(id.clone(), selection, as_of);
        let mut rows = rows.peekable();
        while rows.peek().is_some() {
            let turn = view.encoding_turns().wait_for_turn().await;
            for row in rows.by_ref().take(ROWS_PER_TURN) {
                snapshot.add_row(|out| write(out, &row));
            }
            drop(turn);
            self.write_full_parts(&mut snapshot).await?;
        }
        self.finish_snapshot(snapshot).await
    }

    /// Writes a merged `changes` message, in fragments if it is long.
    pub(super) async fn write_changes<R>(
        &mut self,
        id: &str,
        selection: &Selection,
        changes: MergedChanges<R>,
        write: impl Fn(&mut Vec<u8>, &R),
    ) -> Result<(), CloseCause> {
        let MergedChanges { as_of, upserts, removals } = changes;
        let rows = upserts.len() + removals.len();
        let mut text = Vec::new();
        wire::begin_changes(&mut text, id, as_of, selection.units);
        self.shared.resume_tokens.push_token(&mut text, as_of, selection.digest());
        text.extend_from_slice(b"\",\"upserts\":[");
        let mut fragment_bytes = 0;
        for (count, row) in (0..).zip(upserts) {
            push_comma(&mut text, count);
            write(&mut text, &row);
            fragment_bytes += self.write_fragment_if_long(&mut text).await?;
        }
        text.extend_from_slice(b"],\"removals\":[");
        for (count, (city, reading_at)) in (0..).zip(removals) {
            push_comma(&mut text, count);
            codec::push_key_json(&mut text, &city, reading_at);
            fragment_bytes += self.write_fragment_if_long(&mut text).await?;
        }
        text.extend_from_slice(b"]}");
        self.record_sent(fragment_bytes + text.len(), rows as u64);
        if fragment_bytes > 0 {
            return self.socket.write_fragment(text.into(), true).await;
        }
        self.send_json(text).await?;
        self.socket.flush_socket().await
    }

    /// Writes the text as a fragment if it is long enough, and returns the length of what was
    /// written.
    async fn write_fragment_if_long(&mut self, text: &mut Vec<u8>) -> Result<usize, CloseCause> {
        if text.len() < FRAGMENT_BYTES {
            return Ok(0);
        }
        let fragment = std::mem::take(text);
        let bytes = fragment.len();
        self.socket.write_fragment(fragment.into(), false).await?;
        Ok(bytes)
    }

    async fn send_json(&mut self, text: Vec<u8>) -> Result<(), CloseCause> {
        // Rows are written as UTF-8.
        match Utf8Bytes::try_from(text) {
            Ok(text) => self.socket.feed_message(Message::Text(text)).await,
            Err(_) => Ok(()),
        }
    }
}

fn push_comma(out: &mut Vec<u8>, count: u64) {
    if count > 0 {
        out.push(b',');
    }
}
