//! Checks the time of a posted reading before it is appended to the log.
//!
//! A reading that is too late by the view of this process is too late in the log as well, because
//! the newest reading of a city never becomes older there. The view may be behind the log, so a
//! reading that passes may still be too late: admission decides that, and the reading becomes a
//! dead letter.

use std::sync::Arc;

use crate::admission::too_late_refusal;
use crate::model::clock::wall_clock_ms;
use crate::model::{EventTime, Millis, Reason, Refusal, Upsert};
use crate::serve::view::View;

#[derive(Clone)]
pub(in crate::serve) struct TimeRules {
    view: Arc<View>,
    /// How far after this host's clock a reading may be dated before its response warns of it.
    /// `None` for the journal, which refuses such readings by its own time stamps.
    warn_ahead: Option<Millis>,
}

impl TimeRules {
    pub(in crate::serve) fn new(view: Arc<View>, warn_ahead: Option<Millis>) -> TimeRules {
        TimeRules { view, warn_ahead }
    }

    /// The check of the readings of one body, by the clock as it is now.
    pub(super) fn start_check(&self) -> ReadingTimeCheck<'_> {
        let now_ms = i64::try_from(wall_clock_ms()).unwrap_or(i64::MAX);
        ReadingTimeCheck { rules: self, now_ms }
    }
}

pub(super) struct ReadingTimeCheck<'a> {
    rules: &'a TimeRules,
    now_ms: i64,
}

impl ReadingTimeCheck<'_> {
    /// Refuses a reading that is certainly too late; warns of one that the log may refuse.
    pub(super) fn check_reading_time(&self, upsert: &Upsert<'_>) -> Result<Option<Refusal>, Refusal> {
        let TimeRules { view, warn_ahead } = self.rules;
        let (at, lateness) = (upsert.reading_at, view.service_info().lateness);
        if let Some(newest) = view.newest_reading_at(upsert.city)
            && at.millis() < newest.millis().saturating_sub(lateness.millis())
        {
            return Err(too_late_refusal(at, Some(newest), lateness));
        }
        let ahead = warn_ahead.filter(|most| at.millis().saturating_sub(self.now_ms) > most.millis());
        Ok(ahead.map(|most| {
            let now = EventTime::from_millis(self.now_ms).unwrap_or_default();
            let detail = format!(
                "reading_at {at} is more than {most} after {now}, the time of this host: by the stamp of the \
                 topic it may become a dead letter"
            );
            Refusal::new(Reason::InTheFuture, detail)
        }))
    }
}
