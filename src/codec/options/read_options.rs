//! All options of how a source's records are written, and checks of their combinations.

use std::path::{Path, PathBuf};

use super::super::{DecodeSettings, Format, HumidityScale, Moisture};
use super::lists;
use super::{ColumnNames, OptionProblem, TimeFormat};

/// How the records of a source are written. Each option affects what the records mean.
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
    /// Texts that stand for no value, in any field but the city.
    pub null_values: Box<[String]>,
    /// Suffixes of numbers, such as marks of their quality.
    pub number_flags: Box<[String]>,
    /// Numbers have a comma in place of the point.
    pub decimal_comma: bool,
    pub time_format: TimeFormat,
}

/// The layout of a text file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextLayout {
    /// The delimiter of CSV; a comma if not set.
    pub delimiter: Option<u8>,
    /// The number of lines before the header.
    pub skip_lines: u32,
    /// The names of the columns, if the file has no header.
    pub header: Option<Box<[String]>>,
    /// The file of humidities, if each column but the time is a city. Its layout is that of the
    /// file of temperatures.
    pub wide: Option<PathBuf>,
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
    pub(in super::super) fn delimiter(&self) -> u8 {
        self.delimiter.unwrap_or(b',')
    }
}

impl ReadOptions {
    /// Whether all options have their defaults.
    pub fn is_default(&self) -> bool {
        *self == ReadOptions::default()
    }

    /// The options for one file, whose name becomes the city if that is wanted.
    pub fn for_file(&self, path: Option<&Path>) -> ReadOptions {
        let mut options = self.clone();
        if let Some(name) = path.and_then(Path::file_name) {
            options.record.columns.set_file_name(&name.to_string_lossy());
        }
        options
    }

    /// Checks that every option applies to records of a format.
    ///
    /// # Errors
    ///
    /// The first option that would have no effect, or contradicts another one.
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

    /// The options that affect what the records mean, and differ from the [`DecodeSettings`] of all
    /// sources; empty if none does.
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

/// Parses a delimiter: one ASCII character; `\t` or the word tab is a tab.
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
