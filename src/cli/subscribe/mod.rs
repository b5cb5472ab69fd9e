//! `swelter subscribe`: a terminal client of a service.

mod client;
mod message;
mod print;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::Connector;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Uri};

use self::client::{ConnectTarget, ReconnectPolicy, SubscribeClient};
use self::print::OutputStyle;
use super::CliError;
use crate::fault;
use crate::model::{TemperatureUnit, WindUnit};

/// Print the results of a service as they change
///
/// The present rows come first, then every change: one line each, with the time, the city, its heat
/// index, the rolling mean and the category. A current row that is older than results.stale_after
/// of the service is marked as stale, with its age. After a lost connection, the subscription
/// resumes where it ended. Ctrl-C ends the command.
#[derive(Args, Debug)]
pub struct SubscribeArgs {
    /// The address of the service, as in http://127.0.0.1:8080 or wss://example.org
    url: String,
    /// The keys of the cities to subscribe to
    #[arg(required_unless_present_any = ["all", "box"], conflicts_with_all = ["all", "box"])]
    city: Vec<String>,
    /// Which rows: latest is the current row of each city; window is every row that is served
    #[arg(long, value_enum, default_value_t = Rows::Latest)]
    rows: Rows,
    /// Subscribe to all cities
    #[arg(long, conflicts_with = "box")]
    all: bool,
    /// Subscribe to the cities in a box in degrees: west, south, east, north
    #[arg(id = "box", long, value_name = "W,S,E,N", value_parser = bounds, allow_hyphen_values = true)]
    bounds: Option<[f64; 4]>,
    /// The unit of heat indexes, trends and temperatures [default: that of the service]
    #[arg(long, value_name = "UNIT")]
    output_units: Option<TemperatureUnit>,
    /// The unit of wind speeds [default: that of the service]
    #[arg(long, value_name = "UNIT")]
    output_wind_units: Option<WindUnit>,
    /// Print one JSON object a line: upsert and removal with a row, reset (discard all rows),
    /// snapshot_end
    #[arg(long)]
    json: bool,
    /// A file that holds the bearer token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A PEM file of certificates that are trusted instead of the system's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Rows {
    #[value(name = "latest")]
    Latest,
    #[value(name = "window")]
    Window,
}

/// How long to wait at the end for output that is still to be printed.
const PRINT_TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum number of messages that wait to be printed.
const MAX_QUEUED_OUTPUTS: usize = 8;

impl SubscribeArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        let (target, subscription_request) = (self.connect_target()?, self.subscription_request()?);
        let style = if self.json { OutputStyle::Json } else { OutputStyle::Human };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|error| CliError::Failed(format!("the client cannot be started: {error}")))?;
        runtime.block_on(async {
            let (out, outputs) = mpsc::channel(MAX_QUEUED_OUTPUTS);
            let (ended, printer) = oneshot::channel();
            // A separate thread, so that Ctrl-C works while the printer blocks on a full pipe.
            let print = move || ended.send(print::print_outputs(outputs));
            let printing = std::thread::Builder::new().name("print".into()).spawn(print);
            printing.map_err(|error| CliError::Failed(fault::start_failure_text(&error)))?;
            let pace = ReconnectPolicy::default();
            let (clock, snapshot_cities) = (None, Default::default());
            let mut client = SubscribeClient {
                target,
                subscription_request,
                style,
                reconnect_policy: pace,
                out,
                token: None,
                has_rows: false,
                clock,
                snapshot_cities,
            };
            let end = tokio::select! {
                end = client.run_until_closed() => end,
                _ = tokio::signal::ctrl_c() => Ok(()),
            };
            drop(client);
            if let Ok(Ok(Err(error))) = tokio::time::timeout(PRINT_TIMEOUT, printer).await {
                return Err(CliError::write_error(None, &error));
            }
            end.map_err(CliError::Failed)
        })
    }

    fn subscription_request(&self) -> Result<Map<String, Value>, CliError> {
        if self.rows == Rows::Window && (self.all || self.bounds.is_some()) {
            return Err(CliError::Usage("--rows window needs a list of cities, not --all or --box".into()));
        }
        let (name, which) = match self.bounds {
            Some(bounds) => ("box", json!(bounds)),
            None if self.all => ("cities", json!("all")),
            None => ("cities", json!(self.city)),
        };
        let rows = if self.rows == Rows::Window { "window" } else { "latest" };
        let units = self.output_units.map(|unit| ("units", json!(unit.name())));
        let wind_units = self.output_wind_units.map(|unit| ("wind_units", json!(unit.name())));
        let members = [(name, which), ("rows", json!(rows))].into_iter().chain(units).chain(wind_units);
        Ok(members.map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn connect_target(&self) -> Result<ConnectTarget, CliError> {
        let uri = websocket_uri(&self.url).map_err(CliError::Failed)?;
        let bearer =
            self.token_file.as_deref().map(read_bearer_header).transpose().map_err(CliError::Failed)?;
        let connector = self.ca_file.as_deref().map(tls_connector).transpose().map_err(CliError::Failed)?;
        // It fails if a provider is already installed, which is fine.
        let _ = ring::default_provider().install_default();
        Ok(ConnectTarget { uri, bearer, connector })
    }
}

const SUBSCRIBE_PATH: &str = "/v1/subscribe";

/// Converts a URL to the address of the WebSocket.
fn websocket_uri(url: &str) -> Result<Uri, String> {
    let bad = |problem: &str| {
        format!("{url:?} {problem}: write it as in http://127.0.0.1:8080 or wss://example.org")
    };
    let full_url = if url.contains("://") { url.to_owned() } else { format!("ws://{url}") };
    let uri: Uri = full_url.parse().map_err(|_| bad("is not a URL"))?;
    let scheme = match uri.scheme_str() {
        Some("http" | "ws") => "ws",
        Some("https" | "wss") => "wss",
        _ => return Err(bad("is neither http, https, ws nor wss")),
    };
    let authority = uri.authority().filter(|authority| !authority.host().is_empty());
    let authority = authority.ok_or_else(|| bad("has no host"))?;
    if authority.as_str().contains('@') {
        return Err("a URL with a user name is not supported: name a token with --token-file".into());
    }
    let path =
        uri.path_and_query().map(|path| path.as_str()).filter(|path| *path != "/").unwrap_or(SUBSCRIBE_PATH);
    let uri = Uri::builder().scheme(scheme).authority(authority.as_str()).path_and_query(path).build();
    uri.map_err(|_| bad("is not a URL"))
}

/// Reads the token in a file as a header.
fn read_bearer_header(path: &Path) -> Result<HeaderValue, String> {
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

/// Creates a TLS connector that trusts only the certificates in a file.
fn tls_connector(path: &Path) -> Result<Connector, String> {
    let unreadable = |problem: String| format!("{} cannot be used: {problem}", path.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unreadable(error.to_string()))? {
        let certificate = certificate.map_err(|error| unreadable(error.to_string()))?;
        roots.add(certificate).map_err(|error| unreadable(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unreadable("it holds no certificate".into()));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| unreadable(error.to_string()))?;
    Ok(Connector::Rustls(Arc::new(config.with_root_certificates(roots).with_no_client_auth())))
}

/// Parses west, south, east, north.
fn bounds(text: &str) -> Result<[f64; 4], String> {
    let expected = || format!("{text:?} is not west,south,east,north in degrees, as in -125,24,-66,50");
    let numbers: Result<Vec<f64>, _> = text.split(',').map(|part| part.trim().parse::<f64>()).collect();
    let bounds: [f64; 4] = numbers.ok().and_then(|all| all.try_into().ok()).ok_or_else(expected)?;
    let [west, south, east, north] = bounds;
    let inside = [west, east].iter().all(|degrees| degrees.abs() <= 180.0)
        && [south, north].iter().all(|degrees| degrees.abs() <= 90.0)
        && south <= north;
    if inside { Ok(bounds) } else { Err(expected()) }
}
