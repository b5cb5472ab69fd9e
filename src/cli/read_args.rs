//! Command-line options of the format of reading files.

use std::path::PathBuf;

use clap::Args;
use jiff::tz::Offset;

use super::CliError;
use crate::codec::{
    ColumnNames, DecodeSettings, HumidityScale, InputTemperatureUnit, InputWindUnit, Moisture, ReadOptions,
    RecordOptions, TextLayout, TimeFormat, parse_delimiter, parse_list,
};
use crate::model::LocalTimePolicy;
use crate::model::time::{IanaZone, parse_offset};
use crate::sources::file::InputFile;

/// How the records of files are written, where it is not as swelter writes them itself.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "How the files are written")]
pub struct ReadArgs {
    /// The UTC offset of times without one, such as Z or -05:00; without this option, such readings
    /// are refused
    #[arg(long, value_name = "OFFSET", value_parser = parse_offset, allow_hyphen_values = true)]
    assume_offset: Option<Offset>,
    /// The IANA time zone of times without an offset, such as America/New_York; a local time that
    /// occurs twice is the earlier one, and one that does not occur is refused
    #[arg(long, value_name = "ZONE", value_parser = IanaZone::from_name, conflicts_with = "assume_offset")]
    pub(super) time_zone: Option<IanaZone>,
    /// The unit of temperatures and dew points
    #[arg(long, default_value = "fahrenheit")]
    units: InputTemperatureUnit,
    /// The measure of moisture in the files
    #[arg(long, default_value = "humidity")]
    moisture: Moisture,
    /// The scale of humidities
    #[arg(long, default_value = "percent")]
    humidity: HumidityScale,
    /// The unit of wind speeds
    #[arg(long, default_value = "mph", value_name = "UNITS")]
    wind_units: InputWindUnit,
    /// The delimiter of CSV fields, as in ; or | or \t [default: a comma]
    #[arg(long, value_name = "CHARACTER", value_parser = parse_delimiter)]
    delimiter: Option<u8>,
    /// Numbers of CSV have a decimal comma
    #[arg(long)]
    decimal_comma: bool,
    /// The columns of fields, as in city=station,reading_at=Date+Time,temperature=tmpf; city=@NAME
    /// is the city of all records, and city=@ the name of the file up to its first dot
    #[arg(long, value_name = "FIELD=COLUMN,..", value_parser = ColumnNames::parse)]
    columns: Option<ColumnNames>,
    /// The texts of missing values, as in M,T,NA,---
    #[arg(long, value_name = "TEXT,..", value_parser = list, allow_hyphen_values = true)]
    null: Option<ListArg>,
    /// The texts that may follow a number of CSV, such as quality flags, as in s,V; a number with
    /// another one is refused
    #[arg(long, value_name = "TEXT,..", value_parser = list)]
    flags: Option<ListArg>,
    /// The format of times: seconds or milliseconds (since 1970), or a pattern of strptime, as in
    /// "%d.%m.%Y %H:%M" [default: RFC 3339]
    #[arg(long, value_name = "FORMAT")]
    time_format: Option<TimeFormat>,
    /// The number of lines to skip before the header, or before the first record
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip_lines: u32,
    /// The names of the columns, for CSV without a header line
    #[arg(long, value_name = "NAME,..", value_parser = list)]
    header: Option<ListArg>,
    /// The CSV file of humidities, if each column except that of the time is a city and the input
    /// has their temperatures
    #[arg(long, value_name = "FILE")]
    wide: Option<PathBuf>,
}

/// A newtype, so that clap takes the whole list as one value.
#[derive(Clone, Debug)]
struct ListArg(Box<[String]>);

fn list(text: &str) -> Result<ListArg, String> {
    parse_list(text).map(ListArg)
}

impl ReadArgs {
    pub(super) fn read_options(&self) -> ReadOptions {
        let local_time = match (self.assume_offset, self.time_zone) {
            (Some(offset), _) => LocalTimePolicy::Offset(offset),
            (None, Some(zone)) => LocalTimePolicy::Zone(zone),
            (None, None) => LocalTimePolicy::Refuse,
        };
        let items = |list: &Option<ListArg>| list.as_ref().map(|ListArg(items)| items.clone());
        ReadOptions {
            settings: DecodeSettings {
                local_time,
                temperature_unit: self.units,
                moisture: self.moisture,
                humidity: self.humidity,
                wind_unit: self.wind_units,
            },
            record: RecordOptions {
                columns: self.columns.clone().unwrap_or_default(),
                null_values: items(&self.null).unwrap_or_default(),
                number_flags: items(&self.flags).unwrap_or_default(),
                decimal_comma: self.decimal_comma,
                time_format: self.time_format.clone().unwrap_or_default(),
            },
            layout: TextLayout {
                delimiter: self.delimiter,
                skip_lines: self.skip_lines,
                header: items(&self.header),
                wide: self.wide.clone(),
            },
        }
    }

    /// Returns the options, after a check that each of them applies to all of these files.
    pub(super) fn read_options_for(&self, files: &[InputFile]) -> Result<ReadOptions, CliError> {
        let options = self.read_options();
        for file in files {
            options.check(file.format).map_err(|refused| {
                CliError::Usage(format!("--{} {}", refused.key.replace('_', "-"), refused.problem))
            })?;
        }
        if options.record.columns.needs_file_name() && files.iter().any(|file| file.path.is_none()) {
            let problem =
                "--columns city=@ is the name of the file, and standard input has none: write city=@NAME";
            return Err(CliError::Usage(problem.into()));
        }
        Ok(options)
    }
}
