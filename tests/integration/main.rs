//! What the parts do together.

// What fails here fails a test.
#![allow(clippy::unwrap_used)]

mod backup;
mod batch;
mod budgets;
mod checkpoints;
mod clock;
mod cluster;
mod commands;
mod data_files;
mod dead_letters;
mod documents;
mod harness;
mod heat_index;
mod kafka;
mod layers;
mod limits;
mod logs;
mod oracle;
mod other_rules;
mod places;
mod process;
mod read_files;
mod real;
mod recovery;
mod registry;
mod results;
mod served;
mod service;
mod subscriber;
mod trial;
mod units;
