//! Snapshots of the cities for checkpoints, taken while epochs continue, and restoring from one.
//!
//! A snapshot is the state after one epoch. Between the following epochs it sends a slice of cities
//! at a time. A city that one of those epochs is about to change is sent first: copy before write,
//! one city at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::chunk::PackedHeat;
use super::epoch_changes::EpochChanges;
use super::part::ReadingsPart;
use super::state::Rolling;
use super::store::{AFTER_ALL_TIMES, BEFORE_ALL_TIMES};
use crate::model::{
    Arrival, Block, CheckpointBarrier, CityId, CityPeriods, CitySnapshot, EventTime, PartitionIndex,
    SnapshotSink,
};

/// The state that a graph starts with. Its current rows are sent to serving at `epoch`.
#[derive(Clone, Debug, Default)]
pub struct InitialState {
    pub epoch: u64,
    /// The snapshots of all cities that [belong to this worker](crate::model::state_shard).
    pub cities: Vec<CitySnapshot>,
}

/// How long a slice may take before other work gets its turn.
const SLICE_TIME: Duration = Duration::from_millis(1);
/// Cities that are sent between two reads of the clock.
const CITIES_PER_CLOCK_CHECK: usize = 16;
/// How long to wait for a sink that is full.
const FULL_SINK_RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// Sends snapshots to their sink, slice by slice.
pub struct SnapshotStreamer {
    sink: Box<dyn SnapshotSink>,
    active: Option<ActiveSnapshot>,
}

struct ActiveSnapshot {
    barrier: CheckpointBarrier,
    /// Which cities need not be sent any more: those that were sent or have not changed.
    is_sent: Vec<bool>,
    /// The first city that may still have to be sent.
    next_city: usize,
}

impl SnapshotStreamer {
    pub fn new(sink: Box<dyn SnapshotSink>) -> SnapshotStreamer {
        SnapshotStreamer { sink, active: None }
    }

    /// Starts a snapshot of the present state, which is the state after `epoch`. An unfinished
    /// snapshot is finished first.
    pub fn begin_snapshot(&mut self, barrier: CheckpointBarrier, epoch: u64, rolling: &mut Rolling) {
        self.drop_if_cancelled();
        if self.sink.is_cancelled(barrier) {
            return;
        }
        while let Some(running) = &mut self.active {
            running.send_next_city(rolling, &mut *self.sink);
            self.finish_if_complete();
        }
        self.sink.begin_snapshot(barrier, epoch);
        let is_sent = vec![false; rolling.store.heads.len()];
        self.active = Some(ActiveSnapshot { barrier, is_sent, next_city: 0 });
        self.finish_if_complete();
    }

    /// Sends a city that an introduction is about to change: it may turn out to be split.
    pub fn copy_before_introduction(&mut self, name: &str, rolling: &mut Rolling) {
        self.drop_if_cancelled();
        let Some(running) = &mut self.active else { return };
        if let Some(CityId(city)) = rolling.find_city(name)
            && running.is_sent.get(city as usize) == Some(&false)
        {
            running.send_city(city as usize, rolling, &mut *self.sink);
        }
    }

    /// Sends the cities that an epoch is about to change.
    pub fn copy_before_write(&mut self, arrivals: &[Vec<Arrival>], rolling: &mut Rolling) {
        self.drop_if_cancelled();
        let Some(running) = &mut self.active else { return };
        for arrival in arrivals.iter().flatten() {
            let city = rolling.cities.city_of_key(arrival.city) as usize;
            if running.is_sent.get(city) == Some(&false) {
                running.send_city(city, rolling, &mut *self.sink);
            }
        }
    }

    /// Sends the next slice. Returns after how long to send another one; `None` if all cities are
    /// sent.
    pub fn continue_slice(&mut self, rolling: &mut Rolling) -> Option<Duration> {
        let start = Instant::now();
        self.drop_if_cancelled();
        while let Some(running) = &mut self.active {
            if self.sink.is_full() {
                return Some(FULL_SINK_RETRY_INTERVAL);
            }
            for _ in 0..CITIES_PER_CLOCK_CHECK {
                running.send_next_city(rolling, &mut *self.sink);
            }
            self.finish_if_complete();
            if start.elapsed() >= SLICE_TIME {
                break;
            }
        }
        self.active.is_some().then_some(Duration::ZERO)
    }

    /// Cancels an unfinished snapshot.
    pub fn cancel_snapshot(&mut self) {
        self.active = None;
    }

    fn drop_if_cancelled(&mut self) {
        self.active.take_if(|running| self.sink.is_cancelled(running.barrier));
    }

    fn finish_if_complete(&mut self) {
        if self.active.take_if(|running| running.next_city == running.is_sent.len()).is_some() {
            self.sink.finish_snapshot();
        }
    }
}

impl ActiveSnapshot {
    fn send_next_city(&mut self, rolling: &mut Rolling, sink: &mut dyn SnapshotSink) {
        while self.is_sent.get(self.next_city) == Some(&true) {
            self.next_city += 1;
        }
        if self.next_city < self.is_sent.len() {
            self.send_city(self.next_city, rolling, sink);
            self.next_city += 1;
        }
    }

    fn send_city(&mut self, city: usize, rolling: &mut Rolling, sink: &mut dyn SnapshotSink) {
        self.is_sent[city] = true;
        if let Some(state) = rolling.take_city_state(city as u32, self.barrier.full) {
            sink.write_city(state);
        }
    }
}

impl Rolling {
    /// The city's state: all of it, or the changes since its last snapshot, if there are any.
    fn take_city_state(&mut self, city: u32, full: bool) -> Option<CitySnapshot> {
        self.store.seal_tail(city);
        self.store.trim_city(city);
        self.retire_readings();
        let (newest, high) = (self.store.last_millis(city), self.store.heads[city as usize].high);
        let now = (newest.unwrap_or(BEFORE_ALL_TIMES), high);
        let index = &mut self.store.index[city as usize];
        let edited_from = std::mem::replace(&mut index.edited_from, AFTER_ALL_TIMES);
        let before = std::mem::replace(&mut index.last_snapshot_times, now);
        if !full && edited_from == AFTER_ALL_TIMES && before == now {
            return None;
        }
        let since = if full { BEFORE_ALL_TIMES } else { edited_from.min(before.0.saturating_add(1)) };
        let since = since.clamp(EventTime::MIN.millis(), EventTime::MAX.millis());
        let index = &self.store.index[city as usize];
        let withdrawn =
            index.tombstones.iter().filter_map(|(at, revision)| Some((event_time(*at)?, *revision)));
        let measured = self.current.as_ref().map_or(&[][..], |current| current.measurements(city));
        Some(CitySnapshot {
            name: self.cities.names.get(CityId(city)),
            partition: self.cities.partition_index(city),
            high: event_time(high),
            changed_since: event_time(since)?,
            blocks: self.blocks_since(city, since),
            tombstones: withdrawn.collect(),
            measurements: measured
                .iter()
                .filter_map(|(at, measurement)| Some((event_time(*at)?, *measurement)))
                .collect(),
            is_split: self.cities.names.is_split(CityId(city)),
            periods: self.sink_periods.as_ref().map(|periods| periods.city_periods(city)),
        })
    }

    /// The readings at `since` and later; the city must be sealed.
    fn blocks_since(&self, city: u32, since: i64) -> Vec<Block> {
        let position = self.store.seek_row(city, since);
        let parts = &self.store.index[city as usize].parts;
        let blocks = parts.range(position.part.min(parts.len())..).enumerate().map(|(i, part)| {
            let from = if i == 0 { position.row } else { 0 };
            match part {
                ReadingsPart::Open(chunk) => self.store.arena.get(*chunk).pack_block(from),
                ReadingsPart::Packed(block) if from == 0 => block.clone(),
                ReadingsPart::Packed(block) => Block::pack(&block.iter().skip(from).collect::<Vec<_>>()),
            }
        });
        blocks.collect()
    }

    /// Restores cities before the first arrival, and puts their current rows into `changed`.
    pub fn restore_cities(&mut self, cities: Vec<CitySnapshot>, changed: &mut EpochChanges) {
        let mut rezoned_cities = 0;
        for CitySnapshot {
            name,
            partition: slot,
            high,
            changed_since: _,
            blocks,
            tombstones: withdrawn,
            measurements: measured,
            is_split,
            periods,
        } in cities
        {
            let zone_now = self.sink_periods.as_ref().and_then(|_| self.find_time_zone(&name));
            let Some(city) = self.cities.restore_city(name, slot) else { continue };
            let zone = periods.as_ref().map_or(zone_now, |periods| periods.zone);
            rezoned_cities += u64::from(self.sink_periods.is_some() && zone != zone_now);
            self.add_city(true, zone);
            if is_split {
                self.cities.mark_split(city);
            }
            self.restore_periods(city, periods, &blocks, high);
            let withdrawn = withdrawn.into_iter().map(|(at, revision)| (at.millis(), revision));
            self.store.restore_city(
                city,
                blocks,
                withdrawn,
                high.map_or(BEFORE_ALL_TIMES, EventTime::millis),
            );
            #[cfg(debug_assertions)]
            self.store.assert_city_invariants(city);
            if let Some(current) = &mut self.current {
                let measured = measured.into_iter().map(|(at, measurement)| (at.millis(), measurement));
                current.restore_city(city, measured.collect());
            }
        }
        if rezoned_cities > 0 {
            tracing::warn!(
                cities = rezoned_cities,
                "cities have another time zone now: their local days stay those of the zone that they had at their first reading; \
                 a rebuild takes the new zone"
            );
        }
        changed.clear();
        changed.counts.split_city = std::mem::take(&mut self.cities.new_split_cities);
        if let Some(current) = &mut self.current {
            current.finish_epoch(&mut self.store, false, changed);
        }
    }

    /// Restores the open periods of a city; if the checkpoint has none, from the readings that it
    /// holds. A period that began before them then lacks its first readings.
    fn restore_periods(
        &mut self,
        city: u32,
        periods: Option<CityPeriods>,
        blocks: &[Block],
        high: Option<EventTime>,
    ) {
        let Some(summaries) = &mut self.sink_periods else { return };
        if let Some(periods) = periods {
            summaries.restore_city(city, &periods);
        } else if let Some(high) = high {
            let oldest_accepted = self.store.retention.oldest_accepted(high.millis());
            for reading in blocks.iter().flat_map(Block::iter) {
                let held = PackedHeat::new(reading.heat_index, reading.category);
                summaries.count_held_reading(city, reading.reading_at.millis(), held, oldest_accepted);
            }
        }
    }
}

/// The event time of a stored time; `None` for a bound that is no event time.
fn event_time(millis: i64) -> Option<EventTime> {
    EventTime::from_millis(millis)
}

impl super::city_table::CityTable {
    /// The partition of the city's first arrival.
    fn partition_index(&self, city: u32) -> PartitionIndex {
        PartitionIndex(self.sources[city as usize])
    }

    /// Adds a city that no source has introduced in this run. Returns `None` if the name is known
    /// already.
    fn restore_city(&mut self, name: Arc<str>, partition: PartitionIndex) -> Option<u32> {
        (!self.by_name.contains_key(&name)).then(|| self.push_city(name, partition.0))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use super::*;
    use crate::dataflow::heat_index::Formula;
    use crate::dataflow::rolling::{Retention, RollingOutputs};
    use crate::model::{
        Category, CityIntroduction, CityKey, CityNames, HeatIndex, Measurement, Millis, ReadingEvent,
        Revision, StoredReading,
    };

    #[derive(Clone, Default)]
    struct Taker {
        given_up: Rc<Cell<u64>>,
        full: Rc<Cell<bool>>,
        begun: Rc<RefCell<Vec<u64>>>,
        given: Rc<Cell<usize>>,
        ended: Rc<Cell<usize>>,
    }

    impl SnapshotSink for Taker {
        fn begin_snapshot(&mut self, mark: CheckpointBarrier, _: u64) {
            self.begun.borrow_mut().push(mark.checkpoint);
        }

        fn write_city(&mut self, _: CitySnapshot) {
            self.given.set(self.given.get() + 1);
        }

        fn finish_snapshot(&mut self) {
            self.ended.set(self.ended.get() + 1);
        }

        fn is_full(&self) -> bool {
            self.full.get()
        }

        fn is_cancelled(&self, mark: CheckpointBarrier) -> bool {
            mark.checkpoint <= self.given_up.get()
        }
    }

    fn city(number: i64) -> CitySnapshot {
        let reading = StoredReading {
            reading_at: EventTime::from_millis(60_000 * number).unwrap(),
            heat_index: HeatIndex::from_micros(70_000_000),
            category: Category::ALL[0],
            revision: None,
        };
        CitySnapshot {
            name: format!("city {number}").into(),
            partition: PartitionIndex(0),
            high: Some(reading.reading_at),
            changed_since: EventTime::MIN,
            blocks: vec![Block::pack(&[reading])],
            tombstones: Vec::new(),
            measurements: Vec::new(),
            is_split: false,
            periods: None,
        }
    }

    /// A city is marked as split by an arrival that changes nothing else.
    #[test]
    fn split_mark_is_in_the_next_snapshot_and_restored() {
        let day = Millis::from_millis(86_400_000).unwrap();
        let retention = Retention { window: day, lateness: day, history: day };
        let rolling =
            || Rolling::new(Formula::Nws, retention, RollingOutputs::default(), CityNames::default());
        let key = |source| CityKey { source, number: 0, hash: CityKey::hash("Oslo") };
        let introduction = |source| CityIntroduction { key: key(source), name: "Oslo".into() };
        let at = EventTime::from_millis(1_764_000_000_000).unwrap();
        let reading = ReadingEvent::Reading(Measurement::new(80.0, 50.0, None).unwrap());
        let arrival = |source, revision| Arrival::new(key(source), at, reading, Revision::new(revision), 0);
        let (mut first, mut changed) = (rolling(), EpochChanges::default());
        first.introduce_city(&introduction(0));
        first.apply_arrivals(&[vec![arrival(0, 2)]], |_| false, &mut changed);
        let before = first.take_city_state(0, true).unwrap();
        assert!(!before.is_split && first.take_city_state(0, false).is_none());
        first.introduce_city(&introduction(1));
        first.apply_arrivals(&[vec![arrival(1, 1)]], |_| false, &mut changed);
        assert_eq!((changed.counts.old_revision, changed.counts.split_city), (1, 1));
        let mut state = before;
        state.apply_increment(first.take_city_state(0, false).expect("its mark has changed"));
        assert!(state.is_split);
        let mut second = rolling();
        second.restore_cities(vec![state], &mut changed);
        assert!(second.cities.names.is_split(CityId(0)));
        assert_eq!(changed.counts.split_city, 1);
        // It is counted once.
        second.introduce_city(&introduction(1));
        second.apply_arrivals(&[], |_| false, &mut changed);
        assert_eq!(changed.counts.split_city, 0);
    }

    #[test]
    fn snapshot_cancelled_stops_streaming() {
        let day = Millis::from_millis(86_400_000).unwrap();
        let retention = Retention { window: day, lateness: day, history: day };
        let mut rolling =
            Rolling::new(Formula::Nws, retention, RollingOutputs::default(), CityNames::default());
        rolling.restore_cities((0..40).map(city).collect(), &mut EpochChanges::default());
        let taker = Taker::default();
        let mut snapshots = SnapshotStreamer::new(Box::new(taker.clone()));
        let mark = |checkpoint: u64| CheckpointBarrier { checkpoint, full: true };
        taker.full.set(true);
        snapshots.begin_snapshot(mark(1), 1, &mut rolling);
        assert!(snapshots.continue_slice(&mut rolling).is_some());
        taker.given_up.set(2);
        assert!(snapshots.continue_slice(&mut rolling).is_none());
        // A snapshot that was cancelled before its barrier does not begin.
        snapshots.begin_snapshot(mark(2), 2, &mut rolling);
        taker.full.set(false);
        assert!(snapshots.continue_slice(&mut rolling).is_none());
        assert_eq!((taker.given.get(), taker.ended.get()), (0, 0));
        snapshots.begin_snapshot(mark(3), 3, &mut rolling);
        while snapshots.continue_slice(&mut rolling).is_some() {}
        assert_eq!((taker.given.get(), taker.ended.get()), (40, 1));
        assert_eq!(*taker.begun.borrow(), [1, 3]);
    }
}
