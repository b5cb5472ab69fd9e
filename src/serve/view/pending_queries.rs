//! Questions to the dataflow that wait for their answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::lock_mutex;
use super::query_scheduler::{QueryEvent, QueryScheduler};
use crate::model::{AnswerPiece, MAX_PINNED_BYTES, Queries, Query, QueryKind, RemainingRows};
use crate::panics::locks::SharedMutex;

/// Queries that may wait at once.
pub const MAX_PENDING_QUERIES: usize = 10_000;
/// Until an answer begins; and from one piece of it to the next.
const QUERY_RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may take while others wait for their turn: so much, and a second more for so many rows.
const CONTENDED_RESPONSE_TIME: Duration = Duration::from_secs(10);
const CONTENDED_ROWS_PER_SECOND: u64 = 20_000;

/// There is no answer for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    #[error("too many questions are waiting for an answer: try again in a moment")]
    TooManyQueries,
    #[error("too many cities are watched: try again in a moment")]
    TooManyWatchedCities,
    #[error("too many snapshots are being sent: try again in a moment")]
    TooManySnapshots,
    #[error("too much is held for other answers: try again in a moment")]
    TooMuchPinned,
    #[error("the answer was read too slowly while others waited: try again, or ask for less")]
    SlowReader,
    #[error("too many cities are named by all subscriptions: try again in a moment, or name fewer")]
    TooManyNames,
}

pub(super) struct PendingQueries {
    queries: Arc<dyn Queries>,
    /// While so many bytes are pinned, nothing further is asked.
    max_pinned_bytes: u64,
    scheduler: SharedMutex<QueryScheduler>,
}

impl PendingQueries {
    /// Of a dataflow with so many workers.
    pub(super) fn new(ask: Arc<dyn Queries>, workers: usize) -> PendingQueries {
        // The other half is for what was asked meanwhile.
        let most_pinned = (MAX_PINNED_BYTES / 2 * workers.max(1)) as u64;
        PendingQueries { queries: ask, max_pinned_bytes: most_pinned, scheduler: SharedMutex::default() }
    }

    /// Queues questions that are answered at one epoch.
    pub(super) fn submit_queries(
        self: &Arc<PendingQueries>,
        questions: Vec<(Arc<str>, QueryKind)>,
    ) -> Result<QueryResponse, QueryError> {
        let mut calls = lock_mutex(&self.scheduler);
        if calls.waiting_cities() + questions.len() > MAX_PENDING_QUERIES {
            return Err(QueryError::TooManyQueries);
        }
        let (pieces, received) = mpsc::unbounded_channel();
        let left = questions.len();
        let first_in_line = !calls.has_queued_groups();
        let first = calls.open_group(questions, pieces);
        // The call is open before an answer can come: answers take the lock too.
        if !self.send_ready_queries(&mut calls) && first_in_line {
            calls.discard_unsent_group(first);
            return Err(QueryError::TooManyQueries);
        }
        let (asked, due) = (self.clone(), Instant::now() + QUERY_RESPONSE_TIMEOUT);
        Ok(QueryResponse {
            pending_queries: asked,
            first_id: first,
            unfinished_queries: left,
            unreleased_rows: 0,
            deadline: due,
            events: received,
            early_pieces: VecDeque::new(),
        })
    }

    /// Queues what has no answer; false where the queue is full.
    pub(super) fn send_unanswered(&self, city: &Arc<str>, question: QueryKind) -> bool {
        let mut calls = lock_mutex(&self.scheduler);
        let id = calls.next_id;
        calls.next_id += 1;
        // In the order of the calls: the end of a watch must not come before it.
        self.flush_outbound(&mut calls)
            && self.queries.submit_queries(vec![Query { id, process: 0, city: city.clone(), kind: question }])
    }

    pub(super) fn on_responses(&self, answers: Vec<AnswerPiece>) {
        let mut calls = lock_mutex(&self.scheduler);
        for answer in answers {
            calls.on_response(answer);
        }
        self.send_ready_queries(&mut calls);
    }

    /// Sends the dataflow what waits and may be asked; false where it has taken no more.
    fn send_ready_queries(&self, calls: &mut QueryScheduler) -> bool {
        while self.flush_outbound(calls) {
            let Some(queries) = calls.next_queries(self.max_pinned_bytes) else { return true };
            calls.outbound().extend(queries);
        }
        false
    }

    fn flush_outbound(&self, calls: &mut QueryScheduler) -> bool {
        let outbound = calls.outbound();
        let sent = outbound.is_empty() || self.queries.submit_queries(outbound.clone());
        if sent {
            outbound.clear();
        }
        sent
    }
}

/// Waits for the answers of one call; dropped, it waits no more.
pub struct QueryResponse {
    pending_queries: Arc<PendingQueries>,
    first_id: u64,
    /// Queries without their last piece.
    unfinished_queries: usize,
    /// Rows of the last piece.
    unreleased_rows: usize,
    deadline: Instant,
    events: mpsc::UnboundedReceiver<QueryEvent>,
    /// Pieces that have come before all was counted.
    early_pieces: VecDeque<AnswerPiece>,
}

impl QueryResponse {
    /// The id of the first query; those of the others follow.
    pub(super) fn first_id(&self) -> u64 {
        self.first_id
    }

    /// Waits until all questions are counted; returns their epoch. From then on the answer is not refused.
    pub async fn wait_for_epoch(&mut self) -> Result<u64, QueryError> {
        loop {
            match self.next_event().await? {
                QueryEvent::AllCounted(epoch) => return Ok(epoch),
                QueryEvent::Piece(answer) => self.early_pieces.push_back(answer),
                QueryEvent::Failed(busy) => return Err(busy),
            }
        }
    }

    /// The next piece: those of a question in their order. The one before is taken by then.
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
                    QueryEvent::Failed(busy) => return Err(busy),
                }
            },
        };
        self.unfinished_queries -= usize::from(answer.remaining == RemainingRows::Nothing);
        self.unreleased_rows = answer.rows.len();
        Ok(Some(answer))
    }

    async fn next_event(&mut self) -> Result<QueryEvent, QueryError> {
        match timeout_at(self.deadline, self.events.recv()).await {
            Ok(Some(said)) => Ok(said),
            _ => Err(QueryError::TooManyQueries),
        }
    }

    fn release_last_rows(&mut self) -> Result<(), QueryError> {
        let rows = std::mem::take(&mut self.unreleased_rows);
        let mut calls = lock_mutex(&self.pending_queries.scheduler);
        if rows > 0 {
            calls.on_rows_taken(self.first_id, rows);
            self.pending_queries.send_ready_queries(&mut calls);
        }
        if let Some((began, taken)) = calls.group_progress(self.first_id)
            && calls.is_contended(self.pending_queries.max_pinned_bytes)
            && began.elapsed()
                > CONTENDED_RESPONSE_TIME + Duration::from_secs(taken / CONTENDED_ROWS_PER_SECOND)
        {
            return Err(QueryError::SlowReader);
        }
        Ok(())
    }
}

impl Drop for QueryResponse {
    fn drop(&mut self) {
        let mut calls = lock_mutex(&self.pending_queries.scheduler);
        calls.close_group(self.first_id);
        self.pending_queries.send_ready_queries(&mut calls);
    }
}
