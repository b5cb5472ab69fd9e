//! How a journal is configured, and its limits.

use crate::codec::DecodeSettings;
use crate::model::Millis;

/// The name of the source.
pub const SOURCE_NAME: &str = "journal";

/// The most partitions that a journal may have.
pub const MAX_PARTITIONS: u32 = 1024;

/// How a journal is configured.
#[derive(Clone, Debug)]
pub struct JournalPlan {
    /// 1 to [`MAX_PARTITIONS`]; must stay what it was when the journal was begun.
    pub partitions: u32,
    /// What may wait to be written, before appends are refused as
    /// [`AppendError::Busy`](crate::model::AppendError::Busy).
    pub queue_records: usize,
    pub queue_bytes: usize,
    /// The newest records that are kept in memory for readers, in bytes over all partitions.
    pub tail_bytes: usize,
    /// Warns when the journal has become so large, and each time it has doubled; 0 never does.
    pub warn_bytes: u64,
    /// A clock that is further ahead than this of what it should say holds appends back, until it
    /// is right or has said so for a minute.
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
