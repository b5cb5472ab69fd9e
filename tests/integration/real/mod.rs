//! The built program with a real browser, an independent WebSocket client and conformance suite,
//! and hostile clients.

mod browser;
mod cdp;
mod conformance;
mod fuzz;
mod hostile;
mod paced_readers;
mod page;
mod page_freshness;
mod page_places;
mod page_units;
mod panics;
mod python_client;
mod readers;
