//! The REST protocol of schema registries, as Confluent documents it.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use ureq::http::Response;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::RegistryResponse;
use crate::model::refusal::quoted_excerpt;

const MAX_RESPONSE_BYTES: u64 = 4 << 20;
/// Schemas that one may refer to, directly and through others.
const MAX_REFERENCES: usize = 100;
const MAX_REDIRECTS: u32 = 3;
const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// How a registry is reached.
#[derive(Clone)]
pub struct RegistrySettings {
    /// `http://` or `https://` addresses, all of one registry. They are tried in turn, the one that answered last first.
    pub urls: Vec<String>,
    /// Name and password.
    pub user: Option<(String, String)>,
    /// For a whole request.
    pub timeout: Duration,
}

// The password is never shown.
impl fmt::Debug for RegistrySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistrySettings").field("urls", &self.urls).finish_non_exhaustive()
    }
}

/// Why a registry has not given what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// It answers, and does not have it.
    #[error("the schema registry does not have it")]
    Unknown,
    /// It has it, but what it has cannot be used, now or later.
    #[error("{0}")]
    Unusable(String),
    /// It may be there later: try again.
    #[error("the schema registry cannot be reached: {0}")]
    Unavailable(String),
    /// It will not be there until somebody does something.
    #[error("the schema registry refuses: {0}")]
    Refused(String),
}

/// Asks a registry; every call waits for the answer.
#[derive(Debug)]
pub struct RegistryClient {
    agent: Agent,
    urls: Vec<String>,
    authorization: Option<BasicAuthorization>,
    /// Which URL answered last.
    last_responsive_url: AtomicUsize,
}

struct BasicAuthorization(String);

impl fmt::Debug for BasicAuthorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorization")
    }
}

impl RegistryClient {
    /// # Errors
    ///
    /// Where an address is not one. Nothing is asked yet.
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

    /// The schema of an id, with all that it refers to.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Unknown`] where the registry says that no schema has the id, [`RegistryError::Unusable`] where asking again
    /// would not help either.
    pub fn fetch_schema(&self, id: u32) -> Result<RegistryResponse, RegistryError> {
        let found: SchemaDocument = self.get(&format!("/schemas/ids/{id}"))?;
        match found.schema_type {
            Some(kind) if kind != "AVRO" => return Ok(RegistryResponse::Other { schema_type: kind.into() }),
            _ => {}
        }
        let references = self.fetch_references(found.references)?;
        Ok(RegistryResponse::Avro { schema: found.schema.into(), references })
    }

    /// The schemas that are referred to, each once.
    fn fetch_references(&self, mut open: Vec<SchemaReference>) -> Result<Vec<Arc<str>>, RegistryError> {
        let mut seen = HashSet::new();
        let mut schemas = Vec::new();
        while let Some(SchemaReference { subject, version }) = open.pop() {
            let path = format!("/subjects/{}/versions/{version}", percent_encoded(&subject));
            if !seen.insert((subject, version)) {
                continue;
            }
            if seen.len() > MAX_REFERENCES {
                let detail = format!("it refers to more than {MAX_REFERENCES} others");
                return Err(RegistryError::Unusable(detail));
            }
            // A version that was deleted since is still what the data were written with.
            let found: SchemaDocument =
                self.get(&format!("{path}?deleted=true")).map_err(|error| match error {
                    RegistryError::Unknown => RegistryError::Unusable(format!(
                        "it refers to {path}, which the registry does not have"
                    )),
                    error => error,
                })?;
            schemas.push(found.schema.into());
            open.extend(found.references);
        }
        Ok(schemas)
    }

    /// Registers a schema under a subject, such as `<topic>-value`, and returns its id; one that is there keeps its own.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Refused`] where it is not compatible with the subject's versions so far.
    pub fn register_schema(&self, subject: &str, schema: &str) -> Result<u32, RegistryError> {
        #[derive(Serialize)]
        struct New<'a> {
            schema: &'a str,
        }
        #[derive(Deserialize)]
        struct Registered {
            id: u32,
        }
        let body = serde_json::to_string(&New { schema })
            .map_err(|error| RegistryError::Refused(format!("the schema cannot be sent: {error}")))?;
        let path = format!("/subjects/{}/versions", percent_encoded(subject));
        let registered: Registered = self.request_any(&path, |url| {
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

    /// Asks one URL after the other. That one does not know is believed only where all the others say so: it may be
    /// a follower that has not heard of it yet.
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
                    Ok(answer) => {
                        self.last_responsive_url.store(at, Ordering::Relaxed);
                        return Ok(answer);
                    }
                    Err(refused @ RegistryError::Refused(_)) => return Err(refused),
                    Err(error) => error,
                },
                Err(error) => RegistryError::Unavailable(format!("{url}: {error}")),
            };
            let is_answer = matches!(error, RegistryError::Unknown | RegistryError::Unusable(_));
            if !is_answer || worst.is_none() {
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
    let said: ErrorBody = serde_json::from_slice(body).unwrap_or_default();
    let what = format!("{url} answers {status} {}", quoted_excerpt(&said.message));
    match (status, said.error_code) {
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
        // It would show in logs.
        Some(rest) if rest.contains('@') => Err(RegistryError::Refused(
            "an address holds a user: give the name and the password by themselves".into(),
        )),
        Some(rest) if rest.contains(['?', '#', ' ']) => {
            refused("is no address of a registry: leave out what follows ? or #")
        }
        Some(_) => Ok(url.trim_end_matches('/').to_string()),
    }
}

/// What the host trusts, as for every other connection.
fn host_roots() -> RootCerts {
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::warn!("a certificate of the host cannot be read: {error}");
    }
    let certificates = found.certs.iter().map(|der| Certificate::from_der(der).to_owned());
    RootCerts::from(certificates)
}

/// As a segment of a path.
fn percent_encoded(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            // A String takes everything.
            _ => drop(write!(out, "%{byte:02X}")),
        }
        out
    })
}
