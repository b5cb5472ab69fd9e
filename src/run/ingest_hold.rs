//! Holds back posted readings while a log cannot accept more.

use std::sync::Arc;

use crate::model::{AppendCallback, AppendError, AppendHold, Appender, HoldCheck, NewRecord};
use crate::sources::journal::Journal;
use crate::worker::SharedState;

/// Appends to a journal, unless there is no space for the dead letters that may follow.
pub struct HeldAppender {
    to: Arc<dyn Appender>,
    shared: Arc<SharedState>,
}

impl HeldAppender {
    pub fn new(to: Arc<dyn Appender>, shared: Arc<SharedState>) -> HeldAppender {
        HeldAppender { to, shared }
    }
}

impl Appender for HeldAppender {
    fn append(&self, records: Vec<NewRecord>, acknowledge: AppendCallback) {
        let client = records.first().and_then(|record| record.client);
        match self.shared.refusals.hold(client) {
            Some(hold) => acknowledge(Err(AppendError::OnHold(hold))),
            None => self.to.append(records, acknowledge),
        }
    }
}

/// Why posted readings of all clients are refused for now.
pub struct HoldReasons {
    pub journal: Option<Arc<Journal>>,
    pub shared: Arc<SharedState>,
}

impl HoldCheck for HoldReasons {
    fn current_hold(&self) -> Option<AppendHold> {
        let journal = self.journal.as_ref().and_then(|journal| journal.current_hold());
        journal.or_else(|| self.shared.refusals.hold(None))
    }
}
