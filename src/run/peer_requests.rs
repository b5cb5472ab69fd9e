//! Requests of other processes to process 0 besides control: appends of posted readings, and schema
//! registry responses.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::protocol::{AppendedParts, PeerMessage};
use crate::cluster::{Links, SendError};
use crate::model::{
    AppendCallback, AppendError, AppendReport, AppendedRange, Appender, NewRecord, Reason, Refusal,
};
use crate::registry::{RegistryResponse, ResponseFetcher, SchemaCache, SchemaLookup};

/// How long process 0 may take to find a schema, and the interval of requests.
const SCHEMA_TIMEOUT: Duration = Duration::from_secs(10);
const SCHEMA_RETRY: Duration = Duration::from_millis(50);

/// The requests of this process, or to it.
#[derive(Default)]
pub struct PeerRequests {
    links: OnceLock<Links>,
    calls: AtomicU64,
    /// At process 0: the appender of forwarded records.
    appender: OnceLock<Arc<dyn Appender>>,
    /// At the others: appends that wait for an acknowledgement.
    appends: Mutex<PendingAppends>,
    /// At process 0, by source.
    schemas: Mutex<HashMap<String, SchemaCache>>,
    schema_calls: Mutex<HashMap<u64, SyncSender<Result<String, String>>>>,
}

#[derive(Default)]
struct PendingAppends {
    by_call: HashMap<u64, PendingAppend>,
    records: usize,
    bytes: usize,
}

struct PendingAppend {
    acknowledge: AppendCallback,
    records: usize,
    bytes: usize,
}

impl PeerRequests {
    pub fn connect(&self, links: Links) {
        let _ = self.links.set(links);
    }

    /// At process 0: sets the appender of forwarded records.
    pub fn set_appender(&self, appender: Arc<dyn Appender>) {
        let _ = self.appender.set(appender);
    }

    /// An appender to process 0. At most this many records and bytes wait for acknowledgement.
    pub fn forwarding_appender(self: &Arc<Self>, records: usize, bytes: usize) -> Arc<dyn Appender> {
        Arc::new(ForwardingAppender { requests: Arc::clone(self), max_records: records, max_bytes: bytes })
    }

    /// At process 0: answers requests for the schemas of a source.
    pub fn answer_schemas(&self, source: &str, schemas: SchemaCache) {
        locked(&self.schemas).insert(source.to_owned(), schemas);
    }

    /// Fetches responses of a source's registry from process 0.
    pub fn find_schemas_of(self: &Arc<Self>, source: &str) -> ResponseFetcher {
        let (requests, source) = (Arc::clone(self), source.to_owned());
        Box::new(move |id| requests.find_schema(&source, id))
    }

    /// Asks process 0 until it knows the schema, or until the timeout.
    fn find_schema(&self, source: &str, id: u32) -> Result<RegistryResponse, String> {
        let deadline = Instant::now() + SCHEMA_TIMEOUT;
        let links = self.links.get().ok_or_else(|| "process 0 is not connected yet".to_owned())?;
        loop {
            let call = self.next_call();
            let (sender, answer) = mpsc::sync_channel(1);
            locked(&self.schema_calls).insert(call, sender);
            links.send(0, &PeerMessage::AskSchema { call, source: source.to_owned(), id });
            let answered = answer.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            locked(&self.schema_calls).remove(&call);
            match answered {
                Ok(Ok(json)) => return serde_json::from_str(&json).map_err(|error| error.to_string()),
                Ok(Err(why)) if Instant::now() >= deadline => return Err(why),
                Ok(Err(_)) => thread::sleep(SCHEMA_RETRY),
                Err(_) => return Err("process 0 does not answer".into()),
            }
        }
    }

    /// At process 0: answers another process with what is known of a schema now.
    pub fn answer(&self, process: usize, call: u64, source: &str, id: u32) {
        let answer = self.schema(source, id);
        self.send(process, &PeerMessage::SchemaAnswer { call, answer });
    }

    fn schema(&self, source: &str, id: u32) -> Result<String, String> {
        let schemas = locked(&self.schemas).get(source).cloned();
        let schemas = schemas.ok_or_else(|| "process 0 is still starting".to_owned())?;
        match schemas.lookup(id) {
            SchemaLookup::Known(answer) => serde_json::to_string(&answer).map_err(|error| error.to_string()),
            SchemaLookup::Pending => Err(String::new()),
            SchemaLookup::Unavailable(why) => Err(why.to_string()),
        }
    }

    pub fn on_schema(&self, call: u64, answer: Result<String, String>) {
        if let Some(waiting) = locked(&self.schema_calls).remove(&call) {
            let _ = waiting.try_send(answer);
        }
    }

    /// At process 0: appends the records that another process has forwarded, and answers it.
    pub fn append(&self, process: usize, call: u64, records: Vec<NewRecord>) {
        let Some((appender, links)) = self.appender.get().zip(self.links.get().cloned()) else {
            let result = Err(AppendError::Busy);
            return self.send(process, &PeerMessage::Appended { call, result });
        };
        let acknowledge: AppendCallback = Box::new(move |result| {
            links.send(process, &PeerMessage::Appended { call, result: result.map(parts_of) });
        });
        appender.append(records, acknowledge);
    }

    pub fn on_appended(&self, call: u64, result: Result<AppendedParts, AppendError>) {
        let mut appends = locked(&self.appends);
        let Some(append) = appends.by_call.remove(&call) else { return };
        appends.records -= append.records;
        appends.bytes -= append.bytes;
        drop(appends);
        (append.acknowledge)(result.map(report_of));
    }

    fn send(&self, process: usize, message: &PeerMessage) {
        if let Some(links) = self.links.get() {
            links.send(process, message);
        }
    }

    fn next_call(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::Relaxed)
    }
}

/// Appends to the log of process 0.
struct ForwardingAppender {
    requests: Arc<PeerRequests>,
    max_records: usize,
    max_bytes: usize,
}

impl Appender for ForwardingAppender {
    fn append(&self, records: Vec<NewRecord>, acknowledge: AppendCallback) {
        let bytes = records.iter().map(|record| record.bytes.len()).sum::<usize>();
        let count = records.len();
        let mut appends = locked(&self.requests.appends);
        let fits = appends.records + count <= self.max_records && appends.bytes + bytes <= self.max_bytes;
        let links = self.requests.links.get().filter(|_| fits || appends.by_call.is_empty());
        let Some(links) = links else {
            drop(appends);
            return acknowledge(Err(AppendError::Busy));
        };
        let call = self.requests.next_call();
        // Sent while holding the lock, so the records of one connection keep their order.
        let failure = match links.try_send(0, &PeerMessage::Append { call, records }) {
            Ok(()) => {
                appends.records += count;
                appends.bytes += bytes;
                appends.by_call.insert(call, PendingAppend { acknowledge, records: count, bytes });
                return;
            }
            Err(failure) => failure,
        };
        drop(appends);
        acknowledge(Err(match failure {
            SendError::Full => AppendError::Busy,
            SendError::TooLong => AppendError::Failed(failure.to_string().into()),
        }));
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

fn parts_of(report: AppendReport) -> AppendedParts {
    let AppendReport { ranges, refusals } = report;
    let range = |AppendedRange { partition, first, end }| (partition, first, end);
    let number =
        |reason: Reason| Reason::ALL.iter().position(|other| *other == reason).unwrap_or_default() as u8;
    let part = |(index, refusal): (u32, Refusal)| (index, number(refusal.reason), refusal.detail);
    AppendedParts {
        positions: ranges.into_iter().map(range).collect(),
        refused: refusals.into_iter().map(part).collect(),
    }
}

fn report_of(parts: AppendedParts) -> AppendReport {
    let AppendedParts { positions, refused } = parts;
    let range = |(partition, first, end)| AppendedRange { partition, first, end };
    let reason = |number: u8| Reason::ALL.get(usize::from(number)).copied().unwrap_or(Reason::NotDecodable);
    let refusal = |(index, number, detail): (u32, u8, String)| (index, Refusal::new(reason(number), detail));
    AppendReport {
        ranges: positions.into_iter().map(range).collect(),
        refusals: refused.into_iter().map(refusal).collect(),
    }
}
