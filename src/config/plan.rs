//! The validated plan of a live run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::checkpoint::CheckpointLocation;
use crate::codec::{Compression, DecodeSettings, Format, ReadOptions};
use crate::dataflow::heat_index::Formula;
use crate::dataflow::rolling::Retention;
use crate::directory::Directory;
use crate::model::{Millis, OutputUnits};
use crate::serve::ServePlan;
use crate::sinks::dead_letters::DeadLetterLimits;
use crate::sinks::folder::FolderSinkPlan;
use crate::sinks::kafka::KafkaSinkPlan;
use crate::sinks::postgres::PostgresSinkPlan;
use crate::sources::generator::paced::PacedPlan;
use crate::sources::kafka::KafkaSourcePlan;

/// Everything that a live run needs.
#[derive(Clone, Debug)]
pub struct ServicePlan {
    pub data_dir: PathBuf,
    pub data_dir_mode: DataDirMode,
    /// The names and locations of cities: the shipped directory, and the places file.
    pub directory: &'static Directory<'static>,
    pub workers: usize,
    pub formula: Formula,
    pub retention: Retention,
    /// How far after its arrival a reading may be dated.
    pub max_ahead: Millis,
    /// The maximum number of cities in a partition.
    pub max_cities: u32,
    /// A current row that is older is stale. This affects how rows are labelled, never their
    /// values.
    pub stale_after: Millis,
    /// The units of results, unless a client requests others.
    pub output_units: OutputUnits,
    pub decode: DecodeSettings,
    /// If `None`, a start reads the logs from their beginning.
    pub checkpoints: Option<CheckpointPlan>,
    /// If `None`, readings cannot be posted, and there is no journal.
    pub ingest: Option<IngestPlan>,
    pub sources: Vec<SourcePlan>,
    /// The sinks of all row changes.
    pub sinks: Vec<SinkPlan>,
    /// The limits of dead letters in the data directory.
    pub dead_letters: DeadLetterLimits,
    pub serve: ServePlan,
    pub cluster: ClusterConfig,
    pub limits: PipelineLimits,
    /// Whether to continue with logs whose id has changed, if their records match; set for one
    /// start by a flag.
    pub adopt_logs: bool,
    /// The settings that all processes must have in common, as keys and values.
    pub common_settings: BTreeMap<String, String>,
}

impl ServicePlan {
    /// The options of posted readings, which are the same in the log that they are appended to.
    pub fn ingest_read_options(&self) -> ReadOptions {
        let into = self.ingest.as_ref().and_then(|ingest| ingest.source.as_deref());
        let source = into.and_then(|into| self.sources.iter().find(|source| source.name == into));
        source.map_or(self.decode.into(), |source| source.read_options.clone())
    }
}

/// A durable sink of results.
#[derive(Clone, Debug, PartialEq)]
pub struct SinkPlan {
    pub name: String,
    pub kind: SinkKind,
}

#[derive(Clone, Debug, PartialEq)]
pub enum SinkKind {
    Kafka(KafkaSinkPlan),
    Folder(FolderSinkPlan),
    Postgres(PostgresSinkPlan),
}

impl ServicePlan {
    /// The Kafka sinks.
    pub fn kafka_sinks(&self) -> impl Iterator<Item = &KafkaSinkPlan> {
        self.sinks.iter().filter_map(|sink| match &sink.kind {
            SinkKind::Kafka(kafka) => Some(kafka),
            SinkKind::Folder(_) | SinkKind::Postgres(_) => None,
        })
    }

    /// The folder sinks.
    pub fn folder_sinks(&self) -> impl Iterator<Item = &FolderSinkPlan> {
        self.sinks.iter().filter_map(|sink| match &sink.kind {
            SinkKind::Kafka(_) | SinkKind::Postgres(_) => None,
            SinkKind::Folder(folder) => Some(folder),
        })
    }

    /// The PostgreSQL sinks.
    pub fn postgres_sinks(&self) -> impl Iterator<Item = &PostgresSinkPlan> {
        self.sinks.iter().filter_map(|sink| match &sink.kind {
            SinkKind::Kafka(_) | SinkKind::Folder(_) => None,
            SinkKind::Postgres(postgres) => Some(postgres),
        })
    }

    /// Whether a sink needs an authority beside it that counts generations.
    pub fn has_uncounted_sink(&self) -> bool {
        self.sinks.iter().any(|sink| !matches!(sink.kind, SinkKind::Kafka(_)))
    }

    /// Whether a sink or a source of dead letters records the generations of the run in a progress
    /// topic.
    pub fn has_progress_topic(&self) -> bool {
        let is_kafka = |source: &SourcePlan| matches!(source.kind, SourceKind::Kafka(_));
        self.kafka_sinks().next().is_some() || self.sources.iter().any(is_kafka)
    }
}

/// Who may read the files that a run writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataDirMode {
    /// The user of the service.
    Private,
    /// The user and its group.
    Group,
}

/// How a start treats a running generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartMode {
    /// It fences the running generation at once.
    Claim,
    /// It catches up with the running generation, then takes over.
    Takeover,
    /// It follows the running generation, and takes over when its heartbeats stop.
    Standby,
}

/// The processes of a run.
#[derive(Clone)]
pub struct ClusterConfig {
    pub processes: usize,
    /// `None` if there are several and this one starts them.
    pub process: Option<usize>,
    /// The address of each process, if there are several.
    pub hosts: Vec<String>,
    /// This is one process of several, and not all have loopback addresses.
    pub spans_hosts: bool,
    pub secret: Option<String>,
    /// If `None`, the connections between processes are not encrypted.
    pub tls: Option<ClusterTlsPlan>,
    pub start_mode: StartMode,
    /// A standby takes over after this long without a heartbeat of the running generation.
    pub standby_after: Duration,
    pub connect_time: Duration,
    pub peer_timeout: Duration,
}

/// The PEM files with which the processes of a cluster authenticate each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterTlsPlan {
    /// The certificate of this process, followed by intermediate ones.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// The CA that signs the certificates of all processes, and no others.
    pub ca: PathBuf,
}

// The output never has the secret.
impl std::fmt::Debug for ClusterConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ClusterConfig { processes, process, hosts, .. } = self;
        f.debug_struct("ClusterConfig")
            .field("processes", processes)
            .field("process", process)
            .field("hosts", hosts)
            .finish_non_exhaustive()
    }
}

/// When and where the state of all cities is saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointPlan {
    pub location: CheckpointLocation,
    /// If false, the location is the default in the data directory, and a run without a data
    /// directory makes no checkpoints.
    pub is_configured: bool,
    /// Greater than zero.
    pub interval: Millis,
    /// The number of full checkpoints to keep, each with its increments.
    pub keep_full: usize,
    /// The time between two verifications of all checkpoints.
    pub verify_interval: Millis,
}

/// The log of posted readings: the embedded journal, or a topic instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestPlan {
    /// The Kafka source that posted readings are appended to; `None` for the journal.
    pub source: Option<String>,
    pub partitions: u32,
    /// The limits of records and bytes that wait for the disk.
    pub queue_records: usize,
    pub queue_bytes: usize,
    /// The size of the journal from which on a warning is logged.
    pub warn_bytes: u64,
    /// Dead letters of the journal are retried once automatically after this time, except those
    /// that are too late.
    pub retry_after: Option<Millis>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SourcePlan {
    /// The name of the source in positions and dead letters.
    pub name: String,
    pub kind: SourceKind,
    /// The options of its records, merged with those of all sources.
    pub read_options: ReadOptions,
}

#[derive(Clone, Debug, PartialEq)]
pub enum SourceKind {
    /// A generator of readings, paced by the clock.
    Generator(PacedPlan),
    File(FileSourcePlan),
    Kafka(KafkaSourcePlan),
}

/// A file that is read once, or followed as it grows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSourcePlan {
    pub path: PathBuf,
    pub format: Format,
    pub compression: Compression,
    pub follow: bool,
}

/// The limits at which sources pause until the dataflow catches up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineLimits {
    /// Readings that were polled and are not yet in the results.
    pub readings_in_flight: usize,
    /// How far results may lag behind the clock.
    pub frontier_lag: Millis,
    /// Records per poll.
    pub poll_records: usize,
}

/// The format and filter of the program's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggingPlan {
    pub format: LoggingFormat,
    /// A filter of `tracing`: `info`, or `info,swelter::serve=debug`.
    pub filter: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoggingFormat {
    /// Human on a terminal, JSON elsewhere.
    Auto,
    Human,
    Json,
}
