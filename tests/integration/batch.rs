//! The binary, from files to files.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::swelter_command;

fn data_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(name)
}

fn reference_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(name)
}

/// A folder to run in.
struct BatchFolder(TempDir);

impl BatchFolder {
    fn new() -> BatchFolder {
        BatchFolder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn swelter(&self, args: &str) -> Output {
        let mut command = swelter_command();
        command
            .current_dir(self.0.path())
            .args(args.split_whitespace())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a command that must succeed.
    fn run_ok(&self, args: &str) -> Output {
        let output = self.swelter(args);
        assert!(output.status.success(), "swelter {args}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Runs a command that must fail with a message on standard error.
    fn run_failing(&self, args: &str, code: i32) -> String {
        let output = self.swelter(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "swelter {args}: {stderr}");
        stderr
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A log with everything that can go wrong in one.
fn write_faulty_log(run: &BatchFolder, name: &str) -> PathBuf {
    run.run_ok(&format!(
        "generate --cities 12 --interval 20m --from 2025-06-01 --to 2025-06-12 --late 0.1 --corrections 0.05 \
         --withdrawals 0.03 --duplicates 0.03 --invalid 0.03 --seed 7 -o {name}"
    ));
    run.path(name)
}

#[test]
fn new_york_equals_pandas() {
    let run = BatchFolder::new();
    run.run_ok(&format!("batch {} -o rows.csv --formula rothfusz", data_path("nyc2013.csv").display()));
    let mut expected = String::new();
    let file = fs::File::open(reference_path("nyc2013_rolling.csv.gz")).unwrap();
    flate2::read::GzDecoder::new(file).read_to_string(&mut expected).unwrap();
    let (rows, mut compared) = (run.read("rows.csv"), 0);
    assert_eq!(rows.lines().count(), expected.lines().count());
    for (row, expected) in rows.lines().zip(expected.lines()).skip(1) {
        let (row, expected): (Vec<_>, Vec<_>) = (row.split(',').collect(), expected.split(',').collect());
        assert_eq!((&row[..2], row[7]), (&expected[..2], expected[3]));
        let (rolling, pandas): (f64, f64) = (row[6].parse().unwrap(), expected[2].parse().unwrap());
        assert!((rolling - pandas).abs() < 1e-6, "{row:?} {expected:?}");
        compared += 1;
    }
    assert_eq!(compared, 26_113);
}

#[test]
fn new_york_corrections_are_applied() {
    let run = BatchFolder::new();
    let (log, corrections) = (data_path("nyc2013.csv"), data_path("nyc2013-corrections.csv"));
    let output = run.run_ok(&format!(
        "batch {} {} -o rows.csv --dead-letters refused.jsonl --plot jfk.svg --city JFK",
        log.display(),
        corrections.display()
    ));
    let summary = String::from_utf8(output.stderr).unwrap();
    assert!(
        summary.contains("26,117 records: 26,114 readings, 1 corrections, 0 withdrawals, 2 refused"),
        "{summary}"
    );
    let rows = run.read("rows.csv");
    assert!(rows.contains("\nJFK,2013-05-09T02:00:00Z,57.1,81,8.05546,"));
    assert!(rows.contains("\nEWR,2013-02-12T08:00:00Z,39.02,61.63,,"));
    let refused = json_lines(&run.read("refused.jsonl"));
    let reasons: Vec<_> =
        refused.iter().map(|letter| (letter["line"].as_u64(), letter["reason"].as_str())).collect();
    assert_eq!(reasons, [(Some(1011), Some("out_of_range")), (Some(5593), Some("missing_field"))]);
    assert_eq!(refused[0]["raw"], "EWR,2013-02-12T08:00:00Z,39.02,61.63,1048.36058");
    let plot = run.read("jfk.svg");
    assert!(plot.starts_with("<svg") && plot.contains("rolling mean before corrections"), "{plot:.300}");
}

#[test]
fn output_does_not_depend_on_workers_or_epochs() {
    let run = BatchFolder::new();
    write_faulty_log(&run, "log.csv");
    for lateness in ["", "--lateness 30m", "--lateness 0s"] {
        let mut first: Option<[String; 3]> = None;
        for (workers, epoch) in [(1, 16_384), (2, 1000), (4, 77), (1, 1)] {
            run.run_ok(&format!(
                "batch log.csv {lateness} --workers {workers} --epoch-size {epoch} -o rows.csv \
                 --daily days.csv --dead-letters refused.jsonl --window 6h"
            ));
            let files = ["rows.csv", "days.csv", "refused.jsonl"].map(|name| run.read(name));
            assert!(files.iter().all(|file| file.lines().count() > 20));
            assert_eq!(
                first.get_or_insert(files.clone()),
                &files,
                "{workers} workers, epochs of {epoch}, {lateness}"
            );
        }
    }
}

#[test]
fn changes_do_not_depend_on_workers() {
    let run = BatchFolder::new();
    write_faulty_log(&run, "log.csv");
    let mut first = None;
    for workers in [1, 2, 4] {
        run.run_ok(&format!(
            "batch log.csv --workers {workers} --epoch-size 100 --changes changes.jsonl -o rows.csv"
        ));
        let changes = run.read("changes.jsonl");
        assert_eq!(first.get_or_insert(changes.clone()), &changes, "{workers} workers");
    }
}

#[test]
fn changes_add_up_to_rows() {
    let run = BatchFolder::new();
    write_faulty_log(&run, "log.jsonl");
    run.run_ok("batch log.jsonl --epoch-size 50 --changes changes.jsonl.gz -o rows.jsonl.zst");
    let mut text = String::new();
    let file = fs::File::open(run.path("changes.jsonl.gz")).unwrap();
    flate2::read::MultiGzDecoder::new(file).read_to_string(&mut text).unwrap();
    let (mut held, mut as_of) = (BTreeMap::new(), 0);
    for change in json_lines(&text) {
        let at = change["as_of"].as_u64().unwrap();
        assert!(at >= as_of && at > 0, "batch by batch");
        as_of = at;
        let key = (change["city"].to_string(), change["reading_at"].to_string());
        assert_ne!(change["before"], change["after"]);
        let before = held.insert(key, change["after"].clone()).unwrap_or_default();
        assert_eq!(before, change["before"]);
    }
    held.retain(|_, row| !row.is_null());
    let rows = zstd::decode_all(fs::File::open(run.path("rows.jsonl.zst")).unwrap()).unwrap();
    let rows = json_lines(std::str::from_utf8(&rows).unwrap());
    assert_eq!(rows.len(), held.len());
    for row in rows {
        let change = &held[&(row["city"].to_string(), row["reading_at"].to_string())];
        for field in ["heat_index", "rolling_heat_index", "count"] {
            assert_eq!(row[field], change[field]);
        }
    }
}

/// Any order that keeps each key's own arrivals in order gives the same bytes.
#[test]
fn output_does_not_depend_on_order_of_different_keys() {
    let run = BatchFolder::new();
    write_faulty_log(&run, "log.csv");
    let text = run.read("log.csv");
    let (header, lines) = text.split_once('\n').unwrap();
    let key = |line: &str| line.split(',').take(2).collect::<Vec<_>>().join(",");
    let by_key = |mut lines: Vec<&str>, order: &dyn Fn(&str) -> u64| {
        lines.sort_by_key(|line| order(&key(line)));
        format!("{header}\n{}\n", lines.join("\n"))
    };
    let hash = |key: &str| key.bytes().fold(7u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let lines: Vec<&str> = lines.lines().collect();
    run.write("scattered.csv", &by_key(lines.clone(), &hash));
    run.write("reversed.csv", &by_key(lines, &|key| u64::MAX - hash(&key[..key.len().min(14)])));
    let mut first = None;
    for log in ["log.csv", "scattered.csv", "reversed.csv"] {
        run.run_ok(&format!("batch {log} -o rows.csv --daily days.csv --epoch-size 500"));
        let files = [run.read("rows.csv"), run.read("days.csv")];
        assert_eq!(first.get_or_insert(files.clone()), &files, "{log}");
    }
}

#[test]
fn all_formats_produce_equal_rows() {
    let run = BatchFolder::new();
    let flags =
        "--cities 5 --interval 1h --from 2025-06-01 --to 2025-06-20 --late 0.1 --corrections 0.1 --seed 3";
    let mut first = None;
    for log in ["log.csv", "log.csv.gz", "log.jsonl.zst", "log.parquet"] {
        run.run_ok(&format!("generate {flags} -o {log}"));
        run.run_ok(&format!("batch {log} -o rows.parquet"));
        run.run_ok(&format!("batch {log} -o rows.csv --formula nws"));
        let files = (fs::read(run.path("rows.parquet")).unwrap(), run.read("rows.csv"));
        assert_eq!(first.get_or_insert(files.clone()), &files, "{log}");
    }
}

#[test]
fn stdin_and_stdout_accept_format_option() {
    let run = BatchFolder::new();
    write_faulty_log(&run, "log.csv");
    run.run_ok("batch log.csv -o rows.csv");
    let mut child = swelter_command()
        .args(["batch", "-", "--input-format", "csv", "-o", "-", "--output-format", "csv"])
        .stdin(fs::File::open(run.path("log.csv")).unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut rows = String::new();
    child.stdout.take().unwrap().read_to_string(&mut rows).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(rows, run.read("rows.csv"));
    assert!(run.run_failing("batch -", 2).contains("--input-format"));
}

#[test]
fn day_summaries_match_rows() {
    let run = BatchFolder::new();
    write_faulty_log(&run, "log.csv");
    run.run_ok("batch log.csv -o rows.csv --daily days.csv --formula nws");
    let mut days: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
    for row in run.read("rows.csv").lines().skip(1) {
        let fields: Vec<&str> = row.split(',').collect();
        let day = (fields[0].to_string(), fields[1][..10].to_string());
        days.entry(day).or_default().push(fields[5].parse().unwrap());
    }
    let written = run.read("days.csv");
    assert_eq!(written.lines().count(), days.len() + 1);
    for (line, (day, values)) in written.lines().skip(1).zip(days) {
        let fields: Vec<&str> = line.split(',').collect();
        assert_eq!((fields[0], fields[1]), (&*day.0, &*day.1));
        assert_eq!(fields[2], values.len().to_string());
        let mean: f64 = fields[3].parse().unwrap();
        assert!((mean - values.iter().sum::<f64>() / values.len() as f64).abs() < 1e-9);
        let max: f64 = fields[4].parse().unwrap();
        assert_eq!(max, values.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        // By nws, the category is that of the heat index itself.
        let bounds = [f64::NEG_INFINITY, 80.0, 90.0, 103.0, 125.0, f64::INFINITY];
        for (category, bounds) in bounds.windows(2).enumerate() {
            let count = values.iter().filter(|value| (bounds[0]..bounds[1]).contains(*value)).count();
            assert_eq!(fields[6 + category], count.to_string(), "{line}");
        }
    }
}

#[test]
fn failed_run_names_cause_and_leaves_no_output() {
    let run = BatchFolder::new();
    run.write("no-city.csv", "town,reading_at,temperature,humidity\nx,2025-01-01T00:00:00Z,70,50\n");
    run.write("good.csv", "city,reading_at,temperature,humidity\nx,2025-01-01T00:00:00Z,70,50\n");
    run.write("cut.csv.gz", "this is no gzip");
    let before = run.files();
    let outputs = "-o rows.csv --daily days.csv --changes changes.jsonl --dead-letters refused.jsonl";
    for (args, says) in [
        ("batch absent.csv", "absent.csv"),
        ("batch good.csv no-city.csv", "no column city"),
        ("batch good.csv cut.csv.gz", "cut.csv.gz"),
        ("batch good.csv --plot x.svg --city y", "no readings of city y"),
    ] {
        let stderr = run.run_failing(&format!("{args} {outputs}"), 1);
        assert!(stderr.contains(says), "{stderr}");
        assert_eq!(run.files(), before, "{args}");
    }
    let stderr = run.run_failing("batch good.csv -o no/such/folder/rows.csv", 1);
    assert!(stderr.contains("no/such/folder/rows.csv cannot be written"), "{stderr}");
    for full in ["-o /dev/full --output-format csv", "-o /dev/full --output-format parquet"] {
        let stderr = run.run_failing(&format!("batch good.csv {full} --daily days.csv"), 1);
        assert!(stderr.contains("/dev/full cannot be written: No space left on device"), "{stderr}");
        assert_eq!(run.files(), before);
    }
    for flag in ["--changes", "--dead-letters"] {
        write_faulty_log(&run, "messy.csv");
        let stderr = run.run_failing(&format!("batch messy.csv -o rows.csv {flag} /dev/full"), 1);
        assert!(stderr.contains("cannot be written: No space left on device"), "{stderr}");
        assert!(!run.path("rows.csv").exists());
    }
}

#[test]
fn usage_error_exits_with_2() {
    let run = BatchFolder::new();
    run.write("good.csv", "city,reading_at,temperature,humidity\nx,2025-01-01T00:00:00Z,70,50\n");
    for (args, says) in [
        ("batch", "required"),
        ("batch good.csv --window 1w", "not a duration"),
        ("batch good.csv --workers 0", "1..=64"),
        ("batch good.csv --epoch-size 0", "invalid value"),
        ("batch good.csv --formula steadman", "possible values"),
        ("batch good.csv -o rows.txt", "does not say its format"),
        ("batch good.csv --city x", "--plot"),
        ("batch good.csv -o a.csv --daily a.csv", "name a file of its own for each"),
        ("batch good.csv -o a.csv --daily ./a.csv", "name a file of its own for each"),
        ("batch good.csv -o ./good.csv", "is an input"),
        ("batch good.csv --assume-offset noon", "not an offset"),
        ("batch good.csv --assume-offset +24:00", "from -23:59 to +23:59"),
        ("generate -o made.csv --from 2025-01-01T12:30:60Z", "second 60 is a leap second"),
        ("generate -o made.csv --from 2025-01-01T00:00:00[UTC]", "names a zone in brackets"),
    ] {
        let stderr = run.run_failing(args, 2);
        assert!(stderr.contains(says), "{args}: {stderr}");
    }
    assert_eq!(run.files(), ["good.csv"]);
}

#[test]
fn first_refusals_are_shown_and_others_counted() {
    let run = BatchFolder::new();
    let bad = "x,2025-01-01T00:00:00,70,50\n".repeat(13);
    run.write(
        "log.csv",
        &format!("city,reading_at,temperature,humidity\n{bad}x,2025-01-01T00:00:00Z,70,50\n"),
    );
    let stderr = String::from_utf8(run.run_ok("batch log.csv").stderr).unwrap();
    assert_eq!(stderr.matches("no_offset: reading_at").count(), 10, "{stderr}");
    assert!(stderr.contains("log.csv:2: no_offset") && stderr.contains("3 more"), "{stderr}");
    let stderr =
        String::from_utf8(run.run_ok("batch log.csv --assume-offset -05:00 -o rows.csv").stderr).unwrap();
    assert!(stderr.contains("14 records: 2 readings, 12 corrections"), "{stderr}");
    assert!(run.read("rows.csv").contains("x,2025-01-01T05:00:00Z,70,50,,"));
}

/// Moscow in January: 9.6 °F in air that is nearly saturated.
#[test]
fn cold_readings_use_air_temperature_and_rothfusz_warns_once() {
    let run = BatchFolder::new();
    run.write(
        "log.csv",
        "city,reading_at,temperature,humidity\nMoscow,2025-01-10T06:00:00Z,9.6,86\nMoscow,2025-01-10T07:00:00Z,9.1,87\n\
         Dubai,2025-01-10T06:00:00Z,80,50\n",
    );
    let heat_indexes = |rows: &str| -> Vec<(f64, String)> {
        let row = |line: &str| {
            let row: Value = serde_json::from_str(line).unwrap();
            (row["heat_index"].as_f64().unwrap(), row["city"].as_str().unwrap().to_owned())
        };
        rows.lines().map(row).collect()
    };
    let quiet = run.run_ok("batch log.csv -o rows.jsonl");
    assert!(!String::from_utf8(quiet.stderr).unwrap().contains("warning"));
    let rows = heat_indexes(&run.read("rows.jsonl"));
    assert_eq!(rows.iter().map(|row| row.0).collect::<Vec<_>>(), [80.802905, 9.6, 9.1]);
    let stderr =
        String::from_utf8(run.run_ok("batch log.csv -o rows.jsonl --formula rothfusz").stderr).unwrap();
    assert_eq!(stderr.matches("warning: the formula rothfusz is not made for").count(), 1, "{stderr}");
    assert!(
        stderr.contains("below 80 °F") && stderr.contains("9.6 °F and 86.0 % it says 326.9 °F"),
        "{stderr}"
    );
    run.write("log.csv", "city,reading_at,temperature,humidity\nDubai,2025-01-10T06:00:00Z,80,50\n");
    let stderr =
        String::from_utf8(run.run_ok("batch log.csv -o rows.jsonl --formula rothfusz").stderr).unwrap();
    assert!(!stderr.contains("warning"), "{stderr}");
}

/// The reader of standard output may stop; the files are written nevertheless.
#[test]
fn closed_stdout_is_no_error() {
    let run = BatchFolder::new();
    let mut child = swelter_command()
        .args(["batch".as_ref(), data_path("nyc2013.csv").as_os_str()])
        .args(["--daily", "days.csv", "--changes", "changes.jsonl"])
        .current_dir(run.0.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(run.files(), ["changes.jsonl", "days.csv"]);
}

#[test]
fn full_stderr_is_no_error() {
    let run = BatchFolder::new();
    let status = swelter_command()
        .args(["batch".as_ref(), data_path("nyc2013.csv").as_os_str()])
        .args(["-o", "rows.csv"])
        .current_dir(run.0.path())
        .stderr(fs::File::options().write(true).open("/dev/full").unwrap())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn named_pipe_is_written_in_place() {
    let run = BatchFolder::new();
    assert!(Command::new("mkfifo").arg(run.path("pipe")).status().unwrap().success());
    let pipe = run.path("pipe");
    let reader = std::thread::spawn(move || fs::read_to_string(pipe).unwrap());
    run.run_ok(&format!("batch {} -o pipe --output-format csv", data_path("nyc2013.csv").display()));
    assert_eq!(reader.join().unwrap().lines().count(), 26_114);
}

#[test]
fn plot_shows_withdrawn_readings() {
    let run = BatchFolder::new();
    let hours: String = (0..24).map(|hour| format!("A,2025-01-01T{hour:02}:00:00Z,80,50,\n")).collect();
    let header = "city,reading_at,temperature,humidity,op\n";
    let far = "A,2026-01-01T00:00:00Z,80,50,\nA,2026-01-01T00:00:00Z,,,delete\n";
    run.write("far.csv", &format!("{header}Z,2025-01-01T00:00:00Z,,,delete\n{hours}{far}"));
    run.run_ok("batch far.csv --epoch-size 1 -o rows.csv --plot far.svg");
    assert!(run.read("far.svg").contains("reading before its correction"));
    run.write("gone.csv", &format!("{header}{far}"));
    run.run_ok("batch gone.csv --epoch-size 1 -o rows.csv --plot gone.svg");
    run.write("empty.csv", header);
    assert!(
        run.run_failing("batch empty.csv -o rows.csv --plot empty.svg", 4).contains("the plot was not drawn")
    );
}
