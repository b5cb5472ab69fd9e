//! Bytes to readings, results to bytes: CSV, JSON lines and Parquet, plain or compressed; JSON and
//! Avro record by record.
//!
//! A [`FileDecoder`] turns a file or a pipe into [`Upsert`](crate::model::Upsert)s, one record at a
//! time, and keeps the bytes of the current record for its dead letter. A [`JsonRecordDecoder`]
//! decodes single records of JSON, an [`AvroDecoder`] those of Avro. A record that breaks a rule is
//! a [`Refusal`](crate::model::Refusal), and reading goes on; a file that cannot be read is a
//! [`DecodeError`], which ends it. The writers are the counterparts of the decoders.

mod avro;
mod compress;
mod csv;
mod decimal;
mod decode_error;
mod digest;
mod exported_rows;
mod field;
mod field_values;
mod file_columns;
mod file_decoder;
mod foreign_formats;
mod format;
mod json;
mod json_stream;
mod options;
mod panic_guard;
mod parquet;
mod read_statistics;
mod readings;
mod record_lines;
mod reports;
mod results;
mod row_json;
mod settings;
mod text_output;
mod unknown_fields;
mod wide;

#[cfg(test)]
mod tests;

pub use self::avro::{
    AvroDecoder, CURRENT_SCHEMA, READING_SCHEMA, ROW_SCHEMA, SchemaError, current_to_avro, push_wire_header,
    reading_to_avro, row_to_avro, split_wire_header,
};
pub use self::compress::{CompressedWriter, GzipMemberReader, compressing_writer};
pub use self::decode_error::DecodeError;
pub use self::exported_rows::ExportedRowsWriter;
pub use self::file_decoder::FileDecoder;
pub use self::format::{
    Compression, FileNameError, Format, Framing, MAX_FIELD_LINES, MAX_RECORD_BYTES, detect_compression,
    detect_format,
};
pub use self::json::JsonRecordDecoder;
#[cfg(any(test, fuzzing))]
pub(crate) use self::json_stream::is_one_record_per_line;
pub use self::options::{
    ColumnNames, LOCAL_TIMES_METRIC, LocalTimeCounts, OptionProblem, ReadOptions, RecordOptions, TextLayout,
    TimeFormat, parse_delimiter, parse_list,
};
pub use self::read_statistics::ReadStatistics;
pub use self::readings::{ReadingsWriter, RecordFields, push_json_record};
pub use self::reports::{ChangesWriter, DailyWriter, DeadLettersWriter};
pub use self::results::ResultRowsWriter;
pub use self::row_json::{
    push_aged_current_json, push_current_json, push_current_values, push_heat_index_values, push_key_json,
    push_measurement_values, push_row_csv, push_row_json, push_row_values, push_units,
};
pub use self::settings::{DecodeSettings, HumidityScale, InputTemperatureUnit, InputWindUnit, Moisture};
pub(crate) use self::text_output::{push_csv_text, push_integer, push_json_text, push_number};
pub use self::unknown_fields::{unknown_field_count, unknown_field_names};
