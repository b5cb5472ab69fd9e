//! Queries to the dataflow that wait for their responses.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::query_error::QueryError;
use super::query_scheduler::{QueryEvent, QueryScheduler};
use crate::model::{AnswerPiece, MAX_PINNED_BYTES, Queries, Query, QueryKind, RemainingRows};
use crate::panics::locks::SharedMutex;

/// Queries that may wait for a response at one time.
pub const MAX_PENDING_QUERIES: usize = 10_000;
/// Time until a response begins, and from one piece of it to the next.
const QUERY_RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long reading a response may take while others wait for their turn: this time, and a second
/// more for each [`CONTENDED_ROWS_PER_SECOND`] rows.
const CONTENDED_RESPONSE_TIME: Duration = Duration::from_secs(10);
const CONTENDED_ROWS_PER_SECOND: u64 = 20_000;

pub(super) struct PendingQueries {
    queries: Arc<dyn Queries>,
    /// While this many bytes are pinned in the dataflow, no further query is sent.
    max_pinned_bytes: u64,
    scheduler: SharedMutex<QueryScheduler>,
}

impl PendingQueries {
    /// For a dataflow of `workers` workers.
    pub(super) fn new(queries: Arc<dyn Queries>, workers: usize) -> PendingQueries {
        // The other half is for queries that are on their way to the workers.
        let max_pinned_bytes = (MAX_PINNED_BYTES / 2 * workers.max(1)) as u64;
        PendingQueries { queries, max_pinned_bytes, scheduler: SharedMutex::default() }
    }

    /// Queues queries, which will all be answered at one epoch.
    pub(super) fn submit_queries(
        self: &Arc<PendingQueries>,
        queries: Vec<(Arc<str>, QueryKind)>,
    ) -> Result<QueryResponse, QueryError> {
        let mut scheduler = self.scheduler.lock();
        if scheduler.waiting_cities() + queries.len() > MAX_PENDING_QUERIES {
            return Err(QueryError::TooManyQueries);
        }
        let (event_sender, events) = mpsc::unbounded_channel();
        let unfinished_queries = queries.len();
        let is_next = !scheduler.has_queued_groups();
        let first_id = scheduler.open_group(queries, event_sender);
        // The group is open before a response can arrive: responses take the lock too.
        if !self.send_ready_queries(&mut scheduler) && is_next {
            scheduler.discard_unsent_group(first_id);
            return Err(QueryError::TooManyQueries);
        }
        Ok(QueryResponse {
            pending_queries: self.clone(),
            first_id,
            unfinished_queries,
            unreleased_rows: 0,
            deadline: Instant::now() + QUERY_RESPONSE_TIMEOUT,
            events,
            early_pieces: VecDeque::new(),
        })
    }

    /// Sends a query that has no response; false if the dataflow's queue is full.
    pub(super) fn send_unanswered(&self, city: &Arc<str>, kind: QueryKind) -> bool {
        let mut scheduler = self.scheduler.lock();
        let id = scheduler.next_id;
        scheduler.next_id += 1;
        // After all that waits: the end of a watch must not overtake its beginning.
        self.flush_outbound(&mut scheduler)
            && self.queries.submit_queries(vec![Query { id, process: 0, city: city.clone(), kind }])
    }

    pub(super) fn on_responses(&self, answers: Vec<AnswerPiece>) {
        let mut scheduler = self.scheduler.lock();
        for answer in answers {
            scheduler.on_response(answer);
        }
        self.send_ready_queries(&mut scheduler);
    }

    /// Sends the queries whose turn has come; false if the dataflow's queue is full.
    fn send_ready_queries(&self, scheduler: &mut QueryScheduler) -> bool {
        while self.flush_outbound(scheduler) {
            let Some(queries) = scheduler.next_queries(self.max_pinned_bytes) else { return true };
            scheduler.outbound().extend(queries);
        }
        false
    }

    fn flush_outbound(&self, scheduler: &mut QueryScheduler) -> bool {
        let outbound = scheduler.outbound();
        let sent = outbound.is_empty() || self.queries.submit_queries(outbound.clone());
        if sent {
            outbound.clear();
        }
        sent
    }
}

/// The response to a group of queries, received in pieces. Dropping it cancels the queries.
pub struct QueryResponse {
    pending_queries: Arc<PendingQueries>,
    first_id: u64,
    /// Queries whose last piece has not arrived.
    unfinished_queries: usize,
    /// Rows of the last piece, which the client is reading.
    unreleased_rows: usize,
    deadline: Instant,
    events: mpsc::UnboundedReceiver<QueryEvent>,
    /// Pieces that arrived before all queries were counted.
    early_pieces: VecDeque<AnswerPiece>,
}

impl QueryResponse {
    /// The id of the first query; those of the others follow.
    pub(super) fn first_id(&self) -> u64 {
        self.first_id
    }

    /// Waits until the rows of all queries are counted, and returns their epoch. From then on the
    /// response is not refused.
    pub async fn wait_for_epoch(&mut self) -> Result<u64, QueryError> {
        loop {
            match self.next_event().await? {
                QueryEvent::AllCounted(epoch) => return Ok(epoch),
                QueryEvent::Piece(answer) => self.early_pieces.push_back(answer),
                QueryEvent::Failed(error) => return Err(error),
            }
        }
    }

    /// The next piece; pieces of one query arrive in their order. It releases the rows of the piece
    /// before, which the client must have read by then.
    pub async fn next_piece(&mut self) -> Result<Option<AnswerPiece>, QueryError> {
        self.release_last_rows()?;
        let answer = match self.early_pieces.pop_front() {
            Some(answer) => answer,
            None if self.unfinished_queries == 0 => return Ok(None),
            None => loop {
                self.deadline = Instant::now() + QUERY_RESPONSE_TIMEOUT;
                match self.next_event().await? {
                    QueryEvent::AllCounted(_) => {}
                    QueryEvent::Piece(answer) => break answer,
                    QueryEvent::Failed(error) => return Err(error),
                }
            },
        };
        self.unfinished_queries -= usize::from(answer.remaining == RemainingRows::Nothing);
        self.unreleased_rows = answer.rows.len();
        Ok(Some(answer))
    }

    async fn next_event(&mut self) -> Result<QueryEvent, QueryError> {
        match timeout_at(self.deadline, self.events.recv()).await {
            Ok(Some(event)) => Ok(event),
            _ => Err(QueryError::TooManyQueries),
        }
    }

    fn release_last_rows(&mut self) -> Result<(), QueryError> {
        let rows = std::mem::take(&mut self.unreleased_rows);
        let mut scheduler = self.pending_queries.scheduler.lock();
        if rows > 0 {
            scheduler.on_rows_read(self.first_id, rows);
            self.pending_queries.send_ready_queries(&mut scheduler);
        }
        if let Some((opened_at, read_rows)) = scheduler.group_progress(self.first_id)
            && scheduler.is_contended(self.pending_queries.max_pinned_bytes)
            && opened_at.elapsed()
                > CONTENDED_RESPONSE_TIME + Duration::from_secs(read_rows / CONTENDED_ROWS_PER_SECOND)
        {
            return Err(QueryError::SlowReader);
        }
        Ok(())
    }
}

impl Drop for QueryResponse {
    fn drop(&mut self) {
        let mut scheduler = self.pending_queries.scheduler.lock();
        scheduler.close_group(self.first_id);
        self.pending_queries.send_ready_queries(&mut scheduler);
    }
}
