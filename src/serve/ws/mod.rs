//! The WebSocket protocol of `docs/protocol.md`, from the server's side.

pub(in crate::serve) mod echo;
pub(in crate::serve) mod ingest;
pub mod metered;
pub mod name_limits;
mod outbox;
mod request;
mod router;
mod selection;
mod session;
mod session_writer;
mod sessions;
mod shared;
mod socket;
mod subscriptions;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub use self::sessions::CLOSE_ALL_TIMEOUT;
pub use self::sessions::SubscriberSessions;
#[cfg(any(test, feature = "internals"))]
pub use self::shared::OUTBOXES_BYTES;
pub use self::socket::websocket_config;
