//! A cache of a registry's responses, and the thread that requests them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tracing::{info, warn};

use super::{RegistryClient, RegistryError, RegistryResponse};

/// The most ids in the cache. A further id counts as unknown, in a replay too, since the recorded
/// responses are then as many.
const MAX_CACHED_SCHEMAS: usize = 1 << 18;
/// The most ids that are requested at once: each reader waits for one.
const MAX_PENDING_LOOKUPS: usize = 4_096;
/// A response that was compared is compared again after this many delays.
const REVERIFY_AFTER_DELAYS: u32 = 20;
const INITIAL_RETRY_DELAY: Duration = Duration::from_millis(100);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(10);

/// Records a response for good before it is used. It may block. If it fails, the response is
/// dropped and requested again.
pub type ResponseRecorder = Box<dyn Fn(u32, &RegistryResponse) -> Result<(), String> + Send + Sync>;

/// Fetches a response that holds for the whole run and for every replay, or says why there is none
/// for now. It runs on the cache's thread.
pub type ResponseFetcher = Box<dyn Fn(u32) -> Result<RegistryResponse, String> + Send + Sync>;

/// How the registry's response of today compares to the recorded one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SchemaComparison {
    Same,
    /// The registry no longer has the schema.
    Missing,
    Different(String),
}

/// Whether a registry still has the schema that was recorded under an id: a registry that was made
/// anew gives out its ids again. The schemas' texts are compared, as JSON.
fn compare_with_registry(
    client: &RegistryClient,
    id: u32,
    recorded: &RegistryResponse,
) -> Result<SchemaComparison, String> {
    let RegistryResponse::Avro { schema, references } = recorded else { return Ok(SchemaComparison::Same) };
    let another = |what: &str| {
        Ok(SchemaComparison::Different(format!(
            "the schema registry gives {what} under the id {id} than it gave before, so records of that id cannot be told apart: it was made \
             anew, or is another registry; restore it, or name the one that the topic was written with"
        )))
    };
    match client.fetch_schema(id) {
        Ok(RegistryResponse::Avro { schema: now, references: of_now }) => {
            let same = is_same_schema(schema, &now)
                && references.len() == of_now.len()
                && references.iter().zip(&of_now).all(|(recorded, now)| is_same_schema(recorded, now));
            if same { Ok(SchemaComparison::Same) } else { another("another schema") }
        }
        Ok(_) => another("a schema of another type"),
        Err(RegistryError::Unknown) => Ok(SchemaComparison::Missing),
        Err(RegistryError::Unusable(_)) => another("one that cannot be used"),
        Err(error) => Err(error.to_string()),
    }
}

/// Registries may write a schema with other spaces than it was registered with.
fn is_same_schema(recorded: &str, now: &str) -> bool {
    let parsed = |text| serde_json::from_str::<serde_json::Value>(text).ok();
    recorded == now || parsed(recorded).is_some_and(|recorded| parsed(now) == Some(recorded))
}

/// Requests schemas from a registry, and records each response.
pub fn fetch_and_record(client: RegistryClient, record: ResponseRecorder) -> ResponseFetcher {
    Box::new(move |id| {
        let response = match client.fetch_schema(id) {
            Ok(response) => response,
            Err(RegistryError::Unknown) => RegistryResponse::Unknown,
            Err(RegistryError::Unusable(problem)) => RegistryResponse::Unusable { problem: problem.into() },
            Err(error) => return Err(error.to_string()),
        };
        record(id, &response)
            .map_err(|error| format!("the registry's answer cannot be recorded: {error}"))?;
        Ok(response)
    })
}

/// What the cache knows of an id now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchemaLookup {
    Known(RegistryResponse),
    Pending,
    /// The registry does not respond, for this reason; it is requested again.
    Unavailable(Arc<str>),
}

/// A registry's responses, shared by all readers of a run. The thread ends with the last clone.
#[derive(Clone)]
pub struct SchemaCache(Arc<CacheHandle>);

struct CacheHandle(Arc<CacheShared>);

struct CacheShared {
    fetch: ResponseFetcher,
    /// Compares responses that are in use with the registry's, this long after their first use: a
    /// start requests nothing.
    verifier: Option<(RegistryClient, Duration)>,
    state: Mutex<CacheState>,
    /// Signals that an id is pending, a comparison is due, or the cache stops.
    changed: Condvar,
}

#[derive(Default)]
struct CacheState {
    responses: HashMap<u32, RegistryResponse>,
    pending_ids: VecDeque<u32>,
    /// Recorded by earlier starts, and not used yet by this one.
    unverified: HashSet<u32>,
    /// Used, and due to be compared with the registry's response.
    to_verify: BinaryHeap<Reverse<(Instant, u32)>>,
    /// The registry's response differs now: what is wrong, and what to do.
    contradiction: Option<Arc<str>>,
    /// Why the last request failed.
    last_error: Option<Arc<str>>,
    is_stopped: bool,
}

impl fmt::Debug for SchemaCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SchemaCache").finish_non_exhaustive()
    }
}

impl SchemaCache {
    /// Begins with the responses that earlier starts recorded.
    ///
    /// # Errors
    ///
    /// If no thread can be started.
    pub fn new(recorded: Vec<(u32, RegistryResponse)>, find: ResponseFetcher) -> io::Result<SchemaCache> {
        SchemaCache::start_thread(recorded, find, None)
    }

    /// Like [`SchemaCache::new`]. Each response that is used is also compared with the registry's:
    /// `after` its first use, and rarely from then on.
    ///
    /// # Errors
    ///
    /// If no thread can be started.
    pub fn with_verification(
        recorded: Vec<(u32, RegistryResponse)>,
        find: ResponseFetcher,
        registry: RegistryClient,
        after: Duration,
    ) -> io::Result<SchemaCache> {
        SchemaCache::start_thread(recorded, find, Some((registry, after)))
    }

    fn start_thread(
        recorded: Vec<(u32, RegistryResponse)>,
        find: ResponseFetcher,
        verifier: Option<(RegistryClient, Duration)>,
    ) -> io::Result<SchemaCache> {
        let unverified = recorded.iter().map(|(id, _)| *id).filter(|_| verifier.is_some()).collect();
        let responses = recorded.into_iter().collect();
        let state = Mutex::new(CacheState { responses, unverified, ..CacheState::default() });
        let shared = Arc::new(CacheShared { fetch: find, verifier, state, changed: Condvar::new() });
        let running = shared.clone();
        thread::Builder::new().name("registry".into()).spawn(move || running.run())?;
        Ok(SchemaCache(Arc::new(CacheHandle(shared))))
    }

    /// What is known of an id. An unknown id is requested in the background; this never waits.
    pub fn lookup(&self, id: u32) -> SchemaLookup {
        // Ids are positive 32-bit numbers: no registry has another one, so none is requested.
        if i32::try_from(id).is_err() {
            return SchemaLookup::Known(RegistryResponse::Unknown);
        }
        let shared = &self.0.0;
        let mut state = shared.lock();
        if let Some(response) = state.responses.get(&id).cloned() {
            if state.unverified.remove(&id) {
                shared.verify_later(&mut state, id, 1);
            }
            return SchemaLookup::Known(response);
        }
        if !state.pending_ids.contains(&id) && state.pending_ids.len() < MAX_PENDING_LOOKUPS {
            if state.responses.len() + state.pending_ids.len() >= MAX_CACHED_SCHEMAS {
                return SchemaLookup::Known(RegistryResponse::Unknown);
            }
            state.pending_ids.push_back(id);
            shared.changed.notify_one();
        }
        match &state.last_error {
            Some(error) => SchemaLookup::Unavailable(error.clone()),
            None => SchemaLookup::Pending,
        }
    }
}

impl SchemaCache {
    /// Why a recorded response no longer holds, if the registry's response differs now.
    pub fn contradiction(&self) -> Option<Arc<str>> {
        self.0.0.lock().contradiction.clone()
    }
}

/// The thread's next task.
enum RegistryTask {
    Fetch(u32),
    Verify(u32),
}

impl Drop for CacheHandle {
    fn drop(&mut self) {
        self.0.lock().is_stopped = true;
        self.0.changed.notify_one();
    }
}

impl CacheShared {
    fn lock(&self) -> MutexGuard<'_, CacheState> {
        self.state.lock()
    }

    fn run(&self) {
        let mut retry = INITIAL_RETRY_DELAY;
        while let Some(task) = self.next_task() {
            let id = match task {
                RegistryTask::Fetch(id) => id,
                RegistryTask::Verify(id) => {
                    self.verify_response(id);
                    continue;
                }
            };
            match self.fetch_pending(id) {
                Ok(()) => retry = INITIAL_RETRY_DELAY,
                Err(error) => {
                    self.record_failure(&error);
                    self.pause_before_retry(retry);
                    retry = (retry * 2).min(MAX_RETRY_DELAY);
                }
            }
        }
    }

    /// Waits for a task; `None` once the cache stops.
    fn next_task(&self) -> Option<RegistryTask> {
        let mut state = self.lock();
        loop {
            if state.is_stopped {
                return None;
            }
            if let Some(id) = state.pending_ids.front() {
                return Some(RegistryTask::Fetch(*id));
            }
            let now = Instant::now();
            let due =
                state.to_verify.peek().map(|Reverse((due, id))| (due.saturating_duration_since(now), *id));
            match due {
                None => self.changed.wait(&mut state),
                Some((Duration::ZERO, id)) => {
                    state.to_verify.pop();
                    return Some(RegistryTask::Verify(id));
                }
                Some((wait, _)) => drop(self.changed.wait_for(&mut state, wait)),
            }
        }
    }

    /// Schedules a comparison of a response.
    fn verify_later(&self, state: &mut CacheState, id: u32, delays: u32) {
        if let Some((_, after)) = &self.verifier {
            state.to_verify.push(Reverse((Instant::now() + *after * delays, id)));
            self.changed.notify_one();
        }
    }

    /// Compares a response in use with the registry's. If the registry does not respond, the
    /// comparison is repeated later.
    fn verify_response(&self, id: u32) {
        let recorded = self.lock().responses.get(&id).cloned();
        let Some(((registry, _), recorded)) = self.verifier.as_ref().zip(recorded) else { return };
        let verdict = compare_with_registry(registry, id, &recorded);
        let mut state = self.lock();
        match verdict {
            Ok(SchemaComparison::Same) => self.verify_later(&mut state, id, REVERIFY_AFTER_DELAYS),
            Ok(SchemaComparison::Missing) => {
                warn!(id, "the schema registry no longer has a schema; its recorded response is used");
            }
            Ok(SchemaComparison::Different(why)) => drop(state.contradiction.get_or_insert(why.into())),
            Err(_) => self.verify_later(&mut state, id, 1),
        }
    }

    fn fetch_pending(&self, id: u32) -> Result<(), String> {
        let response = (self.fetch)(id).map_err(|error| format!("schema {id}: {error}"))?;
        let mut state = self.lock();
        state.pending_ids.retain(|&wanted| wanted != id);
        if matches!(response, RegistryResponse::Avro { .. }) {
            self.verify_later(&mut state, id, REVERIFY_AFTER_DELAYS);
        }
        state.responses.insert(id, response);
        if state.responses.len() == MAX_CACHED_SCHEMAS {
            warn!(
                "{MAX_CACHED_SCHEMAS} schema ids have been requested, the most of a run: records of further ids are refused"
            );
        }
        if state.last_error.take().is_some() {
            info!("the schema registry responds again");
        }
        Ok(())
    }

    fn record_failure(&self, error: &str) {
        let mut state = self.lock();
        if state.last_error.is_none() {
            warn!("{error}: partitions that need the schema are held back, and it is requested again");
        }
        state.last_error = Some(error.into());
        // The registry may have responses for the other ids.
        state.pending_ids.rotate_left(1);
    }

    fn pause_before_retry(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut state = self.lock();
        while let Some(remaining) = until.checked_duration_since(Instant::now()).filter(|_| !state.is_stopped)
        {
            self.changed.wait_for(&mut state, remaining);
        }
    }
}
