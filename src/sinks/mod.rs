//! Where results go. A sink gets whole batches and never looks into the dataflow.

pub mod changes;
pub mod output;
pub mod plot;
pub mod table;
