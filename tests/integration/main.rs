//! What the parts do together.

mod batch;
mod harness;
mod heat_index;
mod layers;
mod oracle;
mod results;
