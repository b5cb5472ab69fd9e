//! The built program with Apache Kafka.

mod appender;
mod avro;
pub mod broker;
pub mod case;
mod checkpoints;
mod config;
mod dead_letter_commands;
mod earlier_build;
mod faults;
mod identity;
pub mod kills;
mod lag;
mod measure;
mod processes;
pub mod random_log;
mod refusals;
mod retries;
mod several_sinks;
mod source;
mod support_checks;
mod takeover;
mod topic_reader;
mod topics;
mod variants;
