//! Arrival times of records, from a wall clock that is checked against the host's uptime.
//!
//! A wall clock that is ahead, even for one record, would admit readings of the future. So it is
//! compared with the expected time: the last accepted time plus the uptime since then. A clock that
//! is ahead of that by more than the bound puts appends on hold, until it has been consistent for a
//! minute. A clock that is behind is accepted at once: stamps may decrease.
//!
//! The last accepted time is saved to a file. After a restart of the host the length of the
//! downtime is unknown, so the saved time is the only one to compare with.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::fault;
use crate::model::clock::{boot_id, uptime_ms, wall_clock_ms};
use crate::model::{AppendError, AppendHold, EventTime, HoldCause, Millis};
use crate::test_hooks;

/// In the directory of the journal.
pub(super) const FILE_NAME: &str = "clock";
/// A clock that is ahead is accepted once it has been consistent for this long.
const CLOCK_CONFIRM_MS: i64 = 60_000;
/// Two checks agree if they differ by at most this, after the time between them is subtracted:
/// clocks are slewed and drift.
const DRIFT_TOLERANCE_MS: i64 = 1_000;
/// A warning is logged if the clock was set back by more than this.
const BACKWARD_STEP_WARN_MS: i64 = 10_000;
/// How often the file is saved.
const SAVE_INTERVAL_MS: i64 = 60_000;

/// The clocks of the host, or of a test.
pub(super) trait Clock: Send {
    /// ms since 1970-01-01T00:00:00Z.
    fn wall_ms(&self) -> i64;
    fn uptime_ms(&self) -> i64;
    fn boot_id(&self) -> String;
    /// How long a clock that is ahead must be consistent before it is accepted.
    fn confirm_ms(&self) -> i64 {
        CLOCK_CONFIRM_MS
    }
}

pub(super) struct HostClock;

impl Clock for HostClock {
    fn wall_ms(&self) -> i64 {
        i64::try_from(wall_clock_ms()).unwrap_or(i64::MAX)
    }

    fn uptime_ms(&self) -> i64 {
        uptime_ms()
    }

    fn boot_id(&self) -> String {
        boot_id()
    }

    fn confirm_ms(&self) -> i64 {
        test_hooks::clock_confirm_ms().unwrap_or(CLOCK_CONFIRM_MS)
    }
}

/// The content of the file: the last accepted time.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedClock {
    boot_id: String,
    uptime_ms: i64,
    wall_ms: i64,
}

/// The accepted state of the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClockEstimate {
    Unknown,
    /// The time was at least this, before a downtime of unknown length.
    AtLeast(i64),
    /// The wall clock minus the uptime.
    Offset(i64),
}

/// The first check of a clock that is ahead.
#[derive(Clone, Copy, Debug)]
struct UnconfirmedClockStep {
    offset: i64,
    since: i64,
}

/// The hold on appends, if there is one, as other threads read it.
pub(super) type SharedAppendHold = Arc<Mutex<Option<AppendHold>>>;

pub(super) struct ArrivalClock {
    clock: Box<dyn Clock>,
    max_ahead_ms: i64,
    estimate: ClockEstimate,
    unconfirmed: Option<UnconfirmedClockStep>,
    hold: SharedAppendHold,
    path: PathBuf,
    /// The uptime and the offset at the last save.
    saved: Option<(i64, i64)>,
}

impl ArrivalClock {
    /// `last` is the arrival time of the journal's last record, if it has one.
    pub(super) fn open(
        dir: &Path,
        max_ahead: Millis,
        last: Option<EventTime>,
        clock: Box<dyn Clock>,
    ) -> ArrivalClock {
        let path = dir.join(FILE_NAME);
        let saved = fault::read_small_file(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<SavedClock>(&bytes).ok());
        let belief = match (saved, last) {
            (Some(kept), _) if !kept.boot_id.is_empty() && kept.boot_id == clock.boot_id() => {
                ClockEstimate::Offset(kept.wall_ms.saturating_sub(kept.uptime_ms))
            }
            (Some(kept), _) => ClockEstimate::AtLeast(kept.wall_ms),
            (None, Some(last)) => ClockEstimate::AtLeast(last.millis()),
            (None, None) => ClockEstimate::Unknown,
        };
        let held = SharedAppendHold::default();
        let max_ahead_ms = max_ahead.millis().max(DRIFT_TOLERANCE_MS);
        let mut arrival_clock = ArrivalClock {
            clock,
            max_ahead_ms,
            estimate: belief,
            unconfirmed: None,
            hold: held,
            path,
            saved: None,
        };
        let _ = arrival_clock.stamp_now();
        arrival_clock
    }

    pub(super) fn shared_hold(&self) -> SharedAppendHold {
        Arc::clone(&self.hold)
    }

    /// Returns the stamp of a record that arrives now. Call it about once a second even if nothing
    /// arrives, so that a clock that is ahead is checked again.
    pub(super) fn stamp_now(&mut self) -> Result<EventTime, AppendError> {
        let (wall, uptime) = (self.clock.wall_ms(), self.clock.uptime_ms());
        let offset = wall.saturating_sub(uptime);
        let ahead = match self.estimate {
            ClockEstimate::Unknown => 0,
            ClockEstimate::AtLeast(known) => wall.saturating_sub(known),
            ClockEstimate::Offset(believed) => offset.saturating_sub(believed),
        };
        if ahead <= DRIFT_TOLERANCE_MS {
            if ahead < -BACKWARD_STEP_WARN_MS {
                warn_clock_set_back(wall, ahead);
            }
            self.accept_clock(offset, uptime);
        } else if self.is_confirmed(offset, uptime) {
            let time = format_time(wall);
            tracing::warn!(
                time,
                "the clock of this host has been ahead for a minute without a change, so it is trusted now: it was put forward by {}",
                format_span(ahead)
            );
            self.accept_clock(offset, uptime);
        } else if ahead > self.max_ahead_ms {
            return Err(AppendError::OnHold(self.start_hold(wall, uptime, ahead)));
        } else {
            // A small step: records are accepted meanwhile. The estimate stays, so several small
            // steps in a row do not add up.
            self.release_hold();
        }
        Ok(EventTime::from_millis(wall).unwrap_or(EventTime::MAX))
    }

    /// Whether the clock has been consistent for the required time; the first check starts that
    /// time.
    fn is_confirmed(&mut self, offset: i64, uptime: i64) -> bool {
        match self.unconfirmed {
            Some(unconfirmed) if (offset - unconfirmed.offset).abs() <= DRIFT_TOLERANCE_MS => {
                uptime - unconfirmed.since >= self.clock.confirm_ms()
            }
            _ => {
                self.unconfirmed = Some(UnconfirmedClockStep { offset, since: uptime });
                false
            }
        }
    }

    fn accept_clock(&mut self, offset: i64, uptime: i64) {
        self.estimate = ClockEstimate::Offset(offset);
        self.unconfirmed = None;
        self.release_hold();
        let is_fresh = |(at, saved_offset): (i64, i64)| {
            uptime - at < SAVE_INTERVAL_MS && (offset - saved_offset).abs() <= DRIFT_TOLERANCE_MS
        };
        if self.saved.is_some_and(is_fresh) {
            return;
        }
        self.saved = Some((uptime, offset));
        let saved = SavedClock { boot_id: self.clock.boot_id(), uptime_ms: uptime, wall_ms: uptime + offset };
        if let Err(error) = self.save_clock(&saved) {
            tracing::debug!(path = %self.path.display(), %error, "the time cannot be saved; it is retried in a minute");
        }
    }

    /// Saves the time without a sync: if the file is missing, a start compares with the last
    /// record.
    fn save_clock(&self, saved: &SavedClock) -> io::Result<()> {
        let temporary = self.path.with_extension("new");
        let mut file = fs::File::create(&temporary)?;
        serde_json::to_writer(&mut file, saved)?;
        file.flush()?;
        fs::rename(&temporary, &self.path)
    }

    fn release_hold(&self) {
        if self.hold.lock().take().is_some() {
            tracing::info!("the clock of this host is trusted again: readings are accepted");
        }
    }

    fn start_hold(&self, wall: i64, uptime: i64, ahead: i64) -> AppendHold {
        let since = self.unconfirmed.map_or(uptime, |unconfirmed| unconfirmed.since);
        let left_s = (self.clock.confirm_ms() - (uptime - since)).max(0) / 1_000 + 1;
        let mut held = self.hold.lock();
        if held.is_none() {
            let time = format_time(wall);
            tracing::warn!(
                time,
                "the clock of this host is {} ahead of the expected time: readings are refused until it is right or has been steady for a minute; set it right",
                format_span(ahead)
            );
        }
        let detail = format!(
            "the clock of this host says {}, {} ahead of the expected time (the last arrival and the time since): readings are accepted once it is set right, or has been steady for a minute",
            format_time(wall),
            format_span(ahead)
        );
        let retry_after_s = u32::try_from(left_s).unwrap_or(u32::MAX);
        let hold = AppendHold { cause: HoldCause::ClockAhead, detail: detail.into(), retry_after_s };
        held.insert(hold).clone()
    }
}

fn warn_clock_set_back(wall: i64, ahead: i64) {
    let time = format_time(wall);
    tracing::warn!(
        time,
        "the clock of this host was put back by {}: new arrivals are stamped by it, and epochs continue from their bound; readings that were accepted while it was ahead stay (/v1/status lists their cities under ahead_of_clock)",
        format_span(-ahead)
    );
}

fn format_time(wall: i64) -> String {
    EventTime::from_millis(wall).unwrap_or(EventTime::MAX).to_string()
}

/// Formats a span in the largest unit of which it has at least two, rounded.
pub(super) fn format_span(ms: i64) -> String {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
    let unit = units.iter().find(|(_, unit)| ms >= 2 * unit);
    unit.map_or_else(|| format!("{ms} ms"), |(name, unit)| format!("{} {name}", (ms + unit / 2) / unit))
}
