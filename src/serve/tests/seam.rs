//! Histories and explanations across the seam between the dataflow and a store of older rows.

use serde_json::json;

use super::*;
use crate::model::history_store::{
    FinalExplanation, FinalReading, FinalRows, HistoryError, HistoryRange, PastRows, StoreFuture,
    StoredArrival, StoredArrivals,
};

const HOUR_MS: i64 = 3_600_000;

/// A store whose rows, and how far it is, a test sets.
#[derive(Default)]
struct ScriptedStore {
    state: Mutex<StoreState>,
}

#[derive(Default)]
struct StoreState {
    rows: BTreeMap<EventTime, Row>,
    final_until: Option<EventTime>,
    complete_until: Option<u64>,
    arrivals: Vec<StoredArrival>,
    is_dead: bool,
}

fn reply<'a, T: Send + 'a>(state: &StoreState, answer: impl FnOnce() -> T) -> StoreFuture<'a, T> {
    let answer = if state.is_dead {
        let retry_after = Duration::from_millis(6_500);
        Err(HistoryError::Unavailable { detail: "it is dead".into(), retry_after })
    } else {
        Ok(answer())
    };
    Box::pin(std::future::ready(answer))
}

impl StoreState {
    fn page(&self, from: EventTime, to: EventTime, limit: u32) -> (Vec<(EventTime, Row)>, bool) {
        let found: Vec<_> = self.rows.range(from..to.max(from)).map(|(at, row)| (*at, *row)).collect();
        let limit = limit as usize;
        (found[..found.len().min(limit)].to_vec(), found.len() > limit)
    }
}

impl HistoryStore for ScriptedStore {
    fn final_rows(&self, range: HistoryRange) -> StoreFuture<'_, FinalRows> {
        let state = self.state.lock();
        reply(&state, || {
            let until = state.final_until.unwrap_or(EventTime::MIN);
            let (rows, has_more) = state.page(range.from, range.to.min(until), range.limit);
            FinalRows { rows, has_more, final_until: state.final_until }
        })
    }

    fn rows_as_of(&self, range: HistoryRange, epoch: u64) -> StoreFuture<'_, PastRows> {
        let state = self.state.lock();
        reply(&state, || {
            let (rows, has_more) = state.page(range.from, range.to, range.limit);
            let complete_until = state.complete_until;
            let is_complete = complete_until >= Some(epoch);
            let rows = if is_complete { rows } else { Vec::new() };
            PastRows { rows, has_more, is_city_known: true, complete_until }
        })
    }

    fn explain_final_row(
        &self,
        _: Arc<str>,
        reading_at: EventTime,
        from: EventTime,
        limit: u32,
    ) -> StoreFuture<'_, FinalExplanation> {
        let state = self.state.lock();
        reply(&state, || {
            let is_final = state.final_until.is_some_and(|until| reading_at < until);
            let row = state.rows.get(&reading_at).copied().filter(|_| is_final);
            let window = EventTime::from_millis(reading_at.millis() - 24 * HOUR_MS).unwrap();
            let behind = EventTime::from_millis(reading_at.millis() + 1).unwrap();
            let (rows, has_more) = state.page(from.max(window), behind, limit);
            let reading = |(reading_at, row): (EventTime, Row)| {
                let measurement = Measurement::new(90.0, 50.0, None).ok();
                let alone = Row::new(row.heat_index(), row.category(), row.heat_index().micros(), 1);
                FinalReading { reading_at, row: alone, measurement }
            };
            let readings = rows.into_iter().filter(|_| row.is_some()).map(reading).collect();
            FinalExplanation { row, readings, has_more, final_until: state.final_until }
        })
    }

    fn arrivals(
        &self,
        _: Arc<str>,
        from: EventTime,
        to: EventTime,
        epoch: u64,
    ) -> StoreFuture<'_, StoredArrivals> {
        let state = self.state.lock();
        reply(&state, || {
            let is_asked = |arrival: &&StoredArrival| {
                (from..=to).contains(&arrival.reading_at) && arrival.as_of <= epoch
            };
            let arrivals = state.arrivals.iter().filter(is_asked).cloned().collect();
            StoredArrivals { arrivals, complete_until: state.complete_until }
        })
    }
}

fn hour(at: i64) -> EventTime {
    EventTime::from_millis(time("2025-11-24T00:00:00Z").millis() + at * HOUR_MS).unwrap()
}

const CITY: &str = "5128581";
/// The newest reading is at this hour, so rows from [`OLDEST_LIVE`] on are servable.
const NEWEST: i64 = 72;
const OLDEST_LIVE: i64 = NEWEST - 24;

/// A service with a reading an hour; the store has those before `final_until`, and has their final
/// rows only.
fn start_service(final_until: Option<i64>) -> (TestServer, Arc<ScriptedStore>) {
    let store = Arc::new(ScriptedStore::default());
    let backed = TestServer::start_backed(plan(), true, service_info(), None, Some(store.clone()));
    let service = backed.become_ready();
    let rows: BTreeMap<EventTime, Row> =
        (0..=NEWEST).map(|at| (hour(at), row(80.0 + at as f64 / 8.0, Category::Caution))).collect();
    let mut state = store.state.lock();
    state.final_until = final_until.map(hour);
    state.rows = rows.clone();
    // The rows that the store must not be asked for are other ones.
    for (_, row) in state.rows.iter_mut().filter(|(at, _)| **at >= hour(OLDEST_LIVE)) {
        *row = Row::new(HeatIndex::from_micros(1), Category::None, 1, 1);
    }
    drop(state);
    service.dataflow.rows.lock().insert(CITY.into(), rows);
    (service, store)
}

/// The hours of all rows from `from` on, page by page, and the first page that is refused.
fn read_pages(service: &TestServer, from: i64, limit: usize) -> (Vec<i64>, Option<HttpReply>) {
    let (mut hours, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/cities/{CITY}/history?from={}&limit={limit}{cursor}", hour(from));
        let reply = service.get(&path);
        if reply.status != 200 {
            return (hours, Some(reply));
        }
        let page = reply.json();
        documents::check("HistoryAnswer", &page);
        for row in page["rows"].as_array().unwrap() {
            let at = time(row["reading_at"].as_str().unwrap()).millis() - hour(0).millis();
            assert!(row["heat_index"].as_f64().unwrap() >= 80.0, "not from the place it must be from: {row}");
            hours.push(at / HOUR_MS);
        }
        assert!(page["rows"].as_array().unwrap().len() <= limit);
        let Some(next) = page["next"].as_str() else { return (hours, None) };
        cursor = format!("&cursor={next}");
    }
}

#[test]
fn history_joins_stored_and_live_rows_without_gap_or_repeat() {
    // The store may be exactly as far as the dataflow begins, or further.
    for final_until in [OLDEST_LIVE, OLDEST_LIVE + 5] {
        let (service, _) = start_service(Some(final_until));
        for limit in [1, 7, 48, 49, 100] {
            for from in [0, 40, OLDEST_LIVE - 1, OLDEST_LIVE, OLDEST_LIVE + 3] {
                let (hours, refused) = read_pages(&service, from, limit);
                assert!(refused.is_none(), "{from} {limit}");
                assert_eq!(hours, (from..=NEWEST).collect::<Vec<_>>(), "{from} {limit}");
            }
        }
        let past = service.get(&format!("/v1/cities/{CITY}/history?from={}&to={}", hour(3), hour(5))).json();
        assert_eq!((past["rows"].as_array().unwrap().len(), &past["next"]), (2, &Value::Null));
    }
}

#[test]
fn rows_that_a_store_behind_may_lack_are_refused_and_no_others() {
    let (service, store) = start_service(Some(OLDEST_LIVE - 10));
    let (hours, refused) = read_pages(&service, 0, 7);
    assert_eq!(hours, (0..OLDEST_LIVE - 10).collect::<Vec<_>>(), "final rows are served");
    let refused = refused.unwrap();
    assert_eq!(
        (refused.status, &*refused.code(), refused.header("retry-after")),
        (503, "replica_behind", Some("1"))
    );
    assert_eq!(read_pages(&service, OLDEST_LIVE, 7).0.len(), 25, "live rows are served");
    let between = format!("/v1/cities/{CITY}/history?from={}&to={}", hour(40), hour(41));
    assert_eq!(service.get(&between).code(), "replica_behind");
    store.state.lock().final_until = None;
    assert_eq!(read_pages(&service, 0, 7).1.unwrap().code(), "replica_behind", "it has nothing of the city");
    store.state.lock().final_until = Some(hour(OLDEST_LIVE));
    assert_eq!(service.get(&between).json()["rows"].as_array().unwrap().len(), 1);
}

#[test]
fn dead_database_costs_old_ranges_only() {
    let (service, store) = start_service(Some(OLDEST_LIVE));
    store.state.lock().is_dead = true;
    let old = service.get(&format!("/v1/cities/{CITY}/history?from={}", hour(OLDEST_LIVE - 1)));
    assert_eq!(
        (old.status, &*old.code(), old.header("retry-after")),
        (503, "history_unavailable", Some("7"))
    );
    assert!(read_pages(&service, OLDEST_LIVE, 100).1.is_none());
    let why = |at: i64| service.get(&format!("/v1/cities/{CITY}/why?reading_at={}", hour(at)));
    assert_eq!(why(3).code(), "history_unavailable");
    let newest = why(NEWEST).json();
    documents::check("WhyAnswer", &newest);
    assert_eq!((&newest["arrivals_as_of"], &newest["readings"][0]["pending"]), (&Value::Null, &json!(true)));
}

#[test]
fn time_travel_needs_an_epoch_that_the_store_has_reached() {
    let (service, store) = start_service(Some(OLDEST_LIVE));
    let at = |epoch: u64| service.get(&format!("/v1/cities/{CITY}/history?from={}&as_of={epoch}", hour(46)));
    assert_eq!(at(FIRST_EPOCH + 1_000_000).code(), "bad_parameter", "it is not over");
    let behind = at(FIRST_EPOCH);
    assert_eq!((&*behind.code(), behind.header("retry-after")), ("replica_behind", Some("1")));
    store.state.lock().complete_until = Some(FIRST_EPOCH);
    let page = at(FIRST_EPOCH).json();
    documents::check("HistoryAnswer", &page);
    assert_eq!((&page["as_of"], page["rows"].as_array().unwrap().len()), (&json!(FIRST_EPOCH), 27));
    let without = TestServer::start_ready(plan());
    let refused = without.get(&format!("/v1/cities/{CITY}/history?as_of={FIRST_EPOCH}"));
    assert!(refused.status == 400 && refused.text().contains("serve.history_urls"), "{}", refused.text());
}

fn arrival(at: i64, position: u64, outcome: &str, after: Option<f64>) -> StoredArrival {
    StoredArrival {
        reading_at: hour(at),
        as_of: FIRST_EPOCH - 10 + position,
        source: "weather \"log\"".into(),
        partition: 3,
        position,
        arrived_at: Some(hour(at + 1)),
        measurement: Measurement::new(91.0, 50.0, Some(3.0)).ok(),
        revision: Some(4),
        outcome: outcome.into(),
        heat_index_after: after.map(HeatIndex::from_fahrenheit),
        omitted_before: 0,
    }
}

#[test]
fn explanation_has_arrivals_withdrawals_and_what_is_pending() {
    let (service, store) = start_service(Some(OLDEST_LIVE));
    let heat = |at: i64| Some(80.0 + at as f64 / 8.0);
    {
        let mut state = store.state.lock();
        state.complete_until = Some(FIRST_EPOCH);
        state.arrivals = vec![
            arrival(70, 1, "inserted", Some(1.0)),
            arrival(70, 2, "corrected", heat(70)),
            arrival(70, 3, "old_revision", heat(70)),
            arrival(71, 4, "inserted", Some(2.0)),
        ];
        let mut withdrawn = arrival(71, 5, "withdrawn", None);
        withdrawn.reading_at = EventTime::from_millis(hour(71).millis() + 60_000).unwrap();
        withdrawn.omitted_before = 7;
        state.arrivals.push(withdrawn);
    }
    let page = service.get(&format!("/v1/cities/{CITY}/why?reading_at={}", hour(NEWEST))).json();
    documents::check("WhyAnswer", &page);
    let readings = page["readings"].as_array().unwrap();
    let find =
        |at: i64| readings.iter().find(|reading| reading["reading_at"] == hour(at).to_string()).unwrap();
    let corrected = find(70);
    assert_eq!((&corrected["pending"], &corrected["temperature"]), (&json!(false), &json!(91)));
    let outcomes: Vec<_> =
        corrected["arrivals"].as_array().unwrap().iter().map(|arrival| arrival["outcome"].clone()).collect();
    assert_eq!(outcomes, ["inserted", "corrected", "old_revision"]);
    assert_eq!(
        corrected["arrivals"][1],
        json!({"as_of": FIRST_EPOCH - 8, "source": "weather \"log\"", "partition": 3, "position": 2,
            "arrived_at": "2025-11-26T23:00:00Z", "outcome": "corrected", "temperature": 91, "humidity": 50,
            "wind_speed": 3, "revision": 4, "heat_index_e6": 88_750_000})
    );
    assert_eq!(find(71)["pending"], true, "the store has an older reading");
    assert_eq!(find(NEWEST)["pending"], true, "the store has no arrival");
    let withdrawn = page["withdrawn"].as_array().unwrap();
    assert_eq!(withdrawn.len(), 1);
    assert_eq!((&withdrawn[0]["pending"], &withdrawn[0]["earlier_arrivals"]), (&json!(false), &json!(7)));
    assert_eq!(page["arrivals_as_of"], FIRST_EPOCH);
}

#[test]
fn final_row_is_explained_by_the_store_once_it_is_final_there() {
    let (service, store) = start_service(Some(OLDEST_LIVE - 10));
    let why = |at: i64| service.get(&format!("/v1/cities/{CITY}/why?reading_at={}", hour(at)));
    let page = why(30).json();
    documents::check("WhyAnswer", &page);
    let readings = page["readings"].as_array().unwrap();
    assert_eq!((readings.len(), &readings[0]["reading_at"]), (25, &json!(hour(6).to_string())));
    assert_eq!(readings[0]["temperature"], 90);
    assert_eq!(why(OLDEST_LIVE - 10).code(), "replica_behind");
    assert_eq!(why(OLDEST_LIVE - 1).code(), "replica_behind");
    assert_eq!(why(OLDEST_LIVE).status, 200);
    store.state.lock().final_until = Some(hour(OLDEST_LIVE));
    let half = service.get("/v1/cities/5128581/why?reading_at=2025-11-24T10:30:00Z");
    assert_eq!(half.code(), "unknown_row");
}
