//! Where results go. A sink gets whole batches and never looks into the dataflow.

pub mod changes;
pub mod dead_letters;
pub mod kafka;
pub mod output;
pub mod plot;
pub mod result_table;
