//! Readings of Avro with the schemas of a registry.

pub mod server;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::{Health, Server};
use swelter::codec::{
    CURRENT_SCHEMA, DecodeSettings, Fields, READING_SCHEMA, ROW_SCHEMA, push_wire_header, reading_to_avro,
};
use swelter::model::{EventTime, Reason};
use swelter::registry::{
    Answer, AvroRecords, Client, ClientSettings, Decoded, Lookup, RecordAnswer, RegistryError, Schemas,
    ask_and_record,
};

const DEADLINE: Duration = Duration::from_secs(20);

fn settings(urls: Vec<String>) -> ClientSettings {
    ClientSettings { urls, user: None, timeout: Duration::from_secs(5) }
}

fn client(server: &Server) -> Client {
    Client::new(&settings(vec![server.url()])).unwrap()
}

fn forgetful() -> RecordAnswer {
    Box::new(|_, _| Ok(()))
}

/// A reading of `city`, as of schema `id`.
fn value(id: u32, city: &str) -> Vec<u8> {
    let fields = Fields {
        city: Some(city),
        reading_at: EventTime::from_millis(0),
        temperature: Some(80.0),
        humidity: Some(50.0),
        ..Fields::default()
    };
    let mut value = Vec::new();
    push_wire_header(id, &mut value);
    reading_to_avro(&fields, &mut value);
    value
}

/// What a value comes to in the end, however often it must be held back before.
fn decoded(records: &mut AvroRecords, value: &[u8]) -> Result<String, (Reason, String)> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match records.decode(value) {
            Decoded::Record(Ok(upsert)) => return Ok(upsert.city.into()),
            Decoded::Record(Err(refusal)) => return Err((refusal.reason, refusal.detail)),
            held => assert!(Instant::now() < deadline, "held back for ever: {held:?}"),
        }
        std::thread::yield_now();
    }
}

fn until(mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !reached() {
        assert!(Instant::now() < deadline, "it did not come in time");
        std::thread::yield_now();
    }
}

#[test]
fn what_is_registered_is_found_again() {
    let server = Server::start(None);
    let client = client(&server);
    let id = client.register("heat index-value", ROW_SCHEMA).unwrap();
    assert_eq!(client.register("heat index-value", ROW_SCHEMA).unwrap(), id);
    assert_eq!(client.register("elsewhere-value", ROW_SCHEMA).unwrap(), id);
    assert_ne!(client.register("now-value", CURRENT_SCHEMA).unwrap(), id);
    let Answer::Avro { schema, references } = client.schema(id).unwrap() else { panic!("not Avro") };
    assert_eq!(
        serde_json::from_str::<Value>(&schema).unwrap(),
        serde_json::from_str::<Value>(ROW_SCHEMA).unwrap()
    );
    assert!(references.is_empty());
    assert_eq!(client.schema(99), Err(RegistryError::Unknown));
}

#[test]
fn references_are_resolved_once_each() {
    let server = Server::start(None);
    let named =
        |name: &str, fields: Value| json!({"type": "record", "name": name, "fields": fields}).to_string();
    let text = |name: &str| json!({"name": name, "type": "string"});
    server.add("geo/place", &named("Place", json!([text("name")])), json!([]));
    let place = json!([{"name": "Place", "subject": "geo/place", "version": 1}]);
    let station = named("Station", json!([{"name": "at", "type": "Place"}, {"name": "in", "type": "Place"}]));
    server.add("station", &station, place.clone());
    let both = json!([
        {"name": "Station", "subject": "station", "version": 1},
        {"name": "Place", "subject": "geo/place", "version": 1},
    ]);
    let schema = named(
        "Reading",
        json!([text("city"), {"name": "s", "type": "Station"}, {"name": "p", "type": "Place"}]),
    );
    let id = server.add("readings-value", &schema, both);
    let schemas = Schemas::new(Vec::new(), ask_and_record(client(&server), forgetful())).unwrap();
    let mut records = AvroRecords::from_registry(schemas, DecodeSettings::default());
    let mut value = Vec::new();
    push_wire_header(id, &mut value);
    value.extend_from_slice(b"\x02x\x02a\x02b\x02c");
    let (reason, detail) = decoded(&mut records, &value).unwrap_err();
    assert_eq!((reason, &*detail), (Reason::MissingField, "reading_at is missing"));
    let asked = server.asked();
    assert_eq!(asked.iter().filter(|path| path.contains("/subjects/geo%2Fplace/")).count(), 1, "{asked:?}");
}

#[test]
fn refusals_say_what_to_do() {
    let server = Server::start(Some(("me", "secret")));
    let refused = |client: &Client, what: &str| match client.register("x-value", ROW_SCHEMA) {
        Err(RegistryError::Refused(detail)) => assert!(detail.contains(what), "{detail}"),
        other => panic!("{other:?}"),
    };
    refused(&client(&server), "password");
    let user = |password: &str| Some(("me".to_string(), password.to_string()));
    let with = |user| Client::new(&ClientSettings { user, ..settings(vec![server.url()]) }).unwrap();
    refused(&with(user("wrong")), "password");
    let right = with(user("secret"));
    assert!(!format!("{right:?}").contains("secret"));
    let id = right.register("x-value", READING_SCHEMA).unwrap();
    refused(&right, "compatib");
    assert!(right.schema(id).is_ok());
    let path = Client::new(&settings(vec![format!("{}/elsewhere", server.url())])).unwrap();
    let wrong = with(user("secret")).register("x-value", "no schema");
    assert!(
        matches!(&wrong, Err(RegistryError::Refused(detail)) if detail.contains("Invalid schema")),
        "{wrong:?}"
    );
    assert!(matches!(path.schema(id), Err(RegistryError::Refused(_))));
    for url in ["", "localhost:8081", "ftp://x", "http://", "http://me:secret@x", "http://x/?a"] {
        let error = Client::new(&settings(vec![url.into()])).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    assert!(Client::new(&settings(Vec::new())).is_err());
}

#[test]
fn an_outage_is_not_an_unknown_schema() {
    let server = Server::start(None);
    let client = client(&server);
    let id = client.register("x-value", READING_SCHEMA).unwrap();
    for health in [Health::Errors, Health::Closes, Health::Rambles, Health::NotFound] {
        server.set(health);
        for id in [id, 99] {
            assert!(!matches!(client.schema(id), Ok(_) | Err(RegistryError::Unknown)), "{health:?}");
        }
    }
    server.set(Health::Silent);
    let short = ClientSettings { timeout: Duration::from_millis(100), ..settings(vec![server.url()]) };
    let started = Instant::now();
    assert!(matches!(Client::new(&short).unwrap().schema(id), Err(RegistryError::Unavailable(_))));
    assert!(started.elapsed() < DEADLINE);
}

#[test]
fn another_address_answers_where_the_first_does_not() {
    let (down, empty, up) = (Server::start(None), Server::start(None), Server::start(None));
    down.set(Health::Errors);
    let id = up.add("x-value", READING_SCHEMA, json!([]));
    let client = Client::new(&settings(vec![down.url(), empty.url(), up.url()])).unwrap();
    assert!(client.schema(id).is_ok());
    let before = down.asked().len();
    assert!(client.schema(id).is_ok());
    assert_eq!(down.asked().len(), before, "the one that answered last comes first");
    // One that is away may know.
    assert!(matches!(client.schema(99), Err(RegistryError::Unavailable(_))));
    down.set(Health::Up);
    assert_eq!(client.schema(99), Err(RegistryError::Unknown));
}

#[test]
fn an_outage_holds_back_and_ends() {
    let server = Server::start(None);
    let id = server.add("x-value", READING_SCHEMA, json!([]));
    server.set(Health::Errors);
    let schemas = Schemas::new(Vec::new(), ask_and_record(client(&server), forgetful())).unwrap();
    let mut records = AvroRecords::from_registry(schemas, DecodeSettings::default());
    let value = value(id, "x");
    until(|| match records.decode(&value) {
        Decoded::Pending => false,
        Decoded::Unavailable(why) => why.contains("500"),
        Decoded::Record(record) => panic!("decoded without a schema: {record:?}"),
    });
    // It is asked again and again, and not at once.
    until(|| server.asked().len() >= 3);
    server.set(Health::Up);
    assert_eq!(decoded(&mut records, &value), Ok("x".into()));
    let asked = server.asked().len();
    for _ in 0..1_000 {
        assert_eq!(decoded(&mut records, &value), Ok("x".into()));
    }
    assert_eq!(server.asked().len(), asked, "a schema that is known is not asked for");
}

#[test]
fn an_answer_is_recorded_before_it_is_used_and_stays() {
    let server = Server::start(None);
    let known = server.add("x-value", READING_SCHEMA, json!([]));
    let recorded: Arc<Mutex<HashMap<u32, Answer>>> = Arc::default();
    let failures = Arc::new(Mutex::new(2));
    let (note, fail) = (recorded.clone(), failures.clone());
    let record: RecordAnswer = Box::new(move |id, answer| {
        let mut failures = fail.lock().unwrap();
        if *failures > 0 {
            *failures -= 1;
            return Err("the disk is full".into());
        }
        note.lock().unwrap().insert(id, answer.clone());
        Ok(())
    });
    let schemas = Schemas::new(Vec::new(), ask_and_record(client(&server), record)).unwrap();
    let mut records = AvroRecords::from_registry(schemas.clone(), DecodeSettings::default());
    for (id, expected) in [(known, Ok(())), (7_777, Err(Reason::UnknownSchema))] {
        until(|| match schemas.lookup(id) {
            Lookup::Known(answer) => {
                assert_eq!(recorded.lock().unwrap().get(&id), Some(&answer));
                true
            }
            _ => false,
        });
        let value = value(id, "x");
        assert_eq!(decoded(&mut records, &value).map(drop).map_err(|(reason, _)| reason), expected);
    }
    assert_eq!(*failures.lock().unwrap(), 0);
    // Another start, where the registry has meanwhile heard of the other: what was decided stays.
    let server = Server::start(None);
    let now = server.add("y-value", READING_SCHEMA, json!([]));
    let json = serde_json::to_string(&recorded.lock().unwrap().clone()).unwrap();
    let mut kept: HashMap<u32, Answer> = serde_json::from_str(&json).unwrap();
    kept.insert(now, Answer::Unknown);
    server.set(Health::Errors);
    let schemas =
        Schemas::new(kept.into_iter().collect(), ask_and_record(client(&server), forgetful())).unwrap();
    let mut records = AvroRecords::from_registry(schemas, DecodeSettings::default());
    let reason = decoded(&mut records, &value(now, "x")).unwrap_err().0;
    assert_eq!(reason, Reason::UnknownSchema);
    assert!(server.asked().is_empty());
}

#[test]
fn each_record_of_an_unreadable_schema_says_so() {
    let server = Server::start(None);
    let incompatible = r#"{"type":"record","name":"R","fields":[{"name":"city","type":"long"}]}"#;
    let incompatible = server.add("a-value", incompatible, json!([]));
    let other = server.add_of("PROTOBUF", "b-value", "message R {}", json!([]));
    let schemas = Schemas::new(Vec::new(), ask_and_record(client(&server), forgetful())).unwrap();
    let mut records = AvroRecords::from_registry(schemas, DecodeSettings::default());
    for _ in 0..3 {
        for (id, what) in [(incompatible, "field city"), (other, "PROTOBUF")] {
            let (reason, detail) = decoded(&mut records, &value(id, "x")).unwrap_err();
            assert_eq!(reason, Reason::NotDecodable);
            assert!(detail.contains(what), "{detail}");
        }
        let (reason, detail) = decoded(&mut records, b"{\"city\":1}").unwrap_err();
        assert_eq!(reason, Reason::NotDecodable, "{detail}");
    }
}

/// Nothing that is wrong with one schema holds back what others were written with.
#[test]
fn a_schema_that_cannot_be_used_is_an_answer() {
    let server = Server::start(None);
    let record = |more: usize| {
        let doc = "x".repeat(more);
        json!({"type": "record", "name": "R", "doc": doc, "fields": [{"name": "city", "type": "string"}]})
            .to_string()
    };
    let gone = json!([{"name": "Gone", "subject": "gone", "version": 1}]);
    let gone = server.add("a-value", &record(1), gone);
    let many: Vec<Value> = (0..101)
        .map(|at| {
            server.add(&format!("many {at}"), &record(2 + at), json!([]));
            json!({"name": "Many", "subject": format!("many {at}"), "version": 1})
        })
        .collect();
    let many = server.add("b-value", &record(0), many.into());
    let long = server.add("c-value", &record(5 << 20), json!([]));
    let recorded: Arc<Mutex<HashMap<u32, Answer>>> = Arc::default();
    let note = recorded.clone();
    let record: RecordAnswer = Box::new(move |id, answer| {
        note.lock().unwrap().insert(id, answer.clone());
        Ok(())
    });
    let schemas = Schemas::new(Vec::new(), ask_and_record(client(&server), record)).unwrap();
    let mut records = AvroRecords::from_registry(schemas, DecodeSettings::default());
    let cases = [(gone, "/subjects/gone/"), (many, "more than 100"), (long, "longer than")];
    for (id, what) in cases {
        let (reason, detail) = decoded(&mut records, &value(id, "x")).unwrap_err();
        assert_eq!(reason, Reason::NotDecodable);
        assert!(detail.contains(what), "{detail}");
    }
    // A replay decides the same.
    let json = serde_json::to_string(&recorded.lock().unwrap().clone()).unwrap();
    let kept: HashMap<u32, Answer> = serde_json::from_str(&json).unwrap();
    server.set(Health::Errors);
    let schemas =
        Schemas::new(kept.into_iter().collect(), ask_and_record(client(&server), forgetful())).unwrap();
    let mut records = AvroRecords::from_registry(schemas, DecodeSettings::default());
    for (id, what) in cases {
        assert!(decoded(&mut records, &value(id, "x")).unwrap_err().1.contains(what));
    }
}

#[test]
fn a_schema_file_stands_for_a_registry() {
    let mut records = AvroRecords::from_schema(READING_SCHEMA, DecodeSettings::default()).unwrap();
    let with_header = value(1, "x");
    assert_eq!(decoded(&mut records, &with_header[5..]), Ok("x".into()));
    assert!(decoded(&mut records, &with_header).is_err());
    assert!(AvroRecords::from_schema("{}", DecodeSettings::default()).is_err());
}

#[test]
fn the_asking_thread_ends_with_the_last_reader() {
    struct Alive(#[allow(dead_code)] Arc<()>);
    let alive = Arc::new(());
    let held = Alive(alive.clone());
    let record: RecordAnswer = Box::new(move |_, _| {
        let _ = &held;
        Ok(())
    });
    let server = Server::start(None);
    server.set(Health::Errors);
    let schemas = Schemas::new(Vec::new(), ask_and_record(client(&server), record)).unwrap();
    let other = schemas.clone();
    assert_eq!(schemas.lookup(1), Lookup::Pending);
    drop(schemas);
    assert_eq!(Arc::strong_count(&alive), 2);
    drop(other);
    until(|| Arc::strong_count(&alive) == 1);
}

const SOON: Duration = Duration::from_millis(20);

#[test]
fn schema_of_a_registry_made_anew_contradicts_the_recorded_answer() {
    let server = Server::start(None);
    let id = client(&server).register("readings-value", READING_SCHEMA).unwrap();
    let recorded = client(&server).schema(id).unwrap();
    let known = |recorded: &Answer| vec![(id, recorded.clone())];
    let never = || -> swelter::registry::FindAnswer { Box::new(|_| Err("not to be asked".into())) };

    // The same registry, and an answer that was recorded with other spaces.
    let Answer::Avro { schema, references } = &recorded else { panic!("{recorded:?}") };
    let spaced = serde_json::to_string_pretty(&serde_json::from_str::<Value>(schema).unwrap()).unwrap();
    assert_ne!(*spaced, **schema);
    let spaced = Answer::Avro { schema: spaced.into(), references: references.clone() };
    for answer in [&recorded, &spaced] {
        let schemas = Schemas::verified(known(answer), never(), client(&server), SOON).unwrap();
        let asked = server.asked();
        assert_eq!(schemas.lookup(id), Lookup::Known(answer.clone()));
        // Once soon, and again later.
        until(|| server.asked().len() > asked.len() + 1);
        assert_eq!(schemas.contradiction(), None);
    }

    let anew = Server::start(None);
    assert_eq!(client(&anew).register("rows-value", ROW_SCHEMA).unwrap(), id);
    let schemas = Schemas::verified(known(&recorded), never(), client(&anew), SOON).unwrap();
    assert_eq!(schemas.contradiction(), None, "before it is used");
    assert_eq!(schemas.lookup(id), Lookup::Known(recorded));
    until(|| schemas.contradiction().is_some());
    let said = schemas.contradiction().unwrap();
    assert!(said.contains("another schema") && said.contains("restore it"), "{said}");
}
