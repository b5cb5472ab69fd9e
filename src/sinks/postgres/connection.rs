//! Sessions with a database, and calls with a limit of time.
//!
//! Each connection has a runtime of its own on the thread that uses it, so the calls of a writer
//! block, and nothing waits longer than the run allows.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, timeout};
use tokio_postgres::config::{Config, SslMode, TargetSessionAttrs};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, NoTls, Row};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::error::PostgresError;
use super::passfile::read_password;
use super::plan::{Password, PostgresDatabase, PostgresTls};
use crate::fault::{build_runtime, start_failure_text};
use crate::sinks::stop::StopDeadline;

/// How long an address may take to accept a connection, unless the URL says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that is gone is noticed after about 25 s, even if nothing is sent.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// What was sent and is not acknowledged for this long ends the connection.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a call checks whether the run has stopped.
const STOP_INTERVAL: Duration = Duration::from_millis(100);
/// The name of the sessions in pg_stat_activity, unless the URL has another.
const APPLICATION_NAME: &str = "swelter";

/// A parameter of a statement, with its type: the server is not asked for it.
pub type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// A session with a database. It is driven by the runtime in which it was opened.
pub struct Session {
    pub client: Client,
    /// The label of the database, for messages.
    pub database: Arc<str>,
}

impl Session {
    /// Opens a session with a server that takes writes.
    pub async fn open(database: &PostgresDatabase) -> Result<Session, PostgresError> {
        let session = Session::open_any(database, TargetSessionAttrs::ReadWrite).await?;
        session.check_is_primary().await?;
        Ok(session)
    }

    /// Opens a session with any server that answers, such as a standby.
    pub async fn open_reader(database: &PostgresDatabase) -> Result<Session, PostgresError> {
        Session::open_any(database, TargetSessionAttrs::Any).await
    }

    async fn open_any(
        database: &PostgresDatabase,
        wanted: TargetSessionAttrs,
    ) -> Result<Session, PostgresError> {
        let mut config = session_config(database)?;
        config.target_session_attrs(wanted);
        let label: Arc<str> = database.label.as_str().into();
        let failed = |error: tokio_postgres::Error| PostgresError::of(&label, &error);
        let client = match &database.tls {
            PostgresTls::Disable => {
                let (client, connection) = config.connect(NoTls).await.map_err(failed)?;
                drive(connection);
                client
            }
            PostgresTls::VerifyFull { ca } => {
                let tls = MakeRustlsConnect::new(client_config(database, ca.as_deref())?);
                let (client, connection) = config.connect(tls).await.map_err(failed)?;
                drive(connection);
                client
            }
        };
        Ok(Session { client, database: label })
    }

    /// A pooler may have answered the client's own check from another server.
    async fn check_is_primary(&self) -> Result<(), PostgresError> {
        let rows = self.query("select pg_catalog.pg_is_in_recovery()", &[]).await?;
        let is_standby = rows.first().map(|row| self.column::<bool>(row, 0)).transpose()?;
        match is_standby {
            Some(false) => Ok(()),
            _ => Err(PostgresError::Unreachable {
                database: self.database.to_string(),
                problem: "the server is a standby: results wait until it is the primary, or another host of the URL is".into(),
            }),
        }
    }

    /// Executes statements without parameters, all in one turn.
    pub async fn batch(&self, statements: &str) -> Result<(), PostgresError> {
        self.client.batch_execute(statements).await.map_err(|error| self.error(&error))
    }

    /// Executes an unnamed statement that returns rows.
    pub async fn query(
        &self,
        statement: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, PostgresError> {
        self.client.query_typed(statement, parameters).await.map_err(|error| self.error(&error))
    }

    /// Executes an unnamed statement, and returns the number of rows that it has changed.
    pub async fn execute(&self, statement: &str, parameters: &[Parameter<'_>]) -> Result<u64, PostgresError> {
        self.client.execute_typed(statement, parameters).await.map_err(|error| self.error(&error))
    }

    /// A column of a row.
    pub fn column<'a, T: tokio_postgres::types::FromSql<'a>>(
        &self,
        row: &'a Row,
        at: usize,
    ) -> Result<T, PostgresError> {
        row.try_get(at).map_err(|error| self.error(&error))
    }

    pub fn error(&self, error: &tokio_postgres::Error) -> PostgresError {
        PostgresError::of(&self.database, error)
    }
}

/// Drives the connection until the session is dropped or lost.
fn drive<S, T>(connection: tokio_postgres::Connection<S, T>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        // The next call of the session returns the error too.
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a session with PostgreSQL has ended");
        }
    });
}

/// The parameters of a session: those of the URL, the password, and limits that the URL leaves
/// open.
fn session_config(database: &PostgresDatabase) -> Result<Config, PostgresError> {
    let mut config = database.config.clone();
    match &database.password {
        Password::None => {}
        Password::Text(text) => drop(config.password(text)),
        Password::File(path) => {
            let failed = |problem| PostgresError::Password { database: database.label.clone(), problem };
            config.password(read_password(path, &database.config).map_err(failed)?);
        }
    }
    config.ssl_mode(match database.tls {
        PostgresTls::Disable => SslMode::Disable,
        PostgresTls::VerifyFull { .. } => SslMode::Require,
    });
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(TCP_USER_TIMEOUT);
    }
    if config.get_keepalives_interval().is_none() {
        config.keepalives_idle(KEEPALIVE_IDLE);
        config.keepalives_interval(KEEPALIVE_INTERVAL);
        config.keepalives_retries(KEEPALIVE_RETRIES);
    }
    if config.get_application_name().is_none() {
        config.application_name(APPLICATION_NAME);
    }
    Ok(config)
}

/// TLS that trusts a CA file, or the certificates of the host. The file is read at each connection,
/// so it can be replaced.
fn client_config(database: &PostgresDatabase, ca: Option<&Path>) -> Result<ClientConfig, PostgresError> {
    let failed = |problem: String| PostgresError::Tls { database: database.label.clone(), problem };
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let unusable = |error: &dyn std::fmt::Display| {
                failed(format!("tls.ca {}: {error}: name a PEM file of the CA", path.display()))
            };
            let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unusable(&error))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| unusable(&error))?;
                roots.add(certificate).map_err(|error| unusable(&error))?;
            }
            if roots.is_empty() {
                return Err(unusable(&"it has no certificate"));
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// How long a call may take.
#[derive(Clone, Debug)]
pub struct CallLimit {
    pub timeout: Duration,
    /// A call ends with an error once this is over.
    pub stop: Arc<StopDeadline>,
}

impl CallLimit {
    /// A limit for calls outside of a run's writers.
    pub fn within(timeout: Duration) -> CallLimit {
        CallLimit { timeout, stop: Arc::default() }
    }
}

/// A session and the runtime that drives it, for a thread that waits for each call.
pub struct Connection {
    // Dropped in this order: the session's driver belongs to the runtime.
    session: Session,
    runtime: Runtime,
    limit: CallLimit,
}

impl Connection {
    /// Connects; the whole takes no longer than the limit.
    pub fn open(database: &PostgresDatabase, limit: CallLimit) -> Result<Connection, PostgresError> {
        let runtime = build_runtime(&mut Builder::new_current_thread(), 1, 1)
            .map_err(|error| PostgresError::Runtime(start_failure_text(&error)))?;
        let session = runtime.block_on(bounded(&limit, &database.label, Session::open(database)))?;
        Ok(Connection { session, runtime, limit })
    }

    /// Waits for a call, no longer than the limit of the connection. After an error the session may
    /// be in the middle of a transaction.
    pub fn call<T>(
        &self,
        work: impl AsyncFnOnce(&Session) -> Result<T, PostgresError>,
    ) -> Result<T, PostgresError> {
        let call = work(&self.session);
        self.runtime.block_on(bounded(&self.limit, &self.session.database, call))
    }

    pub fn set_timeout(&mut self, timeout: Duration) {
        self.limit.timeout = timeout;
    }

    /// Whether the session can still be used, as far as is known.
    pub fn is_open(&self) -> bool {
        !self.session.client.is_closed()
    }
}

/// Waits for a call until its limit, or until the run ends.
async fn bounded<T>(
    limit: &CallLimit,
    database: &str,
    call: impl Future<Output = Result<T, PostgresError>>,
) -> Result<T, PostgresError> {
    let mut call = pin!(call);
    let begun = Instant::now();
    loop {
        let left = limit.timeout.saturating_sub(begun.elapsed());
        if let Ok(answer) = timeout(STOP_INTERVAL.min(left), call.as_mut()).await {
            return answer;
        }
        if limit.stop.is_over() {
            return Err(PostgresError::Stopped { database: database.to_owned() });
        }
        if begun.elapsed() >= limit.timeout {
            return Err(PostgresError::Timeout { database: database.to_owned(), waited: limit.timeout });
        }
    }
}
