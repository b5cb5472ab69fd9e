//! Makes the schema of a database current, outside of a run.

use std::time::Duration;

use super::connection::{CallLimit, Connection};
use super::error::PostgresError;
use super::plan::PostgresDatabase;
use super::schema::{SchemaName, SchemaState, run_migration};

/// New columns or indexes of tables with many rows take a while.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(3_600);

/// Applies the migrations that the schema does not have. Returns the state that it was in.
pub fn migrate_database(
    database: &PostgresDatabase,
    schema: &SchemaName,
) -> Result<SchemaState, PostgresError> {
    let connection = Connection::open(database, CallLimit::within(MIGRATION_TIMEOUT))?;
    connection.call(async |session| {
        let failed = |error: tokio_postgres::Error| session.error(&error);
        let state = SchemaState::read(&session.client, schema).await.map_err(failed)?;
        let refused = |source| PostgresError::Schema { database: session.database.to_string(), source };
        if let Some(migration) = state.migration(schema).map_err(refused)? {
            run_migration(&session.client, &migration).await.map_err(failed)?;
        }
        Ok(state)
    })
}
