//! The REST protocol of schema registries, as Confluent documents it.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use ureq::http::Response;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::RegistryResponse;
use crate::model::refusal::quoted_excerpt;

const MAX_RESPONSE_BYTES: u64 = 4 << 20;
/// The most schemas that one may refer to, directly and through others.
const MAX_REFERENCES: usize = 100;
/// The bytes of a subject that are escaped in a path: all but the unreserved ones of RFC 3986.
const PATH_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const MAX_REDIRECTS: u32 = 3;
const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// How to reach a registry.
#[derive(Clone)]
pub struct RegistrySettings {
    /// `http://` or `https://` addresses of one registry. They are tried in turn, beginning with
    /// the one that responded last.
    pub urls: Vec<String>,
    /// Name and password.
    pub user: Option<(String, String)>,
    /// The limit for a whole request.
    pub timeout: Duration,
}

// Without the password.
impl fmt::Debug for RegistrySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistrySettings").field("urls", &self.urls).finish_non_exhaustive()
    }
}

/// Why a registry has not returned a schema or an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// The registry responds that it has no such schema.
    #[error("the schema registry does not have it")]
    Unknown,
    /// The registry has the schema, but it cannot be used, now or later.
    #[error("{0}")]
    Unusable(String),
    /// The registry may respond later: retry.
    #[error("the schema registry cannot be reached: {0}")]
    Unavailable(String),
    /// The registry will not do it before a person acts.
    #[error("the schema registry refuses: {0}")]
    Refused(String),
}

/// A client of a registry. Every call blocks until the response.
#[derive(Debug)]
pub struct RegistryClient {
    agent: Agent,
    urls: Vec<String>,
    authorization: Option<BasicAuthorization>,
    /// The index of the URL that responded last.
    last_responsive_url: AtomicUsize,
}

struct BasicAuthorization(String);

impl fmt::Debug for BasicAuthorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BasicAuthorization")
    }
}

impl RegistryClient {
    /// # Errors
    ///
    /// If an address is not valid. No request is made yet.
    pub fn new(settings: &RegistrySettings) -> Result<RegistryClient, RegistryError> {
        let urls: Result<Vec<String>, RegistryError> =
            settings.urls.iter().map(|url| validated_url(url)).collect();
        let urls = urls?;
        if urls.is_empty() {
            return Err(RegistryError::Refused("no address is given: give at least one".into()));
        }
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(MAX_REDIRECTS)
            .timeout_global(Some(settings.timeout))
            .timeout_connect(Some(settings.timeout / 2))
            .user_agent(concat!("swelter/", env!("CARGO_PKG_VERSION")));
        if urls.iter().any(|url| url.starts_with("https://")) {
            config = config.tls_config(TlsConfig::builder().root_certs(host_roots()).build());
        }
        let authorization = settings.user.as_ref().map(|(name, password)| {
            BasicAuthorization(format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}"))))
        });
        Ok(RegistryClient {
            agent: config.build().new_agent(),
            urls,
            authorization,
            last_responsive_url: AtomicUsize::new(0),
        })
    }

    /// Fetches the schema of an id, with all schemas that it refers to.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Unknown`] if the registry has no schema of the id,
    /// [`RegistryError::Unusable`] if a retry would not help either.
    pub fn fetch_schema(&self, id: u32) -> Result<RegistryResponse, RegistryError> {
        let document: SchemaDocument = self.get(&format!("/schemas/ids/{id}"))?;
        match document.schema_type {
            Some(kind) if kind != "AVRO" => return Ok(RegistryResponse::Other { schema_type: kind.into() }),
            _ => {}
        }
        let references = self.fetch_references(document.references)?;
        Ok(RegistryResponse::Avro { schema: document.schema.into(), references })
    }

    /// Fetches the referenced schemas, each once.
    fn fetch_references(&self, mut pending: Vec<SchemaReference>) -> Result<Vec<Arc<str>>, RegistryError> {
        let mut fetched = HashSet::new();
        let mut schemas = Vec::new();
        while let Some(SchemaReference { subject, version }) = pending.pop() {
            let path =
                format!("/subjects/{}/versions/{version}", utf8_percent_encode(&subject, PATH_SEGMENT));
            if !fetched.insert((subject, version)) {
                continue;
            }
            if fetched.len() > MAX_REFERENCES {
                let detail = format!("it refers to more than {MAX_REFERENCES} others");
                return Err(RegistryError::Unusable(detail));
            }
            // A version that was deleted since is still the schema that the data were written with.
            let document: SchemaDocument =
                self.get(&format!("{path}?deleted=true")).map_err(|error| match error {
                    RegistryError::Unknown => RegistryError::Unusable(format!(
                        "it refers to {path}, which the registry does not have"
                    )),
                    error => error,
                })?;
            schemas.push(document.schema.into());
            pending.extend(document.references);
        }
        Ok(schemas)
    }

    /// Registers a schema under a subject, such as `<topic>-value`, and returns its id. A schema
    /// that is registered already keeps its id.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Refused`] if the schema is not compatible with the subject's earlier
    /// versions.
    pub fn register_schema(&self, subject: &str, schema: &str) -> Result<u32, RegistryError> {
        #[derive(Serialize)]
        struct RegistrationRequest<'a> {
            schema: &'a str,
        }
        #[derive(Deserialize)]
        struct RegistrationResponse {
            id: u32,
        }
        let body = serde_json::to_string(&RegistrationRequest { schema })
            .map_err(|error| RegistryError::Refused(format!("the schema cannot be sent: {error}")))?;
        let path = format!("/subjects/{}/versions", utf8_percent_encode(subject, PATH_SEGMENT));
        let registered: RegistrationResponse = self.request_any(&path, |url| {
            let request = self.agent.post(url).header("Accept", CONTENT_TYPE).content_type(CONTENT_TYPE);
            match &self.authorization {
                Some(BasicAuthorization(value)) => request.header("Authorization", value),
                None => request,
            }
            .send(&body)
        })?;
        Ok(registered.id)
    }

    fn get<T: for<'de> Deserialize<'de>>(&self, path: &str) -> Result<T, RegistryError> {
        self.request_any(path, |url| {
            let request = self.agent.get(url).header("Accept", CONTENT_TYPE);
            match &self.authorization {
                Some(BasicAuthorization(value)) => request.header("Authorization", value),
                None => request,
            }
            .call()
        })
    }

    /// Sends a request to one URL after the other. "Unknown" counts only if all URLs agree: one of
    /// them may be a follower that is behind.
    fn request_any<T: for<'de> Deserialize<'de>>(
        &self,
        path: &str,
        send: impl Fn(&str) -> Result<Response<Body>, ureq::Error>,
    ) -> Result<T, RegistryError> {
        let first = self.last_responsive_url.load(Ordering::Relaxed);
        let mut worst = None;
        for at in (first..first + self.urls.len()).map(|at| at % self.urls.len()) {
            let url = format!("{}{path}", self.urls[at]);
            let error = match send(&url) {
                Ok(response) => match parse_response(&url, response) {
                    Ok(response) => {
                        self.last_responsive_url.store(at, Ordering::Relaxed);
                        return Ok(response);
                    }
                    Err(refused @ RegistryError::Refused(_)) => return Err(refused),
                    Err(error) => error,
                },
                Err(error) => RegistryError::Unavailable(format!("{url}: {error}")),
            };
            let is_response = matches!(error, RegistryError::Unknown | RegistryError::Unusable(_));
            if !is_response || worst.is_none() {
                worst = Some(error);
            }
        }
        Err(worst.unwrap_or(RegistryError::Unknown))
    }
}

#[derive(Deserialize)]
struct SchemaDocument {
    schema: String,
    #[serde(default, rename = "schemaType")]
    schema_type: Option<String>,
    #[serde(default)]
    references: Vec<SchemaReference>,
}

#[derive(Deserialize)]
struct SchemaReference {
    subject: String,
    version: u32,
}

fn parse_response<T: for<'de> Deserialize<'de>>(
    url: &str,
    mut response: Response<Body>,
) -> Result<T, RegistryError> {
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(MAX_RESPONSE_BYTES).read_to_vec();
    let body = body.map_err(|error| match error {
        ureq::Error::BodyExceedsLimit(_) if status == 200 => RegistryError::Unusable(format!(
            "the registry's answer is longer than {MAX_RESPONSE_BYTES} bytes"
        )),
        error => RegistryError::Unavailable(format!("{url}: {error}")),
    })?;
    if status == 200 {
        return serde_json::from_slice(&body).map_err(|error| {
            RegistryError::Unavailable(format!("{url} does not answer as a registry does: {error}"))
        });
    }
    Err(http_failure(url, status, &body))
}

fn http_failure(url: &str, status: u16, body: &[u8]) -> RegistryError {
    #[derive(Default, Deserialize)]
    struct ErrorBody {
        error_code: u32,
        #[serde(default)]
        message: String,
    }
    let error: ErrorBody = serde_json::from_slice(body).unwrap_or_default();
    let what = format!("{url} answers {status} {}", quoted_excerpt(&error.message));
    match (status, error.error_code) {
        (404, 40_401..=40_403) => RegistryError::Unknown,
        (408 | 429 | 500.., _) => RegistryError::Unavailable(what),
        (401 | 403, _) => {
            RegistryError::Refused(format!("{what}: give a user that may do this, and the right password"))
        }
        (404, _) => RegistryError::Refused(format!("{what}: the address must be that of a schema registry")),
        (409, _) => RegistryError::Refused(format!(
            "{what}: the subject holds other schemas; write to another topic, or change the subject's compatibility"
        )),
        _ => RegistryError::Refused(what),
    }
}

fn validated_url(url: &str) -> Result<String, RegistryError> {
    let refused = |why: &str| Err(RegistryError::Refused(format!("{} {why}", quoted_excerpt(url))));
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    match rest {
        None | Some("") => {
            refused("is no address of a registry: write http://host:port or https://host:port")
        }
        // A user in an address would show in logs.
        Some(rest) if rest.contains('@') => Err(RegistryError::Refused(
            "an address holds a user: give the name and the password by themselves".into(),
        )),
        Some(rest) if rest.contains(['?', '#', ' ']) => {
            refused("is no address of a registry: leave out what follows ? or #")
        }
        Some(_) => Ok(url.trim_end_matches('/').to_string()),
    }
}

/// The certificates that the host trusts, as for every other connection.
fn host_roots() -> RootCerts {
    let native_certificates = rustls_native_certs::load_native_certs();
    for error in native_certificates.errors {
        tracing::warn!("a certificate of the host cannot be read: {error}");
    }
    let certificates = native_certificates.certs.iter().map(|der| Certificate::from_der(der).to_owned());
    RootCerts::from(certificates)
}
