//! The built program among real ones: a browser, a WebSocket client and a conformance suite that nobody here wrote, and clients
//! that mean no good.

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
