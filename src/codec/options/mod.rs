//! The options of a command, or keys of a configuration, that say how a source's records are
//! written.

mod columns;
mod lists;
mod normalize;
mod problem;
mod read_options;
mod time_format;

#[cfg(test)]
mod tests;

pub use self::columns::ColumnNames;
pub(super) use self::columns::eq_ignoring_case;
pub use self::lists::parse_list;
pub(super) use self::normalize::RecordNormalizer;
pub use self::normalize::{LOCAL_TIMES_METRIC, LocalTimeCounts};
pub use self::problem::OptionProblem;
pub use self::read_options::{ReadOptions, RecordOptions, TextLayout, parse_delimiter};
pub use self::time_format::TimeFormat;
