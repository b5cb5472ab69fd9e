//! Errors of writing to PostgreSQL.

use std::error::Error as _;
use std::time::Duration;

use super::schema::SchemaError;
use super::sqlstate::{is_transient_sqlstate, sqlstate_remedy};
use crate::model::printable::printable;
use crate::model::rules_version::RulesVersionMismatch;
use crate::sinks::error::{SinkError, WriteFailure};
use crate::sinks::progress::IdentityDifference;

#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// The server has answered with an error.
    #[error("{database}: {problem} (SQLSTATE {code}){}", sqlstate_remedy(code))]
    Server { database: String, code: String, problem: String },
    /// The server cannot be reached, or the session was lost.
    #[error("{database}: {problem}")]
    Unreachable { database: String, problem: String },
    #[error(
        "{database} has not answered within {waited:?}: look at the server and the network, or raise transaction_timeout"
    )]
    Timeout { database: String, waited: Duration },
    #[error("{database}: the run stops, and has not waited for an answer")]
    Stopped { database: String },
    #[error("{database}: {problem}")]
    Password { database: String, problem: String },
    #[error("{database}: {problem}")]
    Tls { database: String, problem: String },
    #[error("{0}")]
    Runtime(String),
    #[error("{database}: {source}")]
    Schema { database: String, source: SchemaError },
    #[error(
        "{database}, schema {schema}: {problem}: docs/postgres.md, \"Rights\", has the statements that grant it"
    )]
    Rights { database: String, schema: String, problem: String },
    #[error(
        "{database}, schema {schema}, table shard: {problem}: is it a schema of swelter? Restore it, or name another schema to begin anew"
    )]
    Damaged { database: String, schema: String, problem: String },
    #[error(
        "{database}, schema {schema} has shard {shard}, which belongs to database {belongs_to} of {databases}: write urls in the order of the first start"
    )]
    OtherOrder { database: String, schema: String, shard: u16, belongs_to: usize, databases: usize },
    #[error(
        "generation {generation} of the same results has taken over ({database}, schema {schema}): this process ends; run one at a time, or give \
         each a schema of its own"
    )]
    Fenced { database: String, schema: String, generation: u64 },
    #[error(
        "{database}, schema {schema} was claimed by another start with the same generation, {generation}: this process ends, and the next start \
         claims it again"
    )]
    SameGeneration { database: String, schema: String, generation: u64 },
    #[error(
        "{database}, schema {schema} was last written by generation {recorded}, and this is generation {own}: {authority} counts generations, and \
         has lost its count, or is not the one that the schema was written with: restore it, or name another schema"
    )]
    GenerationLost { database: String, schema: String, recorded: u64, own: u64, authority: String },
    #[error(
        "the claim of process 0 is not in {database}, schema {schema} as this process sees it: all processes of a run must write to the same \
         databases"
    )]
    AnotherDatabase { database: String, schema: String },
    #[error(
        "{database}, schema {schema}, shard {shard}: the database has lost commits: it was complete up to epoch {committed}, and is now at {found}. \
         A standby that was promoted without them, or an older copy? Start again: swelter goes on from there if its log or a checkpoint reaches \
         back to it"
    )]
    CommitsLost { database: String, schema: String, shard: u16, committed: u64, found: String },
    #[error(
        "{database}, schema {schema}, shard {shard}: the progress is at epoch {found}, which this run has not written: let nothing else write to \
         the schema, or name another one"
    )]
    OthersWrote { database: String, schema: String, shard: u16, found: u64 },
    /// The data are not what the writer expects; the text names the row.
    #[error("{database}, schema {schema}: {problem}")]
    Unexpected { database: String, schema: String, problem: String },
    #[error("the results in {database}, schema {schema} were made with {difference}: set it back, or name another schema to begin anew{}", .difference.rebuild_hint())]
    Identity { database: String, schema: String, difference: IdentityDifference },
    #[error(transparent)]
    Rules(#[from] RulesVersionMismatch),
}

impl PostgresError {
    /// An error of the client, by what the server has said, if it has.
    pub fn of(database: &str, error: &tokio_postgres::Error) -> PostgresError {
        let database = database.to_owned();
        if let Some(answer) = error.as_db_error() {
            let mut problem = printable(answer.message()).into_owned();
            if let Some(detail) = answer.detail() {
                problem.push_str(&format!(" ({})", printable(detail)));
            }
            return PostgresError::Server { database, code: answer.code().code().to_owned(), problem };
        }
        let mut problem = printable(&error.to_string()).into_owned();
        // Some texts end with that of their cause, and some do not.
        let mut cause = error.source();
        while let Some(next) = cause {
            let text = next.to_string();
            if !problem.contains(&text) {
                problem.push_str(&format!(": {}", printable(&text)));
            }
            cause = next.source();
        }
        if problem.contains("does not allow writes") {
            problem.push_str(sqlstate_remedy("25006"));
        }
        if problem.contains("does not support TLS") {
            problem.push_str(
                ": set ssl = on at the server, or write tls = { mode = \"disable\" } if the network is trusted",
            );
            return PostgresError::Tls { database, problem };
        }
        if problem.contains("certificate") {
            problem.push_str(
                ": the certificate must be valid for the host of the URL and signed by tls.ca, or by a CA that this host trusts",
            );
            return PostgresError::Tls { database, problem };
        }
        PostgresError::Unreachable { database, problem }
    }

    /// Whether the fault may pass, so that a writer waits and tries again.
    pub fn is_transient(&self) -> bool {
        match self {
            PostgresError::Server { code, .. } => is_transient_sqlstate(code),
            PostgresError::Unreachable { .. }
            | PostgresError::Timeout { .. }
            | PostgresError::Stopped { .. }
            | PostgresError::Password { .. }
            | PostgresError::Tls { .. }
            | PostgresError::Runtime(_) => true,
            PostgresError::Schema { .. }
            | PostgresError::Rights { .. }
            | PostgresError::Damaged { .. }
            | PostgresError::OtherOrder { .. }
            | PostgresError::Fenced { .. }
            | PostgresError::SameGeneration { .. }
            | PostgresError::GenerationLost { .. }
            | PostgresError::AnotherDatabase { .. }
            | PostgresError::CommitsLost { .. }
            | PostgresError::OthersWrote { .. }
            | PostgresError::Unexpected { .. }
            | PostgresError::Identity { .. }
            | PostgresError::Rules(_) => false,
        }
    }

    /// Whether a start waits for the fault to pass. Settings that are wrong are reported at once.
    pub fn is_worth_waiting(&self) -> bool {
        match self {
            PostgresError::Server { code, .. } => !code.starts_with("28") && is_transient_sqlstate(code),
            PostgresError::Password { .. } | PostgresError::Tls { .. } | PostgresError::Runtime(_) => false,
            error => error.is_transient(),
        }
    }

    /// The failure of a transaction. A session is not used again after one: the client may wait for
    /// an answer that has come already.
    pub fn into_write_failure(self) -> WriteFailure {
        match self.is_transient() {
            true => WriteFailure::Reopen(self.to_string()),
            false => WriteFailure::Final(self.into()),
        }
    }
}

impl From<PostgresError> for SinkError {
    fn from(error: PostgresError) -> SinkError {
        let text = error.to_string();
        match error {
            PostgresError::Fenced { .. } => SinkError::Fenced(text),
            error if error.is_worth_waiting() => SinkError::Unavailable(text),
            _ => SinkError::Fatal(text),
        }
    }
}
