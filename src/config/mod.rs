//! The configuration of the service: shipped defaults, a file, environment variables and flags.
//!
//! The layers are merged by key, and each value keeps its origin ([`layers`]). The type and range
//! of a key are checked where it is read (`build`), through one reader (`config_reader`). A key
//! that is never read is unknown. So all errors are found in one pass, each with its origin.

mod build;
mod cluster;
mod cluster_secret;
mod config_reader;
mod error;
mod kafka;
pub mod layers;
mod plan;
mod postgres;
mod read_options;
mod service_config;
mod sinks;
mod sources;
mod suggest;
mod tokens;
mod value_origin;

#[cfg(test)]
mod tests;

pub use self::cluster::host_of;
pub use self::cluster_secret::make_cluster_secret;
pub use self::error::{ConfigError, ConfigErrors};
pub use self::plan::{
    CheckpointPlan, ClusterConfig, ClusterTlsPlan, DataDirMode, FileSourcePlan, IngestPlan, LoggingFormat,
    LoggingPlan, PipelineLimits, ServicePlan, SinkKind, SourceKind, SourcePlan, StartMode,
};
pub use self::service_config::Config;
#[cfg(any(test, fuzzing))]
pub(crate) use self::tokens::tokens_from_variable;
