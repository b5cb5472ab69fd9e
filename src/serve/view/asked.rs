//! Questions to the dataflow that wait for their answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::locked;
use super::room::{Held, Room};
use crate::model::{Answer, Ask, EventTime, Query, Question, Row};
use crate::panics::locks::SharedMutex;

/// Queries that may wait at once.
pub const MAX_WAITING: usize = 10_000;
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// There is no answer for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    #[error("too many questions are waiting for an answer: try again in a moment")]
    Questions,
    #[error("too many cities are watched: try again in a moment")]
    Watches,
    #[error("too many snapshots are being sent: try again in a moment")]
    Room,
}

pub(super) struct Asked {
    ask: Arc<dyn Ask>,
    room: Room,
    calls: SharedMutex<Calls>,
}

#[derive(Default)]
struct Calls {
    next: u64,
    waiting: usize,
    /// By the id of its first query; the ids of a call are dense.
    open: BTreeMap<u64, Call>,
}

/// All answers of a call, in the order of the questions, with the room that they take.
type Answered = (Vec<Answer>, Held);

struct Call {
    /// By query.
    answers: Vec<Option<Answer>>,
    missing: usize,
    done: oneshot::Sender<Result<Answered, Busy>>,
}

impl Calls {
    fn close(&mut self, first: u64) -> Option<Call> {
        let call = self.open.remove(&first)?;
        self.waiting -= call.answers.len();
        Some(call)
    }

    /// Returns the call that the answer completes.
    fn take(&mut self, answer: Answer) -> Option<Call> {
        let (&first, call) = self.open.range_mut(..=answer.query).next_back()?;
        let slot = call.answers.get_mut(usize::try_from(answer.query - first).ok()?)?;
        if slot.replace(answer).is_none() {
            call.missing -= 1;
        }
        if call.missing == 0 { self.close(first) } else { None }
    }
}

impl Call {
    /// What nobody may have taken yet is held against the room, from now on.
    fn finish(self, room: &Room) {
        let answers: Vec<Answer> = self.answers.into_iter().flatten().collect();
        let rows: usize = answers.iter().map(|answer| answer.rows.capacity()).sum();
        let bytes = rows * size_of::<(EventTime, Row)>() + answers.len() * size_of::<Answer>();
        // Whoever asked may have gone.
        let _ = self.done.send(room.take_now(bytes).map(|held| (answers, held)));
    }
}

impl Asked {
    pub(super) fn new(ask: Arc<dyn Ask>, room: Room) -> Asked {
        Asked { ask, room, calls: SharedMutex::default() }
    }

    /// Queues questions that are answered at one epoch.
    pub(super) fn ask(self: &Arc<Asked>, questions: Vec<(Arc<str>, Question)>) -> Result<Waiting, Busy> {
        let mut calls = locked(&self.calls);
        if calls.waiting + questions.len() > MAX_WAITING {
            return Err(Busy::Questions);
        }
        let (first, queries) = (calls.next, questions.len());
        let numbered = (first..)
            .zip(questions)
            .map(|(id, (city, question))| Query { id, process: 0, city, question })
            .collect();
        // The call is open before an answer can come: answers take the lock too.
        if !self.ask.ask(numbered) {
            return Err(Busy::Questions);
        }
        let (done, answered) = oneshot::channel();
        calls.next += queries as u64;
        calls.waiting += queries;
        let answers = (0..queries).map(|_| None).collect();
        calls.open.insert(first, Call { answers, missing: queries, done });
        Ok(Waiting { asked: self.clone(), first, answered })
    }

    /// Queues what has no answer; false where the queue is full.
    pub(super) fn tell(&self, city: &Arc<str>, question: Question) -> bool {
        let mut calls = locked(&self.calls);
        let id = calls.next;
        calls.next += 1;
        self.ask.ask(vec![Query { id, process: 0, city: city.clone(), question }])
    }

    pub(super) fn answered(&self, answers: Vec<Answer>) {
        if answers.is_empty() {
            return;
        }
        let mut calls = locked(&self.calls);
        for answer in answers {
            if let Some(call) = calls.take(answer) {
                call.finish(&self.room);
            }
        }
    }
}

/// Waits for the answers of one call; dropped, it waits no more.
pub struct Waiting {
    asked: Arc<Asked>,
    first: u64,
    answered: oneshot::Receiver<Result<Answered, Busy>>,
}

impl Waiting {
    /// The id of the first query; those of the others follow.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// In the order of the questions.
    pub async fn answers(mut self) -> Result<Answered, Busy> {
        match tokio::time::timeout(ANSWER_TIME, &mut self.answered).await {
            Ok(Ok(answered)) => answered,
            _ => Err(Busy::Questions),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        locked(&self.asked.calls).close(self.first);
    }
}
