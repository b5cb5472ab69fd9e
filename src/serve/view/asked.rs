//! Questions to the dataflow that wait for their answers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;

use super::locked;
use crate::model::{Answer, Ask, Query, Question};

/// Queries that may wait at once.
const MAX_WAITING: usize = 10_000;
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// There is no answer for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many questions are waiting for an answer: try again in a moment")]
pub struct Busy;

pub(super) struct Asked {
    ask: Arc<dyn Ask>,
    calls: Mutex<Calls>,
}

#[derive(Default)]
struct Calls {
    next: u64,
    waiting: usize,
    /// By the id of its first query; the ids of a call are dense.
    open: BTreeMap<u64, Call>,
}

struct Call {
    queries: usize,
    answers: Vec<Answer>,
    done: oneshot::Sender<Vec<Answer>>,
}

impl Calls {
    fn close(&mut self, first: u64) -> Option<Call> {
        let call = self.open.remove(&first)?;
        self.waiting -= call.queries;
        Some(call)
    }
}

impl Asked {
    pub(super) fn new(ask: Arc<dyn Ask>) -> Asked {
        Asked { ask, calls: Mutex::default() }
    }

    /// Queues questions that are answered at one epoch.
    pub(super) fn ask(self: &Arc<Asked>, questions: Vec<(Arc<str>, Question)>) -> Result<Waiting, Busy> {
        let mut calls = locked(&self.calls);
        if calls.waiting + questions.len() > MAX_WAITING {
            return Err(Busy);
        }
        let (first, queries) = (calls.next, questions.len());
        let numbered =
            (first..).zip(questions).map(|(id, (city, question))| Query { id, city, question }).collect();
        // The call is open before an answer can come: answers take the lock too.
        if !self.ask.ask(numbered) {
            return Err(Busy);
        }
        let (done, answered) = oneshot::channel();
        calls.next += queries as u64;
        calls.waiting += queries;
        calls.open.insert(first, Call { queries, answers: Vec::with_capacity(queries), done });
        Ok(Waiting { asked: self.clone(), first, answered })
    }

    /// Queues what has no answer; false where the queue is full.
    pub(super) fn tell(&self, city: &Arc<str>, question: Question) -> bool {
        let mut calls = locked(&self.calls);
        let id = calls.next;
        calls.next += 1;
        self.ask.ask(vec![Query { id, city: city.clone(), question }])
    }

    pub(super) fn answered(&self, answers: Vec<Answer>) {
        if answers.is_empty() {
            return;
        }
        let mut calls = locked(&self.calls);
        for answer in answers {
            let Some((&first, call)) = calls.open.range_mut(..=answer.query).next_back() else { continue };
            let known = answer.query - first < call.queries as u64
                && call.answers.iter().all(|other| other.query != answer.query);
            if !known {
                continue;
            }
            call.answers.push(answer);
            if call.answers.len() == call.queries
                && let Some(mut call) = calls.close(first)
            {
                call.answers.sort_unstable_by_key(|answer| answer.query);
                // Whoever asked may have gone.
                let _ = call.done.send(call.answers);
            }
        }
    }
}

/// Waits for the answers of one call; dropped, it waits no more.
pub struct Waiting {
    asked: Arc<Asked>,
    first: u64,
    answered: oneshot::Receiver<Vec<Answer>>,
}

impl Waiting {
    /// In the order of the questions.
    pub async fn answers(mut self) -> Result<Vec<Answer>, Busy> {
        match tokio::time::timeout(ANSWER_TIME, &mut self.answered).await {
            Ok(Ok(answers)) => Ok(answers),
            _ => Err(Busy),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        locked(&self.asked.calls).close(self.first);
    }
}
