//! Calls to the dataflow and what they may hold: rows are granted before they are made, and are held until they are taken.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::QueryError;
use crate::model::{AnswerPiece, Query, QueryKind, RemainingRows};

/// Calls whose answers are being made or taken at once. Further ones wait for their turn.
pub const MAX_ACTIVE_GROUPS: usize = 2048;
/// Rows that each of them may have in flight in any case.
pub const ROWS_PER_GROUP: usize = 256;
/// Rows that calls may have in flight beyond that, all together; and one of them with those.
pub const SHARED_ROWS: usize = 512 * 1024;
pub const MAX_ROWS_PER_GROUP: usize = 8192;
/// What one call may take of the shared rows that are left: the first must not take all.
const SHARED_ROWS_DIVISOR: usize = 16;
/// Cities that are asked for and not counted yet. Each costs the dataflow some time between two epochs.
const MAX_UNCOUNTED_CITIES: usize = 128;

/// What is said to whoever waits for a call.
pub(super) enum QueryEvent {
    /// Every query has been counted, at this epoch: nothing is refused any more.
    AllCounted(u64),
    /// Pieces of each query in their order.
    Piece(AnswerPiece),
    Failed(QueryError),
}

/// All calls of a process.
#[derive(Default)]
pub(super) struct QueryScheduler {
    pub(super) next_id: u64,
    /// Cities of all of them.
    waiting_cities: usize,
    /// By the id of its first query; the ids of a call are dense.
    groups: BTreeMap<u64, QueryGroup>,
    /// Those that were not asked yet, in the order in which they came: each asker has one at a time, so all have their turn.
    queue: VecDeque<u64>,
    active_groups: usize,
    uncounted_cities: usize,
    pinned_bytes: u64,
    shared_rows: usize,
    /// What is still to be sent to the dataflow, which was full.
    outbound: Vec<Query>,
}

pub(super) struct QueryGroup {
    queries: Vec<ActiveQuery>,
    is_active: bool,
    uncounted_queries: usize,
    /// Granted and not taken.
    rows_in_flight: usize,
    events: mpsc::UnboundedSender<QueryEvent>,
    opened_at: Instant,
    taken_rows: u64,
}

/// A query of a call.
struct ActiveQuery {
    city: Arc<str>,
    kind: QueryKind,
    /// No more rows than these, once it was counted.
    total_rows: Option<u64>,
    granted_rows: u64,
    received_rows: u64,
    pinned_bytes: u64,
    is_done: bool,
    /// Pieces that have come before those before them.
    early_pieces: BTreeMap<u64, AnswerPiece>,
}

impl QueryScheduler {
    pub(super) fn waiting_cities(&self) -> usize {
        self.waiting_cities
    }

    /// Whether somebody waits for its turn.
    pub(super) fn has_queued_groups(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether somebody waits for what other calls hold.
    pub(super) fn is_contended(&self, most_pinned: u64) -> bool {
        self.has_queued_groups()
            && (self.active_groups >= MAX_ACTIVE_GROUPS || self.pinned_bytes >= most_pinned)
    }

    pub(super) fn open_group(
        &mut self,
        questions: Vec<(Arc<str>, QueryKind)>,
        pieces: mpsc::UnboundedSender<QueryEvent>,
    ) -> u64 {
        let first = self.next_id;
        self.next_id += questions.len() as u64;
        self.waiting_cities += questions.len();
        let queries: Vec<ActiveQuery> =
            questions.into_iter().map(|(city, question)| ActiveQuery::new(city, question)).collect();
        let (uncounted, began) = (queries.len(), Instant::now());
        let call = QueryGroup {
            queries,
            is_active: false,
            uncounted_queries: uncounted,
            rows_in_flight: 0,
            events: pieces,
            opened_at: began,
            taken_rows: 0,
        };
        self.groups.insert(first, call);
        self.queue.push_back(first);
        first
    }

    /// What is to be asked next, where there is room for it.
    pub(super) fn next_queries(&mut self, most_pinned: u64) -> Option<Vec<Query>> {
        while let Some(&first) = self.queue.front() {
            let Some(call) = self.groups.get(&first) else {
                self.queue.pop_front();
                continue;
            };
            let cities = call.queries.len();
            let counted =
                self.uncounted_cities == 0 || self.uncounted_cities + cities <= MAX_UNCOUNTED_CITIES;
            if self.active_groups >= MAX_ACTIVE_GROUPS || !counted || self.pinned_bytes >= most_pinned {
                return None;
            }
            return Some(self.activate_group(first));
        }
        None
    }

    /// Asks the first in the queue, with the rows that are granted at once.
    fn activate_group(&mut self, first: u64) -> Vec<Query> {
        self.queue.pop_front();
        let rows = self.row_allowance(0);
        let Some(call) = self.groups.get_mut(&first) else { return Vec::new() };
        call.is_active = true;
        self.active_groups += 1;
        self.uncounted_cities += call.queries.len();
        let each = rows / call.queries.len().max(1);
        let mut queries = Vec::with_capacity(2 * call.queries.len());
        for (id, asked) in (first..).zip(&mut call.queries) {
            queries.push(asked.to_query(id, asked.kind));
            let rows = match asked.kind {
                QueryKind::History { limit, .. } => each.min(limit as usize),
                _ => each,
            };
            queries.extend(asked.grant_rows(id, rows as u64));
        }
        let granted = call.queries.iter().map(|asked| asked.granted_rows as usize).sum();
        self.set_rows_in_flight(first, granted);
        queries
    }

    /// Gives up a call that could not be asked.
    pub(super) fn discard_unsent_group(&mut self, first: u64) {
        self.close_group(first);
        // It is the newest: nothing of it was sent.
        self.outbound.retain(|query| query.id < first);
    }

    /// How many rows a call may have in flight that has so many.
    fn row_allowance(&self, has: usize) -> usize {
        let beyond = has.saturating_sub(ROWS_PER_GROUP);
        let left = SHARED_ROWS.saturating_sub(self.shared_rows);
        ROWS_PER_GROUP + beyond.max((left / SHARED_ROWS_DIVISOR).min(MAX_ROWS_PER_GROUP - ROWS_PER_GROUP))
    }

    /// Notes that a call has so many rows in flight.
    fn set_rows_in_flight(&mut self, first: u64, rows: usize) {
        let Some(call) = self.groups.get_mut(&first) else { return };
        self.shared_rows -= call.rows_in_flight.saturating_sub(ROWS_PER_GROUP);
        self.shared_rows += rows.saturating_sub(ROWS_PER_GROUP);
        call.rows_in_flight = rows;
    }

    /// Takes in a piece of an answer.
    pub(super) fn on_response(&mut self, answer: AnswerPiece) {
        let Some((&first, call)) = self.groups.range_mut(..=answer.query_id).next_back() else { return };
        let at = usize::try_from(answer.query_id - first).unwrap_or(usize::MAX);
        let Some(asked) = call.queries.get_mut(at).filter(|asked| !asked.is_done) else { return };
        if asked.total_rows.is_none() {
            call.uncounted_queries -= 1;
            self.uncounted_cities -= 1;
            (asked.total_rows, asked.pinned_bytes) = response_size(&answer);
            self.pinned_bytes += asked.pinned_bytes;
            if answer.remaining == RemainingRows::Refused {
                let _ = call.events.send(QueryEvent::Failed(QueryError::TooMuchPinned));
                return self.close_group(first);
            }
            if call.uncounted_queries == 0 {
                // Whoever asked may have gone.
                let _ = call.events.send(QueryEvent::AllCounted(answer.epoch));
            }
        }
        let unused = asked.deliver_piece(answer, &call.events);
        if asked.is_done {
            self.pinned_bytes -= asked.pinned_bytes;
            let rows = call.rows_in_flight.saturating_sub(unused);
            self.set_rows_in_flight(first, rows);
            let more = self.grant_more_rows(first);
            self.outbound.extend(more);
        }
    }

    /// Notes that so many rows of a call were taken.
    pub(super) fn on_rows_taken(&mut self, first: u64, rows: usize) {
        let Some(call) = self.groups.get_mut(&first) else { return };
        call.taken_rows += rows as u64;
        let rows = call.rows_in_flight.saturating_sub(rows);
        self.set_rows_in_flight(first, rows);
        let more = self.grant_more_rows(first);
        self.outbound.extend(more);
    }

    /// Since when a call is open, and how many of its rows were taken.
    pub(super) fn group_progress(&self, first: u64) -> Option<(Instant, u64)> {
        self.groups.get(&first).map(|call| (call.opened_at, call.taken_rows))
    }

    /// Grants a call further rows, where that is worth a message.
    fn grant_more_rows(&mut self, first: u64) -> Vec<Query> {
        let Some(call) = self.groups.get(&first).filter(|call| call.uncounted_queries == 0) else {
            return Vec::new();
        };
        let allowed = self.row_allowance(call.rows_in_flight);
        let mut left = allowed.saturating_sub(call.rows_in_flight);
        if left < allowed / 4 {
            return Vec::new();
        }
        let Some(call) = self.groups.get_mut(&first) else { return Vec::new() };
        let (mut queries, mut rows) = (Vec::new(), call.rows_in_flight);
        for (id, asked) in (first..).zip(&mut call.queries) {
            let missing = asked.total_rows.unwrap_or(0).saturating_sub(asked.granted_rows);
            if asked.is_done || missing == 0 {
                continue;
            }
            let granted = missing.min(left as u64);
            queries.extend(asked.grant_rows(id, granted));
            (left, rows) = (left - granted as usize, rows + granted as usize);
            if left == 0 {
                break;
            }
        }
        self.set_rows_in_flight(first, rows);
        queries
    }

    /// Ends a call: what it holds is free, and what was asked for it is cancelled.
    pub(super) fn close_group(&mut self, first: u64) {
        self.set_rows_in_flight(first, 0);
        let Some(call) = self.groups.remove(&first) else { return };
        self.waiting_cities -= call.queries.len();
        if !call.is_active {
            self.queue.retain(|queued| *queued != first);
            return;
        }
        self.active_groups -= 1;
        self.uncounted_cities -= call.uncounted_queries;
        for (id, asked) in (first..).zip(&call.queries).filter(|(_, asked)| !asked.is_done) {
            self.pinned_bytes -= asked.pinned_bytes;
            self.outbound.push(asked.to_query(id, QueryKind::Cancel));
        }
    }

    /// What is to be sent to the dataflow; what it has not taken comes back.
    pub(super) fn outbound(&mut self) -> &mut Vec<Query> {
        &mut self.outbound
    }
}

impl ActiveQuery {
    fn new(city: Arc<str>, question: QueryKind) -> ActiveQuery {
        ActiveQuery {
            city,
            kind: question,
            total_rows: None,
            granted_rows: 0,
            received_rows: 0,
            pinned_bytes: 0,
            is_done: false,
            early_pieces: BTreeMap::new(),
        }
    }

    fn to_query(&self, id: u64, question: QueryKind) -> Query {
        Query { id, process: 0, city: self.city.clone(), kind: question }
    }

    fn grant_rows(&mut self, id: u64, rows: u64) -> Option<Query> {
        self.granted_rows += rows;
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        (rows > 0).then(|| self.to_query(id, QueryKind::GrantRows { rows }))
    }

    /// Hands on what comes next; returns how many granted rows are not used, where that was the last.
    fn deliver_piece(&mut self, answer: AnswerPiece, pieces: &mpsc::UnboundedSender<QueryEvent>) -> usize {
        if answer.rows.is_empty() && answer.remaining != RemainingRows::Nothing {
            return 0;
        }
        self.early_pieces.insert(answer.first_row, answer);
        while let Some(answer) = self.early_pieces.remove(&self.received_rows) {
            self.received_rows += answer.rows.len() as u64;
            self.is_done = answer.remaining == RemainingRows::Nothing;
            let _ = pieces.send(QueryEvent::Piece(answer));
            if self.is_done {
                return self.granted_rows.saturating_sub(self.received_rows) as usize;
            }
        }
        0
    }
}

/// How many rows an answer has at most, and what is pinned for it.
fn response_size(answer: &AnswerPiece) -> (Option<u64>, u64) {
    let made = answer.first_row + answer.rows.len() as u64;
    match answer.remaining {
        RemainingRows::AtMost { rows, pinned_bytes } => (Some(made + rows), pinned_bytes),
        RemainingRows::Nothing | RemainingRows::Refused => (Some(made), 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(query: u64, first: u64, rows: usize, rest: RemainingRows) -> AnswerPiece {
        let row = crate::model::Row::new(Default::default(), crate::model::Category::None, 0, 1);
        let rows = vec![(Default::default(), row); rows];
        AnswerPiece {
            query_id: query,
            epoch: 7,
            city: "x".into(),
            is_city_known: true,
            first_row: first,
            rows,
            has_more: false,
            remaining: rest,
        }
    }

    fn granted(queries: &[Query]) -> u64 {
        let rows = queries.iter().map(|query| match query.kind {
            QueryKind::GrantRows { rows } => u64::from(rows),
            _ => 0,
        });
        rows.sum()
    }

    /// Opens calls and has all counted that are asked; returns how many rows were granted.
    fn ask_all(calls: &mut QueryScheduler) -> u64 {
        let mut rows = 0;
        while let Some(queries) = calls.next_queries(u64::MAX) {
            rows += granted(&queries);
            for query in queries.iter().filter(|query| query.kind == QueryKind::Watch) {
                calls.on_response(piece(
                    query.id,
                    0,
                    0,
                    RemainingRows::AtMost { rows: 1_000_000, pinned_bytes: 10 },
                ));
            }
            rows += granted(&std::mem::take(calls.outbound()));
        }
        rows
    }

    #[test]
    fn rows_in_flight_stay_within_budget_and_every_query_group_gets_some() {
        let mut calls = QueryScheduler::default();
        let mut open = Vec::new();
        for _ in 0..MAX_ACTIVE_GROUPS + 500 {
            let (pieces, received) = mpsc::unbounded_channel();
            let first = calls.open_group(vec![("x".into(), QueryKind::Watch); 3], pieces);
            open.push((first, received));
        }
        let rows = ask_all(&mut calls);
        assert!(rows as usize <= MAX_ACTIVE_GROUPS * ROWS_PER_GROUP + SHARED_ROWS, "{rows} rows in flight");
        assert_eq!((calls.active_groups, calls.queue.len()), (MAX_ACTIVE_GROUPS, 500));
        assert!(
            calls
                .groups
                .values()
                .filter(|call| call.is_active)
                .all(|call| call.rows_in_flight >= ROWS_PER_GROUP / 2)
        );
        // What one takes is granted to it anew, but not what is shared by then.
        let last = open[MAX_ACTIVE_GROUPS - 1].0;
        let has = calls.groups[&last].rows_in_flight;
        calls.on_rows_taken(last, has);
        assert!(granted(&std::mem::take(calls.outbound())) as usize >= ROWS_PER_GROUP);
        let first = open[0].0;
        calls.close_group(first);
        let cancelled = std::mem::take(calls.outbound());
        assert_eq!(cancelled.iter().filter(|query| query.kind == QueryKind::Cancel).count(), 3);
        assert!(calls.next_queries(u64::MAX).is_some(), "the next has its turn");
        let all: Vec<u64> = calls.groups.keys().copied().collect();
        all.into_iter().for_each(|first| calls.close_group(first));
        assert_eq!(
            (calls.waiting_cities, calls.active_groups, calls.uncounted_cities, calls.shared_rows),
            (0, 0, 0, 0)
        );
        assert_eq!((calls.pinned_bytes, calls.queue.len()), (0, 0));
    }

    #[test]
    fn answer_pieces_are_delivered_in_order_and_refusal_ends_query_group() {
        let mut calls = QueryScheduler::default();
        let (pieces, mut received) = mpsc::unbounded_channel();
        let first = calls.open_group(vec![("x".into(), QueryKind::Watch)], pieces);
        assert!(calls.next_queries(u64::MAX).is_some());
        calls.on_response(piece(first, 2, 1, RemainingRows::AtMost { rows: 3, pinned_bytes: 0 }));
        calls.on_response(piece(first, 3, 1, RemainingRows::Nothing));
        calls.on_response(piece(first, 0, 2, RemainingRows::AtMost { rows: 4, pinned_bytes: 0 }));
        assert!(matches!(received.try_recv(), Ok(QueryEvent::AllCounted(7))));
        let order = std::iter::from_fn(|| match received.try_recv() {
            Ok(QueryEvent::Piece(answer)) => Some(answer.first_row),
            _ => None,
        });
        assert_eq!(order.collect::<Vec<_>>(), [0, 2, 3]);
        calls.on_rows_taken(first, 4);
        assert_eq!(calls.groups[&first].rows_in_flight, 0, "what was granted beyond the last row is free");

        let (pieces, mut received) = mpsc::unbounded_channel();
        let first = calls.open_group(vec![("x".into(), QueryKind::Watch); 2], pieces);
        assert!(calls.next_queries(u64::MAX).is_some());
        calls.on_response(piece(first + 1, 0, 0, RemainingRows::Refused));
        assert!(matches!(received.try_recv(), Ok(QueryEvent::Failed(QueryError::TooMuchPinned))));
        assert!(!calls.groups.contains_key(&first) && calls.uncounted_cities == 0);
    }

    #[test]
    fn queries_wait_while_too_many_bytes_are_pinned() {
        let mut calls = QueryScheduler::default();
        let (pieces, _received) = mpsc::unbounded_channel();
        let first = calls.open_group(vec![("x".into(), QueryKind::Watch)], pieces.clone());
        assert!(calls.next_queries(100).is_some());
        calls.on_response(piece(first, 0, 0, RemainingRows::AtMost { rows: 9, pinned_bytes: 100 }));
        calls.open_group(vec![("x".into(), QueryKind::Watch)], pieces);
        assert!(calls.next_queries(100).is_none() && calls.is_contended(100));
        calls.close_group(first);
        assert!(calls.next_queries(100).is_some() && !calls.is_contended(100));
    }
}
