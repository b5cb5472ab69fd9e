//! When records arrived, by a clock that is not believed when it suddenly says something else.
//!
//! A wall clock that is ahead, even for one record, would let readings of the future in. So the wall clock is compared with the
//! time that it should be: the last time that was believed, plus how long the host has been up since. A clock that is ahead of that by
//! more than the bound holds records back, until it has said the same for a minute. One that is behind is believed at once: stamps may fall.
//!
//! The last time that was believed outlives the process in a file. After a restart of the host nothing says how long that was
//! off: the last time that is known is all there is to compare with.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::fault;
use crate::model::clock::{boot_id, uptime_ms, wall_clock_ms};
use crate::model::{AppendError, Duration, EventTime, Hold, HoldCause};

/// In the journal's folder.
pub(super) const FILE: &str = "clock";
/// A clock that is ahead is believed once it has said the same for so long.
const AGREE_MS: i64 = 60_000;
/// Two looks agree that differ by no more, the time between them taken off; clocks are slewed and drift.
const TOLERANCE_MS: i64 = 1_000;
/// A clock that was put back by more is warned of.
const WARN_BACK_MS: i64 = 10_000;
/// The file is written so often.
const KEEP_EVERY_MS: i64 = 60_000;

/// The clocks of the host, or those of a test.
pub(super) trait Clock: Send {
    /// ms since 1970-01-01T00:00:00Z.
    fn wall_ms(&self) -> i64;
    fn uptime_ms(&self) -> i64;
    fn boot_id(&self) -> String;
    /// How long a clock that is ahead must say the same.
    fn agree_ms(&self) -> i64 {
        AGREE_MS
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

    #[cfg(debug_assertions)]
    fn agree_ms(&self) -> i64 {
        // For tests only: they have no minute.
        let asked = std::env::var("SWELTER_TEST_CLOCK_AGREE_MS").ok();
        asked.and_then(|text| text.parse().ok()).unwrap_or(AGREE_MS)
    }
}

/// What the last time that was believed is written down as.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    boot_id: String,
    uptime_ms: i64,
    wall_ms: i64,
}

/// What is believed of the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Belief {
    Nothing,
    /// It was at least so late, before a time off of unknown length.
    Since(i64),
    /// The wall clock less the uptime.
    Offset(i64),
}

/// The first look at a clock that is ahead.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    offset: i64,
    since: i64,
}

/// Whether records are held back, as others see it.
pub(super) type SharedHold = Arc<Mutex<Option<Hold>>>;

pub(super) struct Stamps {
    clock: Box<dyn Clock>,
    max_ahead_ms: i64,
    belief: Belief,
    doubt: Option<Doubt>,
    held: SharedHold,
    path: PathBuf,
    /// Uptime and offset when the file was written.
    kept: Option<(i64, i64)>,
}

impl Stamps {
    /// `last` is when the last record of the journal arrived, where there is one.
    pub(super) fn open(
        dir: &Path,
        max_ahead: Duration,
        last: Option<EventTime>,
        clock: Box<dyn Clock>,
    ) -> Stamps {
        let path = dir.join(FILE);
        let kept =
            fault::read_small_file(&path).ok().and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok());
        let belief = match (kept, last) {
            (Some(kept), _) if !kept.boot_id.is_empty() && kept.boot_id == clock.boot_id() => {
                Belief::Offset(kept.wall_ms.saturating_sub(kept.uptime_ms))
            }
            (Some(kept), _) => Belief::Since(kept.wall_ms),
            (None, Some(last)) => Belief::Since(last.millis()),
            (None, None) => Belief::Nothing,
        };
        let held = SharedHold::default();
        let max_ahead_ms = max_ahead.millis().max(TOLERANCE_MS);
        let mut stamps = Stamps { clock, max_ahead_ms, belief, doubt: None, held, path, kept: None };
        let _ = stamps.now();
        stamps
    }

    pub(super) fn held(&self) -> SharedHold {
        Arc::clone(&self.held)
    }

    /// The stamp of a record that arrives now. To be called about once a second even where none does, so that a clock that is ahead is
    /// looked at again.
    pub(super) fn now(&mut self) -> Result<EventTime, AppendError> {
        let (wall, uptime) = (self.clock.wall_ms(), self.clock.uptime_ms());
        let offset = wall.saturating_sub(uptime);
        let ahead = match self.belief {
            Belief::Nothing => 0,
            Belief::Since(known) => wall.saturating_sub(known),
            Belief::Offset(believed) => offset.saturating_sub(believed),
        };
        if ahead <= TOLERANCE_MS {
            if ahead < -WARN_BACK_MS {
                warn_of_back(wall, ahead);
            }
            self.believe(offset, uptime);
        } else if self.says_the_same(offset, uptime) {
            let time = text(wall);
            tracing::warn!(
                time,
                "the clock of this host says so for a minute now, and is believed: it was put forward by {}",
                span(ahead)
            );
            self.believe(offset, uptime);
        } else if ahead > self.max_ahead_ms {
            return Err(AppendError::Held(self.hold(wall, uptime, ahead)));
        } else {
            // A small step: records are taken meanwhile, but several such steps in a row do not add up.
            self.release();
        }
        Ok(EventTime::from_millis(wall).unwrap_or(EventTime::MAX))
    }

    /// Whether it has said the same for a minute; the first look begins it.
    fn says_the_same(&mut self, offset: i64, uptime: i64) -> bool {
        match self.doubt {
            Some(doubt) if (offset - doubt.offset).abs() <= TOLERANCE_MS => {
                uptime - doubt.since >= self.clock.agree_ms()
            }
            _ => {
                self.doubt = Some(Doubt { offset, since: uptime });
                false
            }
        }
    }

    fn believe(&mut self, offset: i64, uptime: i64) {
        self.belief = Belief::Offset(offset);
        self.doubt = None;
        self.release();
        let is_fresh =
            |(at, kept): (i64, i64)| uptime - at < KEEP_EVERY_MS && (offset - kept).abs() <= TOLERANCE_MS;
        if self.kept.is_some_and(is_fresh) {
            return;
        }
        self.kept = Some((uptime, offset));
        let kept = Kept { boot_id: self.clock.boot_id(), uptime_ms: uptime, wall_ms: uptime + offset };
        if let Err(error) = self.keep(&kept) {
            tracing::debug!(path = %self.path.display(), %error, "the time cannot be written down: it is tried again in a minute");
        }
    }

    /// Not synced: without the file a start compares with the last record.
    fn keep(&self, kept: &Kept) -> io::Result<()> {
        let temporary = self.path.with_extension("new");
        let mut file = fs::File::create(&temporary)?;
        serde_json::to_writer(&mut file, kept)?;
        file.flush()?;
        fs::rename(&temporary, &self.path)
    }

    fn release(&self) {
        if self.held.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            tracing::info!("readings are taken again");
        }
    }

    fn hold(&self, wall: i64, uptime: i64, ahead: i64) -> Hold {
        let since = self.doubt.map_or(uptime, |doubt| doubt.since);
        let left_s = (self.clock.agree_ms() - (uptime - since)).max(0) / 1_000 + 1;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            let time = text(wall);
            tracing::warn!(
                time,
                "the clock of this host is {} ahead of what it should say: readings are held back until it says so for a minute; set it right",
                span(ahead)
            );
        }
        let detail = format!(
            "the clock of this host says {}, {} ahead of what it should by the last arrival and the time since: readings are taken once \
             it is set right, or has said the same for a minute",
            text(wall),
            span(ahead)
        );
        let retry_after_s = u32::try_from(left_s).unwrap_or(u32::MAX);
        let hold = Hold { cause: HoldCause::ClockAhead, detail: detail.into(), retry_after_s };
        held.insert(hold).clone()
    }
}

fn warn_of_back(wall: i64, ahead: i64) {
    let time = text(wall);
    tracing::warn!(
        time,
        "the clock of this host was put back by {}: arrivals are stamped by it from now on, and epochs go on from their bound; readings \
         that were taken while it was ahead stay (/v1/status has their cities under ahead_of_clock)",
        span(-ahead)
    );
}

fn text(wall: i64) -> String {
    EventTime::from_millis(wall).unwrap_or(EventTime::MAX).to_string()
}

/// In the largest unit that shows what it is.
fn span(ms: i64) -> String {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
    let unit = units.iter().find(|(_, unit)| ms >= 2 * unit);
    unit.map_or_else(|| format!("{ms} ms"), |(name, unit)| format!("{} {name}", ms / unit))
}
