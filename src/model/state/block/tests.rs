use proptest::prelude::*;

use super::*;

fn readings() -> impl Strategy<Value = Vec<StoredReading>> {
    let step = prop_oneof![
        Just(vec![60_000]),
        Just(vec![1_000]),
        Just(vec![1_000, 1_000, 1_000, 2_000]),
        Just(vec![1, 999]),
        Just(vec![1_001, 7_000_000_000, 1]),
        prop::collection::vec(1..100_000i64, 128),
        Just(vec![1_700_000_000_000]),
    ];
    let first = prop_oneof![
        Just(EventTime::MIN.millis()),
        Just(1_764_000_000_000),
        Just(-1_500),
        EventTime::MIN.millis()..=EventTime::MAX.millis(),
    ];
    let micros = prop_oneof![
        4 => Just(None),
        2 => (70_000_000..71_000_000i64).prop_map(Some),
        1 => (HeatIndex::MIN.micros()..=HeatIndex::MAX.micros()).prop_map(Some),
    ];
    let wide = any::<i64>().prop_map(Some);
    let number = prop_oneof![Just(None), (0..9i64).prop_map(Some), any::<i64>().prop_map(Some)];
    let values = prop_oneof![
        3 => prop::collection::vec(micros, 0..=128),
        1 => prop::collection::vec(wide, 0..=128),
    ];
    let categories = prop_oneof![Just(vec![2usize]), prop::collection::vec(0..5usize, 1..129)];
    let revisions = prop_oneof![
        Just(vec![None]),
        Just(vec![Some(i64::MIN + 1), Some(i64::MAX)]),
        Just((0..128).map(|i| Some(1_764_000_000_000 + i * 1000)).collect()),
        Just((0..128).map(|i| (i % 3 != 0).then_some(1_764_000_000_000 + i * 1000)).collect()),
        prop::collection::vec(number, 1..129),
    ];
    (first, step, values, categories, revisions).prop_map(|(first, steps, values, categories, revisions)| {
        let (mut millis, mut micros) = (first, 80_000_000);
        let mut readings = Vec::new();
        for (i, value) in values.into_iter().enumerate() {
            micros = value.unwrap_or(micros);
            let Some(reading_at) = EventTime::from_millis(millis) else { break };
            readings.push(StoredReading {
                reading_at,
                heat_index: HeatIndex::from_micros(micros),
                category: Category::ALL[categories[i % categories.len()]],
                revision: revisions[i % revisions.len()].and_then(Revision::new),
            });
            millis += steps[i % steps.len()];
        }
        readings
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn block_equals_vec(readings in readings(), probe in any::<prop::sample::Index>(), off in -1..=1i64) {
        let block = Block::pack(&readings);
        prop_assert_eq!(block.len(), readings.len());
        prop_assert_eq!(block.iter().collect::<Vec<_>>(), readings.clone());
        prop_assert_eq!(block.first_reading_at(), readings.first().map(|reading| reading.reading_at));
        prop_assert_eq!(block.last_reading_at(), readings.last().map(|reading| reading.reading_at));
        let micros = || readings.iter().map(|reading| reading.heat_index.micros());
        prop_assert_eq!(block.sum(), micros().fold(0, i64::wrapping_add));
        prop_assert_eq!(block.peak(), micros().max().unwrap_or(i64::MIN));
        prop_assert_eq!(block.has_revisions(), readings.iter().any(|reading| reading.revision.is_some()));
        let seconds = readings.iter().all(|reading| reading.reading_at.millis() % 1000 == 0);
        prop_assert_eq!(block.has_whole_seconds(), seconds && !readings.is_empty());
        if !readings.is_empty() {
            let i = probe.index(readings.len());
            let millis = readings[i].reading_at.millis();
            prop_assert_eq!(block.millis_at(i), millis);
            prop_assert_eq!(block.value_at(i), (readings[i].heat_index, readings[i].category));
            let place = readings.partition_point(|reading| reading.reading_at.millis() < millis + off);
            prop_assert_eq!(block.seek(millis + off), place);
            prop_assert_eq!((block.seek(i64::MIN), block.seek(i64::MAX)), (0, readings.len()));
            let mut some = Vec::new();
            block.for_each_value(i, |_, micros| some.push(micros));
            prop_assert_eq!(some, micros().take(i).collect::<Vec<_>>());
        }
    }
}

#[test]
fn block_compresses_repeated_values() {
    let readings = |value: fn(i64) -> i64, number: fn(i64) -> Option<Revision>| -> Vec<StoredReading> {
        let reading = |i: i64| StoredReading {
            reading_at: EventTime::from_millis(1_764_000_000_000 + i * 1000).unwrap(),
            heat_index: HeatIndex::from_micros(80_000_000 + value(i)),
            category: Category::Caution,
            revision: number(i),
        };
        (0..128).map(reading).collect()
    };
    let bytes = |readings: &[StoredReading]| Block::pack(readings).memory_bytes();
    let constant = bytes(&readings(|_| 0, |_| None));
    assert!(constant <= 80, "{constant} bytes of 128 equal readings");
    let stamped = bytes(&readings(|_| 0, |i| Revision::new(1_764_000_000_000 + i * 1000)));
    assert!(stamped <= constant + 16, "regular stamps as revisions take {stamped} bytes");
    let steps = bytes(&readings(|i| i / 4 * 100_000 % 700_000, |_| None));
    assert!(steps <= constant + 16 + 32 * 3, "a step at every fourth reading takes {steps} bytes");
    let noise = bytes(&readings(|i| i * 7_919_777 % 1_000_003, |_| None));
    assert!(noise <= constant + 128 * 3, "noise within 1 °F takes {noise} bytes");
}
