//! The OpenAPI and AsyncAPI documents describe what the server does.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde_json::json;

use super::*;
use crate::serve::problem::ProblemCode;
use crate::serve::route::RouteAvailability;
use crate::serve::routes::ROUTES;

static OPENAPI: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_slice(crate::serve::documents::openapi()).unwrap());
static ASYNCAPI: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_slice(crate::serve::documents::asyncapi()).unwrap());

fn validate(document: &Value, name: &str, instance: &Value) {
    let mut schema = json!({"$ref": format!("#/components/schemas/{name}")});
    schema["components"] = document["components"].clone();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<_> = validator.iter_errors(instance).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{name}: {errors:?}\n{instance:#}");
}

/// Checks a response against a schema of the OpenAPI document.
pub(super) fn check(name: &str, instance: &Value) {
    validate(&OPENAPI, name, instance);
}

/// Checks a message against a schema of the AsyncAPI document.
pub(super) fn check_message(name: &str, message: &Value) {
    validate(&ASYNCAPI, name, message);
}

#[test]
fn openapi_routes_equal_served_routes() {
    let served: BTreeSet<_> = ROUTES
        .iter()
        .filter(|route| route.availability != RouteAvailability::TestOnly)
        .map(|route| (route.path.to_string(), route.method.as_str().to_ascii_lowercase()))
        .collect();
    let paths = OPENAPI["paths"].as_object().unwrap();
    let documented: BTreeSet<_> = paths
        .iter()
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(|method| (path.clone(), method.clone()))
        })
        .collect();
    assert_eq!(served, documented);
    for route in ROUTES.iter().filter(|route| route.availability != RouteAvailability::TestOnly) {
        let operation = &paths[route.path][route.method.as_str().to_ascii_lowercase()];
        assert_eq!(route.scope.is_some(), operation["security"] != json!([]), "{}", route.path);
    }
    let channels = ASYNCAPI["channels"].as_object().unwrap().values().map(|channel| &channel["address"]);
    assert_eq!(channels.collect::<Vec<_>>(), ["/v1/ingest", "/v1/subscribe"]);
}

#[test]
fn every_error_code_is_documented() {
    let documented = OPENAPI["components"]["schemas"]["Problem"]["properties"]["code"]["enum"].clone();
    let documented: BTreeSet<String> = serde_json::from_value(documented).unwrap();
    assert_eq!(
        documented,
        ProblemCode::ALL.iter().map(|code| code.status_code_title().1.to_string()).collect()
    );
    let responses = &OPENAPI["components"]["responses"];
    for code in ProblemCode::ALL {
        assert!(responses[code.status_code_title().0.to_string()].is_object(), "{code:?}");
    }
}

#[test]
fn document_references_resolve_and_schemas_are_valid() {
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|member| references(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    for document in [&*OPENAPI, &*ASYNCAPI] {
        let mut found = Vec::new();
        references(document, &mut found);
        for reference in found {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            assert!(jsonschema::meta::is_valid(schema), "{name}");
        }
    }
}

#[test]
fn responses_match_documented_schemas() {
    let service = TestServer::start_ready(plan());
    let at = time("2025-11-24T16:00:00Z");
    service.dataflow.insert_row("5128581", at, row(90.0, Category::Caution));
    for (path, schema) in [
        ("/v1/cities", "CitiesAnswer"),
        ("/v1/cities/5128581", "CityAnswer"),
        ("/v1/cities/gone", "CityAnswer"),
        ("/v1/cities/5128581/history", "HistoryAnswer"),
        ("/v1/status", "StatusAnswer"),
        ("/healthz", "HealthAnswer"),
        ("/readyz", "HealthAnswer"),
        ("/v1/nothing", "Problem"),
    ] {
        check(schema, &service.get(path).json());
    }
    assert_eq!(service.get("/v1/openapi.json").json(), *OPENAPI);
    assert_eq!(service.get("/v1/asyncapi.json").json(), *ASYNCAPI);
    let body = format!("[{READING},{{}}]");
    check("TakenAnswer", &service.post("application/json", body.as_bytes()).json());
    for example in OPENAPI["components"]["schemas"]["Reading"]["examples"].as_array().unwrap() {
        check("Reading", example);
        assert_eq!(service.post("application/json", example.to_string().as_bytes()).status, 200);
    }
}
