//! How far back arrivals are accepted, rows are servable and readings are kept.

use crate::model::Millis;

/// How far back results and state reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The span of a rolling mean; both ends belong to it.
    pub window: Millis,
    /// How much older than its city's newest reading an arrival may be.
    pub lateness: Millis,
    /// How far back rows are servable, if lateness does not reach further.
    pub history: Millis,
}

impl Retention {
    /// The oldest time of an arrival that is accepted, in ms; `high` is the newest accepted time of
    /// the city.
    #[inline(always)]
    pub fn oldest_accepted(&self, high: i64) -> i64 {
        high.saturating_sub(self.lateness.millis())
    }

    /// The oldest time of a servable row, in ms.
    pub fn oldest_servable(&self, high: i64) -> i64 {
        high.saturating_sub(self.lateness.max(self.history).millis())
    }

    /// The oldest time of a reading that a servable row is computed from, in ms.
    pub fn oldest_held(&self, high: i64) -> i64 {
        self.oldest_servable(high).saturating_sub(self.window.millis())
    }
}
