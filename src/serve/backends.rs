//! The rest of the program as requests and sessions call it: what they call belongs to all, so that a panic in it ends the process.

use std::sync::Arc;

use super::Backends;
use crate::model::{AppendCallback, AppendHold, Appender, HoldCheck, NewRecord, Queries, Query};
use crate::panics::locks::SharedStateSection;
use crate::panics::panic_point;

/// The same ends, with a mark of shared state around each call.
pub(super) fn make_panics_fatal(ports: Backends) -> Backends {
    Backends {
        queries: Arc::new(FatalOnPanic(ports.queries)),
        appender: ports.appender.map(|appender| Arc::new(FatalOnPanic(appender)) as Arc<dyn Appender>),
        hold_check: ports.hold_check.map(|holds| Arc::new(FatalOnPanic(holds)) as Arc<dyn HoldCheck>),
        warn_ahead: ports.warn_ahead,
    }
}

struct FatalOnPanic<T: ?Sized>(Arc<T>);

impl Queries for FatalOnPanic<dyn Queries> {
    fn submit_queries(&self, queries: Vec<Query>) -> bool {
        let _mark = SharedStateSection::enter();
        self.0.submit_queries(queries)
    }
}

impl HoldCheck for FatalOnPanic<dyn HoldCheck> {
    fn current_hold(&self) -> Option<AppendHold> {
        let _mark = SharedStateSection::enter();
        self.0.current_hold()
    }
}

impl Appender for FatalOnPanic<dyn Appender> {
    fn append(&self, records: Vec<NewRecord>, done: AppendCallback) {
        let _mark = SharedStateSection::enter();
        panic_point("append");
        self.0.append(records, done);
    }
}
