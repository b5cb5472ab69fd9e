//! Random states there and back.

use proptest::prelude::*;

use super::*;
use crate::model::Revision;

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

fn held_readings() -> impl Strategy<Value = Vec<HeldReading>> {
    let heat_index = HeatIndex::MIN.micros()..=HeatIndex::MAX.micros();
    let one = (heat_index, prop::sample::select(Category::ALL.to_vec()), revision());
    (times(400), prop::collection::vec(one, 400), any::<bool>()).prop_map(|(times, values, revisions)| {
        let reading = |(reading_at, (micros, category, revision))| HeldReading {
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

/// All of a city but its name.
fn state() -> impl Strategy<Value = CityState> {
    let withdrawn = (times(20), prop::collection::vec(revision(), 20));
    let measured = (times(4), prop::collection::vec(measurement(), 4));
    let high = prop::option::of((EventTime::MIN.millis()..=EventTime::MAX.millis()).prop_map(time));
    (0..3u16, high, held_readings(), withdrawn, measured, 1..=BLOCK_READINGS).prop_map(
        |(slot, high, readings, withdrawn, measured, block)| CityState {
            name: "".into(),
            slot: Slot(slot),
            high,
            since: EventTime::MIN,
            blocks: readings.chunks(block).map(Block::pack).collect(),
            withdrawn: withdrawn.0.into_iter().zip(withdrawn.1).collect(),
            measured: measured.0.into_iter().zip(measured.1).collect(),
        },
    )
}

fn named(names: &[String], states: Vec<CityState>) -> Vec<CityState> {
    names.iter().zip(states).map(|(name, state)| CityState { name: name.as_str().into(), ..state }).collect()
}

fn names() -> impl Strategy<Value = Vec<String>> {
    prop::collection::btree_set("[a-zA-Z0-9 é京-]{1,20}", 1..8).prop_map(|names| names.into_iter().collect())
}

/// Which cities an increment has, as what, and since which of their readings, counted in 256ths.
type Increment = Vec<Option<(CityState, u8)>>;

fn increments() -> impl Strategy<Value = Vec<Increment>> {
    let one = prop::collection::vec(prop::option::of((state(), any::<u8>())), 8);
    prop::collection::vec(one, 0..5)
}

/// What an increment says of a city that changes into `after` from `since` on, and what the city is then.
fn changed(before: Option<&Flat>, after: CityState, share: u8) -> (CityState, Flat) {
    let mut all = held(&after);
    all.sort_by_key(|reading| reading.reading_at);
    // Of a city that is new there is nothing before.
    let since = match before.filter(|_| share > 0) {
        None => EventTime::MIN,
        Some(_) => {
            all.get(all.len() * usize::from(share) / 256).map_or(EventTime::MAX, |first| first.reading_at)
        }
    };
    let newer: Vec<HeldReading> = all.into_iter().filter(|reading| reading.reading_at >= since).collect();
    let older = before.map_or(&[][..], |(_, readings)| readings);
    let kept = older.iter().filter(|reading| reading.reading_at < since).copied();
    let readings: Vec<HeldReading> = kept.chain(newer.iter().copied()).collect();
    let written =
        CityState { since, blocks: newer.chunks(BLOCK_READINGS).map(Block::pack).collect(), ..after.clone() };
    (written, (CityState { blocks: Vec::new(), since: EventTime::MIN, ..after }, readings))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn chains_equal_the_fold(
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
        let mut expected = flat(written.clone());
        let mut newest: Option<Manifest> = None;
        for (epoch, next) in (1..).zip(std::iter::once(None).chain(increments.into_iter().map(Some))) {
            if let Some(next) = next {
                written.clear();
                for (name, change) in names.iter().zip(next) {
                    let Some((after, share)) = change else { continue };
                    let after = CityState { name: name.as_str().into(), ..after };
                    let (city, now) = changed(expected.get(name), after, share);
                    written.push(city);
                    expected.insert(name.clone(), now);
                }
            }
            let mark = Mark { checkpoint: epoch, full: newest.is_none() };
            let parts = parts(&checkpoints, "1-a", workers, mark, epoch, &written);
            let manifest = Manifest::new(cut("1-a", epoch), parts, newest.as_ref()).unwrap();
            checkpoints.publish(&manifest).unwrap();
            let mut loaded = Vec::new();
            for loader in 0..loaders {
                let own: Vec<u32> = all_shards().into_iter().filter(|shard| shard % loaders == loader).collect();
                let part = checkpoints.load(&manifest, &own, &slots()).unwrap();
                prop_assert!(part.iter().all(|city| state_shard(CityKey::hash(&city.name)) % loaders == loader));
                loaded.extend(part);
            }
            prop_assert_eq!(&flat(loaded), &expected);
            let readings: usize = expected.values().map(|(_, readings)| readings.len()).sum();
            prop_assert_eq!(checkpoints.verify(&manifest).unwrap(), (expected.len() as u64, readings as u64));
            let highs = checkpoints.highs(&manifest, &|name| &*name.source == "journal").unwrap();
            let of_journal: Vec<_> = expected.values().filter(|(city, _)| city.slot.0 < 2).collect();
            prop_assert_eq!(highs.len(), of_journal.len());
            for found in highs {
                let (city, readings) = &expected[&*found.city];
                prop_assert_eq!((found.high, found.partition.partition), (city.high, u32::from(city.slot.0)));
                prop_assert!(found.readings >= readings.len() as u64);
            }
            newest = Some(checkpoints.read(manifest.name()).unwrap());
            prop_assert_eq!(newest.as_ref(), Some(&manifest));
        }
    }
}

#[test]
fn one_city_is_found_with_its_partition() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    let manifest = publish(&checkpoints, "3-abc", 10, &cities(1), None);
    let (partition, found) = checkpoints.city(&manifest, "city 2").unwrap().unwrap();
    assert_eq!((&*partition.source, partition.partition, held(&found).len()), ("journal", 1, 152));
    assert!(checkpoints.city(&manifest, "city 9").unwrap().is_none());
}

#[test]
fn increments_end_when_they_no_longer_pay() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    let full = publish(&checkpoints, "1-a", 1, &cities(1), None);
    assert!(!full.wants_full());
    let mut small = full.clone();
    for epoch in 2..=21 {
        small = publish(&checkpoints, "1-a", epoch, &[], Some(&small));
        assert_eq!(small.wants_full(), epoch == 21);
    }
    let large = publish(&checkpoints, "1-a", 22, &cities(2), Some(&full));
    assert!(large.wants_full());
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = open(folder.path());
    let mark = Mark { checkpoint: 1, full: true };
    let parts = parts(&checkpoints, "1-a", 2, mark, 5, &cities(1));
    let refused = |cut: Cut, parts: Vec<Part>, adds_to: Option<&Manifest>| {
        assert!(matches!(Manifest::new(cut, parts, adds_to), Err(CheckpointError::Parts(_))));
    };
    let whole = Manifest::new(cut("1-a", 5), parts.clone(), None).unwrap();
    refused(cut("1-a", 6), parts.clone(), None);
    refused(cut("1", 5), parts.clone(), None);
    refused(cut("1-a", 5), parts.clone(), Some(&whole));
    refused(cut("1-a", 5), [parts.clone(), parts].concat(), None);
}
