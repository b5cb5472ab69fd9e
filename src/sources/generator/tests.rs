use super::*;
use crate::model::reading::check_city_key;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn time(text: &str) -> EventTime {
    text.parse::<EventTime>().unwrap()
}

fn plan(weather: WeatherKind) -> GeneratorPlan {
    GeneratorPlan {
        cities: 20,
        interval: "60s".parse().unwrap(),
        staggered: false,
        from: time("2025-01-01T00:00:00Z"),
        to: time("2025-01-02T12:00:00Z"),
        late: 0.0,
        corrections: 0.0,
        withdrawals: 0.0,
        duplicates: 0.0,
        invalid: 0.0,
        weather,
        seed: 1,
    }
}

fn messy(weather: WeatherKind) -> GeneratorPlan {
    GeneratorPlan {
        late: 0.1,
        corrections: 0.05,
        withdrawals: 0.02,
        duplicates: 0.03,
        invalid: 0.04,
        ..plan(weather)
    }
}

#[test]
fn log_without_faults_equals_schedule() {
    let generator = Generator::new(plan(WeatherKind::Uniform)).unwrap();
    assert_eq!(generator.scheduled_readings(), 20 * 36 * 60);
    let mut deliveries = generator.timed_records();
    let first = time("2025-01-01T00:00:00Z").millis();
    for minute in 0..36 * 60 {
        for city in 0..20 {
            let at = EventTime::from_millis(first + minute * 60_000).unwrap();
            let event = ReadingEvent::Reading(generator.weather.measure(city, at));
            let record = GeneratedRecord::Upsert { city: &format!("city_{city:05}"), at, event };
            assert_eq!(deliveries.next(), Some(TimedRecord { arrives_at: at, record }));
        }
    }
    assert_eq!(deliveries.next(), None);
}

#[test]
fn end_time_is_exclusive() {
    for (to, steps) in
        [("2025-01-01T00:00:00.001Z", 1), ("2025-01-01T00:01:00Z", 1), ("2025-01-01T00:01:30Z", 2)]
    {
        let plan = GeneratorPlan { to: time(to), ..plan(WeatherKind::Uniform) };
        assert_eq!(Generator::new(plan).unwrap().timed_records().count(), 20 * steps, "{to}");
    }
}

#[test]
fn fault_shares_match_plan_and_delays_match_documentation() {
    for weather in WeatherKind::ALL {
        let generator = Generator::new(messy(weather)).unwrap();
        let scheduled = generator.scheduled_readings() as f64;
        let (mut seen, mut late, mut delays) = (BTreeMap::new(), 0.0, 0.0);
        let (mut duplicates, mut corrections, mut withdrawals, mut invalid) = (0.0, 0.0, 0.0, 0.0);
        let mut faults = BTreeSet::new();
        let mut now = EventTime::MIN;
        for TimedRecord { arrives_at, record } in generator.timed_records() {
            assert!(now <= arrives_at);
            now = arrives_at;
            match record {
                GeneratedRecord::Upsert { city, at, event } => {
                    let age = arrives_at.millis() - at.millis();
                    assert!((0..=MAX_CORRECTION_AGE_MS).contains(&age) && check_city_key(city).is_ok());
                    match (event, seen.get(&(city, at))) {
                        (ReadingEvent::Reading(measured), None) => {
                            seen.insert((city, at), measured);
                            assert!(age <= MAX_DELAY_MS);
                            late += f64::from(age > 0);
                            delays += age as f64;
                        }
                        (ReadingEvent::Reading(again), Some(first)) if again == *first => duplicates += 1.0,
                        (ReadingEvent::Reading(again), Some(first)) => {
                            assert!((again.temperature() - first.temperature()).abs() < 5.01);
                            corrections += 1.0;
                        }
                        (ReadingEvent::Withdrawal, first) => {
                            assert!(first.is_some());
                            withdrawals += 1.0;
                        }
                        (ReadingEvent::RetriedReading(_), _) => panic!("nothing is retried"),
                    }
                }
                GeneratedRecord::Invalid(bad) => {
                    invalid += 1.0;
                    faults.insert(bad.kind);
                }
            }
        }
        assert_eq!(seen.len() as f64, scheduled);
        assert_eq!(faults, BTreeSet::from(BadReadingKind::ALL));
        for (share, count) in
            [(0.1, late), (0.05, corrections), (0.02, withdrawals), (0.03, duplicates), (0.04, invalid)]
        {
            assert!((count / scheduled / share - 1.0).abs() < 0.1, "{share}: {count} of {scheduled}");
        }
        assert!((18.0..22.0).contains(&(delays / late / 60_000.0)));
    }
}

#[test]
fn log_depends_only_on_seed() {
    let log = |seed| {
        let plan = GeneratorPlan { seed, to: time("2025-01-01T03:00:00Z"), ..messy(WeatherKind::Plausible) };
        let generator = Generator::new(plan).unwrap();
        generator.timed_records().map(|delivery| format!("{delivery:?}")).collect::<Vec<_>>()
    };
    assert_eq!(log(7), log(7));
    assert_ne!(log(7), log(8));
}

#[test]
fn invalid_records_have_their_fault() {
    let plan = GeneratorPlan { invalid: 1.0, ..plan(WeatherKind::Uniform) };
    let generator = Generator::new(plan).unwrap();
    let mut invalid = 0;
    for delivery in generator.timed_records() {
        let GeneratedRecord::Invalid(bad) = delivery.record else { continue };
        invalid += 1;
        let complete = bad.city.zip(bad.at).zip(bad.temperature.zip(bad.humidity));
        let accepted = complete.map(|(_, (t, h))| Measurement::new(t, h, bad.wind_speed).is_ok());
        let expected = match bad.kind {
            BadReadingKind::OutOfRange => Some(false),
            BadReadingKind::MissingField => None,
            BadReadingKind::CutLine | BadReadingKind::NoOffset | BadReadingKind::BadNumber => Some(true),
        };
        assert_eq!(accepted, expected);
    }
    assert_eq!(invalid, generator.scheduled_readings());
}

#[test]
fn invalid_plans_are_refused_with_reason() {
    let said = |change: fn(&mut GeneratorPlan)| {
        let mut plan = plan(WeatherKind::Uniform);
        change(&mut plan);
        Generator::new(plan).unwrap_err().to_string()
    };
    assert_eq!(said(|plan| plan.cities = 0), "there must be at least one city");
    assert_eq!(said(|plan| plan.interval = "0s".parse().unwrap()), "the interval must be longer than 0");
    assert_eq!(
        said(|plan| plan.to = plan.from),
        "the end 2025-01-01T00:00:00Z must be later than the beginning 2025-01-01T00:00:00Z"
    );
    assert_eq!(
        said(|plan| plan.from = EventTime::default()),
        "uniform weather begins at 2025-01-01T00:00:00Z, after 1970-01-01T00:00:00Z"
    );
    assert!(said(|plan| plan.to = EventTime::MAX).ends_with("choose an earlier end"));
    assert!(said(|plan| plan.interval = Millis::MAX).ends_with("choose an earlier end"));
    assert_eq!(said(|plan| plan.late = 1.5), "late must be a share of all readings from 0 to 1, not 1.5");
    assert_eq!(
        said(|plan| plan.invalid = f64::NAN),
        "invalid must be a share of all readings from 0 to 1, not NaN"
    );
    assert!(said(|plan| (plan.weather, plan.cities) = (WeatherKind::Plausible, 40_000)).contains("34006"));
}

proptest! {
    #[test]
    fn any_interval_keeps_order_and_all_records(
        interval in 1i64..200_000_000, steps in 1i64..40, cities in 1u32..4, share in 0.0..=1.0, seed: u64,
    ) {
        let from = time("2025-03-01T00:00:00Z");
        let generator = Generator::new(GeneratorPlan {
            cities,
            interval: Millis::from_millis(interval).unwrap(),
            staggered: seed % 2 == 1,
            from,
            to: EventTime::from_millis(from.millis() + interval * steps).unwrap(),
            late: share,
            corrections: share,
            withdrawals: share,
            duplicates: share,
            invalid: share,
            weather: WeatherKind::Uniform,
            seed,
        }).unwrap();
        let mut now = from;
        let mut seen = BTreeSet::new();
        for TimedRecord { arrives_at, record } in generator.timed_records() {
            prop_assert!(now <= arrives_at);
            now = arrives_at;
            if let GeneratedRecord::Upsert { city, at, event } = record {
                prop_assert!(at <= arrives_at);
                // A correction or withdrawal never arrives before its reading.
                prop_assert!(!seen.insert((city, at)) || matches!(event, ReadingEvent::Reading(_)));
            }
        }
        prop_assert_eq!(seen.len() as u64, generator.scheduled_readings());
    }
}
