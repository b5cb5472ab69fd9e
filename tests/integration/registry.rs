//! Readings of Avro with the schemas of a registry.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use swelter::internals::codec::{
    CURRENT_SCHEMA, DecodeSettings, READING_SCHEMA, ROW_SCHEMA, RecordFields, push_wire_header,
    reading_to_avro,
};
use swelter::internals::model::{EventTime, Reason};
use swelter::internals::registry::{
    AvroRecordDecoder, DecodeResult, RegistryClient, RegistryError, RegistryResponse, RegistrySettings,
    ResponseRecorder, SchemaCache, SchemaLookup, fetch_and_record,
};

use crate::support::registry_server::{RegistryServer, ServerHealth};

const DEADLINE: Duration = Duration::from_secs(20);

fn client_settings(urls: Vec<String>) -> RegistrySettings {
    RegistrySettings { urls, user: None, timeout: Duration::from_secs(5) }
}

fn registry_client(server: &RegistryServer) -> RegistryClient {
    RegistryClient::new(&client_settings(vec![server.url()])).unwrap()
}

fn discard_response() -> ResponseRecorder {
    Box::new(|_, _| Ok(()))
}

/// A reading of `city`, as of schema `id`.
fn encoded_reading(id: u32, city: &str) -> Vec<u8> {
    let fields = RecordFields {
        city: Some(city),
        reading_at: EventTime::from_millis(0),
        temperature: Some(80.0),
        humidity: Some(50.0),
        ..RecordFields::default()
    };
    let mut value = Vec::new();
    push_wire_header(id, &mut value);
    reading_to_avro(&fields, &mut value);
    value
}

/// A decoder that has only recorded responses, read back from JSON: the registry answers with
/// errors.
fn replay_decoder(server: &RegistryServer, recorded: &HashMap<u32, RegistryResponse>) -> AvroRecordDecoder {
    let json = serde_json::to_string(recorded).unwrap();
    let recorded: HashMap<u32, RegistryResponse> = serde_json::from_str(&json).unwrap();
    server.set_health(ServerHealth::Errors);
    let fetch = fetch_and_record(registry_client(server), discard_response());
    let schemas = SchemaCache::new(recorded.into_iter().collect(), fetch).unwrap();
    AvroRecordDecoder::from_registry(schemas, DecodeSettings::default())
}

/// Decodes a value until it is not held back any more.
fn decode_until_final(records: &mut AvroRecordDecoder, value: &[u8]) -> Result<String, (Reason, String)> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match records.decode(value) {
            DecodeResult::Record(Ok(upsert)) => return Ok(upsert.city.into()),
            DecodeResult::Record(Err(refusal)) => return Err((refusal.reason, refusal.detail)),
            held => assert!(Instant::now() < deadline, "held back for ever: {held:?}"),
        }
        std::thread::yield_now();
    }
}

fn wait_until(mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !reached() {
        assert!(Instant::now() < deadline, "it did not come in time");
        std::thread::yield_now();
    }
}

#[test]
fn registered_schema_is_found_again() {
    let server = RegistryServer::start(None);
    let client = registry_client(&server);
    let id = client.register_schema("heat index-value", ROW_SCHEMA).unwrap();
    assert_eq!(client.register_schema("heat index-value", ROW_SCHEMA).unwrap(), id);
    assert_eq!(client.register_schema("elsewhere-value", ROW_SCHEMA).unwrap(), id);
    assert_ne!(client.register_schema("now-value", CURRENT_SCHEMA).unwrap(), id);
    let RegistryResponse::Avro { schema, references } = client.fetch_schema(id).unwrap() else {
        panic!("not Avro")
    };
    assert_eq!(
        serde_json::from_str::<Value>(&schema).unwrap(),
        serde_json::from_str::<Value>(ROW_SCHEMA).unwrap()
    );
    assert!(references.is_empty());
    assert_eq!(client.fetch_schema(99), Err(RegistryError::Unknown));
}

#[test]
fn schema_references_are_resolved_once_each() {
    let server = RegistryServer::start(None);
    let named =
        |name: &str, fields: Value| json!({"type": "record", "name": name, "fields": fields}).to_string();
    let text = |name: &str| json!({"name": name, "type": "string"});
    server.add_schema("geo/place", &named("Place", json!([text("name")])), json!([]));
    let place = json!([{"name": "Place", "subject": "geo/place", "version": 1}]);
    let station = named("Station", json!([{"name": "at", "type": "Place"}, {"name": "in", "type": "Place"}]));
    server.add_schema("station", &station, place.clone());
    let both = json!([
        {"name": "Station", "subject": "station", "version": 1},
        {"name": "Place", "subject": "geo/place", "version": 1},
    ]);
    let schema = named(
        "Reading",
        json!([text("city"), {"name": "s", "type": "Station"}, {"name": "p", "type": "Place"}]),
    );
    let id = server.add_schema("readings-value", &schema, both);
    let schemas =
        SchemaCache::new(Vec::new(), fetch_and_record(registry_client(&server), discard_response())).unwrap();
    let mut records = AvroRecordDecoder::from_registry(schemas, DecodeSettings::default());
    let mut value = Vec::new();
    push_wire_header(id, &mut value);
    value.extend_from_slice(b"\x02x\x02a\x02b\x02c");
    let (reason, detail) = decode_until_final(&mut records, &value).unwrap_err();
    assert_eq!((reason, &*detail), (Reason::MissingField, "reading_at is missing"));
    let asked = server.requested_paths();
    assert_eq!(asked.iter().filter(|path| path.contains("/subjects/geo%2Fplace/")).count(), 1, "{asked:?}");
}

#[test]
fn registry_errors_name_remedy() {
    let server = RegistryServer::start(Some(("me", "secret")));
    let refused = |client: &RegistryClient, what: &str| match client.register_schema("x-value", ROW_SCHEMA) {
        Err(RegistryError::Refused(detail)) => assert!(detail.contains(what), "{detail}"),
        other => panic!("{other:?}"),
    };
    refused(&registry_client(&server), "password");
    let user = |password: &str| Some(("me".to_string(), password.to_string()));
    let with = |user| {
        RegistryClient::new(&RegistrySettings { user, ..client_settings(vec![server.url()]) }).unwrap()
    };
    refused(&with(user("wrong")), "password");
    let right = with(user("secret"));
    assert!(!format!("{right:?}").contains("secret"));
    let id = right.register_schema("x-value", READING_SCHEMA).unwrap();
    refused(&right, "compatib");
    assert!(right.fetch_schema(id).is_ok());
    let path = RegistryClient::new(&client_settings(vec![format!("{}/elsewhere", server.url())])).unwrap();
    let wrong = with(user("secret")).register_schema("x-value", "no schema");
    assert!(
        matches!(&wrong, Err(RegistryError::Refused(detail)) if detail.contains("Invalid schema")),
        "{wrong:?}"
    );
    assert!(matches!(path.fetch_schema(id), Err(RegistryError::Refused(_))));
    for url in ["", "localhost:8081", "ftp://x", "http://", "http://me:secret@x", "http://x/?a"] {
        let error = RegistryClient::new(&client_settings(vec![url.into()])).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    assert!(RegistryClient::new(&client_settings(Vec::new())).is_err());
}

#[test]
fn outage_is_not_an_unknown_schema() {
    let server = RegistryServer::start(None);
    let client = registry_client(&server);
    let id = client.register_schema("x-value", READING_SCHEMA).unwrap();
    for health in [ServerHealth::Errors, ServerHealth::Closes, ServerHealth::Rambles, ServerHealth::NotFound]
    {
        server.set_health(health);
        for id in [id, 99] {
            assert!(!matches!(client.fetch_schema(id), Ok(_) | Err(RegistryError::Unknown)), "{health:?}");
        }
    }
    server.set_health(ServerHealth::Silent);
    let short =
        RegistrySettings { timeout: Duration::from_millis(100), ..client_settings(vec![server.url()]) };
    let started = Instant::now();
    assert!(matches!(
        RegistryClient::new(&short).unwrap().fetch_schema(id),
        Err(RegistryError::Unavailable(_))
    ));
    assert!(started.elapsed() < DEADLINE);
}

#[test]
fn second_address_is_used_if_first_fails() {
    let (down, empty, up) =
        (RegistryServer::start(None), RegistryServer::start(None), RegistryServer::start(None));
    down.set_health(ServerHealth::Errors);
    let id = up.add_schema("x-value", READING_SCHEMA, json!([]));
    let client = RegistryClient::new(&client_settings(vec![down.url(), empty.url(), up.url()])).unwrap();
    assert!(client.fetch_schema(id).is_ok());
    let before = down.requested_paths().len();
    assert!(client.fetch_schema(id).is_ok());
    assert_eq!(down.requested_paths().len(), before, "the one that answered last comes first");
    // A registry that is down may know the schema.
    assert!(matches!(client.fetch_schema(99), Err(RegistryError::Unavailable(_))));
    down.set_health(ServerHealth::Up);
    assert_eq!(client.fetch_schema(99), Err(RegistryError::Unknown));
}

#[test]
fn outage_holds_records_back_until_it_ends() {
    let server = RegistryServer::start(None);
    let id = server.add_schema("x-value", READING_SCHEMA, json!([]));
    server.set_health(ServerHealth::Errors);
    let schemas =
        SchemaCache::new(Vec::new(), fetch_and_record(registry_client(&server), discard_response())).unwrap();
    let mut records = AvroRecordDecoder::from_registry(schemas, DecodeSettings::default());
    let value = encoded_reading(id, "x");
    wait_until(|| match records.decode(&value) {
        DecodeResult::Pending => false,
        DecodeResult::Unavailable(why) => why.contains("500"),
        DecodeResult::Record(record) => panic!("decoded without a schema: {record:?}"),
    });
    // The registry is asked again after a pause.
    wait_until(|| server.requested_paths().len() >= 3);
    server.set_health(ServerHealth::Up);
    assert_eq!(decode_until_final(&mut records, &value), Ok("x".into()));
    let asked = server.requested_paths().len();
    for _ in 0..1_000 {
        assert_eq!(decode_until_final(&mut records, &value), Ok("x".into()));
    }
    assert_eq!(server.requested_paths().len(), asked, "a schema that is known is not asked for");
}

#[test]
fn registry_response_is_recorded_before_use_and_kept() {
    let server = RegistryServer::start(None);
    let known = server.add_schema("x-value", READING_SCHEMA, json!([]));
    let recorded: Arc<Mutex<HashMap<u32, RegistryResponse>>> = Arc::default();
    let failures = Arc::new(Mutex::new(2));
    let (note, fail) = (recorded.clone(), failures.clone());
    let record: ResponseRecorder = Box::new(move |id, answer| {
        let mut failures = fail.lock();
        if *failures > 0 {
            *failures -= 1;
            return Err("the disk is full".into());
        }
        note.lock().insert(id, answer.clone());
        Ok(())
    });
    let schemas = SchemaCache::new(Vec::new(), fetch_and_record(registry_client(&server), record)).unwrap();
    let mut records = AvroRecordDecoder::from_registry(schemas.clone(), DecodeSettings::default());
    for (id, expected) in [(known, Ok(())), (7_777, Err(Reason::UnknownSchema))] {
        wait_until(|| match schemas.lookup(id) {
            SchemaLookup::Known(answer) => {
                assert_eq!(recorded.lock().get(&id), Some(&answer));
                true
            }
            _ => false,
        });
        let value = encoded_reading(id, "x");
        assert_eq!(
            decode_until_final(&mut records, &value).map(drop).map_err(|(reason, _)| reason),
            expected
        );
    }
    assert_eq!(*failures.lock(), 0);
    // At another start the registry knows the other schema by now: recorded responses stay.
    let server = RegistryServer::start(None);
    let now = server.add_schema("y-value", READING_SCHEMA, json!([]));
    recorded.lock().insert(now, RegistryResponse::Unknown);
    let mut records = replay_decoder(&server, &recorded.lock());
    let reason = decode_until_final(&mut records, &encoded_reading(now, "x")).unwrap_err().0;
    assert_eq!(reason, Reason::UnknownSchema);
    assert!(server.requested_paths().is_empty());
}

#[test]
fn every_record_of_unreadable_schema_is_refused_with_reason() {
    let server = RegistryServer::start(None);
    let incompatible = r#"{"type":"record","name":"R","fields":[{"name":"city","type":"long"}]}"#;
    let incompatible = server.add_schema("a-value", incompatible, json!([]));
    let other = server.add_schema_of_kind("PROTOBUF", "b-value", "message R {}", json!([]));
    let schemas =
        SchemaCache::new(Vec::new(), fetch_and_record(registry_client(&server), discard_response())).unwrap();
    let mut records = AvroRecordDecoder::from_registry(schemas, DecodeSettings::default());
    for _ in 0..3 {
        for (id, what) in [(incompatible, "field city"), (other, "PROTOBUF")] {
            let (reason, detail) = decode_until_final(&mut records, &encoded_reading(id, "x")).unwrap_err();
            assert_eq!(reason, Reason::NotDecodable);
            assert!(detail.contains(what), "{detail}");
        }
        let (reason, detail) = decode_until_final(&mut records, b"{\"city\":1}").unwrap_err();
        assert_eq!(reason, Reason::NotDecodable, "{detail}");
    }
}

/// An unusable schema does not hold back records of other schemas.
#[test]
fn unusable_schema_is_a_final_response() {
    let server = RegistryServer::start(None);
    let record = |more: usize| {
        let doc = "x".repeat(more);
        json!({"type": "record", "name": "R", "doc": doc, "fields": [{"name": "city", "type": "string"}]})
            .to_string()
    };
    let gone = json!([{"name": "Gone", "subject": "gone", "version": 1}]);
    let gone = server.add_schema("a-value", &record(1), gone);
    let many: Vec<Value> = (0..101)
        .map(|at| {
            server.add_schema(&format!("many {at}"), &record(2 + at), json!([]));
            json!({"name": "Many", "subject": format!("many {at}"), "version": 1})
        })
        .collect();
    let many = server.add_schema("b-value", &record(0), many.into());
    let long = server.add_schema("c-value", &record(5 << 20), json!([]));
    let recorded: Arc<Mutex<HashMap<u32, RegistryResponse>>> = Arc::default();
    let note = recorded.clone();
    let record: ResponseRecorder = Box::new(move |id, answer| {
        note.lock().insert(id, answer.clone());
        Ok(())
    });
    let schemas = SchemaCache::new(Vec::new(), fetch_and_record(registry_client(&server), record)).unwrap();
    let mut records = AvroRecordDecoder::from_registry(schemas, DecodeSettings::default());
    let cases = [(gone, "/subjects/gone/"), (many, "more than 100"), (long, "longer than")];
    for (id, what) in cases {
        let (reason, detail) = decode_until_final(&mut records, &encoded_reading(id, "x")).unwrap_err();
        assert_eq!(reason, Reason::NotDecodable);
        assert!(detail.contains(what), "{detail}");
    }
    // A replay decides the same.
    let mut records = replay_decoder(&server, &recorded.lock());
    for (id, what) in cases {
        assert!(decode_until_final(&mut records, &encoded_reading(id, "x")).unwrap_err().1.contains(what));
    }
}

#[test]
fn schema_file_replaces_registry() {
    let mut records = AvroRecordDecoder::from_schema(READING_SCHEMA, DecodeSettings::default()).unwrap();
    let with_header = encoded_reading(1, "x");
    assert_eq!(decode_until_final(&mut records, &with_header[5..]), Ok("x".into()));
    assert!(decode_until_final(&mut records, &with_header).is_err());
    assert!(AvroRecordDecoder::from_schema("{}", DecodeSettings::default()).is_err());
}

#[test]
fn lookup_thread_ends_with_last_reader() {
    struct AliveToken(#[allow(dead_code)] Arc<()>);
    let alive = Arc::new(());
    let held = AliveToken(alive.clone());
    let record: ResponseRecorder = Box::new(move |_, _| {
        let _ = &held;
        Ok(())
    });
    let server = RegistryServer::start(None);
    server.set_health(ServerHealth::Errors);
    let schemas = SchemaCache::new(Vec::new(), fetch_and_record(registry_client(&server), record)).unwrap();
    let other = schemas.clone();
    assert_eq!(schemas.lookup(1), SchemaLookup::Pending);
    drop(schemas);
    assert_eq!(Arc::strong_count(&alive), 2);
    drop(other);
    wait_until(|| Arc::strong_count(&alive) == 1);
}

const SHORT_RETRY_DELAY: Duration = Duration::from_millis(20);

#[test]
fn recreated_registry_schema_contradicts_recorded_response() {
    let server = RegistryServer::start(None);
    let id = registry_client(&server).register_schema("readings-value", READING_SCHEMA).unwrap();
    let recorded = registry_client(&server).fetch_schema(id).unwrap();
    let known = |recorded: &RegistryResponse| vec![(id, recorded.clone())];
    let never =
        || -> swelter::internals::registry::ResponseFetcher { Box::new(|_| Err("not to be asked".into())) };

    // The same registry, and a response that was recorded with other white space.
    let RegistryResponse::Avro { schema, references } = &recorded else { panic!("{recorded:?}") };
    let spaced = serde_json::to_string_pretty(&serde_json::from_str::<Value>(schema).unwrap()).unwrap();
    assert_ne!(*spaced, **schema);
    let spaced = RegistryResponse::Avro { schema: spaced.into(), references: references.clone() };
    for answer in [&recorded, &spaced] {
        let schemas = SchemaCache::with_verification(
            known(answer),
            never(),
            registry_client(&server),
            SHORT_RETRY_DELAY,
        )
        .unwrap();
        let asked = server.requested_paths();
        assert_eq!(schemas.lookup(id), SchemaLookup::Known(answer.clone()));
        // Verified soon, and again later.
        wait_until(|| server.requested_paths().len() > asked.len() + 1);
        assert_eq!(schemas.contradiction(), None);
    }

    let anew = RegistryServer::start(None);
    assert_eq!(registry_client(&anew).register_schema("rows-value", ROW_SCHEMA).unwrap(), id);
    let schemas =
        SchemaCache::with_verification(known(&recorded), never(), registry_client(&anew), SHORT_RETRY_DELAY)
            .unwrap();
    assert_eq!(schemas.contradiction(), None, "before it is used");
    assert_eq!(schemas.lookup(id), SchemaLookup::Known(recorded));
    wait_until(|| schemas.contradiction().is_some());
    let said = schemas.contradiction().unwrap();
    assert!(said.contains("another schema") && said.contains("restore it"), "{said}");
}
