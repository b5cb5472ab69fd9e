//! What the parts say to each other. Nothing here knows where a value came from or goes to.

pub mod arrival;
pub mod block;
pub mod change;
pub mod city_snapshot;
pub mod clock;
pub mod dead_letter;
pub mod encoded_batch;
pub mod heat;
pub mod log;
pub mod output_lines;
pub mod printable;
pub mod random;
pub mod reading;
pub mod refusal;
pub mod rules_version;
pub mod segmented_vec;
pub mod serving_protocol;
pub mod time;
pub mod topology;
pub mod units;

pub use arrival::{Arrival, ArrivalOutcome, CityIntroduction, CityKey, OutcomeKind};
pub use block::{BLOCK_READINGS, Block, StoredReading};
pub use change::{Batch, CityId, CityNames, CurrentRow, DayChange, DaySummary, Row, RowChange};
pub use city_snapshot::{CheckpointBarrier, CitySnapshot, STATE_SHARDS, SnapshotSink, state_shard};
pub use dead_letter::DeadLetter;
pub use encoded_batch::{BatchBuilder, EncodedBatch, EncodedRecord, Render, Shard};
pub use heat::{Category, HeatIndex};
pub use log::{
    AppendCallback, AppendError, AppendHold, AppendReport, AppendedRange, Appender, ClientId, Fingerprint,
    HoldCause, HoldCheck, LogIdentity, LogPosition, NewRecord, PartitionIndex, PartitionName,
    PartitionProgress, PartitionTable, RawRecord, RecordAddress, RetryInfo,
};
pub use output_lines::{ChangeLine, CityRows, DayLine, DeadLetterLine, RecordLocation, ResultRow};
pub use random::random_u64;
pub use reading::{Measurement, ReadingEvent, Revision, Upsert};
pub use refusal::{Reason, Refusal};
pub use segmented_vec::SegmentedVec;
pub use serving_protocol::{
    AnswerPiece, CurrentRowUpdate, MAX_PINNED_BYTES, OutcomeCounts, Queries, Query, QueryKind, RemainingRows,
    ViewUpdate, WatchedRow,
};
pub use time::{EventTime, LocalTimePolicy, Millis, TimeError};
pub use topology::Topology;
pub use units::{OutputUnits, TemperatureUnit, WindUnit};
