//! The sessions with a replica: few, shared, each call with a limit of time.

use std::time::{Duration, Instant};

use deadpool::Runtime;
use deadpool::managed::{
    self, Metrics, Object, Pool, PoolError, RecycleError, RecycleResult, TimeoutType, Timeouts,
};
use futures_util::future::join3;
use tokio_postgres::Row;

use super::breaker::Breaker;
use crate::model::history_store::HistoryError;
pub use crate::sinks::postgres::connection::Parameter;
use crate::sinks::postgres::connection::Session;
use crate::sinks::postgres::error::PostgresError;
use crate::sinks::postgres::plan::PostgresDatabase;

/// How long a request waits for a session that others use.
const SESSION_WAIT: Duration = Duration::from_secs(1);
/// When to ask again after a fault that is no fault of the database.
const SHORT_RETRY: Duration = Duration::from_secs(1);
/// Attempts of a statement that the replica cancels, because it conflicts with its recovery.
const MAX_ATTEMPTS: u32 = 3;

/// The sessions with one database.
pub struct ReplicaPool {
    pool: Option<Pool<SessionManager>>,
    breaker: Breaker,
    database: PostgresDatabase,
    timeout: Duration,
}

/// Opens the sessions of a pool.
struct SessionManager {
    database: PostgresDatabase,
}

impl managed::Manager for SessionManager {
    type Type = Session;
    type Error = PostgresError;

    async fn create(&self) -> Result<Session, PostgresError> {
        Session::open_reader(&self.database).await
    }

    async fn recycle(&self, session: &mut Session, _: &Metrics) -> RecycleResult<PostgresError> {
        if session.client.is_closed() { Err(RecycleError::message("the session has ended")) } else { Ok(()) }
    }
}

impl ReplicaPool {
    /// A pool of at most `connections` sessions, which are opened as they are needed. A call takes
    /// no longer than `timeout`.
    pub fn new(database: &PostgresDatabase, connections: usize, timeout: Duration) -> ReplicaPool {
        let timeouts = Timeouts { wait: Some(SESSION_WAIT), create: Some(timeout), recycle: Some(timeout) };
        let pool = Pool::builder(SessionManager { database: database.clone() })
            .max_size(connections.max(1))
            .timeouts(timeouts)
            .runtime(Runtime::Tokio1)
            .build();
        // It fails only if there are time limits without a runtime.
        ReplicaPool { pool: pool.ok(), breaker: Breaker::default(), database: database.clone(), timeout }
    }

    /// The lines of a statement that only reads.
    pub async fn query(
        &self,
        statement: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, HistoryError> {
        if let Err(pause) = self.breaker.admit(Instant::now()) {
            return Err(self.unavailable("has not answered lately", pause));
        }
        let begun = Instant::now();
        let answer = self.query_until_answered(statement, parameters).await;
        let outcome = if answer.is_ok() { "answered" } else { "failed" };
        let labels = [("database", self.database.label.clone()), ("outcome", outcome.to_owned())];
        metrics::histogram!("swelter_history_read_seconds", &labels).record(begun.elapsed().as_secs_f64());
        answer
    }

    /// Repeats a statement that the replica cancels.
    async fn query_until_answered(
        &self,
        statement: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, HistoryError> {
        let mut attempt = 1;
        loop {
            match tokio::time::timeout(self.timeout, self.query_once(statement, parameters)).await {
                Ok(Ok(rows)) => {
                    self.breaker.on_success();
                    return Ok(rows);
                }
                Ok(Err(QueryFailure::Busy)) => {
                    return Err(self.unavailable("has no free session", SHORT_RETRY));
                }
                Ok(Err(QueryFailure::Cancelled)) if attempt < MAX_ATTEMPTS => attempt += 1,
                Ok(Err(QueryFailure::Cancelled)) => {
                    return Err(self.unavailable("has cancelled the statement", SHORT_RETRY));
                }
                Ok(Err(QueryFailure::Failed(error))) => return Err(self.on_failure(&error.to_string())),
                Err(_) => {
                    let problem = format!("it has not answered within {:?}", self.timeout);
                    return Err(self.on_failure(&problem));
                }
            }
        }
    }

    async fn query_once(
        &self,
        statement: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, QueryFailure> {
        let Some(pool) = &self.pool else { return Err(QueryFailure::Busy) };
        let session = pool.get().await.map_err(|error| match error {
            PoolError::Timeout(TimeoutType::Wait) | PoolError::Closed | PoolError::NoRuntimeSpecified => {
                QueryFailure::Busy
            }
            PoolError::Timeout(_) => QueryFailure::Failed(PostgresError::Timeout {
                database: self.database.label.clone(),
                waited: self.timeout,
            }),
            PoolError::Backend(error) => QueryFailure::Failed(error),
            error @ PoolError::PostCreateHook(_) => QueryFailure::Failed(PostgresError::Unreachable {
                database: self.database.label.clone(),
                problem: error.to_string(),
            }),
        })?;
        // A session whose call is not finished is of no use to others: it is closed when dropped.
        let session = UnfinishedSession(Some(session));
        let rows = read_in_transaction(session.get()?, statement, parameters, self.timeout).await?;
        session.finish();
        Ok(rows)
    }

    fn on_failure(&self, problem: &str) -> HistoryError {
        if self.breaker.on_failure(Instant::now()) {
            tracing::warn!(
                database = self.database.label,
                problem,
                "the history in PostgreSQL cannot be read: requests for it are refused with 503 until it answers again"
            );
        } else {
            tracing::debug!(database = self.database.label, problem, "a read of the history has failed");
        }
        self.unavailable("does not answer", SHORT_RETRY)
    }

    /// The error of an answer that is not understood.
    pub fn unreadable(&self, error: &tokio_postgres::Error) -> HistoryError {
        tracing::warn!(database = self.database.label, %error, "an answer of PostgreSQL cannot be read");
        self.unavailable("has given an answer that cannot be read", SHORT_RETRY)
    }

    /// The text names no host: it goes to clients.
    fn unavailable(&self, what: &str, retry_after: Duration) -> HistoryError {
        HistoryError::Unavailable {
            detail: format!("the database of older rows {what}: try again later, or ask for newer rows"),
            retry_after,
        }
    }
}

/// Why a statement has given no lines.
enum QueryFailure {
    /// All sessions are used by others.
    Busy,
    /// The replica has cancelled it to go on with its recovery.
    Cancelled,
    Failed(PostgresError),
}

/// A session that is taken out of its pool when it is dropped before its call has ended.
struct UnfinishedSession(Option<Object<SessionManager>>);

impl UnfinishedSession {
    fn get(&self) -> Result<&Session, QueryFailure> {
        self.0.as_deref().ok_or(QueryFailure::Busy)
    }

    /// Gives the session back.
    fn finish(mut self) {
        drop(self.0.take());
    }
}

impl Drop for UnfinishedSession {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            drop(Object::take(object));
        }
    }
}

/// Executes a statement in a transaction of its own that only reads, all in one turn. The server
/// ends it too when its time is over.
async fn read_in_transaction(
    session: &Session,
    statement: &str,
    parameters: &[Parameter<'_>],
    timeout: Duration,
) -> Result<Vec<Row>, QueryFailure> {
    let begin = format!(
        "begin transaction isolation level read committed read only; set local statement_timeout = {}",
        timeout.as_millis()
    );
    // Polled in this order, so they are sent in it.
    let (begun, rows, committed) =
        join3(session.batch(&begin), session.query(statement, parameters), session.batch("commit")).await;
    let rows = begun.and(rows).map_err(|error| match &error {
        PostgresError::Server { code, .. } if code == "40001" => QueryFailure::Cancelled,
        _ => QueryFailure::Failed(error),
    })?;
    committed.map_err(QueryFailure::Failed)?;
    Ok(rows)
}
