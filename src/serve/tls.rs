//! The server's certificate, which is loaded again when its files change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{self, ServerConfig};

use super::error::ServeError;
use super::plan::TlsPlan;
use crate::panics::locks::SharedRwLock;

/// Accepts TLS connections with the newest certificate.
pub(super) struct ServerTls {
    plan: TlsPlan,
    current: SharedRwLock<LoadedCertificate>,
}

struct LoadedCertificate {
    config: Arc<ServerConfig>,
    file_times: FileTimes,
}

/// When the files of certificate and key were modified.
type FileTimes = [Option<SystemTime>; 2];

impl ServerTls {
    pub(super) fn load(plan: &TlsPlan) -> Result<ServerTls, ServeError> {
        let file_times = file_times(plan);
        let config = Arc::new(load_config(plan)?);
        Ok(ServerTls {
            plan: plan.clone(),
            current: SharedRwLock::new(LoadedCertificate { config, file_times }),
        })
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.current.read().config.clone().into()
    }

    /// Loads the files again if they have changed; true if they have.
    ///
    /// # Errors
    ///
    /// If the changed files cannot be used. The old certificate stays in use.
    pub(super) fn reload_if_changed(&self) -> Result<bool, ServeError> {
        let file_times = file_times(&self.plan);
        if file_times == self.current.read().file_times {
            return Ok(false);
        }
        let config = Arc::new(load_config(&self.plan)?);
        *self.current.write() = LoadedCertificate { config, file_times };
        Ok(true)
    }
}

fn file_times(plan: &TlsPlan) -> FileTimes {
    [&plan.certificate, &plan.key].map(|path| std::fs::metadata(path).and_then(|file| file.modified()).ok())
}

fn load_config(plan: &TlsPlan) -> Result<ServerConfig, ServeError> {
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
