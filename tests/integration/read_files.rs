//! Sample files of public formats, option by option.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::logs::wait_for_checkpoint;
use crate::support::{ServiceBuilder, ServiceProcess, get, swelter_command, wait_for};

fn samples_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples")
}

/// Runs the program among the samples.
fn swelter(args: &[&str]) -> Output {
    let mut command = swelter_command();
    command.current_dir(samples_folder()).args(args).stdin(Stdio::null()).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// City, time, temperature, humidity and wind speed of each row, and standard error.
fn read_rows(file: &str, options: &[&str]) -> (Vec<String>, String) {
    let mut args = vec!["batch", file];
    args.extend(options);
    let output = swelter(&args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    (measured_rows(&output), stderr(&output))
}

fn measured_rows(output: &Output) -> Vec<String> {
    let rows = String::from_utf8(output.stdout.clone()).unwrap();
    let first_five = |row: &str| row.split(',').take(5).collect::<Vec<_>>().join(",");
    rows.lines().skip(1).map(first_five).collect()
}

#[test]
fn reads_iem_asos() {
    let columns = "city=station,reading_at=valid,temperature=tmpf,humidity=relh,wind_speed=sknt";
    let options = ["--columns", columns, "--wind-units", "knots", "--null", "M", "--assume-offset", "Z"];
    let (rows, said) = read_rows("iem-asos.csv", &options);
    let expected =
        ["JFK,2013-07-18T14:51:00Z,91.04,53.58,", "LGA,2013-07-18T14:51:00Z,95,49.32,13.809353376282509"];
    assert_eq!(rows, expected);
    assert!(said.contains("missing_field: 1"), "{said}");
}

#[test]
fn reads_openweathermap_bulk() {
    let columns = "city=city_name,reading_at=dt,temperature=temp";
    let units = ["--units", "kelvin", "--wind-units", "m/s", "--time-format", "seconds"];
    let (rows, _) = read_rows("openweathermap-bulk.csv", &[&["--columns", columns], &units[..]].concat());
    let expected =
        ["New York,2013-07-18T15:00:00Z,95,50,11.18468146027201", "New York,2013-07-18T16:00:00Z,96.8,47,"];
    assert_eq!(rows, expected);
}

#[test]
fn reads_noaa_isd_and_refuses_doubtful_quality_codes() {
    let columns = "city=STATION,reading_at=DATE,temperature=TMP/10,dew_point=DEW/10";
    let (rows, said) = read_rows(
        "noaa-isd.csv",
        &[
            "--columns",
            columns,
            "--moisture",
            "dew-point",
            "--units",
            "celsius",
            "--assume-offset",
            "Z",
            "--null",
            "\"+9999,9\"",
            "--flags",
            "\",0\",\",1\",\",4\",\",5\"",
        ],
    );
    let expected = [
        "72503014732,2013-01-18T16:51:00Z,21.92,99.99999999999999,",
        "72503014732,2013-07-18T14:51:00Z,95,100,",
    ];
    assert_eq!(rows, expected);
    assert!(said.contains("missing_field: 1") && said.contains("bad_number: 1"), "{said}");
}

#[test]
fn reads_noaa_lcd() {
    let columns = "city=STATION,reading_at=DATE,temperature=HourlyDryBulbTemperature,humidity=HourlyRelativeHumidity,wind_speed=HourlyWindSpeed";
    let options = ["--columns", columns, "--assume-offset", "-05:00", "--flags", "s", "--null", "*"];
    let (rows, said) = read_rows("noaa-lcd.csv", &options);
    let expected = ["72503014732,2013-07-18T19:51:00Z,95,49,14", "72503014732,2013-07-18T20:51:00Z,96,47,13"];
    assert_eq!(rows, expected);
    assert!(said.contains("missing_field: 2"), "{said}");
}

#[test]
fn reads_meteostat_with_and_without_a_header() {
    let expected = [
        "KLGA,2013-07-18T09:00:00Z,87.08000000000001,63,11.18468146027201",
        "KLGA,2013-07-18T15:00:00Z,95,49,",
    ];
    let units = ["--units", "celsius", "--wind-units", "km/h", "--assume-offset", "Z"];
    let header = "date,hour,temp,dwpt,rhum,prcp,snow,wdir,wspd,wpgt,pres,tsun,coco";
    let columns = "city=@KLGA,reading_at=date+hour,temperature=temp,humidity=rhum,wind_speed=wspd";
    let options = ["--header", header, "--columns", columns, "--time-format", "%Y-%m-%d %H"];
    assert_eq!(read_rows("meteostat-bulk.csv", &[&options[..], &units].concat()).0, expected);
    let columns = "city=@KLGA,reading_at=year+month+day+hour,temperature=temp,humidity=rhum,wind_speed=wspd";
    let options = ["--columns", columns, "--time-format", "%Y %m %d %H"];
    assert_eq!(read_rows("meteostat.csv", &[&options[..], &units].concat()).0, expected);
}

#[test]
fn reads_open_meteo_with_the_city_of_its_file_name() {
    let columns = "city=@,reading_at=time,temperature=temperature_2m (°C),humidity=Relative_Humidity_2m (%),wind_speed=\"wind_speed_10m (km/h)\"";
    let options = ["--skip-lines", "3", "--columns", columns, "--null", "NaN", "--assume-offset", "Z"];
    let units = ["--units", "celsius", "--wind-units", "km/h"];
    let (rows, _) = read_rows("open-meteo.csv", &[&options[..], &units].concat());
    let expected = [
        "open-meteo,2025-07-18T14:00:00Z,97.7,18,5.84088920703094",
        "open-meteo,2025-07-18T15:00:00Z,98.60000000000001,17,",
    ];
    assert_eq!(rows, expected);
}

#[test]
fn reads_weatherlink_in_local_time_zone() {
    let columns = "city=@garden,reading_at=Date & Time,temperature=Temp - °F,humidity=Hum - %,wind_speed=Avg Wind Speed - mph";
    let (rows, said) = read_rows(
        "weatherlink.csv",
        &[
            "--skip-lines",
            "5",
            "--columns",
            columns,
            "--null=--",
            "--time-format",
            "%m/%d/%y %I:%M %p",
            "--time-zone",
            "America/New_York",
        ],
    );
    let expected = [
        "garden,2013-03-10T06:30:00Z,41.5,70,2",
        "garden,2013-07-18T18:55:00Z,95.1,49,",
        "garden,2013-11-03T05:30:00Z,50.2,80,0",
    ];
    assert_eq!(rows, expected);
    assert!(said.contains("bad_time: 1"), "{said}");
    assert!(said.contains("1 times were shown twice by the clocks of America/New_York"), "{said}");
    assert!(said.contains("1 times were never shown by the clocks of America/New_York"), "{said}");
}

#[test]
fn reads_weatherlink_for_windows() {
    let (rows, _) = read_rows(
        "weatherlink.txt",
        &[
            "--input-format",
            "csv",
            "--delimiter",
            "\\t",
            "--skip-lines",
            "2",
            "--header",
            "date,time,temperature,humidity,wind_speed",
            "--columns",
            "city=@garden,reading_at=date+time",
            "--null",
            "---",
            "--time-format",
            "%d/%m/%y %I:%M%p",
            "--assume-offset",
            "-04:00",
        ],
    );
    assert_eq!(rows, ["garden,2013-07-18T15:05:00Z,88,60,", "garden,2013-07-18T18:55:00Z,95.1,49,3"]);
}

#[test]
fn reads_weewx() {
    let columns =
        "city=@garden,reading_at=dateTime,temperature=outTemp,humidity=outHumidity,wind_speed=windSpeed";
    let (rows, _) = read_rows("weewx.csv", &["--columns", columns, "--time-format", "seconds"]);
    assert_eq!(rows, ["garden,2013-07-18T15:00:00Z,95.1,49,3.5", "garden,2013-07-18T15:05:00Z,95.3,48.5,"]);
}

const KAGGLE_OPTIONS: [&str; 12] = [
    "--wide",
    "kaggle-humidity.csv",
    "--columns",
    "reading_at=datetime",
    "--delimiter",
    ";",
    "--decimal-comma",
    "--time-format",
    "%d.%m.%Y %H:%M",
    "--units",
    "kelvin",
    "--assume-offset=Z",
];

#[test]
fn reads_one_column_per_city() {
    let (rows, said) = read_rows("kaggle-temperature.csv", &KAGGLE_OPTIONS);
    let expected = [
        "New York,2012-10-01T13:00:00Z,59,58,",
        "Vancouver,2012-10-01T13:00:00Z,52.7,76,",
        "Vancouver,2012-10-01T14:00:00Z,52.88000000000004,77,",
    ];
    assert_eq!(rows, expected);
    assert!(said.contains("4 records: 3 readings") && said.contains("missing_field: 1"), "{said}");
    assert!(said.contains("kaggle-temperature.csv:4: missing_field: temperature is missing"), "{said}");
}

/// The line that docs/reading-files.md gives: a value a row, made a reading a row.
#[test]
fn reads_home_assistant_through_documented_awk_line() {
    let documents = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reading-files.md");
    let page = std::fs::read_to_string(documents).unwrap();
    let from = page.find("(echo city,reading_at").unwrap();
    let line = &page[from..from + page[from..].find("\n```").unwrap()];
    let line = line.replace("swelter batch", &format!("{} batch", env!("CARGO_BIN_EXE_swelter")));
    let line = line.replace("history.csv", "home-assistant.csv");
    let output = Command::new("sh").current_dir(samples_folder()).args(["-c", &line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", stderr(&output));
    let expected = ["garden,2025-07-18T14:00:05.123Z,84.2,55,", "garden,2025-07-18T15:00:05.123Z,86,52.5,"];
    assert_eq!(measured_rows(&output), expected);
    assert!(stderr(&output).contains("missing_field: 1"), "{}", stderr(&output));
}

/// An option that is given is applied or refused, for each command and format.
#[test]
fn options_are_applied_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let csv = folder.path().join("x.csv");
    std::fs::write(&csv, "city,reading_at,temperature,humidity\nx,2025-07-18T14:00:00Z,30,50\n").unwrap();
    let json = folder.path().join("x.jsonl");
    let line = r#"{"city":"x","reading_at":"2025-07-18T14:00:00Z","temperature":30,"humidity":50}"#;
    std::fs::write(&json, line).unwrap();
    let parquet = folder.path().join("x.parquet");
    let written = swelter(&["batch", csv.to_str().unwrap(), "-o", parquet.to_str().unwrap()]);
    assert!(written.status.success());
    let options: [(&str, &[&str], [bool; 3]); 15] = [
        ("--assume-offset", &["--assume-offset=Z"], [true; 3]),
        ("--time-zone", &["--time-zone", "Europe/Berlin"], [true; 3]),
        ("--units", &["--units", "celsius"], [true; 3]),
        ("--humidity", &["--humidity", "percent"], [true; 3]),
        ("--wind-units", &["--wind-units", "km/h"], [true; 3]),
        ("--delimiter", &["--delimiter", ","], [true, false, false]),
        ("--decimal-comma", &["--decimal-comma"], [true, false, false]),
        ("--columns", &["--columns", "city=City"], [true; 3]),
        ("--null", &["--null", "M"], [true; 3]),
        ("--flags", &["--flags", "s"], [true, false, false]),
        ("--time-format", &["--time-format", "%Y-%m-%dT%H:%M:%S%:z"], [true; 3]),
        ("--skip-lines", &["--skip-lines", "1"], [true, true, false]),
        ("--header", &["--header", "city,reading_at,temperature,humidity"], [true, false, false]),
        ("--wide", &["--wide", "h.csv", "--columns", "reading_at=reading_at"], [true, false, false]),
        ("--moisture", &["--moisture", "dew-point"], [true; 3]),
    ];
    for (file, format) in [(&csv, 0), (&json, 1), (&parquet, 2)] {
        let file = file.to_str().unwrap();
        for (option, given, applies) in &options {
            let produce = ["produce", "--brokers", "127.0.0.1:1", "--topic", "t", file];
            for command in [&["batch", file][..], &produce[..]] {
                // If it applied, produce would wait for brokers that do not exist.
                if applies[format] && command[0] == "produce" {
                    continue;
                }
                let output = swelter(&[command, *given].concat());
                let said = stderr(&output);
                match applies[format] {
                    true => assert_ne!(output.status.code(), Some(2), "{command:?} {option}: {said}"),
                    false => {
                        assert_eq!(output.status.code(), Some(2), "{command:?} {option}: {said}");
                        assert!(said.contains(option), "{command:?} {option}: {said}");
                    }
                }
            }
        }
    }
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let produce = ["produce", "--brokers", "127.0.0.1:1", "--topic", "t"];
    let generate = [&produce[..], &["--generate"]].concat();
    let batch = ["batch", "weewx.csv"];
    for (command, options) in [
        (&batch[..], &["--time-zone", "Europe/Berlin", "--assume-offset=Z"][..]),
        (&batch, &["--time-format", "seconds", "--assume-offset=Z"]),
        (&batch, &["--time-format", "%Y-%m-%d %H:%M %z", "--time-zone", "Europe/Berlin"]),
        (&batch, &["--time-format", "%H:%M"]),
        (&batch, &["--time-format", "%Y-%m-%d %I:%M"]),
        (&batch, &["--time-format", "%Y-%m-%d %H:%M %Z"]),
        (&batch, &["--time-format", "hours"]),
        (&batch, &["--time-zone", "Mars/Olympus"]),
        (&batch, &["--moisture", "dew-point", "--humidity", "fraction"]),
        (&batch, &["--columns", "dew_point=dewpoint"]),
        (&batch, &["--columns", "temp=outTemp"]),
        (&batch, &["--columns", "temperature=a,temperature=b"]),
        (&batch, &["--columns", "temperature=a,humidity=a"]),
        (&batch, &["--columns", "temperature=a+b"]),
        (&batch, &["--columns", "temperature=@30"]),
        (&batch, &["--columns", "temperature=a/0"]),
        (&batch, &["--columns", "temperature"]),
        (&batch, &["--columns", "city=\"a"]),
        (&batch, &["--delimiter", ";;"]),
        (&batch, &["--delimiter", "5"]),
        (&batch, &["--wide", "h.csv", "--columns", "city=@x"]),
        (&batch, &["--changes", "-", "--output-format", "csv"]),
        (&batch, &["--wide", "h.csv", "--output", "h.csv"]),
        (&["batch", "-", "--input-format", "csv"], &["--columns", "city=@"]),
        (&generate, &["--units", "celsius"]),
        (&generate, &["--format", "csv"]),
        (&generate, &["--allow-empty"]),
        (&produce, &["weewx.csv", "--registry", "http://127.0.0.1:1"]),
        (&produce, &["weewx.csv", "--cities", "7"]),
    ] {
        let output = swelter(&[command, options].concat());
        assert_eq!(output.status.code(), Some(2), "{command:?} {options:?}: {}", stderr(&output));
    }
}

#[test]
fn no_accepted_reading_exits_with_4_and_writes_outputs() {
    let folder = tempfile::tempdir().unwrap();
    let written = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let bad = written("bad.csv", "city,reading_at,temperature,humidity\nx,today,30,50\nx,now,30,50\n");
    let good = written("good.csv", "city,reading_at,temperature,humidity\nx,2025-07-18T14:00:00Z,90,50\n");
    let empty = written("empty.csv", "city,reading_at,temperature,humidity\n");
    let out = folder.path().join("rows.csv").to_str().unwrap().to_owned();
    for inputs in [&[&bad][..], &[&empty], &[&bad, &empty]] {
        for (allow, code) in [(&[][..], 4), (&["--allow-empty"][..], 0)] {
            let inputs: Vec<&str> = inputs.iter().map(|path| path.as_str()).collect();
            let output = swelter(&[&["batch"], &inputs[..], &["-o", &out], allow].concat());
            assert_eq!(output.status.code(), Some(code), "{inputs:?}: {}", stderr(&output));
            assert_eq!(std::fs::read_to_string(&out).unwrap().lines().count(), 1, "the header alone");
            std::fs::remove_file(&out).unwrap();
        }
    }
    let output = swelter(&["batch", &good, &bad]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("all 2 records of "), "{}", stderr(&output));
    assert!(stderr(&output).contains("bad.csv were refused"));
}

#[test]
fn humidities_up_to_1_warn_unless_declared_as_fractions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shares.csv");
    std::fs::write(&path, "city,reading_at,temperature,humidity\nx,2025-07-18T14:00:00Z,90,0.57\n").unwrap();
    let path = path.to_str().unwrap();
    let (rows, said) = read_rows(path, &[]);
    assert_eq!(rows, ["x,2025-07-18T14:00:00Z,90,0.57,"]);
    assert!(said.contains("warning: nearly all humidities are at most 1 %"), "{said}");
    let (rows, said) = read_rows(path, &["--humidity", "fraction"]);
    assert_eq!(rows, ["x,2025-07-18T14:00:00Z,90,57,"]);
    assert!(!said.contains("warning"), "{said}");
}

#[test]
fn rows_include_category() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.csv");
    let log =
        "city,reading_at,temperature,humidity\nx,2025-07-18T14:00:00Z,95,50\nx,2025-07-18T15:00:00Z,40,100\n";
    std::fs::write(&path, log).unwrap();
    for formula in ["nws", "rothfusz", "lu-romps"] {
        let output = swelter(&["batch", path.to_str().unwrap(), "--formula", formula]);
        let rows = String::from_utf8(output.stdout).unwrap();
        let place = rows.lines().next().unwrap().split(',').position(|name| name == "category").unwrap();
        let categories: Vec<&str> = rows.lines().map(|row| row.split(',').nth(place).unwrap()).collect();
        assert_eq!(categories, ["category", "danger", "none"], "{formula}");
    }
}

#[test]
fn zoned_days_have_23_and_25_hours() {
    let folder = tempfile::tempdir().unwrap();
    let (log, days) = (folder.path().join("log.csv"), folder.path().join("days.csv"));
    let mut text = String::from("city,reading_at,temperature,humidity\n");
    for hour in 0..48 {
        text += &format!("spring,2013-03-{:02}T{:02}:30:00Z,50,50\n", 10 + hour / 24, hour % 24);
        text += &format!("autumn,2013-11-{:02}T{:02}:30:00Z,50,50\n", 3 + hour / 24, hour % 24);
    }
    std::fs::write(&log, text).unwrap();
    let readings = |zone: &[&str]| -> Vec<String> {
        let args = ["batch", log.to_str().unwrap(), "--daily", days.to_str().unwrap()];
        let output = swelter(&[&args[..], zone].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let written = std::fs::read_to_string(&days).unwrap();
        let first_three = |line: &str| line.split(',').take(3).collect::<Vec<_>>().join(",");
        written.lines().skip(1).map(first_three).collect()
    };
    let utc =
        ["autumn,2013-11-03,24", "autumn,2013-11-04,24", "spring,2013-03-10,24", "spring,2013-03-11,24"];
    assert_eq!(readings(&[]), utc);
    let new_york = [
        "autumn,2013-11-02,4",
        "autumn,2013-11-03,25",
        "autumn,2013-11-04,19",
        "spring,2013-03-09,5",
        "spring,2013-03-10,23",
        "spring,2013-03-11,20",
    ];
    assert_eq!(readings(&["--time-zone", "America/New_York"]), new_york);
}

/// A folder, a file in it that a service follows, and how the configuration says that it is
/// written.
fn file_source_config(path: &Path, keys: &str) -> String {
    let path = path.display();
    format!("[checkpoints]\nevery = '1s'\n[[sources]]\nname = 'log'\ntype = 'file'\npath = '{path}'\n{keys}")
}

fn current_temperature(service: &ServiceProcess, city: &str) -> Option<(String, f64, f64)> {
    let answer =
        get(&service.address, &format!("/v1/cities/{city}")).ok().filter(|answer| answer.status == 200)?;
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    let current = &body["current"];
    let at = current["reading_at"].as_str()?.to_owned();
    Some((at, current["temperature"].as_f64()?, current["humidity"].as_f64()?))
}

fn wait_for_temperature(service: &ServiceProcess, city: &str, expected: (&str, f64, f64)) {
    let expected = (expected.0.to_owned(), expected.1, expected.2);
    wait_for(&format!("{expected:?}"), || (current_temperature(service, city)? == expected).then_some(()));
}

#[test]
fn file_source_resumes_only_with_same_read_options() {
    let folder = tempfile::tempdir().unwrap();
    let (data, path) = (folder.path().join("data"), folder.path().join("garden.csv"));
    std::fs::write(&path, "a\n\nWhen;T;RH\n18.07.2013 11:00;308,15;0,5\n").unwrap();
    let keys = "follow = true\nskip_lines = 2\ndelimiter = ';'\ndecimal_comma = true\nunits = 'kelvin'\n\
                humidity = 'fraction'\ntime_zone = 'America/New_York'\ntime_format = '%d.%m.%Y %H:%M'\n\
                columns = 'city=@,reading_at=when,temperature=t,humidity=rh'\n";
    let service = ServiceProcess::start(&data, &file_source_config(&path, keys)).wait_until_ready();
    wait_for_temperature(&service, "garden", ("2013-07-18T15:00:00Z", 95.0, 50.0));
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"18.07.2013 12:00;309,15;0,57\n").unwrap();
    wait_for_temperature(&service, "garden", ("2013-07-18T16:00:00Z", 96.8, 57.0));
    wait_for_checkpoint(&data.join("checkpoints"), "log", 2);
    service.terminate();
    let other = keys.replace("fraction", "percent");
    let (code, said) = ServiceBuilder::new(file_source_config(&path, &other)).data(&data).run_to_end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("humidity fraction"), "{said}");
    let service = ServiceProcess::start(&data, &file_source_config(&path, keys)).wait_until_ready();
    wait_for_temperature(&service, "garden", ("2013-07-18T16:00:00Z", 96.8, 57.0));
    service.terminate();
}

#[test]
fn two_file_source_is_identified_by_both_files() {
    let folder = tempfile::tempdir().unwrap();
    let [data, path, other] = ["data", "t.csv", "h.csv"].map(|name| folder.path().join(name));
    std::fs::write(&path, "at;a;b\n2013-07-18T15:00:00Z;95;90\n").unwrap();
    std::fs::write(&other, "at;b;a\n2013-07-18T15:00:00Z;40;50\n").unwrap();
    let keys = format!("wide = '{}'\ndelimiter = ';'\ncolumns = 'reading_at=at'\n", other.display());
    let service = ServiceProcess::start(&data, &file_source_config(&path, &keys)).wait_until_ready();
    wait_for_temperature(&service, "a", ("2013-07-18T15:00:00Z", 95.0, 50.0));
    wait_for_temperature(&service, "b", ("2013-07-18T15:00:00Z", 90.0, 40.0));
    wait_for_checkpoint(&data.join("checkpoints"), "log", 2);
    service.terminate();
    std::fs::write(&other, "at;b;a\n2013-07-18T15:00:00Z;41;50\n").unwrap();
    let (code, said) = ServiceBuilder::new(file_source_config(&path, &keys)).data(&data).run_to_end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is not the file that was read"), "{said}");
}
