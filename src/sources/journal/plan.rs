//! The configuration of a journal, and its limits.

use crate::codec::DecodeSettings;
use crate::model::Millis;

/// The name of the source.
pub const SOURCE_NAME: &str = "journal";

/// The maximum number of partitions of a journal.
pub const MAX_PARTITIONS: u32 = 1024;

/// The configuration of a journal.
#[derive(Clone, Debug)]
pub struct JournalPlan {
    /// 1 to [`MAX_PARTITIONS`]; must stay as it was when the journal was created.
    pub partitions: u32,
    /// The limit of queued records and bytes. Beyond it appends are refused as
    /// [`AppendError::Busy`](crate::model::AppendError::Busy).
    pub queue_records: usize,
    pub queue_bytes: usize,
    /// Bytes of the newest records that stay in memory for readers, over all partitions.
    pub tail_bytes: usize,
    /// The size at which a warning is logged, and again each time the journal has doubled; 0 for
    /// never.
    pub warn_bytes: u64,
    /// A clock that is further ahead than this puts appends on hold, until it is right or has been
    /// consistent for a minute.
    pub max_ahead: Millis,
    pub decode: DecodeSettings,
}

impl Default for JournalPlan {
    fn default() -> JournalPlan {
        JournalPlan {
            partitions: 16,
            queue_records: 100_000,
            queue_bytes: 32 << 20,
            tail_bytes: 16 << 20,
            warn_bytes: 10_000_000_000,
            max_ahead: Millis::from_millis(10 * 60_000).unwrap_or_default(),
            decode: DecodeSettings::default(),
        }
    }
}
