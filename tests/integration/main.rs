//! What the parts do together.

mod harness;
mod oracle;
mod results;
