//! What a command needs to reach a service: its address, a token, trusted certificates, and requests.

use std::path::Path;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;
use ureq::Agent;
use ureq::http::{HeaderValue, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::registry::host_roots;

/// The limit of a whole request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_RESPONSE_BYTES: u64 = 1 << 30;

/// Reads the token in a file as a header.
pub fn read_bearer_header(path: &Path) -> Result<HeaderValue, String> {
    let named = |problem: &str| format!("{} {problem}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| named(&format!("cannot be read: {error}")))?;
    let token = text.trim();
    if token.is_empty() || token.contains(char::is_whitespace) {
        return Err(named("must hold the token and nothing else"));
    }
    let header = HeaderValue::try_from(format!("Bearer {token}"));
    let mut header = header.map_err(|_| named("does not hold a valid token"))?;
    header.set_sensitive(true);
    Ok(header)
}

/// The certificates in a PEM file.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let unreadable = |problem: String| format!("{} cannot be used: {problem}", path.display());
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(error.to_string()))?;
    let certificates: Result<Vec<_>, _> = certificates.collect();
    let certificates = certificates.map_err(|error| unreadable(error.to_string()))?;
    if certificates.is_empty() {
        return Err(unreadable("it holds no certificate".into()));
    }
    Ok(certificates)
}

/// A client of the REST API of a service.
pub struct ServiceClient {
    agent: Agent,
    /// Without a slash at the end.
    base: String,
    bearer: Option<HeaderValue>,
}

impl ServiceClient {
    /// # Errors
    ///
    /// If the address, the token or the certificates cannot be used. No request is made yet.
    pub fn new(
        url: &str,
        token_file: Option<&Path>,
        ca_file: Option<&Path>,
    ) -> Result<ServiceClient, String> {
        let base = service_base(url)?;
        let roots = match ca_file {
            Some(path) => {
                let certificates = read_certificates(path)?;
                let certificates = certificates.iter().map(|der| Certificate::from_der(der).to_owned());
                Some(RootCerts::from(certificates))
            }
            None => base.starts_with("https://").then(host_roots),
        };
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(REQUEST_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .user_agent(concat!("swelter/", env!("CARGO_PKG_VERSION")));
        if let Some(roots) = roots {
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        let bearer = token_file.map(read_bearer_header).transpose()?;
        Ok(ServiceClient { agent: config.build().new_agent(), base, bearer })
    }

    /// The body of the response to `GET path`.
    ///
    /// # Errors
    ///
    /// If the service does not answer, or refuses the request: with what it says.
    pub fn get(&self, path: &str) -> Result<String, String> {
        let url = format!("{}{path}", self.base);
        let mut request = self.agent.get(&url).header("Accept", "application/json");
        if let Some(bearer) = &self.bearer {
            request = request.header("Authorization", bearer.clone());
        }
        let unreachable = |error: ureq::Error| format!("{} does not answer: {error}", self.base);
        let mut response = request.call().map_err(unreachable)?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(MAX_RESPONSE_BYTES).read_to_string();
        let body = body.map_err(unreachable)?;
        if status == 200 { Ok(body) } else { Err(refusal_text(status, &body)) }
    }
}

/// What a service says that refuses a request.
fn refusal_text(status: u16, body: &str) -> String {
    let problem: Value = serde_json::from_str(body).unwrap_or_default();
    match (problem["code"].as_str(), problem["detail"].as_str()) {
        (Some("unauthorized"), _) => "the service asks for a token (401): --token-file names it".into(),
        (Some(code), Some(detail)) => format!("the service refuses ({code}): {detail}"),
        _ => format!("the answer is {status}: is this the address of a swelter?"),
    }
}

/// The address of a service, without a slash at the end.
fn service_base(url: &str) -> Result<String, String> {
    let bad = |problem: &str| {
        format!("{url:?} {problem}: write it as in http://127.0.0.1:8080 or https://example.org")
    };
    let whole = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let uri: Uri = whole.parse().map_err(|_| bad("is not a URL"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(bad("is neither http nor https"));
    }
    let authority = uri.authority().filter(|authority| !authority.host().is_empty());
    let authority = authority.ok_or_else(|| bad("has no host"))?;
    if authority.as_str().contains('@') {
        return Err("a URL with a user name is not taken: --token-file names a token".into());
    }
    if uri.query().is_some() {
        return Err(bad("has a query"));
    }
    Ok(whole.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_address_is_completed_or_refused() {
        for (url, expected) in [
            ("127.0.0.1:8080", Some("http://127.0.0.1:8080")),
            ("http://127.0.0.1:8080/", Some("http://127.0.0.1:8080")),
            ("https://example.org/weather/", Some("https://example.org/weather")),
            ("ws://example.org", None),
            ("https://a:b@example.org", None),
            ("http://example.org/?x=1", None),
            ("http://", None),
            ("", None),
        ] {
            assert_eq!(service_base(url).ok().as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn refusals_are_told_in_the_words_of_the_service() {
        let body = r#"{"code":"unknown_row","detail":"city \"x\" has no reading at t","status":404}"#;
        assert_eq!(
            refusal_text(404, body),
            "the service refuses (unknown_row): city \"x\" has no reading at t"
        );
        assert!(refusal_text(502, "<html>").contains("502"));
        assert!(refusal_text(401, r#"{"code":"unauthorized","detail":"x"}"#).contains("--token-file"));
    }
}
