//! Places of a file in responses, and the search.

use serde_json::json;

use super::documents::check;
use super::*;
use crate::directory::PlacesFile;

const CITY_NOT_IN_DIRECTORY: &str = "Zürich / \"Süd\" %";

fn service() -> TestServer {
    let text = "id,name,country,latitude,longitude,time_zone\n\
                5368361,Harbour,US,33.7,-118.2,America/Los_Angeles\n\
                \"Zürich / \"\"Süd\"\" %\",Dach,CH,,,\n";
    let directory = Directory::shipped_with(PlacesFile::from_csv(text).unwrap());
    let service = TestServer::start_with(plan(), true, ServiceInfo { directory, ..service_info() });
    service.dataflow.publish(ViewUpdate { current_rows: cities(), ..ViewUpdate::default() });
    service.poll_until("/v1/cities", |reply| {
        reply.status == 200 && reply.json()["cities"].as_array().unwrap().len() >= 3
    });
    service
}

#[test]
fn places_override_directory() {
    let service = service();
    let city = |key: &str| {
        let answer = service.get(&format!("/v1/cities/{key}")).json();
        check("CityAnswer", &answer);
        let values =
            ["name", "country", "time_zone", "latitude", "longitude"].map(|name| answer[name].clone());
        (Value::from(values.to_vec()), answer["population"].clone())
    };
    let (harbour, population) = city("5368361");
    assert_eq!(harbour, json!(["Harbour", "US", "America/Los_Angeles", 33.7, -118.2]));
    assert!(population.as_u64() > Some(1_000_000), "the population of the shipped entry");
    let (roof, population) = city("Z%C3%BCrich%20%2F%20%22S%C3%BCd%22%20%25");
    assert_eq!((roof, population), (json!(["Dach", "CH", null, null, null]), Value::Null));
    assert_eq!(city("5128581").0, json!(["New York City", "US", null, 40.71427, -74.00597]));
}

#[test]
fn search_finds_names_countries_and_keys() {
    let service = service();
    for (query, keys) in [
        ("search=harbour", vec!["5368361"]),
        ("search=los%20angeles", vec!["5368361"]),
        ("search=%D0%9D%D1%8C%D1%8E-%D0%99%D0%BE%D1%80%D0%BA", vec!["5128581"]),
        ("search=big+apple", vec!["5128581"]),
        ("search=united", vec!["5128581", "5368361"]),
        ("search=us&order=heat_index", vec!["5368361", "5128581"]),
        ("search=Switzerland", vec![CITY_NOT_IN_DIRECTORY]),
        ("search=zurich", vec![CITY_NOT_IN_DIRECTORY]),
        ("search=D%C3%A2ch", vec![CITY_NOT_IN_DIRECTORY]),
        ("search=5128581", vec!["5128581"]),
        ("search=us&category=danger", vec!["5368361"]),
        ("search=nothing%20of%20this", vec![]),
    ] {
        let answer = service.get(&format!("/v1/cities?{query}")).json();
        check("CitiesAnswer", &answer);
        let found: Vec<_> =
            answer["cities"].as_array().unwrap().iter().map(|city| city["city"].as_str().unwrap()).collect();
        assert_eq!(found, keys, "{query}");
    }
    let all = service.get("/v1/cities").json()["cities"].as_array().unwrap().len();
    assert_eq!(service.get("/v1/cities?search=%20").json()["cities"].as_array().unwrap().len(), all);
    assert_eq!(service.get(&format!("/v1/cities?search={}", "x".repeat(129))).code(), "bad_parameter");
}
