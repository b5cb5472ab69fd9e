//! Error texts and warnings for an S3 store that fails or is slow.

use std::time::{Duration, Instant};

use object_store::Error;
use parking_lot::Mutex;

use super::location::CheckpointLocation;

/// A slower request is logged.
pub(super) const SLOW_REQUEST_THRESHOLD: Duration = Duration::from_secs(5);
/// The time between two such log lines.
const SLOW_REQUEST_LOG_INTERVAL: Duration = Duration::from_secs(60);
/// In the client's order: the first that is set counts.
const ENDPOINT_VARIABLES: [&str; 3] = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];

/// What to do about a failed request, with the endpoint that it went to.
pub(super) fn remedy_of_error(error: &Error) -> String {
    let what = match error {
        Error::NotFound { .. } => "check that the bucket exists there",
        Error::Unauthenticated { .. } => "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        Error::PermissionDenied { .. } => {
            "allow these credentials to list, read, write and delete in the bucket"
        }
        Error::NotImplemented { .. } | Error::NotSupported { .. } => {
            "use an object store with conditional puts (If-None-Match)"
        }
        _ => {
            "check that the endpoint can be reached and answers, AWS_ENDPOINT_URL, AWS_REGION and the bucket's name"
        }
    };
    format!(" (endpoint {}): {what}", configured_endpoint())
}

/// What to do if the store has not answered at all.
pub(super) fn remedy_of_no_answer() -> String {
    format!(
        " (endpoint {}): check that the endpoint can be reached and answers, and AWS_ENDPOINT_URL",
        configured_endpoint()
    )
}

/// Logs that a request waits for the store, at most once a minute however many wait.
pub(super) fn log_slow_request(place: &CheckpointLocation, path: &str, most: Duration) {
    static LAST_LOGGED_AT: Mutex<Option<Instant>> = Mutex::new(None);
    let mut told = LAST_LOGGED_AT.lock();
    if told.is_some_and(|at| at.elapsed() < SLOW_REQUEST_LOG_INTERVAL) {
        return;
    }
    *told = Some(Instant::now());
    tracing::warn!(
        %place, path, endpoint = %configured_endpoint(),
        "the object store has not answered a request for {} s; the request ends after {} s",
        SLOW_REQUEST_THRESHOLD.as_secs(),
        most.as_secs()
    );
}

fn configured_endpoint() -> String {
    let endpoint =
        ENDPOINT_VARIABLES.iter().find_map(|name| std::env::var(name).ok().filter(|url| !url.is_empty()));
    endpoint.map_or_else(|| "of AWS, because AWS_ENDPOINT_URL is not set".into(), |url| redact_user(&url))
}

/// Removes user and password from a URL, for logs.
fn redact_user(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.into() };
    let end = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_display_hides_user() {
        assert_eq!(redact_user("http://me:secret@host:9000/a@b"), "http://host:9000/a@b");
        assert_eq!(redact_user("https://host"), "https://host");
    }
}
