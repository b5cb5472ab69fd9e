//! Reads all rows of a day, for files.

use std::io;
use std::ops::Range;
use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use tokio::runtime::Builder;
use tokio_postgres::types::{ToSql, Type};

use super::decode::{self, Instant, decode_heat_row};
use super::statements::Statements;
use crate::fault::{build_runtime, start_failure_text};
use crate::model::EventTime;
use crate::model::history_store::ExportedRow;
use crate::sinks::postgres::connection::Session;
use crate::sinks::postgres::error::PostgresError;
use crate::sinks::postgres::plan::PostgresDatabase;
use crate::sinks::postgres::schema::SchemaName;

/// How long to wait for a session.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Why rows could not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Database(#[from] PostgresError),
    #[error(transparent)]
    Output(#[from] io::Error),
}

/// What was exported of a day from a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DayExport {
    pub rows: u64,
    /// The newest epoch that all shards of the database have reached.
    pub as_of: Option<u64>,
}

impl DayExport {
    /// Reads the rows of a database with `reading_at` in `range`, by city and time, as of one
    /// snapshot.
    pub fn read(
        database: &PostgresDatabase,
        schema: &SchemaName,
        range: Range<EventTime>,
        write: impl FnMut(&str, ExportedRow) -> io::Result<()>,
    ) -> Result<DayExport, ExportError> {
        let runtime = build_runtime(&mut Builder::new_current_thread(), 1, 1)
            .map_err(|error| PostgresError::Runtime(start_failure_text(&error)))?;
        runtime.block_on(async {
            let opening = tokio::time::timeout(CONNECT_TIMEOUT, Session::open_reader(database));
            let session = opening.await.map_err(|_| PostgresError::Timeout {
                database: database.label.clone(),
                waited: CONNECT_TIMEOUT,
            })??;
            read_day(&session, &Statements::new(schema), range, write).await
        })
    }
}

async fn read_day(
    session: &Session,
    statements: &Statements,
    range: Range<EventTime>,
    mut write: impl FnMut(&str, ExportedRow) -> io::Result<()>,
) -> Result<DayExport, ExportError> {
    session.batch("begin transaction isolation level repeatable read read only").await?;
    let found = session.query(&statements.complete_until, &[]).await?;
    let database_error = |error: tokio_postgres::Error| session.error(&error);
    let as_of = match found.first() {
        Some(row) => decode::epoch(row, 0).map_err(database_error)?,
        None => None,
    };
    let (from, to) = (Instant(range.start), Instant(range.end));
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&from, Type::TIMESTAMPTZ), (&to, Type::TIMESTAMPTZ)];
    let lines = session.client.query_typed_raw(&statements.rows_of_day, parameters).await;
    let mut lines = pin!(lines.map_err(database_error)?);
    let mut rows = 0;
    while let Some(line) = lines.try_next().await.map_err(database_error)? {
        let decoded = || -> Result<Option<ExportedRow>, tokio_postgres::Error> {
            let Instant(reading_at) = line.try_get(1)?;
            let (measurement, row) = (decode::measurement(&line, 2)?, decode_heat_row(&line, 5)?);
            Ok(row.map(|row| ExportedRow { reading_at, measurement, row }))
        };
        if let Some(row) = decoded().map_err(database_error)? {
            write(line.try_get(0).map_err(database_error)?, row)?;
            rows += 1;
        }
    }
    session.batch("commit").await?;
    Ok(DayExport { rows, as_of })
}
