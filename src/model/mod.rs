//! What the parts say to each other. Nothing here knows where a value came from or goes to.

pub mod arrival;
pub mod block;
pub mod blocks;
pub mod change;
pub mod clock;
pub mod heat;
pub mod letter;
pub mod log;
pub mod outgoing;
pub mod printable;
pub mod reading;
pub mod refusal;
pub mod rows;
pub mod rules;
pub mod state;
pub mod time;
pub mod topology;
pub mod units;
pub mod update;

pub use arrival::{Arrival, CityKey, CityName, Outcome, OutcomeKind};
pub use block::{BLOCK_READINGS, Block, HeldReading};
pub use blocks::Blocks;
pub use change::{Batch, Change, CityId, CityNames, CurrentRow, DayChange, DaySummary, Row};
pub use heat::{Category, HeatIndex};
pub use letter::Letter;
pub use log::{
    Acknowledge, AppendError, AppendReport, Appended, Appender, ClientId, Fingerprint, Hold, HoldCause,
    Holds, LogPosition, LogRecord, NewRecord, PartitionName, Progress, Raw, RecordPlace, Retried, Slot,
    Slots,
};
pub use outgoing::{Parcel, ParcelRecord, Parcels, Render, Shard};
pub use reading::{Event, Measurement, Revision, Upsert};
pub use refusal::{Reason, Refusal};
pub use rows::{ChangeLine, CityRows, DayLine, DeadLetter, RecordAt, ResultRow};
pub use state::{CityState, Mark, STATE_SHARDS, Snapshots, state_shard};
pub use time::{Duration, EventTime, LocalTime, TimeError};
pub use topology::Topology;
pub use units::{OutputUnits, TemperatureUnit, WindUnit};
pub use update::{Answer, Ask, Counts, CurrentAt, PINNED_BYTES, Query, Question, Rest, Update, WatchedRow};
