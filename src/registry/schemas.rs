//! What a registry has answered, and a thread that asks it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{Client, RegistryError};

/// Ids whose answers are kept. An id that comes when there are so many counts as unknown, in a replay as well, since the
/// answers that were recorded are then as many.
const MAX_ANSWERS: usize = 1 << 18;
/// Ids that are waited for at once: a reader waits for one.
const MAX_WANTED: usize = 4_096;
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);

/// What a registry says of an id. It decides what the records of the id are, so it is kept for good: a replay must decide
/// the same, whatever the registry says by then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Avro {
        schema: Arc<str>,
        /// The schemas of the types that it names but does not define.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        references: Vec<Arc<str>>,
    },
    /// A schema, but not of Avro.
    Other { schema_type: Arc<str> },
    /// No schema has the id.
    Unknown,
    /// A schema, but one that cannot be used.
    Unusable { problem: Arc<str> },
}

/// Takes note of an answer for good before it is used. It may take its time; where it fails, the answer is dropped and asked for
/// again.
pub type RecordAnswer = Box<dyn Fn(u32, &Answer) -> Result<(), String> + Send + Sync>;

/// Finds an answer that is good for all of a run and for every replay, or says why there is none for now. It runs on the asking thread.
pub type FindAnswer = Box<dyn Fn(u32) -> Result<Answer, String> + Send + Sync>;

/// Asks a registry, and records what it answers.
pub fn ask_and_record(client: Client, record: RecordAnswer) -> FindAnswer {
    Box::new(move |id| {
        let answer = match client.schema(id) {
            Ok(answer) => answer,
            Err(RegistryError::Unknown) => Answer::Unknown,
            Err(RegistryError::Unusable(problem)) => Answer::Unusable { problem: problem.into() },
            Err(error) => return Err(error.to_string()),
        };
        record(id, &answer).map_err(|error| format!("the registry's answer cannot be recorded: {error}"))?;
        Ok(answer)
    })
}

/// What is known of an id just now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    Known(Answer),
    Pending,
    /// The registry does not answer, for this reason; it is asked again.
    Unavailable(Arc<str>),
}

/// A registry's answers, shared by all readers of a run. The thread that asks ends with the last clone.
#[derive(Clone)]
pub struct Schemas(Arc<Handle>);

struct Handle(Arc<Shared>);

struct Shared {
    find: FindAnswer,
    state: Mutex<State>,
    /// Something is wanted, or nothing will be any more.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    answers: HashMap<u32, Answer>,
    wanted: VecDeque<u32>,
    /// Why the last question had no answer.
    trouble: Option<Arc<str>>,
    stopped: bool,
}

impl fmt::Debug for Schemas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schemas").finish_non_exhaustive()
    }
}

impl Schemas {
    /// Begins with the answers that were recorded before.
    ///
    /// # Errors
    ///
    /// Where no thread can be started.
    pub fn new(known: Vec<(u32, Answer)>, find: FindAnswer) -> io::Result<Schemas> {
        let state = Mutex::new(State { answers: known.into_iter().collect(), ..State::default() });
        let shared = Arc::new(Shared { find, state, changed: Condvar::new() });
        let asking = shared.clone();
        thread::Builder::new().name("registry".into()).spawn(move || asking.run())?;
        Ok(Schemas(Arc::new(Handle(shared))))
    }

    /// What is known of an id; what is not yet, is asked for. Never waits.
    pub fn lookup(&self, id: u32) -> Lookup {
        // Ids are positive 32-bit numbers: what is none, no registry has, and it need not be asked.
        if i32::try_from(id).is_err() {
            return Lookup::Known(Answer::Unknown);
        }
        let shared = &self.0.0;
        let mut state = shared.lock();
        if let Some(answer) = state.answers.get(&id) {
            return Lookup::Known(answer.clone());
        }
        if !state.wanted.contains(&id) && state.wanted.len() < MAX_WANTED {
            if state.answers.len() + state.wanted.len() >= MAX_ANSWERS {
                return Lookup::Known(Answer::Unknown);
            }
            state.wanted.push_back(id);
            shared.changed.notify_one();
        }
        match &state.trouble {
            Some(trouble) => Lookup::Unavailable(trouble.clone()),
            None => Lookup::Pending,
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.lock().stopped = true;
        self.0.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut retry = FIRST_RETRY;
        while let Some(id) = self.next() {
            match self.ask(id) {
                Ok(()) => retry = FIRST_RETRY,
                Err(trouble) => {
                    self.fail(&trouble);
                    self.pause(retry);
                    retry = (retry * 2).min(LAST_RETRY);
                }
            }
        }
    }

    /// Waits until something is wanted; nothing once it is over.
    fn next(&self) -> Option<u32> {
        let state = self.lock();
        let idle = |state: &mut State| state.wanted.is_empty() && !state.stopped;
        let state = self.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        if state.stopped { None } else { state.wanted.front().copied() }
    }

    fn ask(&self, id: u32) -> Result<(), String> {
        let answer = (self.find)(id).map_err(|error| format!("schema {id}: {error}"))?;
        let mut state = self.lock();
        state.wanted.retain(|&wanted| wanted != id);
        state.answers.insert(id, answer);
        if state.answers.len() == MAX_ANSWERS {
            warn!("{MAX_ANSWERS} schema ids have been asked for: records of further ones are refused");
        }
        if state.trouble.take().is_some() {
            info!("the schema registry answers again");
        }
        Ok(())
    }

    fn fail(&self, trouble: &str) {
        let mut state = self.lock();
        if state.trouble.is_none() {
            warn!("{trouble}: what needs it is held back, and it is asked again");
        }
        state.trouble = Some(trouble.into());
        // Others may have an answer.
        state.wanted.rotate_left(1);
    }

    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut state = self.lock();
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|_| !state.stopped) {
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
