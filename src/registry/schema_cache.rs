//! What a registry has answered, and a thread that asks it.

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

/// Ids whose answers are kept. An id that comes when there are so many counts as unknown, in a replay as well, since the
/// answers that were recorded are then as many.
const MAX_CACHED_SCHEMAS: usize = 1 << 18;
/// Ids that are waited for at once: a reader waits for one.
const MAX_PENDING_LOOKUPS: usize = 4_096;
/// Delays after which an answer that was compared is compared again.
const REVERIFY_AFTER_DELAYS: u32 = 20;
const INITIAL_RETRY_DELAY: Duration = Duration::from_millis(100);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(10);

/// Takes note of an answer for good before it is used. It may take its time; where it fails, the answer is dropped and asked for
/// again.
pub type ResponseRecorder = Box<dyn Fn(u32, &RegistryResponse) -> Result<(), String> + Send + Sync>;

/// Finds an answer that is good for all of a run and for every replay, or says why there is none for now. It runs on the asking thread.
pub type ResponseFetcher = Box<dyn Fn(u32) -> Result<RegistryResponse, String> + Send + Sync>;

/// What a registry says now of an answer that was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SchemaComparison {
    Same,
    /// It does not say any more.
    Missing,
    Different(String),
}

/// Whether a registry still gives the schema that was recorded under an id: one that was made anew gives its ids again. The recorded
/// answer has the schema's text, so that is what is compared, as JSON.
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

/// Asks a registry, and records what it answers.
pub fn fetch_and_record(client: RegistryClient, record: ResponseRecorder) -> ResponseFetcher {
    Box::new(move |id| {
        let answer = match client.fetch_schema(id) {
            Ok(answer) => answer,
            Err(RegistryError::Unknown) => RegistryResponse::Unknown,
            Err(RegistryError::Unusable(problem)) => RegistryResponse::Unusable { problem: problem.into() },
            Err(error) => return Err(error.to_string()),
        };
        record(id, &answer).map_err(|error| format!("the registry's answer cannot be recorded: {error}"))?;
        Ok(answer)
    })
}

/// What is known of an id just now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchemaLookup {
    Known(RegistryResponse),
    Pending,
    /// The registry does not answer, for this reason; it is asked again.
    Unavailable(Arc<str>),
}

/// A registry's answers, shared by all readers of a run. The thread that asks ends with the last clone.
#[derive(Clone)]
pub struct SchemaCache(Arc<CacheHandle>);

struct CacheHandle(Arc<CacheShared>);

struct CacheShared {
    fetch: ResponseFetcher,
    /// Asked whether the answers that are used still hold, and how long after their first use: a start asks nobody.
    verifier: Option<(RegistryClient, Duration)>,
    state: Mutex<CacheState>,
    /// Something is wanted, or nothing will be any more.
    changed: Condvar,
}

#[derive(Default)]
struct CacheState {
    responses: HashMap<u32, RegistryResponse>,
    pending_ids: VecDeque<u32>,
    /// Recorded by earlier starts, and not used yet by this one.
    unverified: HashSet<u32>,
    /// Used, and then to be compared with what the registry says.
    to_verify: BinaryHeap<Reverse<(Instant, u32)>>,
    /// The registry says something else now, and what to do.
    contradiction: Option<Arc<str>>,
    /// Why the last question had no answer.
    last_error: Option<Arc<str>>,
    is_stopped: bool,
}

impl fmt::Debug for SchemaCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SchemaCache").finish_non_exhaustive()
    }
}

impl SchemaCache {
    /// Begins with the answers that were recorded before.
    ///
    /// # Errors
    ///
    /// Where no thread can be started.
    pub fn new(known: Vec<(u32, RegistryResponse)>, find: ResponseFetcher) -> io::Result<SchemaCache> {
        SchemaCache::start_thread(known, find, None)
    }

    /// The same, and each answer that is used is compared with what the registry says: so long after its first use, and later now and
    /// then.
    ///
    /// # Errors
    ///
    /// Where no thread can be started.
    pub fn with_verification(
        known: Vec<(u32, RegistryResponse)>,
        find: ResponseFetcher,
        registry: RegistryClient,
        after: Duration,
    ) -> io::Result<SchemaCache> {
        SchemaCache::start_thread(known, find, Some((registry, after)))
    }

    fn start_thread(
        known: Vec<(u32, RegistryResponse)>,
        find: ResponseFetcher,
        verifier: Option<(RegistryClient, Duration)>,
    ) -> io::Result<SchemaCache> {
        let unverified = known.iter().map(|(id, _)| *id).filter(|_| verifier.is_some()).collect();
        let answers = known.into_iter().collect();
        let state = Mutex::new(CacheState { responses: answers, unverified, ..CacheState::default() });
        let shared = Arc::new(CacheShared { fetch: find, verifier, state, changed: Condvar::new() });
        let asking = shared.clone();
        thread::Builder::new().name("registry".into()).spawn(move || asking.run())?;
        Ok(SchemaCache(Arc::new(CacheHandle(shared))))
    }

    /// What is known of an id; what is not yet, is asked for. Never waits.
    pub fn lookup(&self, id: u32) -> SchemaLookup {
        // Ids are positive 32-bit numbers: what is none, no registry has, and it need not be asked.
        if i32::try_from(id).is_err() {
            return SchemaLookup::Known(RegistryResponse::Unknown);
        }
        let shared = &self.0.0;
        let mut state = shared.lock();
        if let Some(answer) = state.responses.get(&id).cloned() {
            if state.unverified.remove(&id) {
                shared.verify_later(&mut state, id, 1);
            }
            return SchemaLookup::Known(answer);
        }
        if !state.pending_ids.contains(&id) && state.pending_ids.len() < MAX_PENDING_LOOKUPS {
            if state.responses.len() + state.pending_ids.len() >= MAX_CACHED_SCHEMAS {
                return SchemaLookup::Known(RegistryResponse::Unknown);
            }
            state.pending_ids.push_back(id);
            shared.changed.notify_one();
        }
        match &state.last_error {
            Some(trouble) => SchemaLookup::Unavailable(trouble.clone()),
            None => SchemaLookup::Pending,
        }
    }
}

impl SchemaCache {
    /// Why a recorded answer cannot be gone on with, where the registry says something else now.
    pub fn contradiction(&self) -> Option<Arc<str>> {
        self.0.0.lock().contradiction.clone()
    }
}

/// What the thread does next.
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
                Err(trouble) => {
                    self.record_failure(&trouble);
                    self.pause_before_retry(retry);
                    retry = (retry * 2).min(MAX_RETRY_DELAY);
                }
            }
        }
    }

    /// Waits until there is something to do; nothing once it is over.
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

    /// Has an answer compared after so many delays.
    fn verify_later(&self, state: &mut CacheState, id: u32, delays: u32) {
        if let Some((_, after)) = &self.verifier {
            state.to_verify.push(Reverse((Instant::now() + *after * delays, id)));
            self.changed.notify_one();
        }
    }

    /// Compares an answer that is used with what the registry says now. One that is away is asked later.
    fn verify_response(&self, id: u32) {
        let recorded = self.lock().responses.get(&id).cloned();
        let Some(((registry, _), recorded)) = self.verifier.as_ref().zip(recorded) else { return };
        let verdict = compare_with_registry(registry, id, &recorded);
        let mut state = self.lock();
        match verdict {
            Ok(SchemaComparison::Same) => self.verify_later(&mut state, id, REVERIFY_AFTER_DELAYS),
            Ok(SchemaComparison::Missing) => {
                warn!(id, "the schema registry no longer knows a schema; what it answered before is used");
            }
            Ok(SchemaComparison::Different(why)) => drop(state.contradiction.get_or_insert(why.into())),
            Err(_) => self.verify_later(&mut state, id, 1),
        }
    }

    fn fetch_pending(&self, id: u32) -> Result<(), String> {
        let answer = (self.fetch)(id).map_err(|error| format!("schema {id}: {error}"))?;
        let mut state = self.lock();
        state.pending_ids.retain(|&wanted| wanted != id);
        if matches!(answer, RegistryResponse::Avro { .. }) {
            self.verify_later(&mut state, id, REVERIFY_AFTER_DELAYS);
        }
        state.responses.insert(id, answer);
        if state.responses.len() == MAX_CACHED_SCHEMAS {
            warn!("{MAX_CACHED_SCHEMAS} schema ids have been asked for: records of further ones are refused");
        }
        if state.last_error.take().is_some() {
            info!("the schema registry answers again");
        }
        Ok(())
    }

    fn record_failure(&self, trouble: &str) {
        let mut state = self.lock();
        if state.last_error.is_none() {
            warn!("{trouble}: what needs it is held back, and it is asked again");
        }
        state.last_error = Some(trouble.into());
        // Others may have an answer.
        state.pending_ids.rotate_left(1);
    }

    fn pause_before_retry(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut state = self.lock();
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|_| !state.is_stopped) {
            self.changed.wait_for(&mut state, left);
        }
    }
}
