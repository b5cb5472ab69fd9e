//! What the parts do together.

// What fails here fails a test.
#![allow(clippy::unwrap_used)]

mod architecture;
mod backup;
mod batch;
mod budgets;
mod checkpoints;
mod clock;
mod cluster;
mod commands;
mod data_files;
mod dataflow_runner;
mod dead_letters;
mod documents;
mod earlier_build;
mod examples;
mod folder_reader;
mod folder_sink;
mod heat_index;
mod imports;
mod kafka;
mod layers;
mod limits;
mod logs;
mod oracle;
mod other_rules;
mod places;
mod read_files;
mod real;
mod recovery;
mod registry;
mod rest_checks;
mod results;
mod service;
mod service_process;
mod subscriber;
mod trial;
mod units;
