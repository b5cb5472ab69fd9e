//! The rows of the table `shard`: who may write each shard, and how far it is written.

use std::cmp::Ordering;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::connection::{Parameter, Session};
use super::error::PostgresError;
use super::schema::SchemaName;
use crate::sinks::progress::{Claim, ShardProgress, SinkIdentity};

/// The columns of a [`ShardRow`]. JSON is read as text, so numbers keep all their digits.
const COLUMNS: &str =
    "shard, generation, nonce, epoch, progress::text, identity::text, kept_from - date '1970-01-01'";

/// A row of the table `shard`.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardRow {
    pub shard: u16,
    /// The generation that may write; 0 if none has claimed the shard.
    pub claim: Claim,
    pub progress: Option<ShardProgress>,
    pub identity: Option<SinkIdentity>,
    /// The oldest day that is kept, in days since 1970; `None` if all are.
    pub kept_from: Option<i32>,
}

impl ShardRow {
    /// Fails if the row is not claimed by `own`. Database and schema are for the message.
    pub fn check_claim(&self, own: &Claim, database: String, schema: String) -> Result<(), PostgresError> {
        let generation = self.claim.generation;
        match generation.cmp(&own.generation) {
            Ordering::Equal if self.claim == *own => Ok(()),
            Ordering::Equal => Err(PostgresError::SameGeneration { database, schema, generation }),
            Ordering::Greater => Err(PostgresError::Fenced { database, schema, generation }),
            Ordering::Less => Err(PostgresError::AnotherDatabase { database, schema }),
        }
    }
}

/// The table `shard` of a schema, in the database of a session.
#[derive(Clone, Copy)]
pub struct ShardTable<'a> {
    pub session: &'a Session,
    pub schema: &'a SchemaName,
}

impl ShardTable<'_> {
    /// The names of database and schema, for messages.
    pub fn names(&self) -> (String, String) {
        (self.session.database.to_string(), self.schema.as_str().to_owned())
    }

    /// Reads all rows, in the order of shards.
    pub async fn read(&self) -> Result<Vec<ShardRow>, PostgresError> {
        let query = format!("select {COLUMNS} from {}.shard order by shard", self.schema.quoted());
        let rows = self.session.query(&query, &[]).await?;
        rows.iter().map(|row| self.parse(row)).collect()
    }

    /// Reads rows and locks them until the transaction ends, in the order of shards.
    pub async fn lock(&self, shards: &[u16]) -> Result<Vec<ShardRow>, PostgresError> {
        let schema = self.schema.quoted();
        let query =
            format!("select {COLUMNS} from {schema}.shard where shard = any($1) order by shard for update");
        let shards: Vec<i32> = shards.iter().map(|shard| i32::from(*shard)).collect();
        let rows = self.session.query(&query, &[(&shards, Type::INT4_ARRAY)]).await?;
        rows.iter().map(|row| self.parse(row)).collect()
    }

    /// Makes the rows that are missing, claimed by nobody.
    pub async fn add_missing(&self, shards: &[u16]) -> Result<(), PostgresError> {
        let statement = format!(
            "insert into {}.shard (shard, generation, nonce) select s, 0, '' from unnest($1) s order by s on conflict do nothing",
            self.schema.quoted()
        );
        let shards: Vec<i32> = shards.iter().map(|shard| i32::from(*shard)).collect();
        self.session.execute(&statement, &[(&shards, Type::INT4_ARRAY)]).await.map(drop)
    }

    /// Claims rows that are locked. Rows without an identity get this one.
    pub async fn claim(
        &self,
        shards: &[u16],
        claim: &Claim,
        identity: &SinkIdentity,
    ) -> Result<(), PostgresError> {
        let statement = format!(
            "update {}.shard set generation = $2, nonce = $3, identity = coalesce(identity, $4::text::jsonb) where shard = any($1)",
            self.schema.quoted()
        );
        let shards: Vec<i32> = shards.iter().map(|shard| i32::from(*shard)).collect();
        let generation = claim.generation as i64;
        let identity = to_json(identity);
        let parameters: [Parameter<'_>; 4] = [
            (&shards, Type::INT4_ARRAY),
            (&generation, Type::INT8),
            (&claim.nonce, Type::TEXT),
            (&identity, Type::TEXT),
        ];
        self.session.execute(&statement, &parameters).await.map(drop)
    }

    /// Records the identity in all rows of the claim.
    pub async fn write_identity(&self, claim: &Claim, identity: &SinkIdentity) -> Result<(), PostgresError> {
        let statement = format!(
            "update {}.shard set identity = $3::text::jsonb where generation = $1 and nonce = $2",
            self.schema.quoted()
        );
        let (generation, identity) = (claim.generation as i64, to_json(identity));
        let parameters: [Parameter<'_>; 3] =
            [(&generation, Type::INT8), (&claim.nonce, Type::TEXT), (&identity, Type::TEXT)];
        self.session.execute(&statement, &parameters).await.map(drop)
    }

    fn parse(&self, row: &Row) -> Result<ShardRow, PostgresError> {
        let damaged = |problem: String| {
            let (database, schema) = self.names();
            PostgresError::Damaged { database, schema, problem }
        };
        let session = self.session;
        let number: i32 = session.column(row, 0)?;
        let shard = u16::try_from(number).map_err(|_| damaged(format!("there is no shard {number}")))?;
        let generation: i64 = session.column(row, 1)?;
        let claim = Claim { generation: generation.max(0) as u64, nonce: session.column(row, 2)? };
        let epoch: Option<i64> = session.column(row, 3)?;
        let progress = session.column::<Option<&str>>(row, 4)?.map(serde_json::from_str::<ShardProgress>);
        let progress =
            progress.transpose().map_err(|error| damaged(format!("progress of shard {shard}: {error}")))?;
        if progress.as_ref().map(|progress| progress.epoch as i64) != epoch {
            return Err(damaged(format!("epoch and progress of shard {shard} differ")));
        }
        let identity = session.column::<Option<&str>>(row, 5)?.map(serde_json::from_str);
        let identity =
            identity.transpose().map_err(|error| damaged(format!("identity of shard {shard}: {error}")))?;
        Ok(ShardRow { shard, claim, progress, identity, kept_from: session.column(row, 6)? })
    }
}

pub fn to_json(value: &impl serde::Serialize) -> String {
    // Keys are texts and values are texts and numbers, which serialization cannot refuse.
    serde_json::to_string(value).unwrap_or_default()
}
