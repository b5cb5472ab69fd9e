//! Random states there and back.

use proptest::prelude::*;

use super::*;
use crate::model::time::IanaZone;
use crate::model::{CityPeriods, Revision, StoredPeriod};

fn times(most: usize) -> impl Strategy<Value = Vec<EventTime>> {
    let apart = prop_oneof![Just(1_000i64), Just(60_000), 1..10_000i64, Just(100_000_000_000)];
    let start = prop_oneof![Just(EventTime::MIN.millis() + 1), Just(1_700_000_000_000), -1_000..1_000i64];
    (start, prop::collection::vec(apart, 0..most)).prop_map(|(start, apart)| {
        let times = apart.iter().scan(start, |at, apart| {
            *at += apart;
            Some(*at)
        });
        times.map_while(EventTime::from_millis).collect()
    })
}

fn revision() -> impl Strategy<Value = Option<Revision>> {
    prop_oneof![
        3 => Just(None),
        1 => (i64::MIN + 1..=i64::MAX).prop_map(Revision::new),
        1 => (0..9i64).prop_map(Revision::new),
    ]
}

fn held_readings() -> impl Strategy<Value = Vec<StoredReading>> {
    let heat_index = HeatIndex::MIN.micros()..=HeatIndex::MAX.micros();
    let one = (heat_index, prop::sample::select(Category::ALL.to_vec()), revision());
    (times(400), prop::collection::vec(one, 400), any::<bool>()).prop_map(|(times, values, revisions)| {
        let reading = |(reading_at, (micros, category, revision))| StoredReading {
            reading_at,
            heat_index: HeatIndex::from_micros(micros),
            category,
            revision: if revisions { revision } else { None },
        };
        times.into_iter().zip(values).map(reading).collect()
    })
}

fn measurement() -> impl Strategy<Value = Measurement> {
    (-130.0..=140.0, 0.0..=105.0, prop::option::of(0.0..=260.0))
        .prop_map(|(temperature, humidity, wind)| Measurement::new(temperature, humidity, wind).unwrap())
}

/// All of a city but its name and its periods.
fn state_without_periods() -> impl Strategy<Value = CitySnapshot> {
    let withdrawn = (times(20), prop::collection::vec(revision(), 20));
    let measured = (times(4), prop::collection::vec(measurement(), 4));
    let high = prop::option::of((EventTime::MIN.millis()..=EventTime::MAX.millis()).prop_map(time));
    let partition = (0..3u16, any::<bool>());
    (partition, high, held_readings(), withdrawn, measured, 1..=BLOCK_READINGS).prop_map(
        |((slot, is_split), high, readings, withdrawn, measured, block)| CitySnapshot {
            name: "".into(),
            partition: PartitionIndex(slot),
            high,
            changed_since: EventTime::MIN,
            blocks: readings.chunks(block).map(Block::pack).collect(),
            tombstones: withdrawn.0.into_iter().zip(withdrawn.1).collect(),
            measurements: measured.0.into_iter().zip(measured.1).collect(),
            is_split,
            periods: None,
        },
    )
}

fn stored_periods() -> impl Strategy<Value = Vec<StoredPeriod>> {
    let heat = || (HeatIndex::MIN.micros()..=HeatIndex::MAX.micros()).prop_map(HeatIndex::from_micros);
    let maximum = || (heat(), (EventTime::MIN.millis()..=EventTime::MAX.millis()).prop_map(time));
    let counts = (1..=u32::MAX, any::<i64>(), prop::array::uniform5(any::<u32>()));
    let period = (1..100_000i64, 0..10_000i64, counts, maximum(), prop::option::of(maximum()));
    (any::<i32>(), prop::collection::vec(period, 0..6)).prop_map(|(start, periods)| {
        let mut at = i64::from(start) * 1_000;
        let mut next = |(length, gap, (readings, sum, categories), max, retired_max)| {
            let starts = at + gap;
            at = starts + length;
            StoredPeriod { number: start, starts, ends: at, readings, sum, categories, max, retired_max }
        };
        periods.into_iter().map(&mut next).collect()
    })
}

fn city_periods() -> impl Strategy<Value = CityPeriods> {
    let zones = vec![None, Some("Europe/Berlin"), Some("Pacific/Apia")];
    let zone = prop::sample::select(zones).prop_map(|zone| zone.map(|z| IanaZone::from_name(z).unwrap()));
    (zone, stored_periods(), stored_periods(), stored_periods())
        .prop_map(|(zone, hours, utc_days, local_days)| CityPeriods { zone, hours, utc_days, local_days })
}

/// A state, perhaps of a run that summarises hours and days.
fn state() -> impl Strategy<Value = CitySnapshot> {
    (state_without_periods(), prop::option::of(city_periods()))
        .prop_map(|(state, periods)| CitySnapshot { periods, ..state })
}

fn named(names: &[String], states: Vec<CitySnapshot>) -> Vec<CitySnapshot> {
    names
        .iter()
        .zip(states)
        .map(|(name, state)| CitySnapshot { name: name.as_str().into(), ..state })
        .collect()
}

fn names() -> impl Strategy<Value = Vec<String>> {
    prop::collection::btree_set("[a-zA-Z0-9 é京-]{1,20}", 1..8).prop_map(|names| names.into_iter().collect())
}

/// Which cities an increment has, as what, and since which of their readings, counted in 256ths.
type Increment = Vec<Option<(CitySnapshot, u8)>>;

fn increments() -> impl Strategy<Value = Vec<Increment>> {
    let one = prop::collection::vec(prop::option::of((state(), any::<u8>())), 8);
    prop::collection::vec(one, 0..5)
}

/// What an increment says of a city that changes into `after` from `since` on, and what the city is
/// then.
fn changed(before: Option<&FlatCity>, after: CitySnapshot, share: u8) -> (CitySnapshot, FlatCity) {
    let mut all = all_readings(&after);
    all.sort_by_key(|reading| reading.reading_at);
    // Of a city that is new there is nothing before.
    let since = match before.filter(|_| share > 0) {
        None => EventTime::MIN,
        Some(_) => {
            all.get(all.len() * usize::from(share) / 256).map_or(EventTime::MAX, |first| first.reading_at)
        }
    };
    let newer: Vec<StoredReading> = all.into_iter().filter(|reading| reading.reading_at >= since).collect();
    let older = before.map_or(&[][..], |(_, readings)| readings);
    let kept = older.iter().filter(|reading| reading.reading_at < since).copied();
    let readings: Vec<StoredReading> = kept.chain(newer.iter().copied()).collect();
    let written = CitySnapshot {
        changed_since: since,
        blocks: newer.chunks(BLOCK_READINGS).map(Block::pack).collect(),
        ..after.clone()
    };
    (written, (CitySnapshot { blocks: Vec::new(), changed_since: EventTime::MIN, ..after }, readings))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn checkpoint_chain_equals_folded_state(
        names in names(),
        full in prop::collection::vec(state(), 6),
        increments in increments(),
        workers in 1..4u32,
        loaders in 1..4u32,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = open(folder.path());
        // The last ones come with increments.
        let mut written = named(&names, full);
        let mut expected = flat_cities(written.clone());
        let mut newest: Option<Manifest> = None;
        for (epoch, next) in (1..).zip(std::iter::once(None).chain(increments.into_iter().map(Some))) {
            if let Some(next) = next {
                written.clear();
                for (name, change) in names.iter().zip(next) {
                    let Some((after, share)) = change else { continue };
                    let after = CitySnapshot { name: name.as_str().into(), ..after };
                    let (city, now) = changed(expected.get(name), after, share);
                    written.push(city);
                    expected.insert(name.clone(), now);
                }
            }
            let mark = CheckpointBarrier { checkpoint: epoch, full: newest.is_none() };
            let parts = parts(&checkpoints, "1-a", workers, mark, epoch, &written);
            let manifest = Manifest::new(header("1-a", epoch), parts, newest.as_ref()).unwrap();
            checkpoints.publish(&manifest).unwrap();
            let mut loaded = Vec::new();
            for loader in 0..loaders {
                let own: Vec<u32> = all_shards().into_iter().filter(|shard| shard % loaders == loader).collect();
                let part = checkpoints.load_shards(&manifest, &own, &partition_table()).unwrap();
                prop_assert!(part.iter().all(|city| state_shard(CityKey::hash(&city.name)) % loaders == loader));
                loaded.extend(part);
            }
            prop_assert_eq!(&flat_cities(loaded), &expected);
            let readings: usize = expected.values().map(|(_, readings)| readings.len()).sum();
            prop_assert_eq!(checkpoints.verify_contents(&manifest).unwrap(), (expected.len() as u64, readings as u64));
            let highs = checkpoints.admission_states(&manifest, &|name| &*name.source == "journal").unwrap();
            let of_journal: Vec<_> = expected.values().filter(|(city, _)| city.partition.0 < 2).collect();
            prop_assert_eq!(highs.len(), of_journal.len());
            for found in highs {
                let (city, readings) = &expected[&*found.city];
                prop_assert_eq!((found.high, found.partition.partition), (city.high, u32::from(city.partition.0)));
                prop_assert!(found.readings >= readings.len() as u64);
            }
            newest = Some(checkpoints.read_manifest(manifest.name()).unwrap());
            prop_assert_eq!(newest.as_ref(), Some(&manifest));
        }
    }
}

/// Earlier versions read what has nothing new in it.
#[test]
fn checkpoint_has_the_format_that_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    let split: Vec<CitySnapshot> =
        cities(1).into_iter().map(|city| CitySnapshot { is_split: true, ..city }).collect();
    let zone = Some(IanaZone::from_name("Asia/Kathmandu").unwrap());
    let periods = Some(CityPeriods { zone, ..CityPeriods::default() });
    let with_periods: Vec<CitySnapshot> =
        cities(1).into_iter().map(|city| CitySnapshot { periods: periods.clone(), ..city }).collect();
    for (epoch, (cities, format)) in (1..).zip([(cities(1), 1), (split, 2), (with_periods, 2)]) {
        let manifest = publish(&checkpoints, "1-a", epoch, &cities, None);
        assert_eq!(manifest.format, format);
        let text = String::from_utf8(manifest.to_bytes().unwrap()).unwrap();
        assert_eq!(
            text.matches("\"format\":").count(),
            if format == 1 { 1 } else { 1 + manifest.segments.len() }
        );
        assert_eq!(flat_cities(load(&checkpoints, &manifest).unwrap()), flat_cities(cities));
    }
}

#[test]
fn city_lookup_finds_city_with_partition() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    let manifest = publish(&checkpoints, "3-abc", 10, &cities(1), None);
    let (partition, found) = checkpoints.load_city(&manifest, "city 2").unwrap().unwrap();
    assert_eq!((&*partition.source, partition.partition, all_readings(&found).len()), ("journal", 1, 152));
    assert!(checkpoints.load_city(&manifest, "city 9").unwrap().is_none());
}

#[test]
fn large_increments_are_replaced_by_new_base() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    let full = publish(&checkpoints, "1-a", 1, &cities(1), None);
    assert!(!full.next_should_be_full());
    let mut small = full.clone();
    for epoch in 2..=21 {
        small = publish(&checkpoints, "1-a", epoch, &[], Some(&small));
        assert_eq!(small.next_should_be_full(), epoch == 21);
    }
    let large = publish(&checkpoints, "1-a", 22, &cities(2), Some(&full));
    assert!(large.next_should_be_full());
}

#[test]
fn inconsistent_parts_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    let mark = CheckpointBarrier { checkpoint: 1, full: true };
    let parts = parts(&checkpoints, "1-a", 2, mark, 5, &cities(1));
    let refused = |cut: CheckpointHeader, parts: Vec<WorkerPart>, adds_to: Option<&Manifest>| {
        assert!(matches!(Manifest::new(cut, parts, adds_to), Err(CheckpointError::IncompatibleParts(_))));
    };
    let whole = Manifest::new(header("1-a", 5), parts.clone(), None).unwrap();
    refused(header("1-a", 6), parts.clone(), None);
    refused(header("1", 5), parts.clone(), None);
    refused(header("1-a", 5), parts.clone(), Some(&whole));
    refused(header("1-a", 5), [parts.clone(), parts].concat(), None);
}
