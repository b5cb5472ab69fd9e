//! How a source's records are written, as far as a person has to say it: by options of a command, or by keys of a configuration.

mod columns;
mod lists;
mod normalize;
mod time_format;

use std::path::{Path, PathBuf};

pub use self::columns::ColumnNames;
pub(super) use self::columns::eq_ignoring_case;
pub use self::lists::parse_list;
pub(super) use self::normalize::RecordNormalizer;
pub use self::normalize::{LOCAL_TIMES_METRIC, LocalTimeCounts};
pub use self::time_format::TimeFormat;
use super::{DecodeSettings, Format, HumidityScale, InputTemperatureUnit, InputWindUnit, Moisture};

/// All that is said of how the records of a source are written. Every part of it decides what a record says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReadOptions {
    /// Units, and what a time without an offset means.
    pub settings: DecodeSettings,
    /// Names of fields, and how times and numbers are written.
    pub record: RecordOptions,
    /// How a text file is laid out.
    pub layout: TextLayout,
}

/// How the fields of a record are written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecordOptions {
    pub columns: ColumnNames,
    /// What stands for nothing in any field but the city.
    pub null_values: Box<[String]>,
    /// What may stand behind a number, such as marks of its quality.
    pub number_flags: Box<[String]>,
    /// Numbers have a comma where others have a point.
    pub decimal_comma: bool,
    pub time_format: TimeFormat,
}

/// How a file of text is laid out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextLayout {
    /// Between the fields of CSV; a comma without it.
    pub delimiter: Option<u8>,
    /// Lines before the header.
    pub skip_lines: u32,
    /// The names of the columns, of a file that does not have them.
    pub header: Option<Box<[String]>>,
    /// Each column but that of the time is a city, and this file has the humidity as the other one has the temperature.
    pub wide: Option<PathBuf>,
}

/// An option that cannot be applied, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionProblem {
    /// As a key of the configuration; on a command line with `-` for `_`.
    pub key: &'static str,
    pub problem: String,
}

impl From<DecodeSettings> for ReadOptions {
    fn from(settings: DecodeSettings) -> ReadOptions {
        ReadOptions { settings, ..ReadOptions::default() }
    }
}

impl From<&ReadOptions> for ReadOptions {
    fn from(options: &ReadOptions) -> ReadOptions {
        options.clone()
    }
}

impl RecordOptions {
    pub(super) fn is_default(&self) -> bool {
        *self == RecordOptions::default()
    }
}

impl TextLayout {
    pub(super) fn delimiter(&self) -> u8 {
        self.delimiter.unwrap_or(b',')
    }
}

impl ReadOptions {
    /// Whether records are read as they are written where nothing is said of them.
    pub fn is_default(&self) -> bool {
        *self == ReadOptions::default()
    }

    /// For a file: a city that is called as its file gets that name.
    pub fn for_file(&self, path: Option<&Path>) -> ReadOptions {
        let mut options = self.clone();
        if let Some(name) = path.and_then(Path::file_name) {
            options.record.columns.set_file_name(&name.to_string_lossy());
        }
        options
    }

    /// Whether every option can be applied to records of a format.
    ///
    /// # Errors
    ///
    /// The first option that would be ignored, or that contradicts another one.
    pub fn check(&self, format: Format) -> Result<(), OptionProblem> {
        let refuse = |key, problem: &str| Err(OptionProblem { key, problem: problem.into() });
        let TextLayout { delimiter, skip_lines, header, wide } = &self.layout;
        let RecordOptions { columns, number_flags: flags, decimal_comma, time_format, .. } = &self.record;
        if format != Format::Csv {
            let only_csv = [
                ("delimiter", delimiter.is_some()),
                ("decimal_comma", *decimal_comma),
                ("flags", !flags.is_empty()),
                ("header", header.is_some()),
                ("wide", wide.is_some()),
            ];
            if let Some((key, _)) = only_csv.into_iter().find(|(_, is_given)| *is_given) {
                return refuse(key, "is for CSV alone: leave it out for other formats");
            }
        }
        if format == Format::Parquet && *skip_lines > 0 {
            return refuse("skip_lines", "is for text, and Parquet has no lines: leave it out");
        }
        if self.settings.moisture == Moisture::DewPoint && self.settings.humidity == HumidityScale::Fraction {
            return refuse("humidity", "is of no use where moisture is the dew point: leave one of them out");
        }
        if time_format.has_offset() && self.settings.has_local_times() {
            return refuse(
                "time_format",
                "says where its times are, so neither an offset nor a time zone is of use: leave that out",
            );
        }
        if wide.is_some() && !columns.names_only_time() {
            return refuse(
                "columns",
                "can name only reading_at in a wide file, whose other columns are the cities",
            );
        }
        if columns.names_other_moisture(self.settings.moisture) {
            return refuse(
                "columns",
                "names humidity where moisture is the dew point, or the other way round",
            );
        }
        Ok(())
    }

    /// What decides what the records of a source say, beside [`DecodeSettings`] that are those of all: empty where nothing does.
    pub fn identity_text(&self, common: &DecodeSettings) -> String {
        let mut parts = self.settings.differences(common);
        let mut say = |key: &str, value: String| parts.push(format!("{key} {value}"));
        let TextLayout { delimiter, skip_lines, header, wide } = &self.layout;
        let RecordOptions { columns, null_values: null, number_flags: flags, decimal_comma, time_format } =
            &self.record;
        if let Some(delimiter) = delimiter.filter(|delimiter| *delimiter != b',') {
            say("delimiter", format!("{:?}", char::from(delimiter)));
        }
        if *skip_lines > 0 {
            say("skip_lines", skip_lines.to_string());
        }
        if let Some(header) = header {
            say("header", lists::format_list(header));
        }
        if let Some(wide) = wide {
            say("wide", wide.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
        if !columns.is_empty() {
            say("columns", columns.to_string());
        }
        for (key, list) in [("null", null), ("flags", flags)] {
            if !list.is_empty() {
                say(key, lists::format_list(list));
            }
        }
        if *decimal_comma {
            say("decimal_comma", "true".into());
        }
        if *time_format != TimeFormat::default() {
            say("time_format", time_format.to_string());
        }
        parts.join(", ")
    }
}

/// One ASCII character; `\t`, or the word tab, is a tab.
pub fn parse_delimiter(text: &str) -> Result<u8, String> {
    let byte = match text.as_bytes() {
        b"\\t" | b"tab" => b'\t',
        [byte] => *byte,
        _ => return Err(format!("{text:?} is not one ASCII character, such as ; or | or \\t for a tab")),
    };
    let cannot_part = |byte: u8| byte.is_ascii_alphanumeric() || b"\"\r\n+-._".contains(&byte);
    match byte.is_ascii() && byte != 0 && !cannot_part(byte) {
        true => Ok(byte),
        false => {
            Err(format!("{text:?} may stand in a field: a delimiter is one of , ; | and \\t, or the like"))
        }
    }
}

impl DecodeSettings {
    /// What differs from the settings of all sources.
    fn differences(&self, common: &DecodeSettings) -> Vec<String> {
        let mut parts = Vec::new();
        if self.temperature_unit != common.temperature_unit {
            parts.push(format!("units {}", self.temperature_unit.name()));
        }
        if self.moisture != common.moisture {
            parts.push(format!("moisture {}", self.moisture.name()));
        }
        if self.humidity != common.humidity {
            parts.push(format!("humidity {}", self.humidity.name()));
        }
        if self.wind_unit != common.wind_unit {
            parts.push(format!("wind_units {}", self.wind_unit.name()));
        }
        if self.local_time != common.local_time {
            parts.push(format!("local times {}", self.local_time));
        }
        parts
    }
}

macro_rules! named {
    ($kind:ty { $($variant:ident => $name:literal),+ $(,)? }) => {
        impl $kind {
            pub const ALL: &'static [$kind] = &[$(<$kind>::$variant),+];

            /// As options, keys and identities call it.
            pub fn name(self) -> &'static str {
                match self {
                    $(<$kind>::$variant => $name),+
                }
            }
        }
    };
}

named!(InputTemperatureUnit { Fahrenheit => "fahrenheit", Celsius => "celsius", Kelvin => "kelvin" });
named!(Moisture { Humidity => "humidity", DewPoint => "dew-point" });
named!(HumidityScale { Percent => "percent", Fraction => "fraction" });
named!(InputWindUnit { Mph => "mph", KilometresPerHour => "km/h", MetresPerSecond => "m/s", Knots => "knots" });

#[cfg(test)]
mod tests;
