//! What requests and sessions call in the rest of the program. A panic inside such a call ends the
//! process, since the state that it may leave half changed is shared by all clients.

use std::sync::Arc;

use crate::model::{AppendCallback, AppendHold, Appender, HoldCheck, Millis, NewRecord, Queries, Query};
use crate::panics::locks::SharedStateSection;
use crate::panics::panic_point;

/// The parts of the program that the server calls.
#[derive(Clone)]
pub struct Backends {
    /// Takes queries to the dataflow.
    pub queries: Arc<dyn Queries>,
    /// Appends posted readings to the log; without one there is no ingest.
    pub appender: Option<Arc<dyn Appender>>,
    /// Says why the appender accepts no records for now.
    pub hold_check: Option<Arc<dyn HoldCheck>>,
    /// How far a posted reading may be dated after this host's clock before its response warns of
    /// it. `None` if the log refuses such readings by its own time stamps.
    pub warn_ahead: Option<Millis>,
}

/// The same backends; a panic inside a call to one of them ends the process.
pub(super) fn make_panics_fatal(backends: Backends) -> Backends {
    let Backends { queries, appender, hold_check, warn_ahead } = backends;
    Backends {
        queries: Arc::new(FatalOnPanic(queries)),
        appender: appender.map(|appender| Arc::new(FatalOnPanic(appender)) as Arc<dyn Appender>),
        hold_check: hold_check.map(|check| Arc::new(FatalOnPanic(check)) as Arc<dyn HoldCheck>),
        warn_ahead,
    }
}

struct FatalOnPanic<T: ?Sized>(Arc<T>);

impl Queries for FatalOnPanic<dyn Queries> {
    fn submit_queries(&self, queries: Vec<Query>) -> bool {
        let _section = SharedStateSection::enter();
        self.0.submit_queries(queries)
    }
}

impl HoldCheck for FatalOnPanic<dyn HoldCheck> {
    fn current_hold(&self) -> Option<AppendHold> {
        let _section = SharedStateSection::enter();
        self.0.current_hold()
    }
}

impl Appender for FatalOnPanic<dyn Appender> {
    fn append(&self, records: Vec<NewRecord>, acknowledge: AppendCallback) {
        let _section = SharedStateSection::enter();
        panic_point("append");
        self.0.append(records, acknowledge);
    }
}
