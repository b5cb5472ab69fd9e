//! What is known of a reading's time before it is in the log.
//!
//! A reading that is too late by what this process has heard would be too late in the log, since the newest reading of a city never
//! becomes older there. What this process has not heard proves nothing: that is decided in the log, and shows as a dead letter.

use std::sync::Arc;

use crate::admission::too_late_refusal;
use crate::model::clock::wall_clock_ms;
use crate::model::{EventTime, Millis, Reason, Refusal, Upsert};
use crate::serve::view::View;

#[derive(Clone)]
pub(in crate::serve) struct TimeRules {
    view: Arc<View>,
    /// How far after the clock of this host a reading may be dated before its answer warns of it. Only of logs that stamp records
    /// by other clocks; the journal refuses by its own stamps.
    warn_ahead: Option<Millis>,
}

impl TimeRules {
    pub(in crate::serve) fn new(view: Arc<View>, warn_ahead: Option<Millis>) -> TimeRules {
        TimeRules { view, warn_ahead }
    }

    /// For the readings of one body, as of now.
    pub(super) fn start_check(&self) -> ReadingTimeCheck<'_> {
        let now = i64::try_from(wall_clock_ms()).unwrap_or(i64::MAX);
        ReadingTimeCheck { rules: self, now }
    }
}

pub(super) struct ReadingTimeCheck<'a> {
    rules: &'a TimeRules,
    now: i64,
}

impl ReadingTimeCheck<'_> {
    /// Refuses what is too late for certain; says what may be refused in the log.
    pub(super) fn check_reading_time(&self, upsert: &Upsert<'_>) -> Result<Option<Refusal>, Refusal> {
        let TimeRules { view, warn_ahead } = self.rules;
        let (at, lateness) = (upsert.reading_at, view.service_info().lateness);
        if let Some(newest) = view.newest_reading_at(upsert.city)
            && at.millis() < newest.millis().saturating_sub(lateness.millis())
        {
            return Err(too_late_refusal(at, Some(newest), lateness));
        }
        let ahead = warn_ahead.filter(|most| at.millis().saturating_sub(self.now) > most.millis());
        Ok(ahead.map(|most| {
            let now = EventTime::from_millis(self.now).unwrap_or_default();
            let detail = format!(
                "reading_at {at} is more than {most} after {now}, the time of this host: by the stamp of the topic it may become a dead letter"
            );
            Refusal::new(Reason::InTheFuture, detail)
        }))
    }
}
