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

pub use self::sessions::{CLOSE_ALL_TIMEOUT, SubscriberSessions};
pub use self::shared::OUTBOXES_BYTES;
pub use self::socket::websocket_config;
