//! Writes the changes of all workers to one file, epoch by epoch.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::codec::ChangesWriter;
use crate::model::{Batch, ChangeLine, CityNames, EventTime, Row, RowChange};

/// The most batches in the queue; workers wait while it is full.
const MAX_QUEUED_BATCHES: usize = 16;

#[derive(Debug)]
struct NamedChange {
    city: Arc<str>,
    reading_at: EventTime,
    before: Option<Row>,
    after: Option<Row>,
}

/// A batch that a worker has closed.
#[derive(Debug)]
struct ClosedChanges {
    worker: usize,
    upper: u64,
    epochs: Vec<(u64, Vec<NamedChange>)>,
}

/// Sends a worker's batches to the thread that writes the file.
#[derive(Clone, Debug)]
pub struct ChangesSink {
    worker: usize,
    sender: SyncSender<ClosedChanges>,
}

impl ChangesSink {
    /// Queues a batch, and waits while the queue is full. Returns false if writing has failed.
    pub fn send_batch(&self, batch: &Batch<RowChange>, names: &CityNames) -> bool {
        let named = |change: &RowChange| NamedChange {
            city: names.get(change.city),
            reading_at: change.reading_at,
            before: change.before,
            after: change.after,
        };
        let epochs =
            batch.changes.iter().map(|(epoch, changes)| (*epoch, changes.iter().map(named).collect()));
        self.sender
            .send(ClosedChanges { worker: self.worker, upper: batch.upper, epochs: epochs.collect() })
            .is_ok()
    }
}

/// The thread that writes the file.
pub type ChangesThread = JoinHandle<io::Result<()>>;

/// Starts the thread that writes the changes of `workers` workers. An epoch is written once all
/// workers have closed it, sorted by city and time, so the file does not depend on the number of
/// workers. The thread ends when all senders are dropped.
pub fn spawn_changes_writer(
    writer: ChangesWriter,
    workers: usize,
) -> io::Result<(Vec<ChangesSink>, ChangesThread)> {
    let (parts, received) = sync_channel(MAX_QUEUED_BATCHES);
    let sinks = (0..workers).map(|worker| ChangesSink { worker, sender: parts.clone() }).collect();
    let thread = std::thread::Builder::new()
        .name("changes".into())
        .spawn(move || write_epochs(writer, &received, workers))?;
    Ok((sinks, thread))
}

fn write_epochs(
    mut writer: ChangesWriter,
    received: &Receiver<ClosedChanges>,
    workers: usize,
) -> io::Result<()> {
    let mut uppers = vec![0; workers];
    let mut open: BTreeMap<u64, Vec<NamedChange>> = BTreeMap::new();
    for part in received {
        uppers[part.worker] = part.upper;
        for (epoch, mut changes) in part.epochs {
            open.entry(epoch).or_default().append(&mut changes);
        }
        let upper = uppers.iter().copied().min().unwrap_or(u64::MAX);
        while let Some(entry) = open.first_entry().filter(|entry| *entry.key() < upper) {
            let (as_of, mut changes) = entry.remove_entry();
            changes.sort_unstable_by(|a, b| (&a.city, a.reading_at).cmp(&(&b.city, b.reading_at)));
            for NamedChange { city, reading_at, before, after } in changes {
                writer.write(&ChangeLine { as_of, city: &city, reading_at, before, after })?;
            }
        }
    }
    writer.finish()
}
