//! The view: the current row of every city and the recent changes of watched ones, built from updates.

mod asked;
pub mod calls;
mod table;
mod watches;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, RwLockReadGuard};
use std::time::{Duration, Instant};

use self::asked::Asked;
pub use self::asked::{Busy, MAX_WAITING, Waiting};
pub use self::table::{AgainstClock, Changed, CityState, Expired, Since};
use self::table::{Table, Tally};
use self::watches::Watches;
pub use self::watches::{MAX_WATCHED, WindowSince};
use super::budget::{Budget, Held};
use super::freshness::Freshness;
use super::turns::Turns;
use super::{Facts, Limits};
use crate::model::clock::wall_clock_ms;
use crate::model::{Ask, Counts, EventTime, Progress, Question, Reason, Slot, Update, WatchedRow};
use crate::panics::fail_point;
use crate::panics::locks::{SharedGuard, SharedMutex, SharedRwLock};

/// How long a client that comes from another process waits for this one to come as far, and how often it looks.
const CATCH_UP: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(5);
/// Between two comparisons of all current rows with the clock.
const CLOCK_COMPARISON_INTERVAL: Duration = Duration::from_secs(1);

/// What clients have subscribed to or have missed, and have not taken yet.
pub const ROOM_BYTES: usize = 256 << 20;
const ROOM_WAIT: Duration = Duration::from_secs(5);

/// What is served. Readers share it; one publisher thread applies the updates.
pub struct View {
    facts: Facts,
    as_of: AtomicU64,
    ready: AtomicBool,
    table: SharedRwLock<Table>,
    tally: SharedMutex<Tally>,
    watches: SharedMutex<Watches>,
    asked: Arc<Asked>,
    room: Arc<Budget>,
    turns: Turns,
    updated_at: SharedMutex<Instant>,
    against_clock: SharedMutex<Option<(Instant, Arc<AgainstClock>)>>,
}

/// What an update did to the view.
pub struct Applied {
    pub as_of: u64,
    /// Each city at most once.
    pub current: Vec<Changed>,
    pub rows: Vec<WatchedRow>,
}

impl View {
    pub fn new(facts: Facts, limits: &Limits, ask: Arc<dyn Ask>) -> Arc<View> {
        let ring_ms = u64::try_from(limits.ring_time.as_millis()).unwrap_or(u64::MAX);
        let (room, workers) = (Budget::new(ROOM_BYTES, ROOM_WAIT), facts.workers);
        Arc::new(View {
            table: SharedRwLock::new(Table::new(facts.directory, ring_ms, limits.ring_bytes)),
            facts,
            as_of: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            tally: SharedMutex::default(),
            watches: SharedMutex::new(Watches::new(limits.ring_time, limits.ring_bytes)),
            asked: Arc::new(Asked::new(ask, workers)),
            room,
            turns: Turns::default(),
            updated_at: SharedMutex::new(Instant::now()),
            against_clock: SharedMutex::default(),
        })
    }

    /// Whose turn it is to encode a piece of a long answer.
    pub fn turns(&self) -> &Turns {
        &self.turns
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The newest epoch that is included completely.
    pub fn as_of(&self) -> u64 {
        self.as_of.load(Ordering::Acquire)
    }

    /// The newest epoch that a subscription can have been told of: of an update that is being taken in, it may be ahead of
    /// [`View::as_of`].
    pub fn newest(&self) -> u64 {
        locked(&self.watches).as_of()
    }

    /// Waits, not long, until [`View::newest`] has come to an epoch that another process has come to.
    pub async fn comes_to(&self, epoch: u64) -> bool {
        let deadline = tokio::time::Instant::now() + CATCH_UP;
        while self.newest() < epoch {
            if tokio::time::Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
        true
    }

    /// How far results are behind the clock, in ms. Epochs never fall, so those after one of a clock that was ahead do not tell: then it is
    /// the time since the last update.
    pub fn lag_ms(&self) -> u64 {
        let updated_at = *locked(&self.updated_at);
        let since = u64::try_from(updated_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        wall_clock_ms().saturating_sub(self.as_of()).max(since)
    }

    /// How all current rows stand against the clock. They are compared once a second at most.
    pub fn against_clock(&self) -> Arc<AgainstClock> {
        let mut last = locked(&self.against_clock);
        match &*last {
            Some((at, found)) if at.elapsed() < CLOCK_COMPARISON_INTERVAL => found.clone(),
            _ => {
                let found = Arc::new(self.table().against_clock(self.freshness()));
                last.insert((Instant::now(), found)).1.clone()
            }
        }
    }

    /// What is fresh as of now.
    pub fn freshness(&self) -> Freshness {
        Freshness::now(self.facts.stale_after)
    }

    /// Replay has passed the ends that the logs had at the start.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// A city that has ever had a reading.
    pub fn city(&self, key: &str) -> Option<CityState> {
        self.table().city(key).cloned()
    }

    /// When a city's newest reading was made, of those that are shown.
    pub fn newest_reading_of(&self, key: &str) -> Option<EventTime> {
        Some(self.table().city(key)?.current.as_ref()?.reading_at)
    }

    /// Calls `each` for every city that has ever had a reading, all as of one epoch, which is returned. Updates wait
    /// meanwhile.
    pub fn cities(&self, each: &mut dyn FnMut(&CityState)) -> u64 {
        let table = self.table();
        table.cities().for_each(each);
        table.as_of()
    }

    /// Cities that have ever had a reading.
    pub fn city_count(&self) -> usize {
        self.table().cities().len()
    }

    /// Adds those names that are no city that has ever had a reading.
    pub fn add_unknown<'a>(&self, names: &[&'a str], unknown: &mut HashSet<&'a str>) {
        let table = self.table();
        unknown.extend(names.iter().filter(|name| table.city(name).is_none()));
    }

    /// How many cities a partition has.
    pub fn partition_cities(&self, slot: usize) -> u32 {
        let slot = u16::try_from(slot).map(Slot);
        let tally = locked(&self.tally);
        slot.ok().and_then(|slot| tally.progress.get(&slot)).map_or(0, |progress| progress.cities)
    }

    /// By slot.
    pub fn progress(&self) -> Vec<Progress> {
        locked(&self.tally).progress.values().copied().collect()
    }

    pub fn counts(&self) -> Counts {
        locked(&self.tally).counts
    }

    /// Readings refused since the start, by whoever refuses them: the dataflow does what is too late of a city of two partitions.
    pub fn refused(&self) -> Vec<(Reason, u64)> {
        let tally = locked(&self.tally);
        let mut refused = tally.refused.clone();
        if tally.counts.too_late > 0 {
            *refused.entry(Reason::TooLate).or_default() += tally.counts.too_late;
        }
        refused.into_iter().collect()
    }

    /// Asks the dataflow; the answer comes in pieces.
    pub fn ask(&self, city: Arc<str>, question: Question) -> Result<Waiting, Busy> {
        self.asked.ask(vec![(city, question)])
    }

    /// The rows that `select` takes and the removals of cities that it had taken: what has changed after epoch `since`, or all
    /// current rows where there is none.
    pub fn latest(&self, select: &Select<'_>, since: Option<u64>) -> Result<Since, Expired> {
        self.table().since(select, since)
    }

    /// Asks for all rows of cities (sorted), at one epoch, and watches them until [`View::unwatch`] is called as often.
    pub fn watch(&self, cities: &[Arc<str>]) -> Result<Waiting, Busy> {
        // Questions are queued under the lock, so that the dataflow gets a watch and the end of one in the order of the rings.
        let mut watches = locked(&self.watches);
        if !watches.make_room(cities, |city| self.asked.tell(city, Question::Unwatch)) {
            return Err(Busy::Watches);
        }
        let waiting = self.asked.ask(cities.iter().map(|city| (city.clone(), Question::Watch)).collect())?;
        watches.begin(cities, waiting.first());
        Ok(waiting)
    }

    /// Holds the rings of cities that are all complete after epoch `since`, as [`View::watch`] does without asking.
    pub fn watch_again(&self, cities: &[Arc<str>], since: u64) -> Result<(), Expired> {
        let mut watches = locked(&self.watches);
        if !watches.reach(cities, since) {
            return Err(Expired);
        }
        watches.hold(cities);
        Ok(())
    }

    pub fn unwatch(&self, cities: &[Arc<str>]) {
        locked(&self.watches).release(cities);
    }

    /// What has changed in the rows of watched cities after epoch `since`.
    pub fn window(&self, cities: &[Arc<str>], since: u64) -> Result<WindowSince, Expired> {
        locked(&self.watches).since(cities, since)
    }

    /// Takes room for what [`View::latest`] answers, before it is collected.
    pub async fn room_for_latest(&self, select: &Select<'_>) -> Result<Held, Busy> {
        let cities = if let Select::Listed(keys) = select { keys.len() } else { self.city_count() };
        self.room.take(cities * Since::ROW_BYTES).await.ok_or(Busy::Room)
    }

    /// Takes room for what [`View::window`] answers, before it is collected.
    pub async fn room_for_window(&self, cities: &[Arc<str>]) -> Result<Held, Busy> {
        let changes = locked(&self.watches).changes(cities);
        self.room.take(changes * WindowSince::ROW_BYTES).await.ok_or(Busy::Room)
    }

    /// What snapshots and merged changes are held in.
    pub fn room(&self) -> &Arc<Budget> {
        &self.room
    }

    /// Takes in the next update. Whoever reads the view once this has returned finds the update in it.
    pub fn apply(&self, update: Update) -> Applied {
        let as_of = update.upper.saturating_sub(1);
        let mut tally = locked(&self.tally);
        tally.progress.extend(update.progress.into_iter().map(|progress| (progress.slot, progress)));
        tally.refused.extend(update.refused);
        tally.counts = update.counts.unwrap_or(tally.counts);
        drop(tally);

        let mut watches = locked(&self.watches);
        watches.apply(as_of, &update.rows, &update.answers);
        watches.expire(|city| self.asked.tell(city, Question::Unwatch));
        drop(watches);

        let mut table = self.table.write();
        let current = table.apply(as_of, update.current);
        drop(table);

        self.as_of.store(as_of, Ordering::Release);
        *locked(&self.updated_at) = Instant::now();
        self.ready.fetch_or(update.ready, Ordering::AcqRel);
        self.asked.answered(update.answers);
        Applied { as_of, current, rows: update.rows }
    }

    fn table(&self) -> SharedGuard<RwLockReadGuard<'_, Table>> {
        let table = self.table.read();
        fail_point("view");
        table
    }
}

/// Which cities are meant.
pub enum Select<'a> {
    All,
    /// Sorted.
    Listed(&'a [Arc<str>]),
    Inside(Bounds),
}

/// Degrees; west greater than east spans the antimeridian.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    pub west: f64,
    pub south: f64,
    pub east: f64,
    pub north: f64,
}

/// Where a city is: degrees north and east.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    pub latitude: f64,
    pub longitude: f64,
}

impl Bounds {
    pub fn hold(&self, place: Place) -> bool {
        let east_of = place.longitude >= self.west;
        let west_of = place.longitude <= self.east;
        let between = if self.west <= self.east { east_of && west_of } else { east_of || west_of };
        between && (self.south..=self.north).contains(&place.latitude)
    }
}

fn locked<T>(mutex: &SharedMutex<T>) -> SharedGuard<MutexGuard<'_, T>> {
    mutex.lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_include_their_sides_and_may_span_the_antimeridian() {
        let place = |longitude, latitude| Place { latitude, longitude };
        let europe = Bounds { west: -10.0, south: 35.0, east: 30.0, north: 60.0 };
        assert!(europe.hold(place(-10.0, 35.0)) && europe.hold(place(30.0, 60.0)));
        assert!(!europe.hold(place(-10.1, 50.0)) && !europe.hold(place(0.0, 60.1)));
        let pacific = Bounds { west: 170.0, south: -50.0, east: -170.0, north: 0.0 };
        assert!(pacific.hold(place(175.0, -40.0)) && pacific.hold(place(-175.0, -10.0)));
        assert!(!pacific.hold(place(0.0, -10.0)));
    }
}
