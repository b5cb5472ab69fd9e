//! Who may do what: bearer tokens, origins of web pages, and the names under which the server is reached.

use std::net::IpAddr;

use ring::digest::{Digest, SHA256, digest};
use warp::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, AUTHORIZATION, HOST, ORIGIN,
    SEC_WEBSOCKET_PROTOCOL, VARY, WWW_AUTHENTICATE,
};
use warp::http::{HeaderMap, HeaderName, HeaderValue};
use warp::reply::Response;
use xxhash_rust::xxh3::xxh3_64;

use super::problem::{Problem, ProblemCode};
use super::ui::CONTENT_SECURITY_POLICY;
use super::{ServePlan, Token};
use crate::model::ClientId;

/// The subprotocol that is answered; the token comes as another one, since browsers cannot set headers of WebSockets.
pub(super) const SUBPROTOCOL: &str = "swelter.v1";
const TOKEN_SUBPROTOCOL: &str = "bearer.";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenScope {
    Read,
    Ingest,
}

pub(super) struct AccessGuard {
    tokens: Vec<TokenGrant>,
    origins: Vec<String>,
    /// Only this host can reach the server, so that a request under another name was brought here by a rebound DNS name.
    is_loopback: bool,
}

/// Secrets are kept and compared as digests: how long that takes tells nothing of a secret.
struct TokenGrant {
    secret_digest: Digest,
    read: bool,
    ingest: bool,
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PeerAddress(pub(super) IpAddr);

impl PeerAddress {
    /// What one client can choose freely is left out: of IPv6, the half that names a host.
    fn network(self) -> u128 {
        match self.0.to_canonical() {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address) & (u128::MAX << 64),
        }
    }
}

/// Where a request comes from, as the browser says.
#[derive(Debug, PartialEq)]
pub(super) enum RequestOrigin {
    /// Not from a web page of another origin.
    SameOrigin,
    Allowed(HeaderValue),
    NotAllowed,
}

impl AccessGuard {
    pub(super) fn new(plan: &ServePlan, address: IpAddr) -> AccessGuard {
        let grant = |token: &Token| TokenGrant {
            secret_digest: digest(&SHA256, token.secret.as_bytes()),
            read: token.read,
            ingest: token.ingest,
        };
        AccessGuard {
            tokens: plan.tokens.iter().map(grant).collect(),
            origins: plan.origins.iter().map(|origin| normalize_origin(origin)).collect(),
            is_loopback: address.is_loopback(),
        }
    }

    /// Whether the request was meant for this server.
    pub(super) fn check_host(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let Some(host) = headers.get(HOST).filter(|_| self.is_loopback) else { return Ok(()) };
        let host = host.to_str().unwrap_or_default().to_ascii_lowercase();
        let name = without_port(&host);
        let local = name == "localhost"
            || name.ends_with(".localhost")
            || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if local || self.origins.iter().any(|origin| origin_authority(origin) == without_default_port(&host))
        {
            return Ok(());
        }
        let detail = "the server listens on loopback and takes requests for localhost, for loopback addresses \
                      and for the hosts of allowed origins: add the origin to the allowed ones";
        Err(Problem::new(ProblemCode::ForeignHost, detail))
    }

    pub(super) fn classify_origin(&self, headers: &HeaderMap) -> RequestOrigin {
        let Some(value) = headers.get(ORIGIN) else { return RequestOrigin::SameOrigin };
        let origin = normalize_origin(value.to_str().unwrap_or_default());
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        // The scheme is not compared: a proxy in front may speak TLS.
        if !host.is_empty() && origin_authority(&origin) == without_default_port(&host.to_ascii_lowercase()) {
            return RequestOrigin::SameOrigin;
        }
        if self.origins.contains(&origin) {
            RequestOrigin::Allowed(value.clone())
        } else {
            RequestOrigin::NotAllowed
        }
    }

    /// Who sends a request: the one of its token, or where there is none the one at the other end of the connection.
    pub(super) fn client_id(&self, headers: &HeaderMap, peer: Option<PeerAddress>) -> Option<ClientId> {
        let secret = bearer_token(headers).filter(|_| !self.tokens.is_empty());
        let given = secret.map(|secret| digest(&SHA256, secret.as_bytes()));
        match (given, peer) {
            (Some(given), _) => Some(ClientId(xxh3_64(given.as_ref()))),
            (None, Some(peer)) => Some(ClientId(xxh3_64(&peer.network().to_be_bytes()))),
            (None, None) => None,
        }
    }

    /// Whether the request carries a token that allows `scope`.
    pub(super) fn check_token(&self, headers: &HeaderMap, scope: TokenScope) -> Result<(), Problem> {
        if self.tokens.is_empty() {
            return Ok(());
        }
        let challenge = |rest| HeaderValue::from_static(rest);
        let Some(secret) = bearer_token(headers) else {
            let detail = "send Authorization: Bearer TOKEN, or for a WebSocket the subprotocols swelter.v1 and \
                          bearer.TOKEN";
            let challenge = challenge("Bearer realm=\"swelter\"");
            return Err(
                Problem::new(ProblemCode::Unauthorized, detail).with_header(WWW_AUTHENTICATE, challenge)
            );
        };
        let given = digest(&SHA256, secret.as_bytes());
        let Some(grant) = self.tokens.iter().find(|grant| grant.secret_digest.as_ref() == given.as_ref())
        else {
            let challenge = challenge("Bearer realm=\"swelter\", error=\"invalid_token\"");
            let problem = Problem::new(ProblemCode::Unauthorized, "the token is not known here");
            return Err(problem.with_header(WWW_AUTHENTICATE, challenge));
        };
        let (allowed, name) = match scope {
            TokenScope::Read => (grant.read, "read"),
            TokenScope::Ingest => (grant.ingest, "ingest"),
        };
        if allowed {
            return Ok(());
        }
        let challenge = challenge("Bearer realm=\"swelter\", error=\"insufficient_scope\"");
        let problem =
            Problem::new(ProblemCode::InsufficientScope, format!("the token does not have the scope {name}"));
        Err(problem.with_header(WWW_AUTHENTICATE, challenge))
    }
}

/// The token of the header, or of a subprotocol.
fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_matches(' '));
    }
    subprotocols(headers).find_map(|protocol| protocol.strip_prefix(TOKEN_SUBPROTOCOL))
}

pub(super) fn subprotocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).map(str::trim)
}

/// In small letters, without a slash at the end or the scheme's own port.
fn normalize_origin(origin: &str) -> String {
    let origin = origin.trim_end_matches('/').to_ascii_lowercase();
    let port = if origin.starts_with("https://") { ":443" } else { ":80" };
    origin.strip_suffix(port).map(String::from).unwrap_or(origin)
}

fn origin_authority(origin: &str) -> &str {
    origin.split_once("://").map_or("", |(_, authority)| authority)
}

fn without_default_port(host: &str) -> &str {
    host.strip_suffix(":443").or(host.strip_suffix(":80")).unwrap_or(host)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// What every answer says to browsers. The page is all that may run scripts.
pub(super) fn set_security_headers(response: &mut Response, page: bool) {
    const DATA: &str = "default-src 'none'; frame-ancestors 'none'";
    for (name, value) in [
        ("content-security-policy", if page { CONTENT_SECURITY_POLICY } else { DATA }),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
}

/// Lets a web page of an allowed origin read the answer.
pub(super) fn allow_origin(response: &mut Response, origin: RequestOrigin) {
    let headers = response.headers_mut();
    headers.append(VARY, HeaderValue::from_static("Origin"));
    if let RequestOrigin::Allowed(origin) = origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let exposed = HeaderValue::from_static("ETag, Reading-Age, Retry-After, WWW-Authenticate");
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

/// The rest of the answer to a preflight.
pub(super) fn set_preflight_headers(response: &mut Response, methods: &HeaderValue) {
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods.clone());
    let named = HeaderValue::from_static("authorization, content-type, if-none-match");
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, named);
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(loopback: bool) -> AccessGuard {
        let token = |secret: &str, read| TokenGrant {
            secret_digest: digest(&SHA256, secret.as_bytes()),
            read,
            ingest: !read,
        };
        let origins = vec![normalize_origin("https://Maps.example.org:443/")];
        AccessGuard {
            tokens: vec![token("reader", true), token("sensor", false)],
            origins,
            is_loopback: loopback,
        }
    }

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn tokens_allow_their_scopes() {
        let check = |name: &str, value: &str, scope| {
            guard(true).check_token(&headers(&[(name, value)]), scope).err().map(|problem| problem.code)
        };
        assert_eq!(check("authorization", "Bearer reader", TokenScope::Read), None);
        assert_eq!(check("authorization", "bearer  reader", TokenScope::Read), None);
        assert_eq!(
            check("authorization", "Bearer reader", TokenScope::Ingest),
            Some(ProblemCode::InsufficientScope)
        );
        assert_eq!(check("authorization", "Bearer sensor", TokenScope::Ingest), None);
        assert_eq!(check("sec-websocket-protocol", "swelter.v1, bearer.reader", TokenScope::Read), None);
        for value in ["Bearer reade", "Bearer readerr", "Bearer", "Bearer ", "Basic reader", "reader"] {
            assert_eq!(
                check("authorization", value, TokenScope::Read),
                Some(ProblemCode::Unauthorized),
                "{value}"
            );
        }
        assert_eq!(check("x", "y", TokenScope::Read), Some(ProblemCode::Unauthorized));
    }

    #[test]
    fn only_own_and_allowed_origins_are_accepted() {
        let origin = |origin: &str, host: &str| {
            guard(false).classify_origin(&headers(&[("origin", origin), ("host", host)]))
        };
        assert_eq!(guard(false).classify_origin(&headers(&[("host", "x")])), RequestOrigin::SameOrigin);
        assert_eq!(origin("http://127.0.0.1:8080", "127.0.0.1:8080"), RequestOrigin::SameOrigin);
        assert_eq!(origin("https://heat.example", "HEAT.example:443"), RequestOrigin::SameOrigin);
        assert!(matches!(origin("https://maps.example.org", "heat.example"), RequestOrigin::Allowed(_)));
        for foreign in [
            "null",
            "",
            "https://evil.example",
            "http://127.0.0.1",
            "http://maps.example.org",
            "https://maps.example.org.evil",
        ] {
            assert_eq!(origin(foreign, "127.0.0.1:8080"), RequestOrigin::NotAllowed, "{foreign}");
        }
        assert_eq!(guard(false).classify_origin(&headers(&[("origin", "null")])), RequestOrigin::NotAllowed);
    }

    #[test]
    fn loopback_serves_only_local_host_names() {
        let served = |loopback, host: &str| guard(loopback).check_host(&headers(&[("host", host)])).is_ok();
        for host in [
            "localhost",
            "LOCALHOST:80",
            "a.localhost:1",
            "127.0.0.1:8080",
            "[::1]:9",
            "[::1]",
            "maps.example.org",
        ] {
            assert!(served(true, host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "10.0.0.1",
            "",
            "127.0.0.1.nip.io",
        ] {
            assert!(!served(true, host), "{host}");
            assert!(served(false, host), "{host}");
        }
    }
}
