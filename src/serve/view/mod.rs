//! The view: the current row of every city and the recent changes of watched cities, built from
//! updates.

mod city_filter;
mod current_table;
mod live_view;
mod pending_queries;
mod query_error;
pub mod query_scheduler;
mod watched_cities;

pub use self::city_filter::{CityFilter, GeoBounds};
pub use self::current_table::{ClockComparison, CurrentRowChange, LatestChanges, ServedCity};
#[cfg(any(test, feature = "internals"))]
pub use self::live_view::SNAPSHOTS_BYTES;
pub use self::live_view::{AppliedUpdate, View};
pub use self::pending_queries::{MAX_PENDING_QUERIES, QueryResponse};
pub use self::query_error::QueryError;
#[cfg(any(test, feature = "internals"))]
pub use self::watched_cities::MAX_WATCHED_CITIES;
