//! The rows of the tables, field by field.

use super::sample::{DAY, EPOCH, Rendered, at, corrected, current, heat, inserted, row, summary, withdrawn};
use crate::model::time::{DayZone, IanaZone};
use crate::model::{ArrivalOutcome, CurrentChange, EncodedRecord, OutcomeKind, ReadingEvent};
use crate::sinks::postgres::city_key::city_id;
use crate::sinks::postgres::columns::{ColumnType, columns_of};
use crate::sinks::postgres::record_kind::RecordKind;
use crate::sinks::postgres::row_name::RowName;
use crate::sinks::postgres::tuple::{field_value, postgres_micros, sized_fields};

/// A record as text: its kind, the day of its partition, its key and its fields.
fn record_text(record: &EncodedRecord<'_>) -> String {
    let kind = RecordKind::of_topic(record.topic).unwrap();
    let mut text = kind.table.name().to_owned();
    for (holds, word) in [(kind.existed, " existed"), (kind.is_split, " split")] {
        text.push_str(if holds { word } else { "" });
    }
    if record.partition != 0 {
        text.push_str(&format!(" day {}", record.partition as i32 - DAY));
    }
    if let Some(key) = record.key {
        text.push_str(&format!(" [{}]", RowName::of_key(kind.table, key)));
    }
    text.push_str(if record.value.is_some() { ":" } else { " gone" });
    let fields = sized_fields(record.value.unwrap_or_default());
    for (column, field) in columns_of(kind.table).all.iter().zip(fields) {
        if let Some(value) = field_value(field) {
            text.push_str(&format!(" {}={}", column.name, value_text(column.kind, value)));
        }
    }
    text
}

fn value_text(kind: ColumnType, value: &[u8]) -> String {
    match kind {
        ColumnType::Bigint => i64::from_be_bytes(value.try_into().unwrap()).to_string(),
        ColumnType::Timestamptz => {
            let micros = i64::from_be_bytes(value.try_into().unwrap());
            format!("{}ms", (micros - postgres_micros(at(0).millis())) / 1_000)
        }
        ColumnType::Int | ColumnType::Date => i32::from_be_bytes(value.try_into().unwrap()).to_string(),
        ColumnType::Smallint => i16::from_be_bytes(value.try_into().unwrap()).to_string(),
        ColumnType::Double => f64::from_be_bytes(value.try_into().unwrap()).to_string(),
        ColumnType::Boolean => (value == [1]).to_string(),
        ColumnType::Text | ColumnType::Bytea => String::from_utf8(value.to_vec()).unwrap(),
    }
}

/// The records so far, with the id of Oslo as `OSLO`.
fn records(rendered: &mut Rendered) -> Vec<String> {
    let batch = rendered.take_batch();
    let records = batch.batches.iter().flat_map(|batch| batch.records().map(|record| record_text(&record)));
    records.map(|text| text.replace(&city_id("Oslo").to_string(), "OSLO")).collect()
}

#[test]
fn outcome_is_rendered_as_city_reading_and_arrival() {
    let mut rendered = Rendered::new();
    let oslo = rendered.city("Oslo");
    rendered.names.set_time_zone(oslo, IanaZone::from_name("Europe/Oslo").unwrap());
    rendered.outcome(&ArrivalOutcome { is_first_of_city: true, ..inserted(oslo, at(9)) });
    assert_eq!(
        records(&mut rendered),
        [
            "city [city_id OSLO]: city_id=OSLO name=Oslo shard=0 exact=true zone=Europe/Oslo".to_owned(),
            "reading day 0 [city_id OSLO reading_at 2025-11-24T00:00:00.009Z]: city_id=OSLO reading_at=9ms temperature=81.5 \
             humidity=60.25 heat_index_e6=82000000 category=1 revision=3"
                .to_owned(),
            format!(
                "arrival day 0: as_of={EPOCH} city_id=OSLO seq=2 reading_at=9ms source=readings partition=1 position=1017 arrived_at=5ms \
                 temperature=81.5 humidity=60.25 revision=3 outcome=1 heat_index_e6=82000000 category=1"
            ),
        ]
    );
    rendered.outcome(&corrected(oslo, at(-1)));
    let texts = records(&mut rendered);
    assert!(texts[0].starts_with("reading existed day -1 ["), "{texts:?}");
    assert!(texts[0].contains(" heat_index_e6=3595000000 category=4 revision=3"), "{texts:?}");
    assert!(texts[1].ends_with(
        " outcome=2 heat_index_e6=3595000000 category=4 heat_index_before_e6=82000000 category_before=1"
    ));
    rendered.outcome(&withdrawn(oslo, at(9)));
    let texts = records(&mut rendered);
    assert_eq!(texts[0], "reading existed day 0 [city_id OSLO reading_at 2025-11-24T00:00:00.009Z] gone");
    assert!(
        texts[1].ends_with(" position=1017 outcome=3 heat_index_before_e6=82000000 category_before=1"),
        "{texts:?}"
    );
}

#[test]
fn arrivals_that_change_nothing_are_arrivals_alone() {
    let mut rendered = Rendered::new();
    let oslo = rendered.city("Oslo");
    let held = Some(heat(82_000_000));
    for (kind, code) in [
        (OutcomeKind::NothingToWithdraw, 4),
        (OutcomeKind::OldRevision, 5),
        (OutcomeKind::Superseded, 6),
        (OutcomeKind::TooLate, 7),
    ] {
        rendered.outcome(&ArrivalOutcome { kind, before: held, after: held, ..inserted(oslo, at(9)) });
        let texts = records(&mut rendered);
        let [arrival] = &texts[..] else { panic!("{texts:?}") };
        assert!(arrival.contains(&format!(" outcome={code} ")), "{arrival}");
    }
    let event = ReadingEvent::RetriedReading(super::sample::measurement());
    rendered.outcome(&ArrivalOutcome { event, ..inserted(oslo, at(9)) });
    assert!(records(&mut rendered)[1].contains(" outcome=9 "));
}

#[test]
fn split_city_is_marked_once() {
    let mut rendered = Rendered::new();
    let oslo = rendered.city("Oslo");
    rendered.outcome(&inserted(oslo, at(1)));
    rendered.names.mark_split(oslo);
    for ms in 2..4 {
        rendered.outcome(&ArrivalOutcome { is_split: true, ..inserted(oslo, at(ms)) });
    }
    rendered.row(oslo, at(2), Some(row(1)), None);
    let texts = records(&mut rendered);
    let cities: Vec<&String> = texts.iter().filter(|text| text.starts_with("city ")).collect();
    assert_eq!(cities, ["city existed split [city_id OSLO]: city_id=OSLO name=Oslo shard=0 exact=false"]);
    let is_split = |text: &&String| text.split(" [").next().is_some_and(|kind| kind.contains(" split"));
    assert_eq!(texts.iter().filter(is_split).count(), 6, "{texts:?}");
}

#[test]
fn current_row_is_rendered_with_the_newest_time() {
    let mut rendered = Rendered::new();
    let oslo = rendered.city("Oslo");
    let row = current(at(9));
    let change =
        CurrentChange { city: oslo, before: None, after: Some(&row), high_before: None, high: Some(at(20)) };
    rendered.current(&change);
    rendered.current(&CurrentChange { before: Some(&row), after: None, high_before: Some(at(20)), ..change });
    // Withdrawals alone make no row.
    rendered.current(&CurrentChange { after: None, high: None, ..change });
    assert_eq!(
        records(&mut rendered),
        [
            format!(
                "now [city_id OSLO]: city_id=OSLO high=20ms as_of={EPOCH} reading_at=9ms temperature=81.5 humidity=60.25 \
                 heat_index_e6=82000000 sum_e6=164000000 count=2 category=1"
            ),
            format!("now existed [city_id OSLO]: city_id=OSLO high=20ms as_of={EPOCH}"),
        ]
    );
}

#[test]
fn summaries_and_rows_are_rendered() {
    let mut rendered = Rendered::new();
    let oslo = rendered.city("Oslo");
    rendered.hour(oslo, None, Some(summary(2)));
    rendered.day(oslo, DayZone::Utc, Some(summary(2)), None);
    let zone = DayZone::Zone(IanaZone::from_name("Europe/Oslo").unwrap());
    rendered.day(oslo, zone, Some(summary(1)), Some(summary(2)));
    rendered.row(oslo, at(9), None, Some(row(164_000_000)));
    rendered.row(oslo, at(9), Some(row(1)), None);
    let sums = "readings=2 sum_e6=164000000 max_e6=83000000 max_at=60000ms c0=0 c1=2 c2=0 c3=0 c4=0";
    assert_eq!(
        records(&mut rendered),
        [
            format!(
                "hour [city_id OSLO hour_at 2025-11-24T01:00:00Z]: city_id=OSLO hour_at=3600000ms {sums} final=false"
            ),
            "day existed [city_id OSLO day 2025-11-24 zone UTC] gone".to_owned(),
            format!(
                "day existed [city_id OSLO day 2025-11-24 zone Europe/Oslo]: city_id=OSLO day=9459 zone=Europe/Oslo starts=-3600000ms \
                 ends=82800000ms {sums} final=true"
            ),
            format!(
                "rolling_row day 0 [city_id OSLO reading_at 2025-11-24T00:00:00.009Z]: city_id=OSLO reading_at=9ms heat_index_e6=82000000 \
                 sum_e6=164000000 count=2 category=1 as_of={EPOCH}"
            ),
            "rolling_row existed day 0 [city_id OSLO reading_at 2025-11-24T00:00:00.009Z] gone".to_owned(),
        ]
    );
}
