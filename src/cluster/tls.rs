//! TLS between processes; both ends show a certificate signed by the cluster's own CA.
//!
//! Both ends check the name in a certificate against the host that `cluster.hosts` gives its
//! process: the caller in the TLS handshake, the listener once the caller has proved which process
//! it is. So a certificate is valid for the processes of its host only, and common tools that issue
//! certificates for hosts can issue these. One wildcard certificate, or one with all names, also
//! works if the processes are replicas.
//!
//! There is no session resumption and there are no tickets: connections are few, and each one is
//! authenticated in full.

mod errors;
mod stream;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::client::{Resumption, WebPkiServerVerifier};
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, Error, RootCertStore, ServerConfig,
    ServerConnection,
};

pub use self::errors::TlsFailure;
pub(super) use self::errors::failure;
use self::errors::{describe, server_name};
pub use self::stream::TlsStream;
use super::error::ClusterError;
use super::io_error::{handshake_timed_out, text};
use crate::config::ClusterTlsPlan;

/// A certificate that expires within this time causes a warning.
const EXPIRY_WARNING: Duration = Duration::from_secs(14 * 24 * 3600);
/// How long, and for how many bytes, a refused peer is read from, so that it receives the reason
/// instead of a reset.
const LINGER_TIMEOUT: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 64 * 1024;

/// The certificate of this process, and what it requires of the peers' certificates.
#[derive(Clone)]
pub struct PeerTls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// The files of a plan, read.
struct PeerCertificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    client_verifier: Arc<dyn ClientCertVerifier>,
    server_verifier: Arc<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
}

impl PeerTls {
    /// Reads the files, and checks that other processes will accept this certificate.
    ///
    /// # Errors
    ///
    /// If a file is not valid, the certificate is not signed by the CA, or is not valid now.
    pub fn load(plan: &ClusterTlsPlan) -> Result<PeerTls, ClusterError> {
        let identity = PeerCertificate::read(plan)?;
        identity.check(UnixTime::now()).map_err(|error| unusable_file(&plan.certificate, &error))?;
        let soon =
            UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) + EXPIRY_WARNING);
        if identity.check(soon).is_err() {
            let (path, days) = (plan.certificate.display(), EXPIRY_WARNING.as_secs() / 86_400);
            tracing::warn!(
                "cluster.tls: {path} or the CA expires within {days} days, and then no process can join: replace them"
            );
        }
        identity.configure().map_err(|error| unusable_file(&plan.certificate, &error))
    }

    /// Accepts a TLS connection as the process that listens.
    pub(super) fn accept(&self, socket: TcpStream, deadline: Instant) -> Result<TlsStream, TlsFailure> {
        let connection = ServerConnection::new(Arc::clone(&self.server));
        let connection = connection.map_err(|error| TlsFailure::Broken(error.to_string()))?;
        finish_handshake(socket, Connection::Server(connection), deadline)
    }

    /// Connects to the process that must be at `host`.
    pub(super) fn connect(
        &self,
        socket: TcpStream,
        host: &str,
        deadline: Instant,
    ) -> Result<TlsStream, TlsFailure> {
        let name = server_name(host).map_err(TlsFailure::Broken)?;
        let connection = ClientConnection::new(Arc::clone(&self.client), name);
        let connection = connection.map_err(|error| TlsFailure::Broken(error.to_string()))?;
        finish_handshake(socket, Connection::Client(connection), deadline)
    }
}

fn unusable_file(path: &Path, error: &Error) -> ClusterError {
    ClusterError::Tls { path: path.to_owned(), problem: format!("{}: make a new one", describe(error)) }
}

impl PeerCertificate {
    fn read(plan: &ClusterTlsPlan) -> Result<PeerCertificate, ClusterError> {
        let (chain, authorities) = (certificates(&plan.certificate)?, certificates(&plan.ca)?);
        let key = PrivateKeyDer::from_pem_file(&plan.key).map_err(|error| unreadable(&plan.key, error))?;
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority).map_err(|error| unreadable(&plan.ca, error))?;
        }
        let (roots, provider) =
            (Arc::new(roots), Arc::new(tokio_rustls::rustls::crypto::ring::default_provider()));
        let client_verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider)).build();
        let server_verifier =
            WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
        Ok(PeerCertificate {
            chain,
            key,
            client_verifier: client_verifier.map_err(|error| unreadable(&plan.ca, error))?,
            server_verifier: server_verifier.map_err(|error| unreadable(&plan.ca, error))?,
            provider,
        })
    }

    /// Checks that other processes accept this certificate at the given time, ignoring its names.
    fn check(&self, now: UnixTime) -> Result<(), Error> {
        let Some((own_certificate, intermediates)) = self.chain.split_first() else {
            return Err(Error::NoCertificatesPresented);
        };
        self.client_verifier.verify_client_cert(own_certificate, intermediates, now)?;
        // The certificate's names are the hosts at which others reach this process, so any name
        // will do here.
        let any = ServerName::from(std::net::IpAddr::from([127, 0, 0, 1]));
        match self.server_verifier.verify_server_cert(own_certificate, intermediates, &any, &[], now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(()),
            checked => checked.map(drop),
        }
    }

    fn configure(self) -> Result<PeerTls, Error> {
        let PeerCertificate { chain, key, client_verifier, server_verifier, provider } = self;
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?
            .with_webpki_verifier(server_verifier)
            .with_client_auth_cert(chain.clone(), key.clone_key())?;
        client.resumption = Resumption::disabled();
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(client_verifier)
            .with_single_cert(chain, key)?;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(PeerTls { client: Arc::new(client), server: Arc::new(server) })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ClusterError> {
    let all = CertificateDer::pem_file_iter(path).and_then(|all| all.collect::<Result<Vec<_>, _>>());
    let all = all.map_err(|error| unreadable(path, error))?;
    if all.is_empty() {
        return Err(unreadable(path, "it holds no certificate"));
    }
    Ok(all)
}

fn unreadable(path: &Path, problem: impl ToString) -> ClusterError {
    ClusterError::Tls { path: path.to_owned(), problem: problem.to_string() }
}

/// Completes the TLS handshake before the deadline, however slowly the peer sends.
fn finish_handshake(
    socket: TcpStream,
    mut connection: Connection,
    deadline: Instant,
) -> Result<TlsStream, TlsFailure> {
    let io_failure = |error: io::Error| TlsFailure::Broken(text(&error));
    let time_left = || {
        let remaining = deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() { Err(TlsFailure::Broken(handshake_timed_out())) } else { Ok(remaining) }
    };
    loop {
        while connection.wants_write() {
            socket.set_write_timeout(Some(time_left()?)).map_err(io_failure)?;
            connection.write_tls(&mut &socket).map_err(io_failure)?;
        }
        if !connection.is_handshaking() {
            return Ok(TlsStream::new(socket, connection));
        }
        socket.set_read_timeout(Some(time_left()?)).map_err(io_failure)?;
        match connection.read_tls(&mut &socket) {
            Ok(0) => return Err(closed()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A peer without TLS closes before it has read everything.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(closed()),
            Err(error) => return Err(io_failure(error)),
        }
        if let Err(error) = connection.process_new_packets() {
            send_alert(&socket, &mut connection);
            return Err(failure(&error));
        }
    }
}

fn closed() -> TlsFailure {
    let why = "the other process closed the connection in the TLS handshake: see its log, and set cluster.tls for all processes";
    TlsFailure::Broken(why.into())
}

/// Sends the alert, and waits a little until the peer has read it.
fn send_alert(socket: &TcpStream, connection: &mut Connection) {
    let until = Instant::now() + LINGER_TIMEOUT;
    let _ = socket.set_write_timeout(Some(LINGER_TIMEOUT));
    let _ = connection.write_tls(&mut &*socket);
    let _ = socket.shutdown(Shutdown::Write);
    let (mut rest, mut read) = ([0; 4096], 0);
    while read < LINGER_BYTES {
        let remaining = until.saturating_duration_since(Instant::now());
        if remaining.is_zero() || socket.set_read_timeout(Some(remaining)).is_err() {
            return;
        }
        match io::Read::read(&mut &*socket, &mut rest) {
            Ok(0) | Err(_) => return,
            Ok(length) => read += length,
        }
    }
}
