//! What a run does, validated.

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
use crate::sources::kafka::KafkaSourcePlan;
use crate::sources::weather::WeatherKind;

/// All of a live run.
#[derive(Clone, Debug)]
pub struct ServicePlan {
    pub data_dir: PathBuf,
    pub data_dir_mode: DataDirMode,
    /// What cities are called and where they are: the shipped directory, and the file of places.
    pub directory: &'static Directory<'static>,
    pub workers: usize,
    pub formula: Formula,
    pub retention: Retention,
    /// How far after its arrival a reading may be dated.
    pub max_ahead: Millis,
    /// Cities that a partition may have.
    pub max_cities: u32,
    /// A current row that is older is stale. It decides what is said of rows, never what they are.
    pub stale_after: Millis,
    /// What is given out is in these units where nobody asks for others.
    pub output_units: OutputUnits,
    pub decode: DecodeSettings,
    /// Without it a start reads the logs from their beginning.
    pub checkpoints: Option<CheckpointPlan>,
    /// Without it nothing can be posted, and there is no journal.
    pub ingest: Option<IngestPlan>,
    pub sources: Vec<SourcePlan>,
    /// Where every change of a row goes.
    pub sinks: Vec<SinkPlan>,
    /// How many dead letters are kept in the data directory.
    pub dead_letters: DeadLetterLimits,
    pub serve: ServePlan,
    pub cluster: ClusterConfig,
    pub limits: PipelineLimits,
    /// Logs with other ids than those that were read are gone on with if their records fit; for one
    /// start, by a flag.
    pub adopt_logs: bool,
    /// What all processes must have in common, as keys and values.
    pub common_settings: BTreeMap<String, String>,
}

impl ServicePlan {
    /// How readings that are posted are written, and stay in the log that they go to.
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
}

impl ServicePlan {
    /// The sinks that are topics of Kafka.
    pub fn kafka_sinks(&self) -> impl Iterator<Item = &KafkaSinkPlan> {
        self.sinks.iter().filter_map(|sink| match &sink.kind {
            SinkKind::Kafka(kafka) => Some(kafka),
            SinkKind::Folder(_) => None,
        })
    }

    /// The sinks that are folders.
    pub fn folder_sinks(&self) -> impl Iterator<Item = &FolderSinkPlan> {
        self.sinks.iter().filter_map(|sink| match &sink.kind {
            SinkKind::Kafka(_) => None,
            SinkKind::Folder(folder) => Some(folder),
        })
    }

    /// Whether a sink or a source of dead letters records the generations of the run in a progress topic.
    pub fn has_progress_topic(&self) -> bool {
        let is_kafka = |source: &SourcePlan| matches!(source.kind, SourceKind::Kafka(_));
        self.kafka_sinks().next().is_some() || self.sources.iter().any(is_kafka)
    }
}

/// Who may read what a run writes to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataDirMode {
    /// The user of the service.
    Private,
    /// Its group too.
    Group,
}

/// How a start treats a generation that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartMode {
    /// It ends that at once.
    Claim,
    /// It follows that, and ends it once it has as much.
    Takeover,
    /// It follows that until it gives no sign of life.
    Standby,
}

/// The processes of a run.
#[derive(Clone)]
pub struct ClusterConfig {
    pub processes: usize,
    /// None where there are several and this one is to start them.
    pub process: Option<usize>,
    /// Of each process, where there are several.
    pub hosts: Vec<String>,
    /// This is one process of several, and they are not all at loopback addresses.
    pub spans_hosts: bool,
    pub secret: Option<String>,
    /// Without it what they say to each other is not encrypted.
    pub tls: Option<ClusterTlsPlan>,
    pub start_mode: StartMode,
    /// After this long without a sign of the generation that runs, a standby takes over.
    pub standby_after: Duration,
    pub connect_time: Duration,
    pub peer_timeout: Duration,
}

/// PEM files by which the processes of a cluster know each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterTlsPlan {
    /// Of this process; intermediate ones behind it.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Which signs the certificates of all, and nobody else's.
    pub ca: PathBuf,
}

// The secret is never shown.
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

/// The state of all cities, kept from time to time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointPlan {
    pub location: CheckpointLocation,
    /// Otherwise the place is in the data directory: a run that has none makes no checkpoints.
    pub is_configured: bool,
    /// More than nothing.
    pub interval: Millis,
    /// Full checkpoints, each with its increments.
    pub keep_full: usize,
    /// From one reading of all that there are to the next.
    pub verify_interval: Millis,
}

/// The embedded journal, or the topic in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestPlan {
    /// The source, a topic of Kafka, that posted readings are appended to; without one there is the
    /// journal.
    pub source: Option<String>,
    pub partitions: u32,
    /// Records and bytes that may wait for the disk.
    pub queue_records: usize,
    pub queue_bytes: usize,
    /// The size from which on the log warns.
    pub warn_bytes: u64,
    /// After this long the journal's dead letters are sent once more by themselves, other than
    /// those that are too late.
    pub retry_after: Option<Millis>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SourcePlan {
    /// As positions and dead letters call it.
    pub name: String,
    pub kind: SourceKind,
    /// How its records are written; as those of all are, where nothing else is said.
    pub read_options: ReadOptions,
}

#[derive(Clone, Debug, PartialEq)]
pub enum SourceKind {
    Generator(GeneratorSourcePlan),
    File(FileSourcePlan),
    Kafka(KafkaSourcePlan),
}

/// Made-up readings, paced by the clock. Shares are as
/// [`GeneratorPlan`](crate::sources::generator::GeneratorPlan) has them.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratorSourcePlan {
    pub cities: u32,
    pub interval: Millis,
    /// How far back the readings begin at the first start.
    pub history: Millis,
    /// Between two readings of a city before the first start.
    pub history_interval: Millis,
    pub late: f64,
    pub corrections: f64,
    pub withdrawals: f64,
    pub duplicates: f64,
    pub invalid: f64,
    pub weather: WeatherKind,
    pub seed: u64,
}

/// A file that is read once, or followed as it grows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSourcePlan {
    pub path: PathBuf,
    pub format: Format,
    pub compression: Compression,
    pub follow: bool,
}

/// When sources wait for the dataflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineLimits {
    /// Readings polled and not yet in the results.
    pub readings_in_flight: usize,
    /// How far results may lie behind the clock.
    pub frontier_lag: Millis,
    /// Records of one poll.
    pub poll_records: usize,
}

/// How to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggingPlan {
    pub format: LoggingFormat,
    /// In the language of `tracing`'s filters: `info`, or `info,swelter::serve=debug`.
    pub filter: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoggingFormat {
    /// Human on a terminal, JSON elsewhere.
    Auto,
    Human,
    Json,
}
