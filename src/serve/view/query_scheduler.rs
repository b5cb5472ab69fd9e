//! Groups of queries to the dataflow, and the memory that their responses take: rows are granted
//! before the dataflow makes them, and count as in flight until the client has read them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::query_error::QueryError;
use crate::model::{AnswerPiece, Query, QueryKind, RemainingRows};

/// Groups whose responses are being made or read at one time. Further groups wait for their turn.
pub const MAX_ACTIVE_GROUPS: usize = 2048;
/// Rows that each active group may have in flight in any case.
pub const ROWS_PER_GROUP: usize = 256;
/// Rows that all groups together may have in flight beyond that.
pub const SHARED_ROWS: usize = 512 * 1024;
/// Rows that one group may have in flight at most.
pub const MAX_ROWS_PER_GROUP: usize = 8192;
/// A group may use this part of the shared rows that are left, so that the first does not use all.
const SHARED_ROWS_DIVISOR: usize = 16;
/// Cities whose queries were sent and whose rows are not counted yet. Each costs the dataflow some
/// time between two epochs.
const MAX_UNCOUNTED_CITIES: usize = 128;

/// What happens to a group, for the reader of its response.
pub(super) enum QueryEvent {
    /// The rows of every query are counted, at this epoch. From then on nothing is refused.
    AllCounted(u64),
    /// The next piece; pieces of one query come in their order.
    Piece(AnswerPiece),
    Failed(QueryError),
}

/// All groups of a process.
#[derive(Default)]
pub(super) struct QueryScheduler {
    pub(super) next_id: u64,
    /// Cities of all groups.
    waiting_cities: usize,
    /// By the id of the group's first query; the ids of a group are dense.
    groups: BTreeMap<u64, QueryGroup>,
    /// Groups that were not sent yet, in the order in which they were opened. Each client has one
    /// at a time, so that all have their turn.
    queue: VecDeque<u64>,
    active_groups: usize,
    uncounted_cities: usize,
    pinned_bytes: u64,
    shared_rows: usize,
    /// Queries that wait until the dataflow's queue has room.
    outbound: Vec<Query>,
}

pub(super) struct QueryGroup {
    queries: Vec<ActiveQuery>,
    is_active: bool,
    uncounted_queries: usize,
    /// Rows that were granted and not read.
    rows_in_flight: usize,
    events: mpsc::UnboundedSender<QueryEvent>,
    opened_at: Instant,
    read_rows: u64,
}

/// A query of a group.
struct ActiveQuery {
    city: Arc<str>,
    kind: QueryKind,
    /// An upper bound, once the rows are counted.
    total_rows: Option<u64>,
    granted_rows: u64,
    received_rows: u64,
    pinned_bytes: u64,
    is_done: bool,
    /// Pieces that overtook pieces before them.
    early_pieces: BTreeMap<u64, AnswerPiece>,
}

impl QueryScheduler {
    pub(super) fn waiting_cities(&self) -> usize {
        self.waiting_cities
    }

    /// Whether a group waits for its turn.
    pub(super) fn has_queued_groups(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether a group waits for memory that others hold.
    pub(super) fn is_contended(&self, max_pinned_bytes: u64) -> bool {
        self.has_queued_groups()
            && (self.active_groups >= MAX_ACTIVE_GROUPS || self.pinned_bytes >= max_pinned_bytes)
    }

    /// Queues a group, and returns the id of its first query.
    pub(super) fn open_group(
        &mut self,
        queries: Vec<(Arc<str>, QueryKind)>,
        events: mpsc::UnboundedSender<QueryEvent>,
    ) -> u64 {
        let first = self.next_id;
        self.next_id += queries.len() as u64;
        self.waiting_cities += queries.len();
        let queries: Vec<ActiveQuery> =
            queries.into_iter().map(|(city, kind)| ActiveQuery::new(city, kind)).collect();
        let group = QueryGroup {
            is_active: false,
            uncounted_queries: queries.len(),
            queries,
            rows_in_flight: 0,
            events,
            opened_at: Instant::now(),
            read_rows: 0,
        };
        self.groups.insert(first, group);
        self.queue.push_back(first);
        first
    }

    /// The queries of the next group, if the limits allow one more.
    pub(super) fn next_queries(&mut self, max_pinned_bytes: u64) -> Option<Vec<Query>> {
        while let Some(&first) = self.queue.front() {
            let Some(group) = self.groups.get(&first) else {
                self.queue.pop_front();
                continue;
            };
            let cities = group.queries.len();
            // A group of many cities is sent if it is alone.
            let may_count =
                self.uncounted_cities == 0 || self.uncounted_cities + cities <= MAX_UNCOUNTED_CITIES;
            if self.active_groups >= MAX_ACTIVE_GROUPS || !may_count || self.pinned_bytes >= max_pinned_bytes
            {
                return None;
            }
            return Some(self.activate_group(first));
        }
        None
    }

    /// The queries of the first group in the queue, with the rows that are granted at once.
    fn activate_group(&mut self, first: u64) -> Vec<Query> {
        self.queue.pop_front();
        let rows = self.row_allowance(0);
        let Some(group) = self.groups.get_mut(&first) else { return Vec::new() };
        group.is_active = true;
        self.active_groups += 1;
        self.uncounted_cities += group.queries.len();
        let rows_per_query = rows / group.queries.len().max(1);
        let mut queries = Vec::with_capacity(2 * group.queries.len());
        for (id, query) in (first..).zip(&mut group.queries) {
            queries.push(query.to_query(id, query.kind));
            let rows = match query.kind {
                QueryKind::History { limit, .. } => rows_per_query.min(limit as usize),
                _ => rows_per_query,
            };
            queries.extend(query.grant_rows(id, rows as u64));
        }
        let granted = group.queries.iter().map(|query| query.granted_rows as usize).sum();
        self.set_rows_in_flight(first, granted);
        queries
    }

    /// Closes a group that could not be sent.
    pub(super) fn discard_unsent_group(&mut self, first: u64) {
        self.close_group(first);
        // It is the newest group, and none of its queries was sent.
        self.outbound.retain(|query| query.id < first);
    }

    /// How many rows a group may have in flight that has `in_flight` now.
    fn row_allowance(&self, in_flight: usize) -> usize {
        let beyond = in_flight.saturating_sub(ROWS_PER_GROUP);
        let unused_rows = SHARED_ROWS.saturating_sub(self.shared_rows);
        ROWS_PER_GROUP
            + beyond.max((unused_rows / SHARED_ROWS_DIVISOR).min(MAX_ROWS_PER_GROUP - ROWS_PER_GROUP))
    }

    fn set_rows_in_flight(&mut self, first: u64, rows: usize) {
        let Some(group) = self.groups.get_mut(&first) else { return };
        self.shared_rows -= group.rows_in_flight.saturating_sub(ROWS_PER_GROUP);
        self.shared_rows += rows.saturating_sub(ROWS_PER_GROUP);
        group.rows_in_flight = rows;
    }

    /// Receives a piece of a response.
    pub(super) fn on_response(&mut self, answer: AnswerPiece) {
        let Some((&first, group)) = self.groups.range_mut(..=answer.query_id).next_back() else { return };
        let at = usize::try_from(answer.query_id - first).unwrap_or(usize::MAX);
        let Some(query) = group.queries.get_mut(at).filter(|query| !query.is_done) else { return };
        if query.total_rows.is_none() {
            group.uncounted_queries -= 1;
            self.uncounted_cities -= 1;
            (query.total_rows, query.pinned_bytes) = response_size(&answer);
            self.pinned_bytes += query.pinned_bytes;
            if answer.remaining == RemainingRows::Refused {
                let _ = group.events.send(QueryEvent::Failed(QueryError::TooMuchPinned));
                return self.close_group(first);
            }
            if group.uncounted_queries == 0 {
                // The reader may be gone.
                let _ = group.events.send(QueryEvent::AllCounted(answer.epoch));
            }
        }
        let unused = query.deliver_piece(answer, &group.events);
        if query.is_done {
            self.pinned_bytes -= query.pinned_bytes;
            let rows = group.rows_in_flight.saturating_sub(unused);
            self.set_rows_in_flight(first, rows);
            self.grant_more_rows(first);
        }
    }

    /// The client has read `rows` rows of a group.
    pub(super) fn on_rows_read(&mut self, first: u64, rows: usize) {
        let Some(group) = self.groups.get_mut(&first) else { return };
        group.read_rows += rows as u64;
        let rows = group.rows_in_flight.saturating_sub(rows);
        self.set_rows_in_flight(first, rows);
        self.grant_more_rows(first);
    }

    /// When a group was opened, and how many of its rows were read.
    pub(super) fn group_progress(&self, first: u64) -> Option<(Instant, u64)> {
        self.groups.get(&first).map(|group| (group.opened_at, group.read_rows))
    }

    /// Grants a group further rows, if there are enough of them to be worth a message.
    fn grant_more_rows(&mut self, first: u64) {
        let Some(group) = self.groups.get(&first).filter(|group| group.uncounted_queries == 0) else {
            return;
        };
        let allowed = self.row_allowance(group.rows_in_flight);
        let mut row_budget = allowed.saturating_sub(group.rows_in_flight);
        if row_budget < allowed / 4 {
            return;
        }
        let Some(group) = self.groups.get_mut(&first) else { return };
        let mut rows = group.rows_in_flight;
        for (id, query) in (first..).zip(&mut group.queries) {
            let missing = query.total_rows.unwrap_or(0).saturating_sub(query.granted_rows);
            if query.is_done || missing == 0 {
                continue;
            }
            let granted = missing.min(row_budget as u64);
            self.outbound.extend(query.grant_rows(id, granted));
            (row_budget, rows) = (row_budget - granted as usize, rows + granted as usize);
            if row_budget == 0 {
                break;
            }
        }
        self.set_rows_in_flight(first, rows);
    }

    /// Ends a group: releases its memory, and cancels its queries.
    pub(super) fn close_group(&mut self, first: u64) {
        self.set_rows_in_flight(first, 0);
        let Some(group) = self.groups.remove(&first) else { return };
        self.waiting_cities -= group.queries.len();
        if !group.is_active {
            self.queue.retain(|queued| *queued != first);
            return;
        }
        self.active_groups -= 1;
        self.uncounted_cities -= group.uncounted_queries;
        for (id, query) in (first..).zip(&group.queries).filter(|(_, query)| !query.is_done) {
            self.pinned_bytes -= query.pinned_bytes;
            self.outbound.push(query.to_query(id, QueryKind::Cancel));
        }
    }

    /// Queries to send to the dataflow. The caller clears it once the dataflow has accepted them.
    pub(super) fn outbound(&mut self) -> &mut Vec<Query> {
        &mut self.outbound
    }
}

impl ActiveQuery {
    fn new(city: Arc<str>, kind: QueryKind) -> ActiveQuery {
        ActiveQuery {
            city,
            kind,
            total_rows: None,
            granted_rows: 0,
            received_rows: 0,
            pinned_bytes: 0,
            is_done: false,
            early_pieces: BTreeMap::new(),
        }
    }

    fn to_query(&self, id: u64, kind: QueryKind) -> Query {
        Query { id, process: 0, city: self.city.clone(), kind }
    }

    fn grant_rows(&mut self, id: u64, rows: u64) -> Option<Query> {
        self.granted_rows += rows;
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        (rows > 0).then(|| self.to_query(id, QueryKind::GrantRows { rows }))
    }

    /// Sends the reader the pieces that are next. After the last one, returns how many granted rows
    /// remain unused.
    fn deliver_piece(&mut self, answer: AnswerPiece, events: &mpsc::UnboundedSender<QueryEvent>) -> usize {
        if answer.rows.is_empty() && answer.remaining != RemainingRows::Nothing {
            return 0;
        }
        self.early_pieces.insert(answer.first_row, answer);
        while let Some(answer) = self.early_pieces.remove(&self.received_rows) {
            self.received_rows += answer.rows.len() as u64;
            self.is_done = answer.remaining == RemainingRows::Nothing;
            let _ = events.send(QueryEvent::Piece(answer));
            if self.is_done {
                return self.granted_rows.saturating_sub(self.received_rows) as usize;
            }
        }
        0
    }
}

/// How many rows a response has at most, and the bytes that the dataflow pins for it.
fn response_size(answer: &AnswerPiece) -> (Option<u64>, u64) {
    let rows_before = answer.first_row + answer.rows.len() as u64;
    match answer.remaining {
        RemainingRows::AtMost { rows, pinned_bytes } => (Some(rows_before + rows), pinned_bytes),
        RemainingRows::Nothing | RemainingRows::Refused => (Some(rows_before), 0),
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

    /// Sends all groups whose turn it is and counts their rows; returns how many rows were granted.
    fn count_all(scheduler: &mut QueryScheduler) -> u64 {
        let mut rows = 0;
        while let Some(queries) = scheduler.next_queries(u64::MAX) {
            rows += granted(&queries);
            for query in queries.iter().filter(|query| query.kind == QueryKind::Watch) {
                scheduler.on_response(piece(
                    query.id,
                    0,
                    0,
                    RemainingRows::AtMost { rows: 1_000_000, pinned_bytes: 10 },
                ));
            }
            rows += granted(&std::mem::take(scheduler.outbound()));
        }
        rows
    }

    #[test]
    fn rows_in_flight_stay_within_budget_and_every_query_group_gets_some() {
        let mut scheduler = QueryScheduler::default();
        let mut open = Vec::new();
        for _ in 0..MAX_ACTIVE_GROUPS + 500 {
            let (pieces, received) = mpsc::unbounded_channel();
            let first = scheduler.open_group(vec![("x".into(), QueryKind::Watch); 3], pieces);
            open.push((first, received));
        }
        let rows = count_all(&mut scheduler);
        assert!(rows as usize <= MAX_ACTIVE_GROUPS * ROWS_PER_GROUP + SHARED_ROWS, "{rows} rows in flight");
        assert_eq!((scheduler.active_groups, scheduler.queue.len()), (MAX_ACTIVE_GROUPS, 500));
        assert!(
            scheduler
                .groups
                .values()
                .filter(|group| group.is_active)
                .all(|group| group.rows_in_flight >= ROWS_PER_GROUP / 2)
        );
        // A group gets the rows that it has read granted again, except those that others share by
        // then.
        let last = open[MAX_ACTIVE_GROUPS - 1].0;
        let has = scheduler.groups[&last].rows_in_flight;
        scheduler.on_rows_read(last, has);
        assert!(granted(&std::mem::take(scheduler.outbound())) as usize >= ROWS_PER_GROUP);
        let first = open[0].0;
        scheduler.close_group(first);
        let cancelled = std::mem::take(scheduler.outbound());
        assert_eq!(cancelled.iter().filter(|query| query.kind == QueryKind::Cancel).count(), 3);
        assert!(scheduler.next_queries(u64::MAX).is_some(), "the next group has its turn");
        let all: Vec<u64> = scheduler.groups.keys().copied().collect();
        all.into_iter().for_each(|first| scheduler.close_group(first));
        assert_eq!(
            (
                scheduler.waiting_cities,
                scheduler.active_groups,
                scheduler.uncounted_cities,
                scheduler.shared_rows
            ),
            (0, 0, 0, 0)
        );
        assert_eq!((scheduler.pinned_bytes, scheduler.queue.len()), (0, 0));
    }

    #[test]
    fn answer_pieces_are_delivered_in_order_and_refusal_ends_query_group() {
        let mut scheduler = QueryScheduler::default();
        let (pieces, mut received) = mpsc::unbounded_channel();
        let first = scheduler.open_group(vec![("x".into(), QueryKind::Watch)], pieces);
        assert!(scheduler.next_queries(u64::MAX).is_some());
        scheduler.on_response(piece(first, 2, 1, RemainingRows::AtMost { rows: 3, pinned_bytes: 0 }));
        scheduler.on_response(piece(first, 3, 1, RemainingRows::Nothing));
        scheduler.on_response(piece(first, 0, 2, RemainingRows::AtMost { rows: 4, pinned_bytes: 0 }));
        assert!(matches!(received.try_recv(), Ok(QueryEvent::AllCounted(7))));
        let order = std::iter::from_fn(|| match received.try_recv() {
            Ok(QueryEvent::Piece(answer)) => Some(answer.first_row),
            _ => None,
        });
        assert_eq!(order.collect::<Vec<_>>(), [0, 2, 3]);
        scheduler.on_rows_read(first, 4);
        assert_eq!(
            scheduler.groups[&first].rows_in_flight, 0,
            "rows granted beyond the last one are released"
        );

        let (pieces, mut received) = mpsc::unbounded_channel();
        let first = scheduler.open_group(vec![("x".into(), QueryKind::Watch); 2], pieces);
        assert!(scheduler.next_queries(u64::MAX).is_some());
        scheduler.on_response(piece(first + 1, 0, 0, RemainingRows::Refused));
        assert!(matches!(received.try_recv(), Ok(QueryEvent::Failed(QueryError::TooMuchPinned))));
        assert!(!scheduler.groups.contains_key(&first) && scheduler.uncounted_cities == 0);
    }

    #[test]
    fn queries_wait_while_too_many_bytes_are_pinned() {
        let mut scheduler = QueryScheduler::default();
        let (pieces, _received) = mpsc::unbounded_channel();
        let first = scheduler.open_group(vec![("x".into(), QueryKind::Watch)], pieces.clone());
        assert!(scheduler.next_queries(100).is_some());
        scheduler.on_response(piece(first, 0, 0, RemainingRows::AtMost { rows: 9, pinned_bytes: 100 }));
        scheduler.open_group(vec![("x".into(), QueryKind::Watch)], pieces);
        assert!(scheduler.next_queries(100).is_none() && scheduler.is_contended(100));
        scheduler.close_group(first);
        assert!(scheduler.next_queries(100).is_some() && !scheduler.is_contended(100));
    }
}
