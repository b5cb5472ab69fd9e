//! The keys of record formats: `[decode]` for all sources, and those of each source.

use std::path::PathBuf;

use super::config_reader::ConfigReader;
use super::layers::ConfigValue;
use crate::codec::{
    ColumnNames, DecodeSettings, Format, OptionProblem, ReadOptions, RecordOptions, TextLayout,
    parse_delimiter, parse_list,
};
use crate::model::LocalTimePolicy;
use crate::model::time::{IanaZone, parse_offset};

/// Reads the settings of all sources and of posts.
pub fn read_decode_settings(keys: &mut ConfigReader) -> Option<DecodeSettings> {
    read_settings(keys, "decode", DecodeSettings::default())
}

/// Reads the settings of a table; `common` has the values of missing keys.
fn read_settings(keys: &mut ConfigReader, at: &str, common: DecodeSettings) -> Option<DecodeSettings> {
    let key = |name: &str| format!("{at}.{name}");
    let (units, moisture) = (keys.read_choice(&key("units")), keys.read_choice(&key("moisture")));
    let (humidity, wind_units) = (keys.read_choice(&key("humidity")), keys.read_choice(&key("wind_units")));
    let local_time = read_local_time(keys, at)?.unwrap_or(common.local_time);
    let settings = DecodeSettings {
        local_time,
        temperature_unit: units?,
        moisture: moisture?,
        humidity: humidity?,
        wind_unit: wind_units?,
    };
    let problem = ReadOptions::from(settings).check(Format::Json).err();
    add_problem(keys, at, problem).then_some(settings)
}

/// Reads how times without an offset are interpreted; the inner `None` means that the table does
/// not say.
fn read_local_time(keys: &mut ConfigReader, at: &str) -> Option<Option<LocalTimePolicy>> {
    let (offset_key, zone_key) = (format!("{at}.assume_offset"), format!("{at}.time_zone"));
    let assumed =
        keys.read_optional_text(&offset_key).map(|text| parse_offset(&text).map(LocalTimePolicy::Offset));
    let zone =
        keys.read_optional_text(&zone_key).map(|text| IanaZone::from_name(&text).map(LocalTimePolicy::Zone));
    if assumed.is_some() && zone.is_some() {
        keys.add_error(&zone_key, "is set beside assume_offset: leave one of them empty");
        return None;
    }
    let key = if assumed.is_some() { &offset_key } else { &zone_key };
    match assumed.or(zone).transpose() {
        Ok(local_time) => Some(local_time),
        Err(problem) => {
            keys.add_error(key, problem);
            None
        }
    }
}

/// Adds the error, if there is a problem; then returns false.
fn add_problem(keys: &mut ConfigReader, at: &str, problem: Option<OptionProblem>) -> bool {
    match problem {
        None => true,
        Some(OptionProblem { key, problem }) => {
            keys.add_error(&format!("{at}.{key}"), problem);
            false
        }
    }
}

/// Reads the options of a source with a record format.
pub fn source_read_options(
    keys: &mut ConfigReader,
    at: &str,
    common: DecodeSettings,
    format: Format,
) -> Option<ReadOptions> {
    let key = |name: &str| format!("{at}.{name}");
    for (name, value) in [
        ("units", common.temperature_unit.name()),
        ("moisture", common.moisture.name()),
        ("humidity", common.humidity.name()),
        ("wind_units", common.wind_unit.name()),
        ("assume_offset", ""),
        ("time_zone", ""),
        ("columns", ""),
        ("null", ""),
        ("time_format", ""),
    ] {
        keys.set_default(&key(name), ConfigValue::Text(value.into()));
    }
    let columns = keys.read_parsed(&key("columns"), ColumnNames::parse);
    let null = keys.read_parsed(&key("null"), parse_list);
    let time_format = keys.read_parsed(&key("time_format"), str::parse);
    let settings = read_settings(keys, at, common);
    let (columns, null, time_format) = (columns?, null?, time_format?);
    let record = RecordOptions { columns, null_values: null, time_format, ..RecordOptions::default() };
    let options = ReadOptions { settings: settings?, record, layout: TextLayout::default() };
    let problem = options.check(format).err();
    add_problem(keys, at, problem).then_some(options)
}

/// Reads the options of a file source.
pub fn file_read_options(
    keys: &mut ConfigReader,
    at: &str,
    common: DecodeSettings,
    format: Format,
) -> Option<ReadOptions> {
    let key = |name: &str| format!("{at}.{name}");
    for name in ["delimiter", "flags", "header", "wide"] {
        keys.set_default(&key(name), ConfigValue::Text(String::new()));
    }
    keys.set_default(&key("decimal_comma"), ConfigValue::Bool(false));
    keys.set_default(&key("skip_lines"), ConfigValue::Number(0));
    let delimiter = keys.read_parsed(&key("delimiter"), |text| match text {
        "" => Ok(None),
        text => parse_delimiter(text).map(Some),
    });
    let flags = keys.read_parsed(&key("flags"), parse_list);
    let header = keys.read_parsed(&key("header"), parse_list);
    let wide = keys.read_optional_text(&key("wide")).map(PathBuf::from);
    let decimal_comma = keys.read_bool(&key("decimal_comma"));
    let skip_lines = keys.read_integer(&key("skip_lines"), 0..=1_000_000);
    let mut options = source_read_options(keys, at, common, format)?;
    options.record.number_flags = flags?;
    options.record.decimal_comma = decimal_comma;
    options.layout = TextLayout {
        delimiter: delimiter?,
        skip_lines,
        header: header.filter(|names| !names.is_empty()),
        wide,
    };
    let problem = options.check(format).err();
    add_problem(keys, at, problem).then_some(options)
}
