//! The server's certificate, read again when its files change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{self, ServerConfig};

use super::{ServeError, TlsPlan};
use crate::panics::locks::SharedRwLock;

/// Accepts TLS with the certificate that is valid now.
pub(super) struct Tls {
    plan: TlsPlan,
    current: SharedRwLock<Current>,
}

struct Current {
    config: Arc<ServerConfig>,
    stamp: Stamp,
}

/// When the files were written.
type Stamp = [Option<SystemTime>; 2];

impl Tls {
    pub(super) fn load(plan: &TlsPlan) -> Result<Tls, ServeError> {
        let stamp = stamp(plan);
        let config = Arc::new(config(plan)?);
        Ok(Tls { plan: plan.clone(), current: SharedRwLock::new(Current { config, stamp }) })
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.current.read().config.clone().into()
    }

    /// Reads the files again where they have changed. What cannot be used leaves the certificate as it was.
    pub(super) fn reload(&self) -> Result<bool, ServeError> {
        let stamp = stamp(&self.plan);
        if stamp == self.current.read().stamp {
            return Ok(false);
        }
        let config = Arc::new(config(&self.plan)?);
        *self.current.write() = Current { config, stamp };
        Ok(true)
    }
}

fn stamp(plan: &TlsPlan) -> Stamp {
    [&plan.certificate, &plan.key].map(|path| std::fs::metadata(path).and_then(|file| file.modified()).ok())
}

fn config(plan: &TlsPlan) -> Result<ServerConfig, ServeError> {
    let unreadable = |path: &Path, error: rustls_pki_types::pem::Error| match error {
        rustls_pki_types::pem::Error::Io(source) => ServeError::PemFile { path: PathBuf::from(path), source },
        error => ServeError::Pem { path: PathBuf::from(path), problem: error.to_string() },
    };
    let certificates = CertificateDer::pem_file_iter(&plan.certificate)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(|error| unreadable(&plan.certificate, error))?;
    if certificates.is_empty() {
        return Err(unreadable(&plan.certificate, rustls_pki_types::pem::Error::NoItemsFound));
    }
    let key = PrivateKeyDer::from_pem_file(&plan.key).map_err(|error| unreadable(&plan.key, error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
        .map_err(|error| ServeError::Certificate(error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
