use std::path::Path;

use super::*;
use crate::codec::{
    Compression, DecodeError, DecodeSettings, FileDecoder, Format, HumidityScale, InputTemperatureUnit,
    InputWindUnit, JsonRecordDecoder, ReadingsWriter, RecordFields,
};
use crate::model::time::IanaZone;
use crate::model::{EventTime, LocalTimePolicy, Reason, Upsert};

fn columns(text: &str) -> ReadOptions {
    let record = RecordOptions { columns: ColumnNames::parse(text).unwrap(), ..RecordOptions::default() };
    ReadOptions { record, ..ReadOptions::default() }
}

fn with_format(format: &str) -> ReadOptions {
    let record = RecordOptions { time_format: format.parse().unwrap(), ..RecordOptions::default() };
    ReadOptions { record, ..ReadOptions::default() }
}

type AcceptedReading = (String, String, f64, f64, Option<f64>);

fn taken(upsert: &Upsert<'_>) -> AcceptedReading {
    let measurement = upsert.event.measurement().unwrap();
    let numbers = (measurement.temperature(), measurement.humidity(), measurement.wind_speed());
    (upsert.city.into(), upsert.reading_at.to_string(), numbers.0, numbers.1, numbers.2)
}

fn decode(
    text: &str,
    format: Format,
    options: &ReadOptions,
) -> Result<Vec<Result<AcceptedReading, Reason>>, DecodeError> {
    let reader = Box::new(std::io::Cursor::new(text.to_owned().into_bytes()));
    let mut decoder = FileDecoder::from_reader(reader, format, Compression::None, options)?;
    let mut records = Vec::new();
    while let Some(decoded) = decoder.next()? {
        records.push(decoded.map(|upsert| taken(&upsert)).map_err(|refusal| refusal.reason));
    }
    Ok(records)
}

fn csv(text: &str, options: &ReadOptions) -> Vec<Result<AcceptedReading, Reason>> {
    decode(text, Format::Csv, options).unwrap()
}

fn json(line: &str, options: &ReadOptions) -> Result<AcceptedReading, Reason> {
    let mut decoder = JsonRecordDecoder::new(options);
    decoder.decode(line.as_bytes()).map(|upsert| taken(&upsert)).map_err(|refusal| refusal.reason)
}

fn x(temperature: f64, humidity: f64) -> AcceptedReading {
    ("x".into(), "2013-07-18T15:00:00Z".into(), temperature, humidity, None)
}

#[test]
fn column_option_ignores_case_and_round_trips() {
    let options = columns("city=station, reading_at = VALID ,temperature=\"Temp, °F\",humidity=relh");
    let text = "Station,valid,\"TEMP, °f\",RELH,temperature\nx,2013-07-18T15:00:00Z,95,49,7\n";
    assert_eq!(csv(text, &options), [Ok(x(95.0, 49.0))]);
    let line = r#"{"STATION":"x","valid":"2013-07-18T15:00:00Z","temp, °f":95,"relh":49,"temperature":7}"#;
    assert_eq!(json(line, &options), Ok(x(95.0, 49.0)));
    for text in [
        "city=station,reading_at=valid,temperature=\"Temp, °F\",humidity=relh",
        "city=@\"a, b\",reading_at=Date+Time,temperature=TMP/10",
        "reading_at=year+month+day+hour,dew_point=\"d/p\",wind_speed=v/0.5,op=o,deleted=\"\"\"d\"\"\"",
    ] {
        assert_eq!(ColumnNames::parse(text).unwrap().to_string(), text);
    }
}

#[test]
fn default_column_names_ignore_case() {
    let text = "City,Reading_At,TEMPERATURE,Humidity\nx,2013-07-18T15:00:00Z,95,49\n";
    assert_eq!(csv(text, &ReadOptions::default()), [Ok(x(95.0, 49.0))]);
    let twice = "city,City,reading_at,temperature,humidity\n";
    let twice = decode(twice, Format::Csv, &ReadOptions::default()).unwrap_err();
    assert!(matches!(twice, DecodeError::DuplicateColumn { column: "city", .. }), "{twice}");
}

#[test]
fn missing_named_columns_are_listed() {
    let text = "city,reading_at,temperature,humidity\nx,2013-07-18T15:00:00Z,95,49\n";
    let missing = decode(text, Format::Csv, &columns("wind_speed=sknt")).unwrap_err().to_string();
    assert!(missing.contains("no column \"sknt\", which was named for wind_speed"), "{missing}");
    let missing = decode(text, Format::Csv, &columns("temperature=tmpf")).unwrap_err().to_string();
    assert!(missing.contains("tmpf"), "{missing}");
}

#[test]
fn constant_city_applies_to_all_records() {
    let text = "city,reading_at,temperature,humidity\ny,2013-07-18T15:00:00Z,95,49\n";
    assert_eq!(csv(text, &columns("city=@x")), [Ok(x(95.0, 49.0))]);
    let line = r#"{"city":"y","reading_at":"2013-07-18T15:00:00Z","temperature":95,"humidity":49}"#;
    assert_eq!(json(line, &columns("city=@x")), Ok(x(95.0, 49.0)));
    let of_file = columns("city=@").for_file(Some(Path::new("logs/x.2013.csv.gz")));
    assert_eq!(csv(text, &of_file), [Ok(x(95.0, 49.0))]);
}

#[test]
fn json_numbers_use_null_value_and_divisor_like_csv() {
    let mut options = columns("temperature=t/10,humidity=h");
    options.record.null_values = Box::new(["-9999".into(), "M".into()]);
    let record = |t: &str, h: &str| {
        let line = format!(r#"{{"city":"x","reading_at":"2013-07-18T15:00:00Z","t":{t},"h":{h}}}"#);
        json(&line, &options)
    };
    assert_eq!(record("951", "49"), Ok(x(95.1, 49.0)));
    for (t, h) in [("-9999", "49"), ("951", "-9999.0"), ("\"M\"", "49"), ("951", "\" M\"")] {
        assert_eq!(record(t, h), Err(Reason::MissingField), "{t} {h}");
    }
    let text = "city,reading_at,t,h\nx,2013-07-18T15:00:00Z, 951 ,49\nM,2013-07-18T15:00:00Z,951,49\nx,2013-07-18T15:00:00Z,M,49\n";
    let of_m = |mut taken: AcceptedReading| {
        taken.0 = "M".into();
        taken
    };
    assert_eq!(csv(text, &options), [Ok(x(95.1, 49.0)), Ok(of_m(x(95.1, 49.0))), Err(Reason::MissingField)]);
}

#[test]
fn decimal_comma_and_delimiter_are_read() {
    let mut options = ReadOptions::default();
    options.layout.delimiter = Some(b';');
    options.record.decimal_comma = true;
    let row = |t: &str| {
        csv(&format!("city;reading_at;temperature;humidity\nx;2013-07-18T15:00:00Z;{t};49\n"), &options)
    };
    assert_eq!(row("95,1"), [Ok(x(95.1, 49.0))]);
    assert_eq!(row("\"95,1\""), [Ok(x(95.1, 49.0))]);
    assert_eq!(row("95"), [Ok(x(95.0, 49.0))]);
    for wrong in ["95.1", "9.5,1", "9,5,1", "95,1s"] {
        assert_eq!(row(wrong), [Err(Reason::BadNumber)], "{wrong}");
    }
    assert_eq!(row("95,1;"), [Err(Reason::NotDecodable)]);
    let quoted = "city;reading_at;temperature;humidity\n\"x;\"\"y\";2013-07-18T15:00:00Z;95,1;49\n";
    assert_eq!(csv(quoted, &options)[0].as_ref().unwrap().0, "x;\"y");
    for (text, byte) in [(";", b';'), ("|", b'|'), ("\\t", b'\t'), ("\t", b'\t'), ("tab", b'\t'), (",", b',')]
    {
        assert_eq!(parse_delimiter(text), Ok(byte));
    }
    for wrong in ["", ";;", "a", "7", "\"", "\n", "é", "-", "."] {
        assert!(parse_delimiter(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn quality_flags_refuse_all_but_named() {
    let mut options = ReadOptions::default();
    options.record.number_flags = Box::new(["s".into(), ",1".into()]);
    let row = |t: &str| {
        csv(&format!("city,reading_at,temperature,humidity\nx,2013-07-18T15:00:00Z,{t},49\n"), &options)
    };
    for right in ["95", "95s", "95 s", "\"95,1\"", "\"+0095,1\""] {
        assert_eq!(row(right), [Ok(x(95.0, 49.0))], "{right}");
    }
    for wrong in ["95V", "95ss", "\"95,3\"", "s"] {
        assert_eq!(row(wrong), [Err(Reason::BadNumber)], "{wrong}");
    }
}

fn time(text: &str, options: &ReadOptions) -> Result<String, Reason> {
    let row = format!("city,reading_at,temperature,humidity\nx,\"{text}\",95,49\n");
    csv(&row, options).remove(0).map(|taken| taken.1)
}

#[test]
fn unix_seconds_and_milliseconds_are_times() {
    let (seconds, millis) = (with_format("seconds"), with_format("milliseconds"));
    let at = |text: &str| Ok(text.to_owned());
    assert_eq!(time(" 1374159600 ", &seconds), at("2013-07-18T15:00:00Z"));
    assert_eq!(time("1374159600.5", &seconds), at("2013-07-18T15:00:00.5Z"));
    assert_eq!(time("1374159600.0009", &seconds), at("2013-07-18T15:00:00Z"));
    assert_eq!(time("-0.0005", &seconds), at("1969-12-31T23:59:59.999Z"));
    assert_eq!(time("-1.5", &seconds), at("1969-12-31T23:59:58.5Z"));
    assert_eq!(time("1374159600500", &millis), at("2013-07-18T15:00:00.5Z"));
    assert_eq!(time("1374159600500.9", &millis), at("2013-07-18T15:00:00.5Z"));
    assert_eq!(time("-0.5", &millis), at("1969-12-31T23:59:59.999Z"));
    for wrong in [
        "1374159600500",
        "1e9",
        "1374159600,5",
        "2013-07-18T15:00:00Z",
        "NaN",
        ".5",
        "1.",
        "--1",
        "99999999999999999999",
    ] {
        assert_eq!(time(wrong, &seconds), Err(Reason::BadTime), "{wrong}");
    }
    let line = |at: &str| format!(r#"{{"city":"x","reading_at":{at},"temperature":95,"humidity":49}}"#);
    for right in ["1374159600", "1374159600.0", "\"1374159600\""] {
        assert_eq!(json(&line(right), &seconds), Ok(x(95.0, 49.0)), "{right}");
    }
    for wrong in ["1e300", "true", "1e17"] {
        assert_eq!(json(&line(wrong), &seconds), Err(Reason::BadTime), "{wrong}");
    }
}

#[test]
fn time_patterns_exclude_leap_seconds() {
    let mut options = with_format("%d.%m.%Y %H:%M:%S");
    assert_eq!(time("18.07.2013 15:00:00", &options), Err(Reason::NoOffset));
    options.settings.local_time = LocalTimePolicy::Offset(jiff::tz::offset(-4));
    assert_eq!(time("18.07.2013 11:00:00", &options), Ok("2013-07-18T15:00:00Z".into()));
    assert_eq!(time("18.7.2013 11:00:59", &options), Ok("2013-07-18T15:00:59Z".into()));
    for wrong in [
        "18.07.2013 11:00:60",
        "18.07.2013 11:59:60",
        "18.07.2013 24:00:00",
        "31.06.2013 11:00:00",
        "18.07.2013 11:00:00 ?",
        "18.07.2013",
        "2013-07-18T15:00:00Z",
    ] {
        assert_eq!(time(wrong, &options), Err(Reason::BadTime), "{wrong}");
    }
    let offset = with_format("%Y-%m-%d %H:%M %z");
    assert_eq!(time("2013-07-18 11:00 -0400", &offset), Ok("2013-07-18T15:00:00Z".into()));
    options.record.time_format = "%m/%d/%y %I:%M%p".parse().unwrap();
    for (text, at) in [
        ("7/18/13 12:30a", "04:30"),
        ("7/18/13 12:30p", "16:30"),
        ("7/18/13 11:00AM", "15:00"),
        ("7/18/13 1:05 pm", "17:05"),
    ] {
        let expected = format!("2013-07-18T{at}:00Z");
        let text = if text.contains(" pm") { text.replace(" pm", "pm") } else { text.to_owned() };
        assert_eq!(time(&text, &options), Ok(expected), "{text}");
    }
    for wrong in [
        "%H:%M",
        "%Y-%m",
        "%Y-%m-%d %I:%M",
        "%c",
        "%x %X",
        "%Y-%m-%d %Q",
        "%Z %Y-%m-%d",
        "%",
        "%Y-%m-%d %?",
        "day",
        "%M/%d/%Y",
    ] {
        assert!(wrong.parse::<TimeFormat>().is_err(), "{wrong}");
    }
}

#[test]
fn ambiguous_and_skipped_local_times_are_counted() {
    let mut options = ReadOptions::default();
    options.settings.local_time = LocalTimePolicy::Zone(IanaZone::from_name("America/New_York").unwrap());
    let text = "city,reading_at,temperature,humidity\n\
        x,2013-11-03 01:30,50,50\nx,2013-03-10 02:30,50,50\nx,2013-07-18 11:00,50,50\nx,2013-11-03T06:30:00Z,50,50\n";
    let reader = Box::new(std::io::Cursor::new(text.as_bytes()));
    let mut decoder = FileDecoder::from_reader(reader, Format::Csv, Compression::None, &options).unwrap();
    let mut times = Vec::new();
    while let Some(decoded) = decoder.next().unwrap() {
        times.push(decoded.map(|upsert| upsert.reading_at.to_string()).map_err(|refusal| refusal.reason));
    }
    let expected =
        ["2013-11-03T05:30:00Z", "", "2013-07-18T15:00:00Z", "2013-11-03T06:30:00Z"].map(str::to_owned);
    let [first, _, third, fourth] = expected;
    assert_eq!(times, [Ok(first), Err(Reason::BadTime), Ok(third), Ok(fourth)]);
    assert_eq!(decoder.local_times(), LocalTimeCounts { ambiguous: 1, skipped: 1 });
}

#[test]
fn scale_and_unit_options_convert_values() {
    let mut options = ReadOptions::default();
    options.settings.humidity = HumidityScale::Fraction;
    options.settings.temperature_unit = InputTemperatureUnit::Kelvin;
    options.settings.wind_unit = InputWindUnit::KilometresPerHour;
    let row =
        "city,reading_at,temperature,humidity,wind_speed\nx,2013-07-18T15:00:00Z,308.15,0.57,16.09344\n";
    let taken = csv(row, &options).remove(0).unwrap();
    assert_eq!((taken.2, taken.3), (95.0, 57.0));
    assert!((taken.4.unwrap() - 10.0).abs() < 1e-12);
    for humidity in 0..=100 {
        let text = format!(
            "city,reading_at,temperature,humidity\nx,2013-07-18T15:00:00Z,300,{}\n",
            f64::from(humidity) / 100.0
        );
        assert_eq!(csv(&text, &options)[0].as_ref().unwrap().3, f64::from(humidity));
    }
}

#[test]
fn header_option_and_skip_lines_are_applied() {
    let mut options = ReadOptions::default();
    options.layout.header = Some(["city", "reading_at", "temperature", "humidity"].map(String::from).into());
    options.layout.skip_lines = 3;
    let row = "x,2013-07-18T15:00:00Z,95,49\n";
    let long = "y".repeat(200_000);
    for before in ["a\n\n\"b\n".to_owned(), format!("{long}\n\r\n{long}{long}\n")] {
        let text = format!("{before}{row}");
        assert_eq!(csv(&text, &options), [Ok(x(95.0, 49.0))]);
        let mut decoder = csv_decoder(text, &options);
        assert!(decoder.next().unwrap().unwrap().is_ok());
        assert_eq!((decoder.line(), decoder.raw().len()), (4, row.len() - 1));
    }
    assert_eq!(csv("a\n", &options), []);
    let json = decode(
        "a\nb\nc\n{}\n",
        Format::Json,
        &ReadOptions {
            layout: TextLayout { skip_lines: 3, ..TextLayout::default() },
            ..ReadOptions::default()
        },
    );
    assert_eq!(json.unwrap(), [Err(Reason::MissingField)]);
}

fn csv_decoder(text: String, options: &ReadOptions) -> FileDecoder {
    let reader = Box::new(std::io::Cursor::new(text.into_bytes()));
    FileDecoder::with_digest(reader, Format::Csv, Compression::None, options, crate::codec::Framing::Quotes)
        .unwrap()
}

/// A digest includes skipped lines.
#[test]
fn digest_includes_skipped_lines() {
    let mut options = ReadOptions::default();
    options.layout.skip_lines = 1;
    let digest = |first: &str| {
        let text = format!("{first}\ncity,reading_at,temperature,humidity\nx,2013-07-18T15:00:00Z,95,49\n");
        let mut decoder = csv_decoder(text, &options);
        assert!(decoder.skip().unwrap());
        decoder.digest().unwrap()
    };
    assert_eq!(digest("a"), digest("a"));
    assert_ne!(digest("a"), digest("b"));
}

#[test]
fn column_option_applies_to_parquet() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    let out = std::fs::File::create(&path).unwrap();
    let mut writer = ReadingsWriter::new(Format::Parquet, Compression::None, false, Box::new(out)).unwrap();
    let reading_at = "2013-07-18T15:00:00Z".parse::<EventTime>().unwrap();
    for temperature in [95.0, -999.0] {
        let fields = RecordFields {
            city: Some("y"),
            reading_at: Some(reading_at),
            temperature: Some(temperature),
            humidity: Some(49.0),
            ..RecordFields::default()
        };
        writer.write_fields(&fields).unwrap();
    }
    writer.finish().unwrap();
    let mut options = columns("city=@x,temperature=Temperature");
    options.record.null_values = Box::new(["-999".into()]);
    let mut decoder = FileDecoder::open(&path, Format::Parquet, Compression::None, &options).unwrap();
    assert_eq!(taken(&decoder.next().unwrap().unwrap().unwrap()), x(95.0, 49.0));
    assert_eq!(decoder.next().unwrap().unwrap().unwrap_err().reason, Reason::MissingField);
    let refused = FileDecoder::open(&path, Format::Parquet, Compression::None, columns("temperature=tmpf"));
    assert!(refused.is_err());
}

#[test]
fn identities_contain_every_decoding_option() {
    let common = DecodeSettings::default();
    assert_eq!(ReadOptions::default().identity_text(&common), "");
    let mut options = columns("city=station,temperature=TMP/10");
    options.record.null_values = Box::new(["M".into(), "1,5".into()]);
    options.record.time_format = "%d.%m.%Y %T".parse().unwrap();
    options.record.decimal_comma = true;
    options.record.number_flags = Box::new(["s".into()]);
    options.settings.temperature_unit = InputTemperatureUnit::Kelvin;
    options.settings.humidity = HumidityScale::Fraction;
    options.settings.local_time = LocalTimePolicy::Zone(IanaZone::from_name("Europe/Berlin").unwrap());
    options.layout = TextLayout {
        delimiter: Some(b';'),
        skip_lines: 2,
        header: Some(["a".into(), "b c".into()].into()),
        wide: None,
    };
    let edition = IanaZone::DATABASE_VERSION;
    let expected = format!(
        "units kelvin, humidity fraction, local times Europe/Berlin (tzdb {edition}), delimiter ';', skip_lines 2, header a,b c, \
         columns city=station,temperature=TMP/10, null M,\"1,5\", flags s, decimal_comma true, time_format %d.%m.%Y %H:%M:%S"
    );
    assert_eq!(options.identity_text(&common), expected);
    let comma = ReadOptions {
        layout: TextLayout { delimiter: Some(b','), ..TextLayout::default() },
        ..ReadOptions::default()
    };
    assert_eq!(comma.identity_text(&common), "", "as it is without it");
}

#[test]
fn option_lists_round_trip() {
    for (text, items) in [
        ("", &[][..]),
        ("M", &["M"]),
        ("M, T ,NA,---", &["M", "T", "NA", "---"]),
        ("\"a,b\",\"\"\"\",\" c \"", &["a,b", "\"", " c "]),
    ] {
        let list = parse_list(text).unwrap();
        assert_eq!(&list[..], items);
        assert_eq!(parse_list(&lists::format_list(&list)).unwrap(), list);
    }
    for wrong in ["a,,b", ",", "\"a", "a,"] {
        assert!(parse_list(wrong).is_err(), "{wrong}");
    }
}
