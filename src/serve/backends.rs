//! The rest of the program as requests and sessions call it: what they call belongs to all, so that a panic in it ends the process.

use std::sync::Arc;

use super::Ports;
use crate::model::{Acknowledge, Appender, Ask, Hold, Holds, NewRecord, Query};
use crate::panics::fail_point;
use crate::panics::locks::SharedStateMark;

/// The same ends, with a mark of shared state around each call.
pub(super) fn marked(ports: Ports) -> Ports {
    Ports {
        ask: Arc::new(Marked(ports.ask)),
        appender: ports.appender.map(|appender| Arc::new(Marked(appender)) as Arc<dyn Appender>),
        holds: ports.holds.map(|holds| Arc::new(Marked(holds)) as Arc<dyn Holds>),
        warn_ahead: ports.warn_ahead,
    }
}

struct Marked<T: ?Sized>(Arc<T>);

impl Ask for Marked<dyn Ask> {
    fn ask(&self, queries: Vec<Query>) -> bool {
        let _mark = SharedStateMark::set();
        self.0.ask(queries)
    }
}

impl Holds for Marked<dyn Holds> {
    fn hold(&self) -> Option<Hold> {
        let _mark = SharedStateMark::set();
        self.0.hold()
    }
}

impl Appender for Marked<dyn Appender> {
    fn append(&self, records: Vec<NewRecord>, done: Acknowledge) {
        let _mark = SharedStateMark::set();
        fail_point("append");
        self.0.append(records, done);
    }
}
