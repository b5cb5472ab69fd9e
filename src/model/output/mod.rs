//! What a run writes: records that are encoded for durable sinks, lines of files, dead letters.

mod batch_builder;
pub mod dead_letter;
mod encoded_batch;
mod lines;
mod render;

pub use self::batch_builder::BatchBuilder;
pub use self::dead_letter::DeadLetter;
pub use self::encoded_batch::{EncodedBatch, EncodedRecord, Shard};
pub use self::lines::{ChangeLine, CityRows, DayLine, DeadLetterLine, RecordLocation, ResultRow};
pub use self::render::{Render, RenderWants};
