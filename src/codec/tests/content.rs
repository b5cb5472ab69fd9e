//! Files whose names differ from their content, and JSON that is not one record a line.

use super::*;

const CSV: &str = "city,reading_at,temperature,humidity\na,2025-01-01T00:00:00Z,70,50\n";

fn packed(text: &str, compression: Compression) -> Vec<u8> {
    let shared = Shared::default();
    let mut writer = compressing_writer(Box::new(shared.clone()), compression).unwrap();
    writer.write_all(text.as_bytes()).unwrap();
    writer.finish().unwrap();
    shared.bytes()
}

fn cities(bytes: &[u8], format: Format, said: Compression) -> Result<Vec<String>, String> {
    let decoded = decode_with(bytes, format, said, DecodeSettings::default());
    let (records, _) = decoded.map_err(|(_, error)| error.to_string())?;
    Ok(records.into_iter().map(|(_, _, record)| record.map_or("-".into(), |record| record.0)).collect())
}

#[test]
fn compression_is_detected_from_bytes() {
    let all = [Compression::None, Compression::Gzip, Compression::Zstd];
    for (is, said) in all.into_iter().flat_map(|is| all.map(|said| (is, said))) {
        assert_eq!(cities(&packed(CSV, is), Format::Csv, said).unwrap(), ["a"], "{is:?} called {said:?}");
    }
    // Neither compressed nor text: it stays damaged.
    let mut damaged = packed(CSV, Compression::Gzip);
    damaged[0] ^= 1;
    assert!(cities(&damaged, Format::Json, Compression::Gzip).unwrap_err().contains("damaged"));
    // Short, and empty.
    assert_eq!(cities(b"{}", Format::Json, Compression::Gzip).unwrap(), ["-"]);
    assert_eq!(cities(b"", Format::Json, Compression::Zstd).unwrap(), [""; 0]);
    assert!(cities(b"", Format::Csv, Compression::Gzip).unwrap_err().contains("is empty"));
}

#[test]
fn gzip_accepts_members_and_trailing_zeros() {
    let more = "b,2025-01-01T00:00:00Z,70,50\n";
    let members = [packed(CSV, Compression::Gzip), packed(more, Compression::Gzip)];
    let read = |bytes: &[u8]| cities(bytes, Format::Csv, Compression::Gzip);
    assert_eq!(read(&members.concat()).unwrap(), ["a", "b"]);
    for zeros in [1, 511, 70_000] {
        let padding = vec![0; zeros];
        assert_eq!(read(&[&members[0][..], &padding].concat()).unwrap(), ["a"]);
        assert_eq!(read(&[&members[0][..], &padding, &members[1], &padding].concat()).unwrap(), ["a", "b"]);
    }
    for behind in [&b"x"[..], b"\0\0x", &members[0][..9]] {
        assert!(read(&[&members[0][..], behind].concat()).unwrap_err().contains("damaged"));
    }
}

#[test]
fn zstd_with_a_long_window_is_read() {
    // As `zstd --long=31` writes it: the frame does not say how long its content is.
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.long_distance_matching(true).unwrap();
    encoder.window_log(31).unwrap();
    encoder.write_all(CSV.as_bytes()).unwrap();
    let bytes = encoder.finish().unwrap();
    assert_eq!(cities(&bytes, Format::Csv, Compression::Zstd).unwrap(), ["a"]);
}

#[test]
fn unsupported_file_types_are_named() {
    let utf_16: Vec<u8> = CSV.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let marked = [&b"\xff\xfe"[..], &utf_16].concat();
    for (bytes, what) in [
        (&b"PK\x03\x04\x14\0\x06\0"[..], "save the sheet as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0\0", "Excel workbook (.xls)"),
        (b"BZh91AY&SY", "is bzip2"),
        (b"\xfd7zXZ\0\0\x04", "is xz"),
        (b"PAR1\x15\x04\x15", "is Parquet"),
        (&utf_16, "is UTF-16"),
        (&marked, "is UTF-16"),
    ] {
        for format in [Format::Csv, Format::Json] {
            let error = cities(bytes, format, Compression::None).unwrap_err();
            assert!(error.contains(what), "{bytes:?}: {error}");
        }
    }
    let mark_and_ends = "\u{FEFF}".to_owned() + &CSV.replace('\n', "\r\n");
    assert_eq!(cities(mark_and_ends.as_bytes(), Format::Csv, Compression::None).unwrap(), ["a"]);
}

fn object(city: &str) -> String {
    format!(
        "{{\"city\":\"{city}\",\"reading_at\":\"2025-01-01T00:00:00Z\",\"temperature\":70,\"humidity\":50}}"
    )
}

#[test]
fn json_arrays_and_multi_line_records_are_read() {
    let read = |text: &str| cities(text.as_bytes(), Format::Json, Compression::None);
    let pretty = |city: &str| object(city).replace(',', ",\n  ").replace('{', "{\n  ").replace('}', "\n}");
    let (a, b, c) = (object("a"), object("b"), object("[c]}, \\\"{"));
    for text in [
        format!("[{a},{b},{c}]"),
        format!("\u{FEFF} \n[\n{a}\n,\n{b}\r\n,{c}]\n\n"),
        format!("[{},{},{c}]", pretty("a"), pretty("b")),
        format!("{}\n{}{c}\n", pretty("a"), pretty("b")),
        format!("{a}\n{b}\n{c}\n"),
    ] {
        assert_eq!(read(&text).unwrap(), ["a", "b", "[c]}, \"{"], "{text}");
    }
    // A value that is no record is refused alone.
    assert_eq!(read(&format!("[{b},1,[{a}],\"x,y\",{{}}]")).unwrap(), ["b", "-", "-", "-", "-"]);
    // An invalid line is no array.
    for line in ["[]", "{", "[1,2]", "[[", "7"] {
        assert_eq!(read(&format!("{line}\n{a}\n")).unwrap(), ["-", "a"], "{line}");
    }
    assert_eq!(read(&format!("[{a},\"x\ny\",{b}]")).unwrap(), ["a", "-", "b"]);
    // A large array in one line is read too.
    let many = format!("[{}]", vec![a.clone(); 5_000].join(","));
    assert_eq!(read(&many).unwrap().len(), 5_000);
    let long = format!("[{a},{},{b}]", object(&"x".repeat(2 * MAX_RECORD_BYTES)));
    assert_eq!(read(&long).unwrap(), ["a", "-", "b"]);
    // Records before the missing end are complete.
    for text in [format!("[{a},{b}"), format!("[{a},{b}]{c}"), format!("{}{{", pretty("a"))] {
        let (records, error) =
            decode_with(text.as_bytes(), Format::Json, Compression::None, DecodeSettings::default())
                .unwrap_err();
        assert!(records.first().is_some_and(|record| record.2.is_ok()), "{text}");
        assert!(error.to_string().contains("damaged or cut off"), "{error}");
    }
}
