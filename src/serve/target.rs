//! The target and host of a request (RFC 9112, sections 3.2 and 3.3), checked before the request
//! reaches the routes.

use std::net::Ipv6Addr;

use warp::http::header::HOST;
use warp::http::uri::PathAndQuery;
use warp::http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};

/// Paths that HTTP/1.0 probes may request without a `Host` header.
const PATHS_WITHOUT_HOST: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// A target that is not a path. It is an extension of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PathlessTarget {
    /// `OPTIONS *`: the server itself.
    Server,
    /// Any other, with the reason why it is refused.
    Refused(&'static str),
}

/// Brings the target into origin form, and the host that it names into the `Host` header. A request
/// whose target is not a path gets a [`PathlessTarget`] and the path `/`, so that every URI has a
/// path from here on.
pub(super) fn normalize_target<B>(request: &mut Request<B>) {
    let path = match take_path(request) {
        Ok(path) => path,
        Err(pathless) => {
            request.extensions_mut().insert(pathless);
            PathAndQuery::from_static("/")
        }
    };
    *request.uri_mut() = Uri::from(path);
}

fn take_path<B>(request: &mut Request<B>) -> Result<PathAndQuery, PathlessTarget> {
    let refused = |reason| Err(PathlessTarget::Refused(reason));
    if *request.method() == Method::CONNECT {
        return refused("this is not a proxy: CONNECT is not served");
    }
    let uri = request.uri();
    let path = origin_form(uri);
    if uri.scheme().is_none() {
        // A target without a scheme that is not a path is an authority.
        if uri.authority().is_some() || path.is_none() {
            return refused("the target must be a path that begins with /");
        }
    } else {
        let host = host_of_absolute(uri).map_err(PathlessTarget::Refused)?;
        if request.version() >= Version::HTTP_11 {
            require_one_host(request.headers()).map_err(PathlessTarget::Refused)?;
        }
        request.headers_mut().insert(HOST, host);
    }
    let Some(path) = path else { return refused("the target must be a path that begins with /") };
    let needs_host = request.version() >= Version::HTTP_11
        || request.headers().contains_key(HOST)
        || !PATHS_WITHOUT_HOST.contains(&path.path());
    if needs_host {
        require_one_host(request.headers()).map_err(PathlessTarget::Refused)?;
    }
    match path.path() {
        "*" if *request.method() == Method::OPTIONS => Err(PathlessTarget::Server),
        "*" => refused("the target * is for OPTIONS"),
        _ => Ok(path),
    }
}

/// The path and query, or the asterisk; `None` if the target is neither.
fn origin_form(uri: &Uri) -> Option<PathAndQuery> {
    let path = uri.path_and_query()?;
    if path.as_str().starts_with('/') || (path.as_str() == "*" && uri.scheme().is_none()) {
        return Some(path.clone());
    }
    // A target such as `http://localhost?limit=1` has a query and no path.
    let rest = Some(path.as_str()).filter(|rest| rest.is_empty() || rest.starts_with('?'))?;
    PathAndQuery::try_from(format!("/{rest}")).ok().filter(|_| uri.scheme().is_some())
}

/// The authority of a target in absolute form, which replaces the `Host` header.
fn host_of_absolute(uri: &Uri) -> Result<HeaderValue, &'static str> {
    if !uri
        .scheme_str()
        .is_some_and(|scheme| ["http", "https"].iter().any(|s| scheme.eq_ignore_ascii_case(s)))
    {
        return Err("the scheme of the target must be http or https");
    }
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if !is_host(authority) {
        return Err("the target must name a host, as in http://localhost:8080/, without a user");
    }
    HeaderValue::from_str(authority).map_err(|_| "the host of the target is malformed")
}

fn require_one_host(headers: &HeaderMap) -> Result<(), &'static str> {
    let mut hosts = headers.get_all(HOST).into_iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if host.to_str().is_ok_and(is_host) => Ok(()),
        (Some(_), None) => Err("the Host header must be a host, as in localhost:8080"),
        (Some(_), Some(_)) => Err("there must be one Host header, not several"),
        (None, _) => Err("there must be a Host header"),
    }
}

/// Whether the text is a name or address, with or without a port. Names are those of DNS, with `_`
/// and `~`: other characters that URIs allow name no host.
fn is_host(text: &str) -> bool {
    let (is_named, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else { return false };
            (address.parse::<Ipv6Addr>().is_ok(), port)
        }
        None => {
            let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
            (!name.is_empty() && name.bytes().all(is_name_byte), port)
        }
    };
    let is_port = |port: &str| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && (port.is_empty() || port.parse::<u16>().is_ok())
    };
    is_named && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalized(
        method: &str,
        target: &str,
        version: Version,
        hosts: &[&str],
    ) -> Result<(String, String), PathlessTarget> {
        let mut request = Request::builder().method(method).uri(target).version(version);
        for host in hosts {
            request = request.header(HOST, HeaderValue::from_bytes(host.as_bytes()).unwrap());
        }
        let mut request = request.body(()).unwrap();
        normalize_target(&mut request);
        // The routes rely on it.
        assert!(request.uri().path_and_query().unwrap().as_str().starts_with('/'), "{target}");
        if let Some(pathless) = request.extensions().get::<PathlessTarget>() {
            return Err(*pathless);
        }
        let host = request.headers().get(HOST).map_or("", |host| host.to_str().unwrap());
        Ok((request.uri().to_string(), host.to_string()))
    }

    fn get(target: &str) -> Result<(String, String), PathlessTarget> {
        normalized("GET", target, Version::HTTP_11, &["h:80"])
    }

    #[test]
    fn origin_form_target_is_unchanged() {
        for path in ["/", "/v1/cities?limit=1", "//evil", "//evil:80/x", "/%zz", "/?", "/*", "/a:80"] {
            assert_eq!(get(path), Ok((path.into(), "h:80".into())));
        }
    }

    #[test]
    fn absolute_form_target_yields_path_and_host() {
        for (target, path, host) in [
            ("http://x:81/a?b", "/a?b", "x:81"),
            ("HTTPS://x/", "/", "x"),
            ("http://x", "/", "x"),
            ("http://x?b", "/?b", "x"),
            ("http://[::1]:9/a", "/a", "[::1]:9"),
            ("http://x//a", "//a", "x"),
        ] {
            assert_eq!(get(target), Ok((path.into(), host.into())), "{target}");
            let old = normalized("GET", target, Version::HTTP_10, &[]);
            assert_eq!(old, Ok((path.into(), host.into())), "{target}");
        }
    }

    #[test]
    fn target_without_path_is_refused() {
        for target in
            ["x", "a:80", "x.example", "user@x", "http://u:p@x/", "http://u@x/", "ftp://x/", "ws://x/"]
        {
            assert!(matches!(get(target), Err(PathlessTarget::Refused(_))), "{target}");
        }
        for (method, target) in
            [("CONNECT", "a:80"), ("CONNECT", "/"), ("CONNECT", "http://a/"), ("GET", "*"), ("POST", "*")]
        {
            let given = normalized(method, target, Version::HTTP_11, &["h"]);
            assert!(matches!(given, Err(PathlessTarget::Refused(_))), "{method} {target}");
        }
        assert_eq!(normalized("OPTIONS", "*", Version::HTTP_11, &["h"]), Err(PathlessTarget::Server));
        assert!(matches!(get("http://x/*"), Ok((path, _)) if path == "/*"));
    }

    #[test]
    fn host_header_must_be_single_and_valid() {
        let with = |version, path: &str, hosts: &[&str]| normalized("GET", path, version, hosts).is_ok();
        for path in ["/", "/healthz", "http://x/"] {
            assert!(!with(Version::HTTP_11, path, &[]), "{path}");
            assert!(!with(Version::HTTP_11, path, &["a", "b"]), "{path}");
            assert!(!with(Version::HTTP_11, path, &["a", "a"]), "{path}");
        }
        for path in ["/healthz", "/readyz?x", "/metrics"] {
            assert!(with(Version::HTTP_10, path, &[]), "{path}");
            assert!(!with(Version::HTTP_10, path, &["a", "b"]), "{path}");
        }
        for path in ["/", "/v1/status", "/healthz/", "//healthz"] {
            assert!(!with(Version::HTTP_10, path, &[]), "{path}");
            assert!(with(Version::HTTP_10, path, &["a"]), "{path}");
        }
        for host in ["localhost", "LOCALHOST:80", "[::1]:9", "[::1]", "127.0.0.1:", "a_b.example", "x--1.de"]
        {
            assert!(with(Version::HTTP_11, "/", &[host]), "{host}");
        }
        for host in [
            "", ":80", "a b", "a,b", "u@a", "a/b", "[::1", "::1", "a:b", "a:1:2", "a:99999", "ü", "%61",
            "[x]:1",
        ] {
            assert!(!with(Version::HTTP_11, "/", &[host]), "{host:?}");
        }
    }
}
