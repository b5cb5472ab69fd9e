//! The server: REST, WebSockets, and the live page.
//!
//! The server never reads the dataflow's state. It keeps a view of the current rows and recent
//! changes, which it builds from [updates](crate::model::ViewUpdate), and sends the dataflow a
//! query for history.
//!
//! A request passes `server` (connections and their limits), `target` (what the request asks for),
//! `routes` (the table of warp filters, one file an API in `api/`), and `context` (the checks that
//! come before every API).

mod api;
mod backends;
pub mod budget;
mod connection;
mod context;
mod documents;
mod encoding;
pub mod encoding_turns;
mod error;
pub mod freshness;
mod ingest;
#[cfg(any(test, feature = "internals"))]
pub mod memory;
mod new_cities;
mod plan;
mod problem;
pub mod publisher;
mod query_parameters;
pub mod read_rate;
mod request;
mod responses;
mod route;
mod route_filter;
mod routes;
mod security;
mod server;
mod service_info;
mod target;
mod telemetry;
mod tls;
pub mod ui;
mod units;
mod upgrade;
pub mod view;
pub mod wire;
pub mod ws;

#[cfg(test)]
mod tests;

pub use self::backends::Backends;
pub use self::error::ServeError;
pub use self::plan::{ServeLimits, ServePlan, TlsPlan, Token};
pub use self::publisher::Publisher;
pub use self::server::{BoundServer, RunningServer, bind_server, max_concurrent_rejections};
pub use self::service_info::{IngestLog, ServiceInfo};
