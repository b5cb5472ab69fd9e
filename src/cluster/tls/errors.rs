//! Errors of TLS as texts that say what to do.

use rustls_pki_types::ServerName;
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error};

/// Why there is no encrypted connection.
#[derive(Debug, PartialEq, Eq)]
pub enum TlsFailure {
    /// The authenticated peer does not accept our certificate.
    Refused(String),
    Broken(String),
}

impl TlsFailure {
    pub fn into_text(self) -> String {
        match self {
            TlsFailure::Refused(why) | TlsFailure::Broken(why) => why,
        }
    }
}

pub(super) fn server_name(host: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(host.to_owned())
        .map_err(|_| format!("{host:?} in cluster.hosts is neither a name nor an address"))
}

/// Maps an error of TLS to the failure of a call.
pub fn failure(error: &Error) -> TlsFailure {
    match error {
        Error::AlertReceived(alert) if refuses_certificate(*alert) => TlsFailure::Refused(describe(error)),
        error => TlsFailure::Broken(describe(error)),
    }
}

fn refuses_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::CertificateRequired
            | Alert::DecryptError
    )
}

/// The text of an error of TLS, with a remedy; the peer is called "it".
pub(super) fn describe(error: &Error) -> String {
    match error {
        // Another CA of the same name shows as a wrong signature.
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "its certificate is not signed by the CA of cluster.tls.ca".into()
        }
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has expired".into()
        }
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "its certificate is not valid yet, by the clock of this host".into(),
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "its certificate is not valid for its host in cluster.hosts".into(),
        Error::InvalidCertificate(problem) => format!("its certificate is refused ({problem})"),
        Error::NoCertificatesPresented => "it presents no certificate: set its cluster.tls as well".into(),
        Error::InvalidMessage(_) => {
            "it does not use TLS, and this process has cluster.tls: set cluster.tls for all processes".into()
        }
        Error::AlertReceived(alert) if refuses_certificate(*alert) => format!(
            "it refuses the certificate of this process ({alert:?}): compare cluster.tls of both, and see its log"
        ),
        error => error.to_string(),
    }
}
