//! A route: its path, its method, and what a request for it needs.

use warp::http::{HeaderValue, Method};

use super::security::TokenScope;

/// A path that is served, with its method and what a request for it needs.
///
/// A path has one route: the route answers every request for its path, those with other methods
/// too.
pub(super) struct Route {
    /// `GET` stands for `HEAD` too.
    pub(super) method: Method,
    /// As the documents write it: `{..}` stands for one segment. It is also the `route` label of
    /// metrics.
    pub(super) path: &'static str,
    /// What a token must allow, if the service has tokens.
    pub(super) scope: Option<TokenScope>,
    pub(super) availability: RouteAvailability,
    /// Whether responses are files of the page, which may run scripts.
    pub(super) is_page: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RouteAvailability {
    Always,
    /// Once replay has passed the ends that the logs had at the start.
    Ready,
    /// If the plan asks for it.
    TestOnly,
}

impl Route {
    pub(super) const fn get(
        path: &'static str,
        scope: Option<TokenScope>,
        availability: RouteAvailability,
    ) -> Route {
        Route { method: Method::GET, path, scope, availability, is_page: false }
    }

    pub(super) const fn post(
        path: &'static str,
        scope: Option<TokenScope>,
        availability: RouteAvailability,
    ) -> Route {
        Route { method: Method::POST, path, scope, availability, is_page: false }
    }

    /// A file of the page.
    pub(super) const fn page(path: &'static str) -> Route {
        Route {
            method: Method::GET,
            path,
            scope: None,
            availability: RouteAvailability::Always,
            is_page: true,
        }
    }

    /// The segment of `path` that stands for the route's parameter, still percent-encoded; empty if
    /// the route has no parameter, `None` if the path is not of this route.
    pub(super) fn match_path<'a>(&self, path: &'a str) -> Option<&'a str> {
        let Some((before, after)) = self.path.split_once('{') else {
            return (self.path == path).then_some("");
        };
        let (_, after) = after.split_once('}')?;
        let segment = path.strip_prefix(before)?.strip_suffix(after)?;
        (!segment.is_empty() && !segment.contains('/')).then_some(segment)
    }

    pub(super) fn accepts(&self, method: &Method) -> bool {
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        *method == self.method
    }

    /// The `Allow` header of responses that name the path's methods.
    pub(super) fn allowed_methods(&self) -> HeaderValue {
        let is_get = self.method == Method::GET;
        HeaderValue::from_static(if is_get { "GET, HEAD, OPTIONS" } else { "POST, OPTIONS" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_matches_exactly_and_parameter_is_one_segment() {
        let fixed = Route::get("/v1/cities", None, RouteAvailability::Always);
        assert_eq!(fixed.match_path("/v1/cities"), Some(""));
        for path in ["/v1/cities/", "//v1/cities", "/v1/Cities", "/v1", "/"] {
            assert_eq!(fixed.match_path(path), None, "{path}");
        }
        let history = Route::get("/v1/cities/{city}/history", None, RouteAvailability::Always);
        assert_eq!(history.match_path("/v1/cities/a%2Fb/history"), Some("a%2Fb"));
        for path in ["/v1/cities//history", "/v1/cities/history", "/v1/cities/a/b/history", "/v1/cities/a"] {
            assert_eq!(history.match_path(path), None, "{path}");
        }
    }
}
