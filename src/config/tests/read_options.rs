//! Keys of the record format of a source.

use super::*;
use crate::codec::{DecodeSettings, HumidityScale, InputWindUnit, ReadOptions, TimeFormat};
use crate::model::LocalTimePolicy;

const FILE: &str = "[[sources]]\ntype = 'file'\nname = 'x'\npath = 'x.csv'\n";

fn options(keys: &str) -> ReadOptions {
    let config = Written::new(&format!("{FILE}{keys}")).load();
    config.unwrap_or_else(|errors| panic!("{errors:?}")).plan.sources[0].read_options.clone()
}

fn refused(text: &str) -> String {
    let written = Written::new(text);
    lines(&written.load().unwrap_err(), &written).join("\n")
}

#[test]
fn file_source_accepts_every_read_option() {
    let read = options(
        "units = 'kelvin'\nhumidity = 'fraction'\nwind_units = 'm/s'\ntime_zone = 'America/New_York'\n\
         columns = 'city=@,temperature=T/10'\nnull = 'M,NA'\ntime_format = '%d.%m.%Y %H:%M'\n\
         delimiter = ';'\ndecimal_comma = true\nflags = 's'\nheader = 'a,b'\nskip_lines = 3\n",
    );
    let settings = read.settings;
    assert_eq!(
        (settings.temperature_unit, settings.humidity),
        (InputTemperatureUnit::Kelvin, HumidityScale::Fraction)
    );
    assert_eq!(settings.wind_unit, InputWindUnit::MetresPerSecond);
    assert!(matches!(settings.local_time, LocalTimePolicy::Zone(zone) if zone.name() == "America/New_York"));
    assert_eq!(read.record.columns.to_string(), "city=@x,temperature=T/10");
    assert_eq!(
        (&read.record.null_values[..], &read.record.number_flags[..]),
        (&["M".into(), "NA".into()][..], &["s".into()][..])
    );
    assert!(matches!(read.record.time_format, TimeFormat::Pattern(_)) && read.record.decimal_comma);
    assert_eq!((read.layout.delimiter, read.layout.skip_lines), (Some(b';'), 3));
    assert_eq!(read.layout.header.as_deref().unwrap(), ["a", "b"]);
}

#[test]
fn source_options_override_decode_defaults() {
    let decode = "[decode]\nunits = 'celsius'\ntime_zone = 'Europe/Berlin'\n";
    let config = Written::new(&format!("{decode}{FILE}assume_offset = '-05:00'\n")).load().unwrap();
    let read = &config.plan.sources[0].read_options;
    assert_eq!(read.settings.temperature_unit, InputTemperatureUnit::Celsius);
    assert!(matches!(read.settings.local_time, LocalTimePolicy::Offset(_)));
    assert!(matches!(config.plan.decode.local_time, LocalTimePolicy::Zone(_)));
    assert_eq!(config.plan.ingest_read_options(), config.plan.decode.into(), "the journal's");
    let topic = "[[sources]]\ntype = 'kafka'\nbrokers = '127.0.0.1:1'\ntopic = 'r'\nunits = 'kelvin'\ncolumns = 'temperature=t'\n";
    let config = Written::new(topic).load().unwrap();
    assert_eq!(config.plan.ingest_read_options(), config.plan.sources[0].read_options);
    assert_eq!(config.plan.ingest_read_options().settings.temperature_unit, InputTemperatureUnit::Kelvin);
}

#[test]
fn inapplicable_options_are_refused_by_key() {
    let json = FILE.replace("x.csv", "x.jsonl");
    for (text, key) in [
        (format!("{json}delimiter = ';'\n"), "x.delimiter (swelter.toml, line 5): is for CSV alone"),
        (format!("{json}decimal_comma = true\n"), "x.decimal_comma (swelter.toml, line 5): is for CSV alone"),
        (format!("{json}wide = 'h.csv'\n"), "x.wide (swelter.toml, line 5): is for CSV alone"),
        (format!("{FILE}delimiter = 'ab'\n"), "delimiter"),
        (format!("{FILE}time_zone = 'Mars'\n"), "time_zone"),
        (
            format!("{FILE}time_zone = 'UTC'\nassume_offset = 'Z'\n"),
            "x.time_zone (swelter.toml, line 5): is set beside assume_offset",
        ),
        (format!("{FILE}time_format = 'seconds'\nassume_offset = 'Z'\n"), "time_format"),
        (format!("{FILE}columns = 'temp=x'\n"), "columns"),
        (format!("{FILE}units = 'rankine'\n"), "units"),
        (
            format!("{FILE}wide = 'h.csv'\nfollow = true\n"),
            "x.follow (swelter.toml, line 6): cannot be set together with wide",
        ),
        (
            "[decode]\nunits = 'celsius'\n[[sources]]\ntype = 'generator'\nname = 'g'\ncities = 3\n".into(),
            "generates readings in °F",
        ),
        ("[decode]\nmoisture = 'dew-point'\nhumidity = 'fraction'\n".into(), "decode.humidity"),
        ("[[sources]]\ntype = 'generator'\nname = 'g'\ncities = 3\nunits = 'celsius'\n".into(), "units"),
    ] {
        let said = refused(&text);
        assert!(said.contains(key), "{text}: {said}");
    }
}

#[test]
fn file_identity_contains_read_options() {
    let identity = |keys: &str| options(keys).identity_text(&DecodeSettings::default());
    assert_eq!(identity(""), "");
    assert_eq!(identity("delimiter = ','\n"), "", "as it is without it");
    assert_eq!(
        identity("delimiter = ';'\nnull = 'M'\nunits = 'celsius'\ncolumns = 'city=@'\n"),
        "units celsius, delimiter ';', columns city=@x, null M"
    );
}

/// An error of a path is reported alone, without the other keys as unknown.
#[test]
fn invalid_path_is_reported_alone() {
    let said = refused(&format!("{}delimiter = ';'\nskip_lines = 2\n", FILE.replace("x.csv", "x.txt")));
    assert!(said.lines().count() == 1 && said.contains("does not say its format"), "{said}");
}
