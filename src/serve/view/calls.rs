//! Calls to the dataflow and what they may hold: rows are granted before they are made, and are held until they are taken.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Busy;
use crate::model::{Answer, Query, Question, Rest};

/// Calls whose answers are being made or taken at once. Further ones wait for their turn.
pub const MAX_CALLS: usize = 2048;
/// Rows that each of them may have in flight in any case.
pub const CALL_ROWS: usize = 256;
/// Rows that calls may have in flight beyond that, all together; and one of them with those.
pub const SHARED_ROWS: usize = 512 * 1024;
pub const MOST_ROWS: usize = 8192;
/// What one call may take of the shared rows that are left: the first must not take all.
const SHARE: usize = 16;
/// Cities that are asked for and not counted yet. Each costs the dataflow some time between two epochs.
const UNCOUNTED: usize = 128;

/// What is said to whoever waits for a call.
pub(super) enum Said {
    /// Every query has been counted, at this epoch: nothing is refused any more.
    Counted(u64),
    /// Pieces of each query in their order.
    Piece(Answer),
    Failed(Busy),
}

/// All calls of a process.
#[derive(Default)]
pub(super) struct Calls {
    pub(super) next: u64,
    /// Cities of all of them.
    waiting: usize,
    /// By the id of its first query; the ids of a call are dense.
    all: BTreeMap<u64, Call>,
    /// Those that were not asked yet, in the order in which they came: each asker has one at a time, so all have their turn.
    queue: VecDeque<u64>,
    asked: usize,
    uncounted: usize,
    pinned_bytes: u64,
    shared_rows: usize,
    /// What is still to be sent to the dataflow, which was full.
    outbound: Vec<Query>,
}

pub(super) struct Call {
    queries: Vec<Asked>,
    is_asked: bool,
    uncounted: usize,
    /// Granted and not taken.
    rows: usize,
    pieces: mpsc::UnboundedSender<Said>,
    began: Instant,
    taken: u64,
}

/// A query of a call.
struct Asked {
    city: Arc<str>,
    question: Question,
    /// No more rows than these, once it was counted.
    total: Option<u64>,
    granted: u64,
    received: u64,
    pinned_bytes: u64,
    is_done: bool,
    /// Pieces that have come before those before them.
    early: BTreeMap<u64, Answer>,
}

impl Calls {
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether somebody waits for its turn.
    pub(super) fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether somebody waits for what other calls hold.
    pub(super) fn is_short(&self, most_pinned: u64) -> bool {
        self.has_queued() && (self.asked >= MAX_CALLS || self.pinned_bytes >= most_pinned)
    }

    pub(super) fn open(
        &mut self,
        questions: Vec<(Arc<str>, Question)>,
        pieces: mpsc::UnboundedSender<Said>,
    ) -> u64 {
        let first = self.next;
        self.next += questions.len() as u64;
        self.waiting += questions.len();
        let queries: Vec<Asked> =
            questions.into_iter().map(|(city, question)| Asked::new(city, question)).collect();
        let (uncounted, began) = (queries.len(), Instant::now());
        let call = Call { queries, is_asked: false, uncounted, rows: 0, pieces, began, taken: 0 };
        self.all.insert(first, call);
        self.queue.push_back(first);
        first
    }

    /// What is to be asked next, where there is room for it.
    pub(super) fn next_to_ask(&mut self, most_pinned: u64) -> Option<Vec<Query>> {
        while let Some(&first) = self.queue.front() {
            let Some(call) = self.all.get(&first) else {
                self.queue.pop_front();
                continue;
            };
            let cities = call.queries.len();
            let counted = self.uncounted == 0 || self.uncounted + cities <= UNCOUNTED;
            if self.asked >= MAX_CALLS || !counted || self.pinned_bytes >= most_pinned {
                return None;
            }
            return Some(self.ask(first));
        }
        None
    }

    /// Asks the first in the queue, with the rows that are granted at once.
    fn ask(&mut self, first: u64) -> Vec<Query> {
        self.queue.pop_front();
        let rows = self.allowance(0);
        let Some(call) = self.all.get_mut(&first) else { return Vec::new() };
        call.is_asked = true;
        self.asked += 1;
        self.uncounted += call.queries.len();
        let each = rows / call.queries.len().max(1);
        let mut queries = Vec::with_capacity(2 * call.queries.len());
        for (id, asked) in (first..).zip(&mut call.queries) {
            queries.push(asked.query(id, asked.question));
            let rows = match asked.question {
                Question::History { limit, .. } => each.min(limit as usize),
                _ => each,
            };
            queries.extend(asked.grant(id, rows as u64));
        }
        let granted = call.queries.iter().map(|asked| asked.granted as usize).sum();
        self.hold(first, granted);
        queries
    }

    /// Gives up a call that could not be asked.
    pub(super) fn forget(&mut self, first: u64) {
        self.close(first);
        // It is the newest: nothing of it was sent.
        self.outbound.retain(|query| query.id < first);
    }

    /// How many rows a call may have in flight that has so many.
    fn allowance(&self, has: usize) -> usize {
        let beyond = has.saturating_sub(CALL_ROWS);
        let left = SHARED_ROWS.saturating_sub(self.shared_rows);
        CALL_ROWS + beyond.max((left / SHARE).min(MOST_ROWS - CALL_ROWS))
    }

    /// Notes that a call has so many rows in flight.
    fn hold(&mut self, first: u64, rows: usize) {
        let Some(call) = self.all.get_mut(&first) else { return };
        self.shared_rows -= call.rows.saturating_sub(CALL_ROWS);
        self.shared_rows += rows.saturating_sub(CALL_ROWS);
        call.rows = rows;
    }

    /// Takes in a piece of an answer.
    pub(super) fn take(&mut self, answer: Answer) {
        let Some((&first, call)) = self.all.range_mut(..=answer.query).next_back() else { return };
        let at = usize::try_from(answer.query - first).unwrap_or(usize::MAX);
        let Some(asked) = call.queries.get_mut(at).filter(|asked| !asked.is_done) else { return };
        if asked.total.is_none() {
            call.uncounted -= 1;
            self.uncounted -= 1;
            (asked.total, asked.pinned_bytes) = size(&answer);
            self.pinned_bytes += asked.pinned_bytes;
            if answer.rest == Rest::Refused {
                let _ = call.pieces.send(Said::Failed(Busy::Pinned));
                return self.close(first);
            }
            if call.uncounted == 0 {
                // Whoever asked may have gone.
                let _ = call.pieces.send(Said::Counted(answer.epoch));
            }
        }
        let unused = asked.deliver(answer, &call.pieces);
        if asked.is_done {
            self.pinned_bytes -= asked.pinned_bytes;
            let rows = call.rows.saturating_sub(unused);
            self.hold(first, rows);
            let more = self.grant(first);
            self.outbound.extend(more);
        }
    }

    /// Notes that so many rows of a call were taken.
    pub(super) fn taken(&mut self, first: u64, rows: usize) {
        let Some(call) = self.all.get_mut(&first) else { return };
        call.taken += rows as u64;
        let rows = call.rows.saturating_sub(rows);
        self.hold(first, rows);
        let more = self.grant(first);
        self.outbound.extend(more);
    }

    /// Since when a call is open, and how many of its rows were taken.
    pub(super) fn progress(&self, first: u64) -> Option<(Instant, u64)> {
        self.all.get(&first).map(|call| (call.began, call.taken))
    }

    /// Grants a call further rows, where that is worth a message.
    fn grant(&mut self, first: u64) -> Vec<Query> {
        let Some(call) = self.all.get(&first).filter(|call| call.uncounted == 0) else { return Vec::new() };
        let allowed = self.allowance(call.rows);
        let mut left = allowed.saturating_sub(call.rows);
        if left < allowed / 4 {
            return Vec::new();
        }
        let Some(call) = self.all.get_mut(&first) else { return Vec::new() };
        let (mut queries, mut rows) = (Vec::new(), call.rows);
        for (id, asked) in (first..).zip(&mut call.queries) {
            let missing = asked.total.unwrap_or(0).saturating_sub(asked.granted);
            if asked.is_done || missing == 0 {
                continue;
            }
            let granted = missing.min(left as u64);
            queries.extend(asked.grant(id, granted));
            (left, rows) = (left - granted as usize, rows + granted as usize);
            if left == 0 {
                break;
            }
        }
        self.hold(first, rows);
        queries
    }

    /// Ends a call: what it holds is free, and what was asked for it is cancelled.
    pub(super) fn close(&mut self, first: u64) {
        self.hold(first, 0);
        let Some(call) = self.all.remove(&first) else { return };
        self.waiting -= call.queries.len();
        if !call.is_asked {
            self.queue.retain(|queued| *queued != first);
            return;
        }
        self.asked -= 1;
        self.uncounted -= call.uncounted;
        for (id, asked) in (first..).zip(&call.queries).filter(|(_, asked)| !asked.is_done) {
            self.pinned_bytes -= asked.pinned_bytes;
            self.outbound.push(asked.query(id, Question::Cancel));
        }
    }

    /// What is to be sent to the dataflow; what it has not taken comes back.
    pub(super) fn outbound(&mut self) -> &mut Vec<Query> {
        &mut self.outbound
    }
}

impl Asked {
    fn new(city: Arc<str>, question: Question) -> Asked {
        Asked {
            city,
            question,
            total: None,
            granted: 0,
            received: 0,
            pinned_bytes: 0,
            is_done: false,
            early: BTreeMap::new(),
        }
    }

    fn query(&self, id: u64, question: Question) -> Query {
        Query { id, process: 0, city: self.city.clone(), question }
    }

    fn grant(&mut self, id: u64, rows: u64) -> Option<Query> {
        self.granted += rows;
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        (rows > 0).then(|| self.query(id, Question::Grant { rows }))
    }

    /// Hands on what comes next; returns how many granted rows are not used, where that was the last.
    fn deliver(&mut self, answer: Answer, pieces: &mpsc::UnboundedSender<Said>) -> usize {
        if answer.rows.is_empty() && answer.rest != Rest::Nothing {
            return 0;
        }
        self.early.insert(answer.first, answer);
        while let Some(answer) = self.early.remove(&self.received) {
            self.received += answer.rows.len() as u64;
            self.is_done = answer.rest == Rest::Nothing;
            let _ = pieces.send(Said::Piece(answer));
            if self.is_done {
                return self.granted.saturating_sub(self.received) as usize;
            }
        }
        0
    }
}

/// How many rows an answer has at most, and what is pinned for it.
fn size(answer: &Answer) -> (Option<u64>, u64) {
    let made = answer.first + answer.rows.len() as u64;
    match answer.rest {
        Rest::AtMost { rows, pinned_bytes } => (Some(made + rows), pinned_bytes),
        Rest::Nothing | Rest::Refused => (Some(made), 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(query: u64, first: u64, rows: usize, rest: Rest) -> Answer {
        let row = crate::model::Row::new(Default::default(), crate::model::Category::None, 0, 1);
        let rows = vec![(Default::default(), row); rows];
        Answer { query, epoch: 7, city: "x".into(), known: true, first, rows, more: false, rest }
    }

    fn granted(queries: &[Query]) -> u64 {
        let rows = queries.iter().map(|query| match query.question {
            Question::Grant { rows } => u64::from(rows),
            _ => 0,
        });
        rows.sum()
    }

    /// Opens calls and has all counted that are asked; returns how many rows were granted.
    fn ask_all(calls: &mut Calls) -> u64 {
        let mut rows = 0;
        while let Some(queries) = calls.next_to_ask(u64::MAX) {
            rows += granted(&queries);
            for query in queries.iter().filter(|query| query.question == Question::Watch) {
                calls.take(piece(query.id, 0, 0, Rest::AtMost { rows: 1_000_000, pinned_bytes: 10 }));
            }
            rows += granted(&std::mem::take(calls.outbound()));
        }
        rows
    }

    #[test]
    fn rows_in_flight_stay_within_their_budget_and_everybody_has_some() {
        let mut calls = Calls::default();
        let mut open = Vec::new();
        for _ in 0..MAX_CALLS + 500 {
            let (pieces, received) = mpsc::unbounded_channel();
            let first = calls.open(vec![("x".into(), Question::Watch); 3], pieces);
            open.push((first, received));
        }
        let rows = ask_all(&mut calls);
        assert!(rows as usize <= MAX_CALLS * CALL_ROWS + SHARED_ROWS, "{rows} rows in flight");
        assert_eq!((calls.asked, calls.queue.len()), (MAX_CALLS, 500));
        assert!(calls.all.values().filter(|call| call.is_asked).all(|call| call.rows >= CALL_ROWS / 2));
        // What one takes is granted to it anew, but not what is shared by then.
        let last = open[MAX_CALLS - 1].0;
        let has = calls.all[&last].rows;
        calls.taken(last, has);
        assert!(granted(&std::mem::take(calls.outbound())) as usize >= CALL_ROWS);
        let first = open[0].0;
        calls.close(first);
        let cancelled = std::mem::take(calls.outbound());
        assert_eq!(cancelled.iter().filter(|query| query.question == Question::Cancel).count(), 3);
        assert!(calls.next_to_ask(u64::MAX).is_some(), "the next has its turn");
        let all: Vec<u64> = calls.all.keys().copied().collect();
        all.into_iter().for_each(|first| calls.close(first));
        assert_eq!((calls.waiting, calls.asked, calls.uncounted, calls.shared_rows), (0, 0, 0, 0));
        assert_eq!((calls.pinned_bytes, calls.queue.len()), (0, 0));
    }

    #[test]
    fn pieces_are_handed_on_in_their_order_and_a_refusal_ends_the_call() {
        let mut calls = Calls::default();
        let (pieces, mut received) = mpsc::unbounded_channel();
        let first = calls.open(vec![("x".into(), Question::Watch)], pieces);
        assert!(calls.next_to_ask(u64::MAX).is_some());
        calls.take(piece(first, 2, 1, Rest::AtMost { rows: 3, pinned_bytes: 0 }));
        calls.take(piece(first, 3, 1, Rest::Nothing));
        calls.take(piece(first, 0, 2, Rest::AtMost { rows: 4, pinned_bytes: 0 }));
        assert!(matches!(received.try_recv(), Ok(Said::Counted(7))));
        let order = std::iter::from_fn(|| match received.try_recv() {
            Ok(Said::Piece(answer)) => Some(answer.first),
            _ => None,
        });
        assert_eq!(order.collect::<Vec<_>>(), [0, 2, 3]);
        calls.taken(first, 4);
        assert_eq!(calls.all[&first].rows, 0, "what was granted beyond the last row is free");

        let (pieces, mut received) = mpsc::unbounded_channel();
        let first = calls.open(vec![("x".into(), Question::Watch); 2], pieces);
        assert!(calls.next_to_ask(u64::MAX).is_some());
        calls.take(piece(first + 1, 0, 0, Rest::Refused));
        assert!(matches!(received.try_recv(), Ok(Said::Failed(Busy::Pinned))));
        assert!(!calls.all.contains_key(&first) && calls.uncounted == 0);
    }

    #[test]
    fn nothing_is_asked_while_too_much_is_pinned() {
        let mut calls = Calls::default();
        let (pieces, _received) = mpsc::unbounded_channel();
        let first = calls.open(vec![("x".into(), Question::Watch)], pieces.clone());
        assert!(calls.next_to_ask(100).is_some());
        calls.take(piece(first, 0, 0, Rest::AtMost { rows: 9, pinned_bytes: 100 }));
        calls.open(vec![("x".into(), Question::Watch)], pieces);
        assert!(calls.next_to_ask(100).is_none() && calls.is_short(100));
        calls.close(first);
        assert!(calls.next_to_ask(100).is_some() && !calls.is_short(100));
    }
}
