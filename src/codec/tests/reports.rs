//! Changes, daily summaries, dead letters.

use super::*;
use crate::model::{
    Category, ChangeLine, DayLine, DeadLetterLine, HeatIndex, PeriodSummary, RecordLocation, Row,
    TemperatureUnit,
};

const UNIT: TemperatureUnit = TemperatureUnit::Fahrenheit;

#[test]
fn report_text_matches_expected() {
    let heat_index = HeatIndex::from_micros(81_500_000);
    let row = Row::new(heat_index, Category::Caution, 163_000_001, 2);
    let at = EventTime::from_millis(1_500).unwrap();
    let shared = Shared::default();
    let mut writer = ChangesWriter::new(Compression::None, UNIT, Box::new(shared.clone())).unwrap();
    let change = ChangeLine { as_of: 7, city: "a\"b", reading_at: at, before: None, after: Some(row) };
    writer.write(&change).unwrap();
    writer.finish().unwrap();
    assert_eq!(
        String::from_utf8(shared.bytes()).unwrap(),
        "{\"as_of\":7,\"city\":\"a\\\"b\",\"reading_at\":\"1970-01-01T00:00:01.5Z\",\"before\":null,\"after\":{\"heat_index\":81.5,\"rolling_heat_index\":81.5000005,\"count\":2,\"category\":\"caution\"},\"units\":\"fahrenheit\"}\n"
    );

    let summary = PeriodSummary {
        readings: 2,
        sum: 163_000_001,
        max_heat_index: heat_index,
        max_at: at,
        categories: [0, 2, 0, 0, 0],
    };
    for (format, text) in [
        (
            Format::Csv,
            "city,day,readings,mean_heat_index,max_heat_index,max_at,none,caution,extreme_caution,danger,extreme_danger,units\n\"a,b\",1969-12-31,2,81.5000005,81.5,1970-01-01T00:00:01.5Z,0,2,0,0,0,fahrenheit\n",
        ),
        (
            Format::Json,
            "{\"city\":\"a,b\",\"day\":\"1969-12-31\",\"readings\":2,\"mean_heat_index\":81.5000005,\"max_heat_index\":81.5,\"max_at\":\"1970-01-01T00:00:01.5Z\",\"none\":0,\"caution\":2,\"extreme_caution\":0,\"danger\":0,\"extreme_danger\":0,\"units\":\"fahrenheit\"}\n",
        ),
        (Format::Parquet, ""),
    ] {
        let shared = Shared::default();
        let mut writer = DailyWriter::new(format, Compression::None, UNIT, Box::new(shared.clone())).unwrap();
        writer.write(&DayLine { city: "a,b", day: -1, summary }).unwrap();
        writer.finish().unwrap();
        match format {
            Format::Parquet => assert!(shared.bytes().ends_with(b"PAR1")),
            _ => assert_eq!(String::from_utf8(shared.bytes()).unwrap(), text),
        }
    }

    let shared = Shared::default();
    let mut writer = DeadLettersWriter::new(Compression::None, Box::new(shared.clone())).unwrap();
    let refusal = Refusal::new(Reason::BadNumber, "x");
    for raw in [&b"a,b"[..], b"\xff"] {
        writer
            .write(&DeadLetterLine {
                source: "f.csv",
                at: RecordLocation::Line { line: 3 },
                refusal: &refusal,
                retry: None,
                raw,
            })
            .unwrap();
    }
    writer.finish().unwrap();
    assert_eq!(
        String::from_utf8(shared.bytes()).unwrap(),
        "{\"source\":\"f.csv\",\"line\":3,\"reason\":\"bad_number\",\"detail\":\"x\",\"raw\":\"a,b\"}\n{\"source\":\"f.csv\",\"line\":3,\"reason\":\"bad_number\",\"detail\":\"x\",\"raw_base64\":\"/w==\"}\n"
    );
}
