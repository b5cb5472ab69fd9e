//! What is measured.

use std::thread;
use std::time::{Duration, Instant};

use swelter::internals::model::{EncodedBatch, EventTime};
use swelter::internals::sinks::postgres::transaction::{PendingTransaction, ShardLock, WriteTarget};
use swelter::internals::sinks::progress::ShardProgress;
use swelter::internals::sinks::shard::ShardBatch;

use crate::BenchOptions;
use crate::bare::{BareTransaction, make_tables};
use crate::database::Database;
use crate::load::{CITIES, Load};
use crate::measure::{Latencies, now_micros};
use crate::server::own_cpu_time;

const READINGS_PER_SECOND: u64 = 15_000;
const EPOCH_MS: u64 = 50;
const EPOCHS_PER_COMMIT: u64 = 5;
/// A commit of catch-up has this much.
const FILL_BYTES: usize = 16 * 1024 * 1024;

/// The shard's writer, as a run has it.
struct Writer<'a> {
    database: &'a Database,
    pending: PendingTransaction,
    committed: Option<u64>,
    rows: u64,
}

impl Writer<'_> {
    fn new(database: &Database) -> Writer<'_> {
        let target = WriteTarget { schema: database.schema.clone(), create_tables: true };
        Writer { database, pending: PendingTransaction::new(target), committed: None, rows: 0 }
    }

    fn begin(&mut self) {
        self.pending.clear(None);
    }

    fn add(&mut self, epoch: u64, batches: Vec<EncodedBatch>) {
        let batch = ShardBatch { batches, epoch, positions: Default::default(), before: Default::default() };
        self.pending.add(&batch).unwrap();
    }

    fn commit(&mut self, epoch: u64) {
        let lock = ShardLock {
            shard: 0,
            generation: 1,
            nonce: "bench".into(),
            epoch: self.committed,
            kept_from: None,
            timeout: Duration::from_secs(60),
        };
        let progress = ShardProgress { epoch, ..ShardProgress::default() };
        let Database { runtime, client, .. } = self.database;
        let written = runtime.block_on(async {
            self.pending.prepare(client).await.unwrap();
            self.pending.commit(client, &lock, &progress).await.unwrap()
        });
        self.committed = Some(epoch);
        self.rows += written.inserted + written.updated;
    }
}

/// CPU time of this process and of the server, from one moment on.
struct CpuUsage<'a> {
    database: &'a Database,
    begun: Instant,
    own: Duration,
    server: Duration,
    wal: f64,
}

impl CpuUsage<'_> {
    fn begin(database: &Database) -> CpuUsage<'_> {
        CpuUsage {
            database,
            own: own_cpu_time(),
            server: database.cpu_time(),
            wal: database.wal_bytes(),
            begun: Instant::now(),
        }
    }

    fn to_text(&self, readings: u64) -> String {
        let wall = self.begun.elapsed().as_secs_f64();
        let (own, server) = (own_cpu_time() - self.own, self.database.cpu_time() - self.server);
        let each = |time: Duration| time.as_secs_f64() * 1e6 / readings as f64;
        format!(
            "{:7.0} readings/s; CPU a reading: client {:.2} µs, server {:.2} µs, both {:.2} µs; WAL {:.0} bytes a reading",
            readings as f64 / wall,
            each(own),
            each(server),
            each(own + server),
            (self.database.wal_bytes() - self.wal) / readings as f64
        )
    }
}

fn time_of(ms: u64) -> EventTime {
    EventTime::from_millis(ms as i64).unwrap()
}

/// The readings of one epoch, each in its turn.
fn push_epoch(load: &mut Load, epoch: u64) {
    for _ in 0..READINGS_PER_SECOND * EPOCH_MS / 1_000 {
        load.push_reading(epoch, time_of(epoch));
    }
}

/// All cities have a row in `now` before anything is measured.
fn first_readings(writer: &mut Writer<'_>, load: &mut Load, epoch: u64) {
    writer.begin();
    for _ in 0..CITIES {
        load.push_reading(epoch, time_of(epoch));
    }
    writer.add(epoch, load.take_batches());
    writer.commit(epoch);
}

pub fn bench_paced(database: &Database, effort: &BenchOptions) {
    let (mut writer, mut load) = (Writer::new(database), Load::new());
    let begin = now_micros() as u64 / 1_000 + 1_000;
    first_readings(&mut writer, &mut load, begin - 1_000);
    let commits = effort.time.as_millis() as u64 / (EPOCH_MS * EPOCHS_PER_COMMIT);
    let mut late = Latencies::new();
    let readings = commits * EPOCHS_PER_COMMIT * EPOCH_MS * READINGS_PER_SECOND / 1_000;
    wait_until(begin);
    let usage = CpuUsage::begin(database);
    for commit in 0..commits {
        writer.begin();
        let mut due = 0;
        for epoch in 0..EPOCHS_PER_COMMIT {
            due = begin + (commit * EPOCHS_PER_COMMIT + epoch + 1) * EPOCH_MS;
            wait_until(due);
            push_epoch(&mut load, due);
            writer.add(due, load.take_batches());
        }
        writer.commit(due);
        late.record(now_micros() - due as i64 * 1_000);
    }
    println!("now, reading and arrival, a commit each 250 ms:\n  swelter   {}", usage.to_text(readings));
    println!("            from the last reading of a commit to its end: {}", late.to_text());
    bench_bare_paced(database, commits, readings);
}

fn bench_bare_paced(database: &Database, commits: u64, readings: u64) {
    make_tables(database);
    let mut load = Load::new();
    let begin = now_micros() as u64 / 1_000 + 2_000_000;
    for _ in 0..CITIES {
        load.push_reading(begin - 1_000, time_of(begin - 1_000));
    }
    load.take_batches();
    let transactions: Vec<BareTransaction> = (0..commits)
        .map(|commit| {
            let epochs = 1..=EPOCHS_PER_COMMIT;
            epochs.for_each(|epoch| {
                push_epoch(&mut load, begin + (commit * EPOCHS_PER_COMMIT + epoch) * EPOCH_MS)
            });
            BareTransaction::of_batches(&load.take_batches())
        })
        .collect();
    let mut late = Latencies::new();
    let begin = now_micros() as u64 / 1_000 + 100;
    wait_until(begin);
    let usage = CpuUsage::begin(database);
    for (commit, transaction) in (1..).zip(&transactions) {
        let due = begin + commit * EPOCHS_PER_COMMIT * EPOCH_MS;
        wait_until(due);
        database.runtime.block_on(transaction.write(&database.client));
        late.record(now_micros() - due as i64 * 1_000);
    }
    println!("  bare COPY {}", usage.to_text(readings));
    println!("            {}", late.to_text());
}

fn wait_until(ms: u64) {
    let wait = ms as i64 * 1_000 - now_micros();
    if wait > 0 {
        thread::sleep(Duration::from_micros(wait as u64));
    }
}

pub fn bench_most(database: &Database, effort: &BenchOptions) {
    let (mut writer, mut load) = (Writer::new(database), Load::new());
    let mut epoch = now_micros() as u64 / 1_000;
    first_readings(&mut writer, &mut load, epoch);
    let mut readings = 0;
    let usage = CpuUsage::begin(database);
    while usage.begun.elapsed() < effort.time {
        writer.begin();
        for _ in 0..EPOCHS_PER_COMMIT {
            epoch += EPOCH_MS;
            push_epoch(&mut load, epoch);
            writer.add(epoch, load.take_batches());
            readings += READINGS_PER_SECOND * EPOCH_MS / 1_000;
        }
        writer.commit(epoch);
    }
    println!(
        "the same in transactions of 250 ms of readings, one after the other:\n  swelter   {}",
        usage.to_text(readings)
    );
}

pub fn bench_fill(database: &Database, effort: &BenchOptions) {
    let (mut writer, mut load) = (Writer::new(database), Load::new());
    let usage = CpuUsage::begin(database);
    let mut transactions = Fill::new(effort.readings);
    while let Some(batches) = transactions.next_transaction(&mut load) {
        writer.begin();
        writer.add(transactions.epoch, batches);
        writer.commit(transactions.epoch);
    }
    let minutes = effort.readings / CITIES;
    println!(
        "a first fill, {minutes} minutes of 15,000 cities:\n  swelter   {}",
        usage.to_text(effort.readings)
    );
    make_tables(database);
    let mut load = Load::new();
    let mut transactions = Fill::new(effort.readings);
    let mut rendering = Duration::ZERO;
    let usage = CpuUsage::begin(database);
    loop {
        let cpu = own_cpu_time();
        let Some(batches) = transactions.next_transaction(&mut load) else { break };
        let transaction = BareTransaction::of_batches(&batches);
        rendering += own_cpu_time() - cpu;
        database.runtime.block_on(transaction.write(&database.client));
    }
    println!("  bare COPY {}", usage.to_text(effort.readings));
    let each = rendering.as_secs_f64() * 1e6 / effort.readings as f64;
    println!("            of the client's time, {each:.2} µs a reading went to rendering");
}

/// Readings of all cities, minute by minute, in transactions as a catch-up has them.
struct Fill {
    begin: u64,
    left: u64,
    epoch: u64,
    pushed: u64,
}

impl Fill {
    fn new(readings: u64) -> Fill {
        let now = now_micros() as u64 / 1_000;
        let begin = now - readings.div_ceil(CITIES) * 60_000;
        Fill { begin, left: readings, epoch: now, pushed: 0 }
    }

    fn next_transaction(&mut self, load: &mut Load) -> Option<Vec<EncodedBatch>> {
        let mut batches: Vec<EncodedBatch> = Vec::new();
        let mut bytes = 0;
        self.epoch += 1;
        while self.left > 0 && bytes < FILL_BYTES {
            for _ in 0..CITIES.min(self.left) {
                load.push_reading(self.epoch, time_of(self.begin + self.pushed / CITIES * 60_000));
                self.pushed += 1;
            }
            self.left -= CITIES.min(self.left);
            let new = load.take_batches();
            bytes += new.iter().map(EncodedBatch::encoded_bytes).sum::<usize>();
            batches.extend(new);
        }
        (!batches.is_empty()).then_some(batches)
    }
}
