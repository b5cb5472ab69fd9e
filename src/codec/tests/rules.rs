//! What each rule accepts and refuses.

use super::*;

fn reason(line: &str, header: &str) -> Result<OwnedUpsert, Reason> {
    let records = decode(&format!("{header}\n{line}\n"), Format::Csv);
    assert_eq!(records.len(), 1, "{line}");
    assert_eq!(records[0].1, line.as_bytes());
    records.into_iter().next().unwrap().2.map_err(|refusal| refusal.reason)
}

const ALL: &str = "city,reading_at,temperature,humidity,wind_speed,revision,op,deleted";

#[test]
fn csv_fields_are_validated() {
    let t = "2025-01-01T00:00:00Z";
    let at = t.parse::<EventTime>().unwrap();
    let taken = |line: String| reason(&line, ALL).unwrap();
    let plain = ("x".to_string(), at, reading(45.0, 66.0, Some(12.0)), None);
    assert_eq!(taken(format!("x,{t},45,66,12,,,")), plain);
    assert_eq!(taken(format!("x,{t}, 45 ,6.6e1,+12.0,,upsert,false")), plain);
    assert_eq!(taken(format!("x, {t}  ,45,66,12,,,")), plain);
    assert_eq!(taken(format!("x,{t},45,66,,7,,")).3, Revision::new(7));
    assert_eq!(taken(format!("x,{t},45,66, ,-7,,False")).2, reading(45.0, 66.0, None));
    for line in ["x,{t},bad,,nan,7,delete,", "x,{t},,,,7,,true", "x,{t},1e9,,,7,upsert,TRUE"] {
        let expected = ("x".to_string(), at, ReadingEvent::Withdrawal, Revision::new(7));
        assert_eq!(taken(line.replace("{t}", t)), expected, "{line}");
    }
    for (line, reason_code) in [
        (",{t},45,66,12,,,", Reason::MissingField),
        ("x,,45,66,12,,,", Reason::MissingField),
        ("x,  ,45,66,12,,,", Reason::MissingField),
        ("x,{t},,66,12,,,", Reason::MissingField),
        ("x,{t},45,  ,12,,,", Reason::MissingField),
        ("a\tb,{t},45,66,12,,,", Reason::BadCity),
        ("x,noon,45,66,12,,,", Reason::BadTime),
        ("x,2025-01-01T00:00:00,45,66,12,,,", Reason::NoOffset),
        ("x,{t},inf,66,12,,,", Reason::BadNumber),
        ("x,{t},45,NaN,12,,,", Reason::BadNumber),
        ("x,{t},45,66,0x10,,,", Reason::BadNumber),
        ("x,{t},1e999,66,12,,,", Reason::BadNumber),
        ("x,{t},4 5,66,12,,,", Reason::BadNumber),
        ("x,{t},-,66,12,,,", Reason::BadNumber),
        ("x,{t},.,66,12,,,", Reason::BadNumber),
        ("x,{t},45,66,12,1.0,,", Reason::BadNumber),
        ("x,{t},45,66,12,-9223372036854775808,,", Reason::BadNumber),
        ("x,{t},,,,1.5,delete,", Reason::BadNumber),
        ("x,{t},45,66,12,,remove,", Reason::BadOperation),
        ("x,{t},45,66,12,,Delete,", Reason::BadOperation),
        ("x,{t},45,66,12,,,maybe", Reason::BadOperation),
        ("x,{t},141,66,12,,,", Reason::OutOfRange),
        ("x,{t},45,106,12,,,", Reason::OutOfRange),
        ("x,{t},45,66,-1,,,", Reason::OutOfRange),
        ("x,{t},45,66,12,,", Reason::NotDecodable),
        ("x,{t},45,66,12,,,,", Reason::NotDecodable),
        // The refusal is for the first rule that is broken.
        (",noon,bad,999,12,,,", Reason::MissingField),
        ("x,noon,bad,999,12,,,", Reason::BadTime),
        ("x,{t},999,66,bad,,,", Reason::BadNumber),
    ] {
        assert_eq!(reason(&line.replace("{t}", t), ALL), Err(reason_code), "{line}");
    }
}

#[test]
fn refusal_details_name_value_and_are_short() {
    let line = format!("x,2025-01-01T00:00:00Z,{},66,12,,,", "9x".repeat(5_000));
    let records = decode(&format!("{ALL}\n{line}\n"), Format::Csv);
    let detail = &records[0].2.as_ref().unwrap_err().detail;
    assert!(detail.starts_with("temperature \"9x9x9x"), "{detail}");
    assert!(detail.len() < 150, "{detail}");
    for line in [format!("x,{},45,66,12,,,", "2".repeat(60_000)), format!("x,{}", "y".repeat(60_000))] {
        let records = decode(&format!("{ALL}\n{line}\n"), Format::Csv);
        assert!(records[0].2.as_ref().unwrap_err().detail.len() < 400);
    }
}

/// Every format reads the text of a time by the same grammar; only CSV trims blanks around it.
#[test]
fn times_are_the_same_in_every_format() {
    for (text, detail) in [
        ("2025-01-01T23:59:60Z", "second 60 is a leap second"),
        ("2025-01-01T06:00:00[America/New_York]", "zone in brackets"),
        ("2025-01-01T06:00:00+25:00", "offsets are"),
        ("9999-12-31T23:59:59Z", "times end at 9999-12-30T22:00:00Z"),
    ] {
        let settings = DecodeSettings {
            local_time: LocalTimePolicy::Offset(jiff::tz::offset(0)),
            ..DecodeSettings::default()
        };
        let csv = format!("city,reading_at,temperature,humidity\nx,{text},45,66\n");
        let json =
            format!("{{\"city\":\"x\",\"reading_at\":\"{text}\",\"temperature\":45,\"humidity\":66}}\n");
        for (lines, format) in [(csv, Format::Csv), (json, Format::Json)] {
            let (records, _) = decode_with(lines.as_bytes(), format, Compression::None, settings).unwrap();
            let refusal = records[0].2.as_ref().unwrap_err();
            assert_eq!(refusal.reason, Reason::BadTime, "{text}");
            assert!(refusal.detail.contains(detail) && refusal.detail.contains(text), "{}", refusal.detail);
        }
    }
    let json = "{\"city\":\"x\",\"reading_at\":\" 2025-01-01T00:00:00Z\",\"temperature\":45,\"humidity\":66}";
    let refusal = decode(json, Format::Json).remove(0).2.unwrap_err();
    assert!(refusal.detail.contains("blanks around it"), "{}", refusal.detail);
}

#[test]
fn csv_headers_are_validated() {
    let open = |header: &str, settings: DecodeSettings| {
        let error = decode_with(header.as_bytes(), Format::Csv, Compression::None, settings);
        error.map(|(records, _)| records.len()).map_err(|(_, error)| error)
    };
    let plain = DecodeSettings::default();
    assert_eq!(open("humidity_pct,temperature_f,\"reading_at\",city,wind_speed_mph", plain).unwrap(), 0);
    assert!(matches!(open("", plain), Err(DecodeError::NoHeader)));
    assert!(matches!(open("a\"b,\"c", plain), Err(DecodeError::BadHeader(_))));
    assert!(matches!(open(&"x".repeat(70_000), plain), Err(DecodeError::BadHeader(_))));
    let missing = open("city,reading_at,temperature,wind", plain).unwrap_err();
    assert!(matches!(missing, DecodeError::MissingColumn { column: "humidity", .. }));
    assert!(missing.to_string().contains("\"wind\""), "{missing}");
    let twice = open("city,reading_at,temperature,temperature_f,humidity", plain).unwrap_err();
    assert!(matches!(twice, DecodeError::DuplicateColumn { column: "temperature", .. }));
    let dew_point = DecodeSettings { moisture: Moisture::DewPoint, ..plain };
    let missing = open("city,reading_at,temperature,humidity", dew_point).unwrap_err();
    assert!(matches!(missing, DecodeError::MissingColumn { column: "dew_point", .. }));
    let celsius = DecodeSettings { temperature_unit: InputTemperatureUnit::Celsius, ..plain };
    let missing = open("city,reading_at,temperature_f,humidity", celsius).unwrap_err();
    assert!(matches!(missing, DecodeError::MissingColumn { column: "temperature", .. }));
}

#[test]
fn missing_offset_is_assumed_only_if_configured() {
    let settings = DecodeSettings {
        local_time: LocalTimePolicy::Offset(jiff::tz::offset(-5)),
        ..DecodeSettings::default()
    };
    let text = "city,reading_at,temperature,humidity\nx,2025-01-01 00:00:00,45,66\n";
    let (records, _) = decode_with(text.as_bytes(), Format::Csv, Compression::None, settings).unwrap();
    assert_eq!(records[0].2.as_ref().unwrap().1.to_string(), "2025-01-01T05:00:00Z");
}

#[test]
fn line_endings_blank_lines_and_byte_order_marks_are_skipped() {
    let text = "\u{feff}city,reading_at,temperature,humidity\r\n\r\nx,2025-01-01T00:00:00Z,45,66\r\n \t\n\ny,2025-01-01T00:00:00Z,45,66\nz,2025-01-01T00:00:00Z,45,66";
    let records = decode(text, Format::Csv);
    let lines: Vec<_> =
        records.iter().map(|(line, _, result)| (*line, result.as_ref().unwrap().0.as_str())).collect();
    assert_eq!(lines, [(3, "x"), (6, "y"), (7, "z")]);
    assert_eq!(records[0].1, b"x,2025-01-01T00:00:00Z,45,66");
    let json = "\u{feff}{\"city\":\"x\"}\r\n\n{}";
    assert_eq!(decode(json, Format::Json).iter().map(|record| record.0).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn unknown_fields_are_counted() {
    let text = "city,reading_at,temperature,humidity,a,b\nx,2025-01-01T00:00:00Z,45,66,,\nx,2025-01-01T00:00:00Z,45,66,,\n";
    let counted = decode_with(text.as_bytes(), Format::Csv, Compression::None, DecodeSettings::default());
    assert_eq!(counted.unwrap().1, 4);
    let text = "{\"a\":1,\"city\":\"x\",\"b\":[{}]}\n{\"c\":null}\n";
    let counted = decode_with(text.as_bytes(), Format::Json, Compression::None, DecodeSettings::default());
    assert_eq!(counted.unwrap().1, 3);
}

#[test]
fn csv_quoting_is_parsed() {
    let row = |city: &str| format!("{city},2025-01-01T00:00:00Z,45,66");
    let text = [
        "city,reading_at,temperature,humidity".to_string(),
        row("\"Washington, DC\""),
        row("\"the \"\"Big\"\" Apple\""),
        row("\"two\r\nlines\""),
        row("O\"Hare"),
        row("\"open"),
        row("\"closed\"then more"),
        "\"x\",\"2025-01-01T00:00:00Z\",\"45\",\"66\"".into(),
        row("\"never"),
        row("y"),
    ]
    .join("\n");
    let records = decode(&text, Format::Csv);
    let of = |at: usize| records[at].2.as_ref().map(|upsert| upsert.0.as_str()).map_err(|r| r.reason);
    assert_eq!(of(0), Ok("Washington, DC"));
    assert_eq!(of(1), Ok("the \"Big\" Apple"));
    assert_eq!(of(2), Err(Reason::BadCity));
    assert_eq!(
        (records[2].0, records[2].1.as_slice()),
        (4, &b"\"two\r\nlines\",2025-01-01T00:00:00Z,45,66"[..])
    );
    assert_eq!(of(3), Ok("O\"Hare"));
    // The quoted field would end in the next line: the first line alone is refused.
    assert_eq!((records[4].0, of(4)), (7, Err(Reason::NotDecodable)));
    assert_eq!((records[5].0, of(5)), (8, Err(Reason::NotDecodable)));
    assert_eq!(of(6), Ok("x"));
    assert_eq!((records[7].0, of(7)), (10, Err(Reason::NotDecodable)));
    assert_eq!((records[8].0, of(8)), (11, Ok("y")));
}

#[test]
fn overlong_records_are_refused() {
    let header = "city,reading_at,temperature,humidity,note\n";
    let good = "x,2025-01-01T00:00:00Z,45,66,";
    let exactly = MAX_RECORD_BYTES - good.len();
    for (padding, quoted) in [(exactly, false), (exactly + 1, false), (3_000_000, false), (100_000, true)] {
        let note = if quoted { format!("\"{}\"", "n\n".repeat(padding / 2)) } else { "n".repeat(padding) };
        let text = format!("{header}{good}{note}\r\n{good}\n");
        let records = decode(&text, Format::Csv);
        let first = records[0].2.as_ref().map(|upsert| upsert.0.as_str()).map_err(|r| r.reason);
        if padding == exactly {
            assert_eq!((records.len(), first), (2, Ok("x")));
        } else {
            assert_eq!(first, Err(Reason::NotDecodable));
            let raw =
                if quoted { format!("{good}\"n") } else { text[header.len()..][..MAX_RECORD_BYTES].into() };
            assert!(records[0].1 == raw.as_bytes());
        }
        let last = records.last().unwrap();
        assert_eq!(last.1, good.as_bytes());
        assert!(last.2.is_ok());
        assert_eq!(last.0, text.lines().count() as u64);
    }
}

#[test]
fn json_fields_are_validated() {
    let one = |line: &str| {
        let records = decode(line, Format::Json);
        assert_eq!((records.len(), records[0].1.as_slice()), (1, line.as_bytes()));
        records.into_iter().next().unwrap().2.map_err(|refusal| refusal.reason)
    };
    let at = "2025-01-01T00:00:00Z".parse::<EventTime>().unwrap();
    let key = r#""city":"x","reading_at":"2025-01-01T00:00:00Z""#;
    let taken = |rest: &str| one(&format!("{{{key}{rest}}}"));
    let plain = ("x".to_string(), at, reading(45.0, 66.0, Some(12.0)), None);
    assert_eq!(taken(r#","temperature":45,"humidity":66.0,"wind_speed":12"#), Ok(plain.clone()));
    assert_eq!(
        taken(r#","temperature_f":45,"humidity_pct":66,"wind_speed_mph":12,"deleted":false"#),
        Ok(plain)
    );
    let rest = r#","temperature":45,"humidity":66,"wind_speed":null,"revision":-3,"deleted":null"#;
    assert_eq!(taken(rest), Ok(("x".into(), at, reading(45.0, 66.0, None), Revision::new(-3))));
    let withdrawal = ("x".to_string(), at, ReadingEvent::Withdrawal, Revision::new(3));
    assert_eq!(taken(r#","deleted":true,"revision":3,"temperature":"bad""#), Ok(withdrawal.clone()));
    assert_eq!(taken(r#","op":"delete","revision":3"#), Ok(withdrawal));
    let escaped =
        r#"{"cit\u0079":"caf\u00e9 \"x\"","reading_at":"2025-01-01T00:00:00\u005a","deleted":true}"#;
    assert_eq!(one(escaped).unwrap().0, "café \"x\"");
    let t = r#""reading_at":"2025-01-01T00:00:00Z","temperature":45,"humidity":66"#;
    for (line, reason) in [
        ("[]".to_string(), Reason::NotDecodable),
        ("7".into(), Reason::NotDecodable),
        ("{".into(), Reason::NotDecodable),
        (format!("{{\"city\":\"x\",{t}}} x"), Reason::NotDecodable),
        (format!("{{\"city\":\"x\",\"city\":\"x\",{t}}}"), Reason::NotDecodable),
        (format!("{{\"city\":\"x\",\"temperature_f\":45,{t}}}"), Reason::NotDecodable),
        (format!("{{{t}}}"), Reason::MissingField),
        (format!("{{\"city\":null,{t}}}"), Reason::MissingField),
        (format!("{{\"city\":7,{t}}}"), Reason::BadCity),
        (format!("{{\"city\":\"\",{t}}}"), Reason::BadCity),
        (format!("{{\"city\":\"a\\nb\",{t}}}"), Reason::BadCity),
        (r#"{"city":"x","temperature":45,"humidity":66}"#.into(), Reason::MissingField),
        (r#"{"city":"x","reading_at":1735689600,"temperature":45,"humidity":66}"#.into(), Reason::BadTime),
        (r#"{"city":"x","reading_at":"","temperature":45,"humidity":66}"#.into(), Reason::BadTime),
        (format!("{{{key},\"humidity\":66}}"), Reason::MissingField),
        (format!("{{{key},\"temperature\":null,\"humidity\":66}}"), Reason::MissingField),
        (format!("{{{key},\"temperature\":\"45\",\"humidity\":66}}"), Reason::BadNumber),
        (format!("{{{key},\"temperature\":[45],\"humidity\":66}}"), Reason::BadNumber),
        (format!("{{{key},\"temperature\":NaN,\"humidity\":66}}"), Reason::NotDecodable),
        (format!("{{\"city\":\"x\",{t},\"revision\":3.0}}"), Reason::BadNumber),
        (format!("{{\"city\":\"x\",{t},\"revision\":9223372036854775808}}"), Reason::BadNumber),
        (format!("{{\"city\":\"x\",{t},\"revision\":-9223372036854775808}}"), Reason::BadNumber),
        (format!("{{\"city\":\"x\",{t},\"deleted\":\"true\"}}"), Reason::BadOperation),
        (format!("{{\"city\":\"x\",{t},\"op\":\"\"}}"), Reason::BadOperation),
    ] {
        assert_eq!(one(&line), Err(reason), "{line}");
    }
}

#[test]
fn invalid_utf8_is_refused() {
    for (bytes, format) in [
        (&b"city,reading_at,temperature,humidity\nx\xff,2025-01-01T00:00:00Z,45,66\n"[..], Format::Csv),
        (b"{\"city\":\"x\xff\"}\n", Format::Json),
    ] {
        let (records, _) = decode_with(bytes, format, Compression::None, DecodeSettings::default()).unwrap();
        assert_eq!(records[0].2.as_ref().unwrap_err().reason, Reason::NotDecodable);
    }
}

#[test]
fn damaged_compression_keeps_complete_records() {
    let line = |at: usize| format!("x{at},2025-01-01T00:00:00Z,{},66\n", at % 100);
    let text: String = std::iter::once("city,reading_at,temperature,humidity\n".to_string())
        .chain((0..50_000).map(line))
        .collect();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let shared = Shared::default();
        let mut file = compressing_writer(Box::new(shared.clone()), compression).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.finish().unwrap();
        let whole = shared.bytes();
        let settings = DecodeSettings::default();
        let twice = [whole.as_slice(), &whole].concat();
        let (records, _) = decode_with(&twice, Format::Csv, compression, settings).unwrap();
        // The second header is refused, like any line that is no reading.
        assert_eq!(records.len(), 100_001);
        assert_eq!(records.iter().filter(|record| record.2.is_ok()).count(), 100_000);
        let (records, error) =
            decode_with(&whole[..whole.len() - 9], Format::Csv, compression, settings).unwrap_err();
        assert!(matches!(error, DecodeError::Corrupt { .. }), "{error}");
        assert!(records.len() > 1_000, "{}", records.len());
        assert!(records.iter().all(|record| record.2.is_ok()));
    }
}

#[test]
fn file_name_selects_format() {
    let of = |name: &str| detect_format(Path::new(name)).ok();
    assert_eq!(of("a/b.csv"), Some((Format::Csv, Compression::None)));
    assert_eq!(of("b.JSONL.GZ"), Some((Format::Json, Compression::Gzip)));
    assert_eq!(of("b.2025.ndjson.zst"), Some((Format::Json, Compression::Zstd)));
    assert_eq!(of("b.json"), Some((Format::Json, Compression::None)));
    assert_eq!(of("b.parquet"), Some((Format::Parquet, Compression::None)));
    for name in ["b.tsv", "b", "csv", "b.parquet.gz", "b.gz", "-"] {
        assert_eq!(of(name), None, "{name}");
    }
    for (name, said) in [
        ("b.csv.bz2", "compressed as .bz2"),
        ("b.csv.XZ", "compressed as .xz"),
        ("b.xlsx", "save the sheet as CSV"),
        ("b.csv.zip", "unpack it"),
        ("b.tar.gz", "unpack it"),
    ] {
        let error = detect_format(Path::new(name)).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains(name), "{error}");
    }
    assert_eq!(detect_compression(Path::new("log.gz")), Compression::Gzip);
}

#[test]
fn decoder_is_send() {
    fn sent<T: Send>() {}
    sent::<FileDecoder>();
    sent::<ResultRowsWriter>();
}

#[test]
fn single_records_are_decoded() {
    let mut decoder = JsonRecordDecoder::new(DecodeSettings::default());
    let spread = b"{\n \"city\": \"x\",\r\n \"reading_at\": \"2025-01-01T00:00:00Z\", \"deleted\": true, \"note\": 1\n}\n";
    assert_eq!(decoder.decode(spread).unwrap().event, ReadingEvent::Withdrawal);
    assert_eq!(decoder.ignored_fields(), 1);
    let refusal = decoder.decode(b"{\n \"city\": \"x\",\n oops}").unwrap_err();
    assert_eq!(refusal.reason, Reason::NotDecodable);
    assert!(refusal.detail.ends_with("at byte 18"), "{refusal}");
    for bad in [&b""[..], b"{}{}", b"\xFF", &[b' '; MAX_RECORD_BYTES + 1]] {
        assert_eq!(decoder.decode(bad).unwrap_err().reason, Reason::NotDecodable);
    }
    assert_eq!(decoder.decode(b"{}").unwrap_err().reason, Reason::MissingField);
}
