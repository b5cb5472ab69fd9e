//! The types that the parts of a run exchange. Nothing here knows where a value came from or goes
//! to.
//!
//! Readings and their rules, arrivals, rows, times and units are in files of their own; [`log`] is
//! the contract of logs, [`output`] holds encoded records and lines, [`state`] the stored readings
//! of a city.

pub mod arrival;
pub mod change;
pub mod clock;
pub mod heat;
pub mod history_store;
pub mod log;
pub mod output;
pub mod printable;
pub mod random;
pub mod reading;
pub mod refusal;
pub mod rules_version;
pub mod segmented_vec;
pub mod serving_protocol;
pub mod state;
pub mod time;
pub mod topology;
pub mod units;

pub use self::arrival::{Arrival, ArrivalOutcome, CityIntroduction, CityKey, OutcomeKind};
pub use self::change::{
    Batch, CityId, CityNames, CurrentChange, CurrentRow, DayChange, HourChange, PeriodSummary, Row, RowChange,
};
pub use self::heat::{Category, HeatIndex, HeldHeat};
pub use self::log::{
    AppendCallback, AppendError, AppendHold, AppendReport, AppendedRange, Appender, ClientId, Fingerprint,
    HoldCause, HoldCheck, LogIdentity, LogPosition, NewRecord, PartitionIndex, PartitionName,
    PartitionProgress, PartitionTable, RawRecord, RecordAddress, RetryInfo,
};
pub use self::output::dead_letter;
pub use self::output::{
    BatchBuilder, ChangeLine, CityRows, DayLine, DeadLetter, DeadLetterLine, EncodedBatch, EncodedRecord,
    RecordLocation, Render, RenderWants, ResultRow, Shard,
};
pub use self::random::random_u64;
pub use self::reading::{Measurement, ReadingEvent, Revision, Upsert};
pub use self::refusal::{Reason, Refusal};
pub use self::segmented_vec::SegmentedVec;
pub use self::serving_protocol::{
    AnswerPiece, CurrentRowUpdate, ExplainedRow, MAX_PINNED_BYTES, OutcomeCounts, Queries, Query, QueryKind,
    RemainingRows, ViewUpdate, WatchedRow,
};
pub use self::state::{
    BLOCK_READINGS, Block, CheckpointBarrier, CityPeriods, CitySnapshot, PeriodKind, STATE_SHARDS,
    SnapshotSink, StoredPeriod, StoredReading, state_shard,
};
pub use self::time::{EventTime, LocalTimePolicy, Millis, TimeError};
pub use self::topology::Topology;
pub use self::units::{OutputUnits, TemperatureUnit, WindUnit};
