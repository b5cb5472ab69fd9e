//! Access control: bearer tokens, origins of web pages, and the host names that the server is
//! reached by.

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

use super::plan::{ServePlan, Token};
use super::problem::{Problem, ProblemCode};
use super::ui::CONTENT_SECURITY_POLICY;
use crate::model::ClientId;

/// The subprotocol that a handshake is answered with. A token may be sent as another subprotocol,
/// since browsers cannot set headers of WebSockets.
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
    /// Whether only this host can reach the server. A request for another host name then came here
    /// by DNS rebinding.
    is_loopback: bool,
}

/// A token. Secrets are compared as digests, so that the time of the comparison reveals nothing
/// about them.
struct TokenGrant {
    secret_digest: Digest,
    read: bool,
    ingest: bool,
}

/// The address of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PeerAddress(pub(super) IpAddr);

impl PeerAddress {
    /// The address without the part that a client can choose freely: of IPv6, the half that names a
    /// host.
    fn network(self) -> u128 {
        match self.0.to_canonical() {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address) & (u128::MAX << 64),
        }
    }
}

/// The web page that a request comes from, as its `Origin` header says.
#[derive(Debug, PartialEq)]
pub(super) enum RequestOrigin {
    /// A page of this server, or no page.
    SameOrigin,
    /// A page of an allowed origin, which this is.
    Allowed(HeaderValue),
    /// A page of any other origin.
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

    /// Checks that the request is for this server.
    ///
    /// # Errors
    ///
    /// If the server listens on loopback and the host is neither local nor that of an allowed
    /// origin.
    pub(super) fn check_host(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let Some(host) = headers.get(HOST).filter(|_| self.is_loopback) else { return Ok(()) };
        let host = host.to_str().unwrap_or_default().to_ascii_lowercase();
        let name = without_port(&host);
        let is_local = name == "localhost"
            || name.ends_with(".localhost")
            || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if is_local
            || self.origins.iter().any(|origin| origin_authority(origin) == without_default_port(&host))
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

    /// The client that sends a request: that of its token, or without one that of its network
    /// address.
    pub(super) fn client_id(&self, headers: &HeaderMap, peer: Option<PeerAddress>) -> Option<ClientId> {
        let secret = bearer_token(headers).filter(|_| !self.tokens.is_empty());
        let secret_digest = secret.map(|secret| digest(&SHA256, secret.as_bytes()));
        match (secret_digest, peer) {
            (Some(digest), _) => Some(ClientId(xxh3_64(digest.as_ref()))),
            (None, Some(peer)) => Some(ClientId(xxh3_64(&peer.network().to_be_bytes()))),
            (None, None) => None,
        }
    }

    /// Checks that the request has a token that allows `scope`, if the service has tokens.
    ///
    /// # Errors
    ///
    /// `unauthorized` without a known token, `insufficient_scope` if the token does not allow
    /// `scope`.
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
        let digest = digest(&SHA256, secret.as_bytes());
        let Some(grant) = self.tokens.iter().find(|grant| grant.secret_digest.as_ref() == digest.as_ref())
        else {
            let challenge = challenge("Bearer realm=\"swelter\", error=\"invalid_token\"");
            let problem = Problem::new(ProblemCode::Unauthorized, "the token is not known here");
            return Err(problem.with_header(WWW_AUTHENTICATE, challenge));
        };
        let (is_allowed, name) = match scope {
            TokenScope::Read => (grant.read, "read"),
            TokenScope::Ingest => (grant.ingest, "ingest"),
        };
        if is_allowed {
            return Ok(());
        }
        let challenge = challenge("Bearer realm=\"swelter\", error=\"insufficient_scope\"");
        let problem =
            Problem::new(ProblemCode::InsufficientScope, format!("the token does not have the scope {name}"));
        Err(problem.with_header(WWW_AUTHENTICATE, challenge))
    }
}

/// The token of the `Authorization` header, or of a subprotocol.
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

/// The origin in lower case, without a slash at the end or the scheme's default port.
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

/// Sets the headers that restrict browsers. Only files of the page may run scripts.
pub(super) fn set_security_headers(response: &mut Response, is_page: bool) {
    const DATA_POLICY: &str = "default-src 'none'; frame-ancestors 'none'";
    for (name, value) in [
        ("content-security-policy", if is_page { CONTENT_SECURITY_POLICY } else { DATA_POLICY }),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
}

/// Lets a web page of an allowed origin read the response.
pub(super) fn allow_origin(response: &mut Response, origin: RequestOrigin) {
    let headers = response.headers_mut();
    headers.append(VARY, HeaderValue::from_static("Origin"));
    if let RequestOrigin::Allowed(origin) = origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let exposed = HeaderValue::from_static("ETag, Reading-Age, Retry-After, WWW-Authenticate");
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

/// Sets the headers of the response to a preflight.
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
