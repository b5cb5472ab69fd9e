//! A file of places, by the built program.

use std::fs;

use serde_json::json;

use crate::support::{ServiceProcess, post, swelter_command, wait_for};

const PLACES_CSV: &str = "id,name,country,latitude,longitude,time_zone\n\
                      roof,Roof,DE,52.52,13.4,Europe/Berlin\n\
                      5128581,Central Park,US,40.78,-73.97,\n";

#[test]
fn places_file_is_served_and_searched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("places.csv");
    fs::write(&path, PLACES_CSV).unwrap();
    let config = format!("places = '{}'\n", path.display());
    let service = ServiceProcess::start(&folder.path().join("data"), &config).wait_until_ready();
    let now = jiff::Timestamp::now().as_millisecond();
    let at = swelter::internals::model::EventTime::from_millis(now).unwrap().to_string();
    let reading = |city: &str| json!({"city": city, "reading_at": at, "temperature": 80, "humidity": 50});
    let body = json!([reading("roof"), reading("5128581"), reading("nowhere")]).to_string();
    assert_eq!(post(&service.address, "application/json", &body).unwrap().status, 200);
    let found = |search: &str| {
        let cities = service.get_json(&format!("/v1/cities?search={search}"))["cities"].clone();
        let keys = cities.as_array().unwrap().iter().map(|city| city["city"].as_str().unwrap().to_owned());
        keys.collect::<Vec<_>>()
    };
    wait_for("the readings", || (service.get_json("/v1/status")["cities"] == 3).then_some(()));
    assert_eq!(found("germany"), ["roof"]);
    assert_eq!(
        (found("central"), found("new%20york")),
        (vec!["5128581".to_owned()], vec!["5128581".to_owned()])
    );
    assert_eq!(found("nowh"), ["nowhere"]);
    let roof = service.get_json("/v1/cities/roof");
    assert_eq!((&roof["latitude"], &roof["time_zone"]), (&json!(52.52), &json!("Europe/Berlin")));
    assert_eq!(service.get_json("/v1/cities/nowhere")["latitude"], json!(null));
    service.terminate();
}

#[test]
fn invalid_places_file_refuses_start_with_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let check = |places: &str| {
        fs::write(folder.path().join("places.csv"), places).unwrap();
        let output = swelter_command()
            .current_dir(folder.path())
            .args(["run", "--places", "places.csv", "--check-config"])
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(check(PLACES_CSV).0, Some(0));
    for (wrong, said) in [
        (
            PLACES_CSV.replace("52.52", "91"),
            "places.csv, line 2, column latitude: \"91\" is not a number from -90 to 90",
        ),
        (
            PLACES_CSV.replace("Europe/Berlin", "Berlin"),
            "places.csv, line 2, column time_zone: \"Berlin\" is not known",
        ),
        (PLACES_CSV.replace("5128581", "roof"), "places.csv, line 3, column id: \"roof\" is in line 2 too"),
        (String::new(), "places.csv, line 1: the file is empty"),
    ] {
        let (code, stderr) = check(&wrong);
        assert!(code != Some(0) && stderr.contains("places (--places)") && stderr.contains(said), "{stderr}");
    }
    let missing = swelter_command()
        .args(["run", "--places", "/nowhere/places.csv", "--check-config"])
        .output()
        .unwrap();
    assert!(String::from_utf8(missing.stderr).unwrap().contains("/nowhere/places.csv cannot be read"));
}
