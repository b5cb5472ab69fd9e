//! Encodes the changes of an epoch as rows of the tables, each a finished tuple of a binary COPY.
//!
//! This runs at the worker that has the city, so a shard only has to sort and send. `reading` and
//! `arrival` come from outcomes: a correction that keeps the heat index changes no row, but a
//! measurement.

use std::sync::Arc;

use super::city_key::{city_id, shard_of_city};
use super::plan::{PostgresTable, TableSet};
use super::record_kind::RecordKind;
use super::row_builder::{RowBuilder, RowKey};
use super::tuple::TupleWriter;
use crate::model::time::DayZone;
use crate::model::{
    ArrivalOutcome, BatchBuilder, CityId, CityNames, CurrentChange, DayChange, HeldHeat, HourChange,
    OutcomeKind, PartitionIndex, PartitionName, PartitionTable, PeriodSummary, ReadingEvent, Render,
    RenderWants, RowChange, Shard,
};

/// Encodes rows of the configured tables.
pub struct PostgresRenderer {
    first_shard: Shard,
    shards: u16,
    tables: TableSet,
    partitions: PartitionTable,
    /// The names of `partitions`, as far as they are known here.
    partition_names: Vec<PartitionName>,
    /// By [`CityId`].
    cities: Vec<RenderedCity>,
}

/// What the rows of a city have in common.
struct RenderedCity {
    id: i64,
    /// The number of the shard within the sink.
    shard: u16,
    name: Arc<str>,
    /// The row of the city says that the city is split.
    is_marked_split: bool,
}

impl PostgresRenderer {
    pub fn new(
        first_shard: Shard,
        shards: u16,
        tables: TableSet,
        partitions: &PartitionTable,
    ) -> PostgresRenderer {
        PostgresRenderer {
            first_shard,
            shards,
            tables,
            partitions: partitions.clone(),
            partition_names: Vec::new(),
            cities: Vec::new(),
        }
    }

    #[inline]
    fn city(&mut self, city: CityId, names: &CityNames) -> &mut RenderedCity {
        for id in self.cities.len()..=city.0 as usize {
            let name = names.get(CityId(id as u32));
            let shard = shard_of_city(&name, self.shards);
            self.cities.push(RenderedCity { id: city_id(&name), shard, name, is_marked_split: false });
        }
        &mut self.cities[city.0 as usize]
    }

    /// Learns the name of a partition. Partitions are only ever added.
    fn learn_partition(&mut self, partition: PartitionIndex) {
        if usize::from(partition.0) >= self.partition_names.len() {
            self.partition_names = self.partitions.names();
        }
    }

    /// Begins a record of a city's shard.
    #[inline]
    fn row<'a>(&self, epoch: u64, city: CityId, out: &'a mut BatchBuilder) -> RowBuilder<'a> {
        let RenderedCity { id, shard, .. } = self.cities[city.0 as usize];
        RowBuilder { epoch, shard: Shard(self.first_shard.0 + shard), id, out }
    }

    /// Writes the row of a city with its first arrival, and again once the city is known to be
    /// split.
    fn render_city(
        &mut self,
        epoch: u64,
        names: &CityNames,
        outcome: &ArrivalOutcome,
        out: &mut BatchBuilder,
    ) {
        let city = &mut self.cities[outcome.city.0 as usize];
        let becomes_split = outcome.is_split && !city.is_marked_split;
        if !outcome.is_first_of_city && !becomes_split {
            return;
        }
        city.is_marked_split = outcome.is_split;
        let RenderedCity { shard, ref name, .. } = *city;
        let name = Arc::clone(name);
        let kind = RecordKind {
            table: PostgresTable::City,
            existed: !outcome.is_first_of_city,
            is_split: outcome.is_split,
        };
        self.row(epoch, outcome.city, out).write(kind, None, RowKey::City, |id, tuple| {
            tuple
                .bigint(id)
                .text(Some(&name))
                .int(i32::from(shard))
                .boolean(!outcome.is_split)
                .text(names.time_zone(outcome.city).map(|zone| zone.name()))
                .timestamptz(None);
        });
    }

    fn render_reading(&self, epoch: u64, outcome: &ArrivalOutcome, out: &mut BatchBuilder) {
        let kind = RecordKind {
            table: PostgresTable::Reading,
            existed: outcome.before.is_some(),
            is_split: outcome.is_split,
        };
        let (row, at) = (self.row(epoch, outcome.city, out), outcome.reading_at);
        match (outcome.kind, outcome.after) {
            (OutcomeKind::Inserted | OutcomeKind::Corrected, Some(after)) => {
                row.write(kind, Some(at.utc_day()), RowKey::Time(at.millis()), |id, tuple| {
                    tuple.bigint(id).timestamptz(at);
                    push_measurement(outcome, tuple);
                    push_heat(Some(after), tuple);
                    tuple.bigint(outcome.revision.map(|revision| revision.number()));
                });
            }
            (OutcomeKind::Withdrawn, _) => row.remove(kind, Some(at.utc_day()), RowKey::Time(at.millis())),
            // The other arrivals change nothing.
            _ => {}
        }
    }

    fn render_arrival(&self, epoch: u64, outcome: &ArrivalOutcome, out: &mut BatchBuilder) {
        let kind = RecordKind { table: PostgresTable::Arrival, existed: false, is_split: outcome.is_split };
        let partition = self.partition_names.get(usize::from(outcome.partition.0));
        let at = outcome.reading_at;
        self.row(epoch, outcome.city, out).write(kind, Some(at.utc_day()), RowKey::None, |id, tuple| {
            tuple
                .bigint(epoch as i64)
                .bigint(id)
                .int(outcome.seq as i32)
                .timestamptz(at)
                .text(Some(partition.map_or("", |name| &name.source)))
                .int(partition.map_or(0, |name| name.partition as i32))
                .bigint(outcome.position as i64)
                .timestamptz(outcome.arrived_at);
            push_measurement(outcome, tuple);
            tuple.bigint(outcome.revision.map(|revision| revision.number())).smallint(outcome_code(outcome));
            push_heat(outcome.after, tuple);
            push_heat(outcome.before, tuple);
        });
    }
}

/// Columns `temperature`, `humidity`, `wind_speed`.
#[inline]
fn push_measurement(outcome: &ArrivalOutcome, tuple: &mut TupleWriter<'_>) {
    let measured = outcome.event.measurement();
    tuple
        .double(measured.map(|measured| measured.temperature()))
        .double(measured.map(|measured| measured.humidity()))
        .double(measured.and_then(|measured| measured.wind_speed()));
}

/// Columns `heat_index_e6`, `category`.
#[inline]
fn push_heat(heat: Option<HeldHeat>, tuple: &mut TupleWriter<'_>) {
    tuple
        .bigint(heat.map(|heat| heat.heat_index().micros()))
        .smallint(heat.map(|heat| heat.category() as i16));
}

/// Columns `readings`, `sum_e6`, `max_e6`, `max_at`, `c0` to `c4`, `final`.
fn push_summary(summary: &PeriodSummary, is_final: bool, tuple: &mut TupleWriter<'_>) {
    tuple
        .int(summary.readings as i32)
        .bigint(summary.sum)
        .bigint(summary.max_heat_index.micros())
        .timestamptz(summary.max_at);
    for readings in summary.categories {
        tuple.int(readings as i32);
    }
    tuple.boolean(is_final);
}

/// The number of an outcome in the table `outcome`.
fn outcome_code(outcome: &ArrivalOutcome) -> i16 {
    match outcome.kind {
        OutcomeKind::Inserted if matches!(outcome.event, ReadingEvent::RetriedReading(_)) => 9,
        OutcomeKind::Inserted => 1,
        OutcomeKind::Corrected => 2,
        OutcomeKind::Withdrawn => 3,
        OutcomeKind::NothingToWithdraw => 4,
        OutcomeKind::OldRevision => 5,
        OutcomeKind::Superseded => 6,
        OutcomeKind::TooLate => 7,
    }
}

impl Render for PostgresRenderer {
    fn wants(&self) -> RenderWants {
        let now = self.tables.contains(PostgresTable::Now);
        RenderWants {
            rows: self.tables.contains(PostgresTable::RollingRow),
            current: now,
            highs: now,
            // The row of a city comes with its first arrival.
            outcomes: true,
            hours: self.tables.contains(PostgresTable::Hour),
            days: self.tables.contains(PostgresTable::Day),
        }
    }

    fn render_row(&mut self, epoch: u64, names: &CityNames, change: &RowChange, out: &mut BatchBuilder) {
        self.city(change.city, names);
        let kind = RecordKind {
            table: PostgresTable::RollingRow,
            existed: change.before.is_some(),
            is_split: names.is_split(change.city),
        };
        let at = change.reading_at;
        let (day, key) = (Some(at.utc_day()), RowKey::Time(at.millis()));
        let row = self.row(epoch, change.city, out);
        row.write_or_remove(kind, day, key, change.after.as_ref(), |id, row, tuple| {
            tuple
                .bigint(id)
                .timestamptz(at)
                .bigint(row.heat_index().micros())
                .bigint(row.sum())
                .int(row.count() as i32)
                .smallint(row.category() as i16)
                .bigint(epoch as i64);
        });
    }

    fn render_current(
        &mut self,
        epoch: u64,
        names: &CityNames,
        change: &CurrentChange<'_>,
        out: &mut BatchBuilder,
    ) {
        // A city has no row before its first reading.
        let Some(high) = change.high else { return };
        self.city(change.city, names);
        let kind = RecordKind {
            table: PostgresTable::Now,
            existed: change.high_before.is_some(),
            is_split: names.is_split(change.city),
        };
        self.row(epoch, change.city, out).write(kind, None, RowKey::City, |id, tuple| {
            let measured = change.after.and_then(|current| current.measurement);
            let row = change.after.map(|current| current.row);
            tuple
                .bigint(id)
                .timestamptz(high)
                .bigint(epoch as i64)
                .timestamptz(change.after.map(|current| current.reading_at))
                .double(measured.map(|measured| measured.temperature()))
                .double(measured.map(|measured| measured.humidity()))
                .double(measured.and_then(|measured| measured.wind_speed()))
                .bigint(row.map(|row| row.heat_index().micros()))
                .bigint(row.map(|row| row.sum()))
                .int(row.map(|row| row.count() as i32))
                .smallint(row.map(|row| row.category() as i16));
        });
    }

    fn render_outcome(
        &mut self,
        epoch: u64,
        names: &CityNames,
        outcome: &ArrivalOutcome,
        out: &mut BatchBuilder,
    ) {
        self.city(outcome.city, names);
        self.render_city(epoch, names, outcome, out);
        if self.tables.contains(PostgresTable::Reading) {
            self.render_reading(epoch, outcome, out);
        }
        if self.tables.contains(PostgresTable::Arrival) {
            self.learn_partition(outcome.partition);
            self.render_arrival(epoch, outcome, out);
        }
    }

    fn render_hour(&mut self, epoch: u64, names: &CityNames, hour: &HourChange, out: &mut BatchBuilder) {
        self.city(hour.city, names);
        let kind = RecordKind {
            table: PostgresTable::Hour,
            existed: hour.before.is_some(),
            is_split: names.is_split(hour.city),
        };
        let row = self.row(epoch, hour.city, out);
        row.write_or_remove(
            kind,
            None,
            RowKey::Time(hour.starts),
            hour.after.as_ref(),
            |id, summary, tuple| {
                tuple.bigint(id).instant(hour.starts);
                push_summary(summary, hour.is_final, tuple);
            },
        );
    }

    fn render_day(&mut self, epoch: u64, names: &CityNames, day: &DayChange, out: &mut BatchBuilder) {
        self.city(day.city, names);
        let kind = RecordKind {
            table: PostgresTable::Day,
            existed: day.before.is_some(),
            is_split: names.is_split(day.city),
        };
        let zone = match day.zone {
            DayZone::Utc => "UTC",
            DayZone::Zone(zone) => zone.name(),
        };
        let key = RowKey::Day { day: day.day, zone };
        let row = self.row(epoch, day.city, out);
        row.write_or_remove(kind, None, key, day.after.as_ref(), |id, summary, tuple| {
            tuple.bigint(id).date(day.day).text(Some(zone)).instant(day.starts).instant(day.ends);
            push_summary(summary, day.is_final, tuple);
        });
    }
}
