//! The databases of a plan as a durable sink.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_postgres::types::Type;

use super::connection::{CallLimit, Connection, Parameter, Session};
use super::error::PostgresError;
use super::plan::PostgresSinkPlan;
use super::rights::check_rights;
use super::schema::{SchemaState, run_migration};
use super::shard_rows::{ShardRow, ShardTable};
use super::takeover::{begin_locking, end_blockers};
use super::writer::{PostgresShardWriter, WriterPlan};
use crate::model::rules_version::{RULES_VERSION_KEY, RulesVersionMismatch, VersionedArtifact};
use crate::sinks::contract::{DurableSink, Heartbeat, ProgressWriter};
use crate::sinks::error::SinkError;
use crate::sinks::progress::{
    CLAIM, Claim, ClaimRequest, IDENTITY, ProgressSnapshot, SinkClaim, SinkIdentity, find_difference,
    shard_key,
};
use crate::sinks::shard::{FencedShards, ShardWriter};
use crate::sinks::stop::StopDeadline;

/// How long a start waits for a database to be claimed, fenced and read.
const START_TIMEOUT: Duration = Duration::from_secs(60);
const START_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// The shortest limit of a call, even if the caller does not wait for the database.
const SHORTEST_CALL: Duration = Duration::from_secs(5);
/// How often an idle run checks for another claim, and whether it has ended meanwhile.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
const WATCH_STEP: Duration = Duration::from_millis(200);

/// A schema of each database that results are written to.
pub struct PostgresSink {
    plan: Arc<PostgresSinkPlan>,
    identity: SinkIdentity,
    /// Settings that the functions of the schema read, by name.
    settings: Vec<(&'static str, String)>,
    /// The authority of the run, for error messages.
    authority: String,
    /// Idle connections outside of writers, by database.
    idle: Mutex<Vec<Option<Connection>>>,
}

impl PostgresSink {
    pub fn new(
        plan: PostgresSinkPlan,
        identity: SinkIdentity,
        settings: Vec<(&'static str, String)>,
        authority: String,
    ) -> PostgresSink {
        let idle = plan.databases.iter().map(|_| None).collect();
        PostgresSink { plan: Arc::new(plan), identity, settings, authority, idle: Mutex::new(idle) }
    }

    /// Calls a database. Its session is used again unless the call fails.
    fn call<T>(
        &self,
        database: usize,
        timeout: Duration,
        work: impl AsyncFnOnce(&Session) -> Result<T, PostgresError>,
    ) -> Result<T, PostgresError> {
        let idle = || self.idle.lock();
        let kept = idle()[database].take().filter(Connection::is_open);
        let mut connection = match kept {
            Some(connection) => connection,
            None => Connection::open(&self.plan.databases[database], CallLimit::within(timeout))?,
        };
        connection.set_timeout(timeout);
        let answer = connection.call(work)?;
        idle()[database] = Some(connection);
        Ok(answer)
    }

    /// Calls a database, and again while it may answer soon.
    fn call_until<T>(
        &self,
        database: usize,
        within: Duration,
        work: impl AsyncFn(&Session) -> Result<T, PostgresError>,
    ) -> Result<T, PostgresError> {
        let begun = Instant::now();
        let timeout = self.plan.transaction_timeout.min(within.max(SHORTEST_CALL));
        let mut is_reported = false;
        loop {
            match self.call(database, timeout, &work) {
                Err(error) if error.is_worth_waiting() && begun.elapsed() < within => {
                    if !is_reported {
                        tracing::warn!(%error, "the database is tried again for {within:?}");
                    }
                    is_reported = true;
                    thread::sleep(START_RETRY_INTERVAL);
                }
                answer => return answer,
            }
        }
    }

    fn databases(&self) -> std::ops::Range<usize> {
        0..self.plan.databases.len()
    }

    fn table<'a>(&'a self, session: &'a Session) -> ShardTable<'a> {
        ShardTable { session, schema: &self.plan.schema }
    }

    /// Checks that the run can continue with the schema of a database, and reads its shards. There
    /// are none yet if a start may make the tables.
    async fn inspect_database(
        &self,
        database: usize,
        session: &Session,
    ) -> Result<Vec<ShardRow>, PostgresError> {
        let schema = &self.plan.schema;
        let state =
            SchemaState::read(&session.client, schema).await.map_err(|error| session.error(&error))?;
        let wrong = |source| PostgresError::Schema { database: session.database.to_string(), source };
        let is_current = match state.require_current(schema) {
            Ok(()) => true,
            Err(_) if self.plan.create_tables && state.migration(schema).is_ok() => false,
            Err(error) => return Err(wrong(error)),
        };
        if is_current {
            check_rights(session, &self.plan).await?;
        }
        let rows = match state {
            SchemaState::Missing | SchemaState::Unversioned => Vec::new(),
            SchemaState::Version(_) => self.table(session).read().await?,
        };
        self.check_rows(database, session, &rows)?;
        Ok(rows)
    }

    /// Refuses shards of another database, and results of another identity.
    fn check_rows(&self, database: usize, session: &Session, rows: &[ShardRow]) -> Result<(), PostgresError> {
        let (name, schema) = self.table(session).names();
        let recorded = rows.iter().filter_map(|row| row.identity.as_ref());
        for recorded in recorded {
            RulesVersionMismatch::check_version(
                recorded.get(RULES_VERSION_KEY),
                self.identity.get(RULES_VERSION_KEY),
                || VersionedArtifact::Schema { name: format!("{schema} of {name}") },
            )?;
            if let Some(difference) = find_difference(recorded, &self.identity) {
                return Err(PostgresError::Identity { database: name, schema, difference });
            }
        }
        let foreign = rows.iter().find(|row| self.plan.database_of(row.shard) != database);
        match foreign {
            None => Ok(()),
            Some(row) => Err(PostgresError::OtherOrder {
                database: name,
                schema,
                shard: row.shard,
                belongs_to: self.plan.database_of(row.shard) + 1,
                databases: self.plan.databases.len(),
            }),
        }
    }

    /// Makes missing tables, if the plan says so.
    async fn migrate(&self, session: &Session) -> Result<(), PostgresError> {
        let schema = &self.plan.schema;
        let failed = |error: tokio_postgres::Error| session.error(&error);
        let state = SchemaState::read(&session.client, schema).await.map_err(failed)?;
        let wrong = |source| PostgresError::Schema { database: session.database.to_string(), source };
        if !self.plan.create_tables {
            return state.require_current(schema).map_err(wrong);
        }
        let Some(script) = state.migration(schema).map_err(wrong)? else { return Ok(()) };
        if let Err(error) = run_migration(&session.client, &script).await {
            // Another start may have migrated the schema meanwhile.
            let state = SchemaState::read(&session.client, schema).await.map_err(failed)?;
            return state.require_current(schema).map_err(|_| session.error(&error));
        }
        tracing::info!(
            database = &*session.database,
            schema = schema.as_str(),
            "the tables of results were made"
        );
        Ok(())
    }

    /// Claims the shards of a database in one transaction. Returns the recorded identity.
    async fn claim_database(
        &self,
        database: usize,
        session: &Session,
        own: &Claim,
    ) -> Result<Option<SinkIdentity>, PostgresError> {
        self.migrate(session).await?;
        check_rights(session, &self.plan).await?;
        let shards: Vec<u16> = self.plan.shards_of(database).collect();
        let table = self.table(session);
        let process = begin_locking(session).await?;
        let locks = async {
            table.add_missing(&shards).await?;
            table.lock(&shards).await
        };
        let rows = end_blockers(&self.plan.databases[database], process, locks).await?;
        self.check_rows(database, session, &rows)?;
        if let Some(newer) = rows.iter().find(|row| row.claim.generation > own.generation) {
            let (database, schema) = table.names();
            let (recorded, own) = (newer.claim.generation, own.generation);
            let authority = self.authority.clone();
            return Err(PostgresError::GenerationLost { database, schema, recorded, own, authority });
        }
        table.claim(&shards, own, &self.identity).await?;
        self.write_settings(session).await?;
        session.batch("commit").await?;
        Ok(rows.into_iter().find_map(|row| row.identity))
    }

    async fn write_settings(&self, session: &Session) -> Result<(), PostgresError> {
        let statement = format!(
            "insert into {0}.setting (name, value) select n, v from unnest($1, $2) s(n, v) \
             on conflict (name) do update set value = excluded.value where {0}.setting.value <> excluded.value",
            self.plan.schema.quoted()
        );
        let names: Vec<&str> = self.settings.iter().map(|(name, _)| *name).collect();
        let values: Vec<&str> = self.settings.iter().map(|(_, value)| value.as_str()).collect();
        let parameters: [Parameter<'_>; 2] = [(&names, Type::TEXT_ARRAY), (&values, Type::TEXT_ARRAY)];
        session.execute(&statement, &parameters).await.map(drop)
    }

    /// Reads the shards of a database, all of which must be claimed by `own`.
    async fn read_claimed(
        &self,
        database: usize,
        session: &Session,
        own: &Claim,
    ) -> Result<Vec<ShardRow>, PostgresError> {
        let table = self.table(session);
        let rows = table.read().await?;
        for shard in self.plan.shards_of(database) {
            let (database, schema) = table.names();
            match rows.iter().find(|row| row.shard == shard) {
                Some(row) => row.check_claim(own, database, schema)?,
                None => return Err(PostgresError::AnotherDatabase { database, schema }),
            }
        }
        Ok(rows)
    }

    fn check_claims(&self, own: &Claim, within: Duration) -> Result<(), PostgresError> {
        for database in self.databases() {
            self.call_until(database, within, async |session| {
                self.read_claimed(database, session, own).await.map(drop)
            })?;
        }
        Ok(())
    }

    /// The progress that rows of all databases record.
    fn snapshot(&self, rows: &[ShardRow]) -> ProgressSnapshot {
        let mut snapshot = ProgressSnapshot::new(&format!("schema {}", self.plan.schema.as_str()));
        if let Some(identity) = rows.iter().find_map(|row| row.identity.as_ref()) {
            snapshot.set(IDENTITY, identity);
        }
        let claims = rows.iter().map(|row| &row.claim).filter(|claim| claim.generation > 0);
        if let Some(newest) = claims.max_by_key(|claim| claim.generation) {
            snapshot.set(CLAIM, newest);
        }
        for row in rows {
            if let Some(progress) = &row.progress {
                snapshot.set(&shard_key(row.shard), progress);
            }
        }
        snapshot
    }
}

impl DurableSink for PostgresSink {
    fn shards(&self) -> u16 {
        self.plan.shards
    }

    fn commit_interval(&self) -> Duration {
        self.plan.commit_interval
    }

    fn metric_label(&self) -> (&'static str, String) {
        ("postgres", self.plan.label())
    }

    fn inspect(&self, within: Duration) -> Result<ProgressSnapshot, SinkError> {
        let mut rows = Vec::new();
        for database in self.databases() {
            rows.extend(self.call_until(database, within, async |session| {
                self.inspect_database(database, session).await
            })?);
        }
        Ok(self.snapshot(&rows))
    }

    fn claim(&self, request: &ClaimRequest<'_>) -> Result<SinkClaim, SinkError> {
        let own = request.generation.and_then(Claim::parse);
        let own =
            own.ok_or_else(|| SinkError::Fatal("PostgreSQL counts no generations of its own".into()))?;
        let mut recorded = None;
        for database in self.databases() {
            let found = self.call_until(database, START_TIMEOUT, async |session| {
                self.claim_database(database, session, &own).await
            })?;
            recorded = recorded.or(found);
        }
        Ok(SinkClaim { claim: own, at: 0, recorded })
    }

    fn check_claim(&self, claim: &SinkClaim) -> Result<(), SinkError> {
        Ok(self.check_claims(&claim.claim, START_TIMEOUT)?)
    }

    fn prove_liveness(&self, _: &SinkClaim) -> Result<Option<Heartbeat>, SinkError> {
        Ok(None)
    }

    fn fence(&self, claim: &SinkClaim, shards: &[u16]) -> Result<FencedShards, SinkError> {
        // The claim has locked every row after the last transaction of its earlier writer, and each
        // later one of that writer finds no row of its generation.
        let stop = Arc::<StopDeadline>::default();
        let mut writers = Vec::new();
        for shard in shards {
            let plan = WriterPlan {
                sink: Arc::clone(&self.plan),
                shard: *shard,
                claim: claim.claim.clone(),
                stop: Arc::clone(&stop),
            };
            let writer = PostgresShardWriter::open(plan, START_TIMEOUT)?;
            writers.push((*shard, Box::new(writer) as Box<dyn ShardWriter>));
        }
        Ok(FencedShards { writers, stop })
    }

    fn read_progress(&self, claim: &SinkClaim) -> Result<ProgressSnapshot, SinkError> {
        let own = &claim.claim;
        let mut all = claim.recorded.clone().unwrap_or_default();
        all.extend(self.identity.clone());
        let mut rows = Vec::new();
        for database in self.databases() {
            rows.extend(self.call_until(database, START_TIMEOUT, async |session| {
                let rows = self.read_claimed(database, session, own).await?;
                if rows.iter().any(|row| row.identity.as_ref() != Some(&all)) {
                    self.table(session).write_identity(own, &all).await?;
                }
                Ok(rows)
            })?);
        }
        Ok(self.snapshot(&rows))
    }

    fn progress_writer(&self) -> Result<Option<ProgressWriter>, SinkError> {
        Ok(None)
    }

    fn watch_for_claims(&self, claim: &SinkClaim, stop: &Arc<StopDeadline>) -> Result<(), SinkError> {
        let mut next = Instant::now();
        while !stop.has_begun() {
            thread::sleep(WATCH_STEP);
            if Instant::now() < next {
                continue;
            }
            next = Instant::now() + WATCH_INTERVAL;
            // The writers report a database that cannot be read, or that has lost commits.
            let checked = self.check_claims(&claim.claim, Duration::ZERO);
            if let Err(error @ (PostgresError::Fenced { .. } | PostgresError::SameGeneration { .. })) =
                checked
            {
                return Err(error.into());
            }
        }
        Ok(())
    }
}
