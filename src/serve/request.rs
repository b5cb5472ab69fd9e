//! The request that an API gets, and the filter that reads it.

use std::convert::Infallible;

use hyper::upgrade::OnUpgrade;
use warp::Filter;
use warp::http::header::ACCESS_CONTROL_REQUEST_METHOD;
use warp::http::{HeaderMap, Method};

use super::security::PeerAddress;
use super::upgrade;

/// A request without its body.
pub(super) struct ApiRequest {
    pub(super) method: Method,
    /// The segment of the path that stands for the route's parameter, still percent-encoded; empty
    /// if the route has none.
    pub(super) path_parameter: String,
    /// Without its question mark.
    pub(super) query: String,
    pub(super) headers: HeaderMap,
    /// The connection, if the client may take it over.
    pub(super) upgrade: Option<OnUpgrade>,
    pub(super) peer_address: Option<PeerAddress>,
}

impl ApiRequest {
    /// Whether the request can change something, so that pages of foreign origins may not send it.
    pub(super) fn is_unsafe(&self) -> bool {
        self.method == Method::POST || upgrade::is_upgrade_requested(&self.headers)
    }

    /// Whether a browser asks what a page may send.
    pub(super) fn is_preflight(&self) -> bool {
        self.method == Method::OPTIONS && self.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
    }

    /// A label of metrics: few values, whatever methods clients send.
    pub(super) fn method_label(&self) -> &'static str {
        method_label(&self.method)
    }
}

/// A label of metrics: few values, whatever methods clients send.
pub(super) fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::OPTIONS => "OPTIONS",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        _ => "other",
    }
}

/// Reads the request.
pub(super) fn api_request()
-> impl Filter<Extract = (ApiRequest,), Error = Infallible> + Clone + Send + Sync + 'static {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::method()
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<OnUpgrade>())
        .and(warp::ext::optional::<PeerAddress>())
        .map(|method, query, headers, upgrade, peer_address| ApiRequest {
            method,
            path_parameter: String::new(),
            query,
            headers,
            upgrade,
            peer_address,
        })
}
