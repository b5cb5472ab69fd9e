//! The contract of logs: partitions of records with positions, appends, and how far each partition
//! is applied.

mod appender;
mod partition;
mod position;
mod record;

pub use self::appender::{
    AppendCallback, AppendError, AppendHold, AppendReport, AppendedRange, Appender, HoldCause, HoldCheck,
};
pub use self::partition::{PartitionIndex, PartitionName, PartitionProgress, PartitionTable};
pub use self::position::{Fingerprint, LogIdentity, LogPosition};
pub use self::record::{ClientId, NewRecord, RawRecord, RecordAddress, RetryInfo};
