//! Locks rows that another session may hold, by ending that session.
//!
//! A writer locks the row of its shard first and for the whole transaction. A suspended or cut off
//! writer would hold it until the server notices. What a session has committed stays; what it has
//! not is rolled back. So after the lock the row says what that session has made durable.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::types::Type;

use super::connection::Session;
use super::error::PostgresError;
use super::plan::PostgresDatabase;

/// How long a lock is waited for before the sessions that hold it are ended, and then between two
/// looks for others.
const LOCK_PATIENCE: Duration = Duration::from_millis(300);
/// After this long a lock is given up: its holder cannot be ended.
const LOCK_TIMEOUT_MS: u64 = 30_000;

/// Begins a transaction that locks rows with [`end_blockers`]. Returns the process of the session
/// at the server.
pub async fn begin_locking(session: &Session) -> Result<i32, PostgresError> {
    let begin = format!(
        "begin isolation level read committed; set local lock_timeout = {LOCK_TIMEOUT_MS}; \
         set local idle_in_transaction_session_timeout = {LOCK_TIMEOUT_MS}"
    );
    session.batch(&begin).await?;
    let rows = session.query("select pg_catalog.pg_backend_pid()", &[]).await?;
    match rows.first() {
        Some(row) => session.column(row, 0),
        None => Ok(0),
    }
}

/// Waits for a statement that locks rows, and ends the sessions that it waits for. `process` is
/// that of the session which executes it.
pub async fn end_blockers<T>(
    database: &PostgresDatabase,
    process: i32,
    locks: impl Future<Output = Result<T, PostgresError>>,
) -> Result<T, PostgresError> {
    let mut locks = pin!(locks);
    if let Ok(locked) = timeout(LOCK_PATIENCE, locks.as_mut()).await {
        return locked;
    }
    let other = Session::open(database);
    let mut other = pin!(other);
    // The lock may be granted while the second session is opened.
    let other = tokio::select! {
        locked = locks.as_mut() => return locked,
        other = other.as_mut() => other?,
    };
    loop {
        let ended = end_blockers_once(&other, process);
        let mut ended = pin!(ended);
        tokio::select! {
            locked = locks.as_mut() => return locked,
            ended = ended.as_mut() => ended?,
        }
        if let Ok(locked) = timeout(LOCK_PATIENCE, locks.as_mut()).await {
            return locked;
        }
    }
}

/// Ends the sessions that a process waits for. Prepared transactions have no session: process 0.
async fn end_blockers_once(session: &Session, process: i32) -> Result<(), PostgresError> {
    let query = "select b.pid, a.usename::text, a.application_name, pg_catalog.pg_terminate_backend(b.pid) \
                 from unnest(pg_catalog.pg_blocking_pids($1)) b(pid) \
                 left join pg_catalog.pg_stat_activity a on a.pid = b.pid where b.pid <> 0";
    for row in session.query(query, &[(&process, Type::INT4)]).await? {
        let pid: i32 = session.column(&row, 0)?;
        let user = session.column::<Option<&str>>(&row, 1)?.unwrap_or_default();
        let application = session.column::<Option<&str>>(&row, 2)?.unwrap_or_default();
        tracing::warn!(
            database = &*session.database,
            pid,
            user,
            application,
            "a session that held rows of a shard was ended; what it has not committed is rolled back"
        );
    }
    Ok(())
}
