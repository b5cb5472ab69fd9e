//! Changes of epochs as the dataflow would send them.

use crate::model::time::DayZone;
use crate::model::{
    ArrivalOutcome, BatchBuilder, Category, CityId, CityNames, CurrentChange, CurrentRow, DayChange,
    EventTime, HeatIndex, HeldHeat, HourChange, Measurement, OutcomeKind, PartitionIndex, PartitionName,
    PartitionTable, PeriodSummary, ReadingEvent, Render, Revision, Row, RowChange, Shard,
};
use crate::sinks::postgres::plan::PostgresTable;
use crate::sinks::postgres::render::PostgresRenderer;
use crate::sinks::shard::ShardBatch;

pub const EPOCH: u64 = 1_764_000_000_123;
/// 2025-11-24.
pub const DAY: i32 = 20_416;

pub fn at(ms: i64) -> EventTime {
    EventTime::from_millis(i64::from(DAY) * 86_400_000 + ms).unwrap()
}

pub fn measurement() -> Measurement {
    Measurement::new(81.5, 60.25, None).unwrap()
}

/// The first reading of a city and time.
pub fn inserted(city: CityId, reading_at: EventTime) -> ArrivalOutcome {
    ArrivalOutcome {
        city,
        reading_at,
        partition: PartitionIndex(1),
        position: 1017,
        arrived_at: Some(at(5)),
        event: ReadingEvent::Reading(measurement()),
        revision: Revision::new(3),
        kind: OutcomeKind::Inserted,
        seq: 2,
        before: None,
        after: Some(heat(82_000_000)),
        is_first_of_city: false,
        is_split: false,
        high: Some(reading_at),
    }
}

/// The correction of a reading.
pub fn corrected(city: CityId, reading_at: EventTime) -> ArrivalOutcome {
    ArrivalOutcome {
        kind: OutcomeKind::Corrected,
        before: Some(heat(82_000_000)),
        after: Some(heat(3_595_000_000)),
        ..inserted(city, reading_at)
    }
}

/// The withdrawal of a reading.
pub fn withdrawn(city: CityId, reading_at: EventTime) -> ArrivalOutcome {
    ArrivalOutcome {
        event: ReadingEvent::Withdrawal,
        revision: None,
        arrived_at: None,
        kind: OutcomeKind::Withdrawn,
        before: Some(heat(82_000_000)),
        after: None,
        ..inserted(city, reading_at)
    }
}

pub fn heat(micros: i64) -> HeldHeat {
    let heat_index = HeatIndex::from_micros(micros);
    HeldHeat::new(heat_index, Category::of(heat_index))
}

pub fn row(sum: i64) -> Row {
    Row::new(HeatIndex::from_micros(82_000_000), Category::Caution, sum, 2)
}

pub fn current(reading_at: EventTime) -> CurrentRow {
    CurrentRow { reading_at, row: row(164_000_000), hour_ago: None, measurement: Some(measurement()) }
}

pub fn summary(readings: u32) -> PeriodSummary {
    PeriodSummary {
        readings,
        sum: i64::from(readings) * 82_000_000,
        max_heat_index: HeatIndex::from_micros(83_000_000),
        max_at: at(60_000),
        categories: [0, readings, 0, 0, 0],
    }
}

/// A renderer of all tables, and what it has rendered.
pub struct Rendered {
    pub names: CityNames,
    renderer: PostgresRenderer,
    out: BatchBuilder,
    pub epoch: u64,
}

impl Rendered {
    pub fn new() -> Rendered {
        let name = |partition| PartitionName { source: "readings".into(), partition };
        let partitions = PartitionTable::new(vec![name(0), name(1)]);
        let tables = PostgresTable::ALL.into_iter().collect();
        Rendered {
            names: CityNames::default(),
            renderer: PostgresRenderer::new(Shard(0), 1, tables, &partitions),
            out: BatchBuilder::default(),
            epoch: EPOCH,
        }
    }

    pub fn city(&mut self, name: &str) -> CityId {
        self.names.push(name.into())
    }

    pub fn outcome(&mut self, outcome: &ArrivalOutcome) {
        self.renderer.render_outcome(self.epoch, &self.names, outcome, &mut self.out);
    }

    pub fn row(&mut self, city: CityId, reading_at: EventTime, before: Option<Row>, after: Option<Row>) {
        let change = RowChange { city, reading_at, before, after };
        self.renderer.render_row(self.epoch, &self.names, &change, &mut self.out);
    }

    pub fn current(&mut self, change: &CurrentChange<'_>) {
        self.renderer.render_current(self.epoch, &self.names, change, &mut self.out);
    }

    pub fn hour(&mut self, city: CityId, before: Option<PeriodSummary>, after: Option<PeriodSummary>) {
        let change = HourChange { city, starts: at(3_600_000).millis(), before, after, is_final: false };
        self.renderer.render_hour(self.epoch, &self.names, &change, &mut self.out);
    }

    pub fn day(
        &mut self,
        city: CityId,
        zone: DayZone,
        before: Option<PeriodSummary>,
        after: Option<PeriodSummary>,
    ) {
        let (starts, ends) = (at(-3_600_000).millis(), at(82_800_000).millis());
        let change = DayChange { city, zone, day: DAY, starts, ends, before, after, is_final: true };
        self.renderer.render_day(self.epoch, &self.names, &change, &mut self.out);
    }

    pub fn output(&mut self) -> &mut BatchBuilder {
        &mut self.out
    }

    /// All that was rendered, as the next batch of the shard.
    pub fn take_batch(&mut self) -> ShardBatch {
        let epoch = self.epoch;
        self.epoch += 1;
        ShardBatch {
            batches: self.out.take_batches(),
            epoch,
            positions: Default::default(),
            before: Default::default(),
        }
    }
}
