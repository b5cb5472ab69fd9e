//! How the records of a source are written: keys of `[decode]`, which hold for all, and of each source.

use std::path::PathBuf;

use super::keys::Keys;
use super::layers::Value;
use crate::codec::{
    ColumnNames, DecodeSettings, Format, OptionProblem, ReadOptions, RecordOptions, TextLayout,
    parse_delimiter, parse_list,
};
use crate::model::LocalTime;
use crate::model::time::{IanaZone, offset};

/// What is said of all sources, and of posts.
pub fn decode(keys: &mut Keys) -> Option<DecodeSettings> {
    settings(keys, "decode", DecodeSettings::default())
}

/// The settings under a table; those that it leaves out are as in `common`.
fn settings(keys: &mut Keys, at: &str, common: DecodeSettings) -> Option<DecodeSettings> {
    let key = |name: &str| format!("{at}.{name}");
    let (units, moisture) = (keys.choice(&key("units")), keys.choice(&key("moisture")));
    let (humidity, wind_units) = (keys.choice(&key("humidity")), keys.choice(&key("wind_units")));
    let local_time = local_time(keys, at)?.unwrap_or(common.local_time);
    let settings = DecodeSettings {
        local_time,
        units: units?,
        moisture: moisture?,
        humidity: humidity?,
        wind_units: wind_units?,
    };
    let problem = ReadOptions::from(settings).check(Format::Json).err();
    refuse(keys, at, problem).then_some(settings)
}

/// What times without an offset are; the inner nothing where the table does not say it.
fn local_time(keys: &mut Keys, at: &str) -> Option<Option<LocalTime>> {
    let (offset_key, zone_key) = (format!("{at}.assume_offset"), format!("{at}.time_zone"));
    let assumed = keys.optional(&offset_key).map(|text| offset(&text).map(LocalTime::Offset));
    let zone = keys.optional(&zone_key).map(|text| IanaZone::named(&text).map(LocalTime::Zone));
    if assumed.is_some() && zone.is_some() {
        keys.refuse(&zone_key, "is there beside assume_offset: leave one of them empty");
        return None;
    }
    let key = if assumed.is_some() { &offset_key } else { &zone_key };
    match assumed.or(zone).transpose() {
        Ok(local_time) => Some(local_time),
        Err(problem) => {
            keys.refuse(key, problem);
            None
        }
    }
}

/// False where there is a problem, which is then known.
fn refuse(keys: &mut Keys, at: &str, problem: Option<OptionProblem>) -> bool {
    match problem {
        None => true,
        Some(OptionProblem { key, problem }) => {
            keys.refuse(&format!("{at}.{key}"), problem);
            false
        }
    }
}

/// Of a source whose records are, or are in files of, a format.
pub fn of_source(keys: &mut Keys, at: &str, common: DecodeSettings, format: Format) -> Option<ReadOptions> {
    let key = |name: &str| format!("{at}.{name}");
    for (name, value) in [
        ("units", common.units.name()),
        ("moisture", common.moisture.name()),
        ("humidity", common.humidity.name()),
        ("wind_units", common.wind_units.name()),
        ("assume_offset", ""),
        ("time_zone", ""),
        ("columns", ""),
        ("null", ""),
        ("time_format", ""),
    ] {
        keys.default(&key(name), Value::Text(value.into()));
    }
    let columns = keys.parsed(&key("columns"), ColumnNames::parse);
    let null = keys.parsed(&key("null"), parse_list);
    let time_format = keys.parsed(&key("time_format"), str::parse);
    let settings = settings(keys, at, common);
    let (columns, null, time_format) = (columns?, null?, time_format?);
    let record = RecordOptions { columns, null, time_format, ..RecordOptions::default() };
    let options = ReadOptions { settings: settings?, record, layout: TextLayout::default() };
    let problem = options.check(format).err();
    refuse(keys, at, problem).then_some(options)
}

/// Of a source that is a file.
pub fn of_file(keys: &mut Keys, at: &str, common: DecodeSettings, format: Format) -> Option<ReadOptions> {
    let key = |name: &str| format!("{at}.{name}");
    for name in ["delimiter", "flags", "header", "wide"] {
        keys.default(&key(name), Value::Text(String::new()));
    }
    keys.default(&key("decimal_comma"), Value::Bool(false));
    keys.default(&key("skip_lines"), Value::Number(0));
    let delimiter = keys.parsed(&key("delimiter"), |text| match text {
        "" => Ok(None),
        text => parse_delimiter(text).map(Some),
    });
    let flags = keys.parsed(&key("flags"), parse_list);
    let header = keys.parsed(&key("header"), parse_list);
    let wide = keys.optional(&key("wide")).map(PathBuf::from);
    let decimal_comma = keys.flag(&key("decimal_comma"));
    let skip_lines = keys.whole(&key("skip_lines"), 0..=1_000_000);
    let mut options = of_source(keys, at, common, format)?;
    options.record.flags = flags?;
    options.record.decimal_comma = decimal_comma;
    options.layout = TextLayout {
        delimiter: delimiter?,
        skip_lines,
        header: header.filter(|names| !names.is_empty()),
        wide,
    };
    let problem = options.check(format).err();
    refuse(keys, at, problem).then_some(options)
}
