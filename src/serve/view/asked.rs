//! Questions to the dataflow that wait for their answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::calls::{Calls, Said};
use super::locked;
use crate::model::{Answer, Ask, PINNED_BYTES, Query, Question, Rest};
use crate::panics::locks::SharedMutex;

/// Queries that may wait at once.
pub const MAX_WAITING: usize = 10_000;
/// Until an answer begins; and from one piece of it to the next.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// How long an answer may take while others wait for their turn: so much, and a second more for so many rows.
const SHARE_TIME: Duration = Duration::from_secs(10);
const SHARE_ROWS: u64 = 20_000;

/// There is no answer for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    #[error("too many questions are waiting for an answer: try again in a moment")]
    Questions,
    #[error("too many cities are watched: try again in a moment")]
    Watches,
    #[error("too many snapshots are being sent: try again in a moment")]
    Room,
    #[error("too much is held for other answers: try again in a moment")]
    Pinned,
    #[error("the answer was read too slowly while others waited: try again, or ask for less")]
    Slow,
    #[error("too many cities are named by all subscriptions: try again in a moment, or name fewer")]
    Names,
}

pub(super) struct Asked {
    ask: Arc<dyn Ask>,
    /// While so many bytes are pinned, nothing further is asked.
    most_pinned: u64,
    calls: SharedMutex<Calls>,
}

impl Asked {
    /// Of a dataflow with so many workers.
    pub(super) fn new(ask: Arc<dyn Ask>, workers: usize) -> Asked {
        // The other half is for what was asked meanwhile.
        let most_pinned = (PINNED_BYTES / 2 * workers.max(1)) as u64;
        Asked { ask, most_pinned, calls: SharedMutex::default() }
    }

    /// Queues questions that are answered at one epoch.
    pub(super) fn ask(self: &Arc<Asked>, questions: Vec<(Arc<str>, Question)>) -> Result<Waiting, Busy> {
        let mut calls = locked(&self.calls);
        if calls.waiting() + questions.len() > MAX_WAITING {
            return Err(Busy::Questions);
        }
        let (pieces, received) = mpsc::unbounded_channel();
        let left = questions.len();
        let first_in_line = !calls.has_queued();
        let first = calls.open(questions, pieces);
        // The call is open before an answer can come: answers take the lock too.
        if !self.go_on(&mut calls) && first_in_line {
            calls.forget(first);
            return Err(Busy::Questions);
        }
        let (asked, due) = (self.clone(), Instant::now() + ANSWER_TIME);
        Ok(Waiting { asked, first, left, untaken: 0, due, received, early: VecDeque::new() })
    }

    /// Queues what has no answer; false where the queue is full.
    pub(super) fn tell(&self, city: &Arc<str>, question: Question) -> bool {
        let mut calls = locked(&self.calls);
        let id = calls.next;
        calls.next += 1;
        // In the order of the calls: the end of a watch must not come before it.
        self.flush(&mut calls) && self.ask.ask(vec![Query { id, process: 0, city: city.clone(), question }])
    }

    pub(super) fn answered(&self, answers: Vec<Answer>) {
        let mut calls = locked(&self.calls);
        for answer in answers {
            calls.take(answer);
        }
        self.go_on(&mut calls);
    }

    /// Sends the dataflow what waits and may be asked; false where it has taken no more.
    fn go_on(&self, calls: &mut Calls) -> bool {
        while self.flush(calls) {
            let Some(queries) = calls.next_to_ask(self.most_pinned) else { return true };
            calls.outbound().extend(queries);
        }
        false
    }

    fn flush(&self, calls: &mut Calls) -> bool {
        let outbound = calls.outbound();
        let sent = outbound.is_empty() || self.ask.ask(outbound.clone());
        if sent {
            outbound.clear();
        }
        sent
    }
}

/// Waits for the answers of one call; dropped, it waits no more.
pub struct Waiting {
    asked: Arc<Asked>,
    first: u64,
    /// Queries without their last piece.
    left: usize,
    /// Rows of the last piece.
    untaken: usize,
    due: Instant,
    received: mpsc::UnboundedReceiver<Said>,
    /// Pieces that have come before all was counted.
    early: VecDeque<Answer>,
}

impl Waiting {
    /// The id of the first query; those of the others follow.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Waits until all questions are counted; returns their epoch. From then on the answer is not refused.
    pub async fn epoch(&mut self) -> Result<u64, Busy> {
        loop {
            match self.said().await? {
                Said::Counted(epoch) => return Ok(epoch),
                Said::Piece(answer) => self.early.push_back(answer),
                Said::Failed(busy) => return Err(busy),
            }
        }
    }

    /// The next piece: those of a question in their order. The one before is taken by then.
    pub async fn next(&mut self) -> Result<Option<Answer>, Busy> {
        self.take_last()?;
        let answer = match self.early.pop_front() {
            Some(answer) => answer,
            None if self.left == 0 => return Ok(None),
            None => loop {
                self.due = Instant::now() + ANSWER_TIME;
                match self.said().await? {
                    Said::Counted(_) => {}
                    Said::Piece(answer) => break answer,
                    Said::Failed(busy) => return Err(busy),
                }
            },
        };
        self.left -= usize::from(answer.rest == Rest::Nothing);
        self.untaken = answer.rows.len();
        Ok(Some(answer))
    }

    async fn said(&mut self) -> Result<Said, Busy> {
        match timeout_at(self.due, self.received.recv()).await {
            Ok(Some(said)) => Ok(said),
            _ => Err(Busy::Questions),
        }
    }

    fn take_last(&mut self) -> Result<(), Busy> {
        let rows = std::mem::take(&mut self.untaken);
        let mut calls = locked(&self.asked.calls);
        if rows > 0 {
            calls.taken(self.first, rows);
            self.asked.go_on(&mut calls);
        }
        if let Some((began, taken)) = calls.progress(self.first)
            && calls.is_short(self.asked.most_pinned)
            && began.elapsed() > SHARE_TIME + Duration::from_secs(taken / SHARE_ROWS)
        {
            return Err(Busy::Slow);
        }
        Ok(())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut calls = locked(&self.asked.calls);
        calls.close(self.first);
        self.asked.go_on(&mut calls);
    }
}
