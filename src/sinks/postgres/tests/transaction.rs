//! Transactions against a real server.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::sample::{DAY, EPOCH, Rendered, at, corrected, current, inserted, row, summary, withdrawn};
use super::server::{ServerSchema, progress_of};
use crate::model::time::DayZone;
use crate::model::{
    ArrivalOutcome, CityId, CurrentChange, EventTime, PartitionName, RawRecord, Reason, Refusal, Shard,
};
use crate::sinks::postgres::dead_letter_row::{RefusedRecord, render_dead_letter};
use crate::sinks::postgres::plan::PostgresTable;
use crate::sinks::postgres::record_kind::RecordKind;
use crate::sinks::postgres::retention::drop_old_partitions;
use crate::sinks::postgres::statement_failure::StatementFailure;
use crate::sinks::postgres::transaction::{PendingTransaction, ShardLock, WriteTarget};
use crate::sinks::postgres::tuple::TupleWriter;
use crate::sinks::shard::ShardBatch;

/// What the tables hold after records that are applied one by one.
#[derive(Default)]
struct ExpectedRows {
    rows: BTreeMap<(PostgresTable, Vec<u8>), Vec<u8>>,
    arrivals: Vec<Vec<u8>>,
}

impl ExpectedRows {
    fn apply(&mut self, batch: &ShardBatch) {
        for encoded in &batch.batches {
            for record in encoded.records() {
                let table = RecordKind::of_topic(record.topic).unwrap().table;
                let mut tuple = Vec::new();
                if table == PostgresTable::DeadLetter {
                    TupleWriter::begin(12, &mut tuple).bigint(encoded.epoch as i64);
                }
                tuple.extend_from_slice(record.value.unwrap_or_default());
                match (record.key, record.value) {
                    (None, _) => self.arrivals.push(tuple),
                    (Some(key), Some(_)) => drop(self.rows.insert((table, key.to_vec()), tuple)),
                    (Some(key), None) => drop(self.rows.remove(&(table, key.to_vec()))),
                }
            }
        }
    }

    fn check(&self, server: &ServerSchema) {
        for table in PostgresTable::ALL {
            let rows = self.rows.iter().filter(|((of, _), _)| *of == table).map(|(_, tuple)| tuple.clone());
            let mut expected: Vec<Vec<u8>> = match table {
                PostgresTable::Arrival => self.arrivals.clone(),
                _ => rows.collect(),
            };
            expected.sort();
            let found = server.tuples(table);
            assert_eq!(found.len(), expected.len(), "rows of {}", table.name());
            assert!(found == expected, "a row of {} differs", table.name());
        }
    }
}

/// Random numbers, the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A run's changes, each as the dataflow would send it after those before.
struct RandomChanges {
    random: Random,
    rendered: Rendered,
    cities: Vec<CityId>,
    seen: BTreeSet<CityId>,
    readings: BTreeSet<(CityId, i64)>,
    summaries: BTreeSet<CityId>,
    highs: BTreeSet<CityId>,
    dead_letters: u64,
}

impl RandomChanges {
    fn new() -> RandomChanges {
        let mut rendered = Rendered::new();
        let cities: Vec<CityId> =
            (0..30).map(|number| rendered.city(&format!("Ciudad \"{number}\" ☀"))).collect();
        cities[..3].iter().for_each(|city| assert!(rendered.names.mark_split(*city)));
        RandomChanges {
            random: Random(1),
            rendered,
            cities,
            seen: BTreeSet::new(),
            readings: BTreeSet::new(),
            summaries: BTreeSet::new(),
            highs: BTreeSet::new(),
            dead_letters: 0,
        }
    }

    fn add_arrival(&mut self) {
        let city = self.cities[self.random.below(30) as usize];
        // Four days around midnight.
        let ms = self.random.below(4_000) as i64 * 60_000 - 86_400_000;
        let time = at(ms);
        let exists = self.readings.contains(&(city, ms));
        let outcome = match (exists, self.random.below(3)) {
            (false, _) => inserted(city, time),
            (true, 0) => withdrawn(city, time),
            (true, _) => corrected(city, time),
        };
        let is_split = self.rendered.names.is_split(city);
        // What is known of a split city may be wrong.
        let before = if is_split && self.random.below(2) == 0 { None } else { outcome.before };
        let is_first_of_city = self.seen.insert(city);
        self.rendered.outcome(&ArrivalOutcome { is_first_of_city, is_split, before, ..outcome });
        let sum = |random: &mut Random| row(random.below(1 << 40) as i64);
        let (old, new) = (sum(&mut self.random), sum(&mut self.random));
        let after = outcome.after.map(|_| new);
        self.rendered.row(city, time, exists.then_some(old), after);
        match after {
            Some(_) => self.readings.insert((city, ms)),
            None => self.readings.remove(&(city, ms)),
        };
        self.add_summaries(city, time);
    }

    fn add_summaries(&mut self, city: CityId, time: EventTime) {
        let high_before = (!self.highs.insert(city)).then(|| at(0));
        let row = current(time);
        let is_gone = self.random.below(4) == 0;
        self.rendered.current(&CurrentChange {
            city,
            before: None,
            after: (!is_gone).then_some(&row),
            high_before,
            high: Some(time),
        });
        let before = self.summaries.contains(&city).then(|| summary(1));
        let after = (before.is_none() || self.random.below(3) > 0).then(|| summary(2));
        self.rendered.hour(city, before, after);
        self.rendered.day(city, DayZone::Utc, before, after);
        match after {
            Some(_) => self.summaries.insert(city),
            None => self.summaries.remove(&city),
        };
    }

    fn add_dead_letter(&mut self) {
        self.dead_letters += 1;
        let partition = PartitionName { source: "readings".into(), partition: 3 };
        let refusal = Refusal::new(Reason::NotDecodable, "a NUL \0 and a quote '");
        let raw = RawRecord { key: Some(b"\0\xff"), ..RawRecord::from_value(b"\\x00\0") };
        let record = RefusedRecord {
            partition: &partition,
            position: self.dead_letters,
            arrived_at: None,
            refusal: &refusal,
            raw,
        };
        render_dead_letter(&record, Shard(0), self.rendered.output());
    }

    /// The changes of an epoch with this many arrivals. Undated records come in batches of their
    /// own.
    fn epoch(&mut self, arrivals: u64) -> ShardBatch {
        (0..arrivals).for_each(|_| self.add_arrival());
        let mut batch = self.rendered.take_batch();
        (0..arrivals / 10).for_each(|_| self.add_dead_letter());
        batch.batches.extend(self.rendered.output().take_batches_at(batch.epoch));
        batch
    }
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn transactions_write_what_records_say() {
    let server = ServerSchema::new();
    let mut pending = PendingTransaction::new(server.target());
    let (mut changes, mut expected) = (RandomChanges::new(), ExpectedRows::default());
    let (mut committed, mut updated, mut deleted) = (None, 0, 0);
    let client = server.connect();
    for arrivals in [1, 0, 3, 40, 300, 20, 5_000, 1, 2_000, 63, 64, 65] {
        pending.clear(None);
        let batches: Vec<ShardBatch> = (0..3).map(|_| changes.epoch(arrivals)).collect();
        for batch in &batches {
            pending.add(batch).unwrap();
            expected.apply(batch);
        }
        let progress = progress_of(&batches[2]);
        let lock = server.lock(committed);
        let written = server.run(async {
            pending.prepare(&client).await.unwrap();
            pending.commit(&client, &lock, &progress).await.unwrap()
        });
        committed = Some(progress.epoch);
        (updated, deleted) = (updated + written.updated, deleted + written.deleted);
        expected.check(&server);
        let row: (i64, String) = server.run(async {
            let query = format!("select epoch, progress::text from {}.shard", server.schema.quoted());
            let row = client.query_one(&query, &[]).await.unwrap();
            (row.get(0), row.get(1))
        });
        assert_eq!(row.0, progress.epoch as i64);
        assert!(row.1.contains(&format!("\"epoch\": {}", progress.epoch)), "{}", row.1);
    }
    assert!(updated > 100 && deleted > 100, "{updated} updated, {deleted} deleted");
    let prepared: i64 = server.run(async {
        client.query_typed_one("select count(*) from pg_prepared_statements", &[]).await.unwrap().get(0)
    });
    assert_eq!(prepared, 0, "statements that outlive their transaction");
}

/// A city with one reading, written at `EPOCH`.
fn with_one_reading(server: &ServerSchema) -> (Rendered, CityId, PendingTransaction) {
    let mut rendered = Rendered::new();
    let oslo = rendered.city("Oslo");
    rendered.outcome(&ArrivalOutcome { is_first_of_city: true, ..inserted(oslo, at(0)) });
    let mut pending = PendingTransaction::new(server.target());
    server.write(&mut pending, &server.lock(None), &rendered.take_batch()).unwrap();
    (rendered, oslo, pending)
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn fenced_writer_changes_nothing() {
    let server = ServerSchema::new();
    let (mut rendered, oslo, mut pending) = with_one_reading(&server);
    server.execute("update shard set generation = 8");
    let before = PostgresTable::ALL.map(|table| server.tuples(table));
    for many in [1, 500] {
        (1..=many).for_each(|ms| rendered.outcome(&inserted(oslo, at(ms))));
        rendered.outcome(&corrected(oslo, at(0)));
        let failure = server.write(&mut pending, &server.lock(Some(EPOCH)), &rendered.take_batch());
        assert!(matches!(failure, Err(StatementFailure::Fenced)), "{failure:?}");
    }
    assert_eq!(PostgresTable::ALL.map(|table| server.tuples(table)), before);
    assert_eq!(server.value::<i64>("select epoch from shard"), EPOCH as i64);
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn progress_that_has_moved_is_found() {
    let server = ServerSchema::new();
    let (mut rendered, oslo, mut pending) = with_one_reading(&server);
    rendered.outcome(&inserted(oslo, at(1)));
    let failure = server.write(&mut pending, &server.lock(None), &rendered.take_batch());
    let Err(StatementFailure::Moved { believed, found }) = failure else { panic!("{failure:?}") };
    assert_eq!((believed, found), (None, Some(EPOCH)));
    assert_eq!(server.tuples(PostgresTable::Arrival).len(), 1);
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn missing_row_is_named() {
    let server = ServerSchema::new();
    let (mut rendered, oslo, mut pending) = with_one_reading(&server);
    server.execute("delete from reading");
    for outcome in [corrected(oslo, at(0)), withdrawn(oslo, at(0))] {
        rendered.outcome(&outcome);
        let failure = server.write(&mut pending, &server.lock(Some(EPOCH)), &rendered.take_batch());
        let Err(StatementFailure::Unexpected(problem)) = failure else { panic!("{failure:?}") };
        let row = "table reading has no row of city \"Oslo\" reading_at 2025-11-24T00:00:00Z, which this sink has written";
        assert!(problem.starts_with(row), "{problem}");
    }
    assert_eq!(server.tuples(PostgresTable::Arrival).len(), 1);
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn duplicate_row_is_named_by_the_second_attempt() {
    let server = ServerSchema::new();
    let (mut rendered, oslo, mut pending) = with_one_reading(&server);
    // Few rows, and so many that they are copied.
    for many in [1, 500] {
        (0..many).for_each(|ms| rendered.outcome(&inserted(oslo, at(ms))));
        let batch = rendered.take_batch();
        let failure = server.write(&mut pending, &server.lock(Some(EPOCH)), &batch);
        assert!(matches!(failure, Err(StatementFailure::Retry(_))), "{failure:?}");
        let failure = server.write(&mut pending, &server.lock(Some(EPOCH)), &batch);
        let Err(StatementFailure::Unexpected(problem)) = failure else { panic!("{failure:?}") };
        let row = "table reading has a row of city \"Oslo\" reading_at 2025-11-24T00:00:00Z already";
        assert!(problem.starts_with(row), "{problem}");
        pending = PendingTransaction::new(server.target());
    }
    assert_eq!(server.tuples(PostgresTable::Arrival).len(), 1);
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn city_whose_id_is_taken_is_named() {
    let server = ServerSchema::new();
    let (mut rendered, _, mut pending) = with_one_reading(&server);
    server.execute("update city set name = 'Lima'");
    let oslo = rendered.city("Oslo");
    rendered.outcome(&ArrivalOutcome { is_first_of_city: true, ..inserted(oslo, at(1)) });
    let batch = rendered.take_batch();
    let failure = server.write(&mut pending, &server.lock(Some(EPOCH)), &batch);
    assert!(matches!(failure, Err(StatementFailure::Retry(_))), "{failure:?}");
    let failure = server.write(&mut pending, &server.lock(Some(EPOCH)), &batch).unwrap_err();
    assert!(failure.to_string().contains("cities \"Lima\" and \"Oslo\" have the same id"), "{failure}");
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn rows_that_a_trigger_drops_are_not_committed() {
    let server = ServerSchema::new();
    let (mut rendered, oslo, mut pending) = with_one_reading(&server);
    server.execute(
        "create function nothing() returns trigger language plpgsql as 'begin return null; end'; \
         create trigger nothing before insert on arrival for each row execute function nothing()",
    );
    (1..500).for_each(|ms| rendered.outcome(&inserted(oslo, at(ms))));
    let failure = server.write(&mut pending, &server.lock(Some(EPOCH)), &rendered.take_batch());
    let Err(StatementFailure::Unexpected(problem)) = failure else { panic!("{failure:?}") };
    assert!(problem.contains("499 rows of table arrival, and has changed 0"), "{problem}");
    assert_eq!(server.tuples(PostgresTable::Reading).len(), 1);
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn two_writers_make_the_same_partitions() {
    let server = ServerSchema::new();
    server.execute("insert into shard (shard, generation, nonce) values (1, 7, 'n')");
    let batch = |city: &str| {
        let mut rendered = Rendered::new();
        let city = rendered.city(city);
        rendered.outcome(&ArrivalOutcome { is_first_of_city: true, ..inserted(city, at(0)) });
        (1..130).for_each(|day| rendered.outcome(&inserted(city, at(-86_400_000 * day))));
        rendered.take_batch()
    };
    // A reader and a writer of rows hold nobody up.
    let reader = server.connect();
    server.execute_on(&reader, "begin; select * from reading; select * from arrival");
    let (clients, batches) = ([server.connect(), server.connect()], [batch("Oslo"), batch("Lima")]);
    let write = async |shard: u16| {
        let (client, batch) = (&clients[usize::from(shard)], &batches[usize::from(shard)]);
        let mut pending = PendingTransaction::new(server.target());
        pending.clear(None);
        pending.add(batch).unwrap();
        pending.prepare(client).await.unwrap();
        let lock = ShardLock { shard, ..server.lock(None) };
        pending.commit(client, &lock, &progress_of(batch)).await.unwrap();
    };
    server.run(async { tokio::join!(write(0), write(1)) });
    assert_eq!(server.tuples(PostgresTable::Reading).len(), 260);
    // The day of the epoch is the newest, so the next one is there too.
    let partitions = "select count(*) from pg_inherits where inhparent = 'reading'::regclass";
    assert_eq!(server.value::<i64>(partitions), 131);
    let newest = "select max(c.relname::text) from pg_inherits i join pg_class c on c.oid = i.inhrelid \
                  where i.inhparent = 'reading'::regclass";
    assert_eq!(server.value::<String>(newest), "reading_20251125");
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn missing_partition_that_may_not_be_made_is_named() {
    let server = ServerSchema::new();
    let target = WriteTarget { create_tables: false, ..server.target() };
    let mut pending = PendingTransaction::new(target);
    let mut rendered = Rendered::new();
    let oslo = rendered.city("Oslo");
    rendered.outcome(&ArrivalOutcome { is_first_of_city: true, ..inserted(oslo, at(0)) });
    let batch = rendered.take_batch();
    let failure = server.write(&mut pending, &server.lock(None), &batch);
    let Err(StatementFailure::Unexpected(problem)) = failure else { panic!("{failure:?}") };
    let (before, statements) = problem.split_once(": ").unwrap();
    assert_eq!(before, "the partition reading_20251124 is missing, and create_tables = false");
    // The statements in the message are what is missing.
    let (statements, _) = statements.split_once("; or set").unwrap();
    server.execute(statements);
    let failure = server.write(&mut pending, &server.lock(None), &batch).unwrap_err();
    assert!(failure.to_string().contains("the partition reading_20251125 is missing"), "{failure}");
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn partition_that_was_dropped_meanwhile_is_made_again() {
    let server = ServerSchema::new();
    let (mut rendered, oslo, mut pending) = with_one_reading(&server);
    server.execute("drop table reading_20251124");
    for many in [1, 500] {
        (1..=many).for_each(|ms| rendered.outcome(&inserted(oslo, at(ms))));
        let batch = rendered.take_batch();
        let lock = server.lock(Some(server.value::<i64>("select epoch from shard") as u64));
        let failure = server.write(&mut pending, &lock, &batch);
        assert!(matches!(failure, Err(StatementFailure::Retry(_))), "{failure:?}");
        server.write(&mut pending, &lock, &batch).unwrap();
        server.execute("drop table reading_20251124");
    }
}

#[test]
#[ignore = "needs PostgreSQL: scripts/test"]
fn retention_drops_partitions_that_no_shard_keeps() {
    let server = ServerSchema::new();
    let (mut rendered, oslo, mut pending) = with_one_reading(&server);
    (0..4).for_each(|day| rendered.outcome(&inserted(oslo, at(86_400_000 * day - 86_400_000 * 3 + 1))));
    server.write(&mut pending, &server.lock(Some(EPOCH)), &rendered.take_batch()).unwrap();
    let days = || {
        let query = "select coalesce(string_agg(right(c.relname::text, 2), ' ' order by c.relname), '') \
                     from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'reading'::regclass";
        server.value::<String>(query)
    };
    assert_eq!(days(), "21 22 23 24 25");
    // One shard keeps all until it has said otherwise.
    server.execute("insert into shard (shard, generation, nonce) values (1, 7, 'n')");
    let lock = ShardLock { kept_from: Some(DAY - 1), ..server.lock(Some(EPOCH + 1)) };
    (0..4).for_each(|day| rendered.outcome(&inserted(oslo, at(86_400_000 * day - 86_400_000 * 3 + 2))));
    let written = server.write(&mut pending, &lock, &rendered.take_batch()).unwrap();
    assert_eq!((written.inserted, written.not_kept), (4, 2));
    let target = server.target();
    let client = server.connect();
    let drop_old = || server.run(drop_old_partitions(&client, &target));
    assert_eq!(drop_old().unwrap(), 0);
    server.execute("update shard set kept_from = '2025-11-22' where shard = 1");
    let reader = server.connect();
    server.execute_on(&reader, "begin; select * from reading");
    let begun = std::time::Instant::now();
    let busy = drop_old();
    assert!(matches!(busy, Err(StatementFailure::Retry(_))), "{busy:?}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    server.execute_on(&reader, "rollback");
    assert_eq!(drop_old().unwrap(), 2);
    assert_eq!(days(), "22 23 24 25");
    // A writer never lowers what is kept.
    let lock = ShardLock { kept_from: None, ..server.lock(Some(EPOCH + 2)) };
    rendered.outcome(&inserted(oslo, at(3)));
    server.write(&mut pending, &lock, &rendered.take_batch()).unwrap();
    assert_eq!(server.value::<String>("select kept_from::text from shard where shard = 0"), "2025-11-23");
}
