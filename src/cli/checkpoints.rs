//! `swelter checkpoints`: lists, shows and verifies the checkpoints of a service.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::CliError;
use crate::checkpoint::{
    CheckpointError, CheckpointLocation, CheckpointName, Checkpoints, DEFAULT_FOLDER, Manifest,
};
use crate::config::Config;
use crate::config::layers::ConfigLayers;
use crate::model::heat::mean_fahrenheit;
use crate::model::printable::{printable, printable_json};
use crate::model::time::IanaZone;
use crate::model::{
    CityPeriods, CitySnapshot, EventTime, OutputUnits, PartitionName, PeriodKind, Revision, StoredPeriod,
    StoredReading,
};

/// List, verify and show the checkpoints of a service
///
/// Their location is checkpoints.url of the configuration, or the folder checkpoints in the data
/// directory. The service may be running.
#[derive(Args, Debug)]
pub struct CheckpointsArgs {
    #[command(subcommand)]
    command: CheckpointsCommand,
}

#[derive(Debug, Subcommand)]
enum CheckpointsCommand {
    List(ListArgs),
    Verify(VerifyArgs),
    Show(ShowArgs),
}

/// Where they are.
#[derive(Args, Debug)]
struct CheckpointLocationArgs {
    /// The configuration file of the service, TOML
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data directory, which has them in its folder checkpoints
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["config", "url"])]
    data_dir: Option<PathBuf>,
    /// The location of the checkpoints: a folder, or s3://bucket/prefix with the variables
    /// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    url: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// List the checkpoints, the newest first
#[derive(Args, Debug)]
struct ListArgs {
    #[command(flatten)]
    location: CheckpointLocationArgs,
}

/// Read all of a checkpoint and report whether it is complete; exits with 1 if one is not
#[derive(Args, Debug)]
struct VerifyArgs {
    #[command(flatten)]
    location: CheckpointLocationArgs,
    /// The name of the checkpoint, as in the list [default: all]
    name: Option<CheckpointName>,
}

/// Show the positions, size and settings of a checkpoint
#[derive(Args, Debug)]
struct ShowArgs {
    #[command(flatten)]
    location: CheckpointLocationArgs,
    /// The name of the checkpoint, as in the list [default: the newest]
    name: Option<CheckpointName>,
    /// Show the state of the city with this key
    #[arg(long, value_name = "KEY")]
    city: Option<String>,
}

impl CheckpointsArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        match self.command {
            CheckpointsCommand::List(args) => args.run(),
            CheckpointsCommand::Verify(args) => args.run(),
            CheckpointsCommand::Show(args) => args.run(),
        }
    }
}

fn checkpoint_error(error: CheckpointError) -> CliError {
    CliError::Failed(error.to_string())
}

impl CheckpointLocationArgs {
    fn open_checkpoints(&self) -> Result<Checkpoints, CliError> {
        let location = match (&self.url, &self.data_dir) {
            (Some(url), _) => url.parse().map_err(|problem| CliError::Usage(format!("--url: {problem}")))?,
            (None, Some(dir)) => CheckpointLocation::Folder(dir.join(DEFAULT_FOLDER)),
            (None, None) => self.configured_location()?,
        };
        // The command does not create the folder.
        if let CheckpointLocation::Folder(folder) = &location
            && !folder.is_dir()
        {
            let line = format!(
                "{} is not a folder: name the checkpoints with --data-dir, --url or --config",
                folder.display()
            );
            return Err(CliError::Failed(line));
        }
        Checkpoints::open(&location).map_err(checkpoint_error)
    }

    fn configured_location(&self) -> Result<CheckpointLocation, CliError> {
        let layers = ConfigLayers {
            file: self.config.clone(),
            environment: std::env::vars_os().collect(),
            flags: Vec::new(),
        };
        let plan = Config::load(&layers).map_err(CliError::Config)?.plan;
        // Existing checkpoints stay in their folder if new ones are disabled.
        Ok(plan.checkpoints.map_or_else(
            || CheckpointLocation::Folder(plan.data_dir.join(DEFAULT_FOLDER)),
            |plan| plan.location,
        ))
    }

    fn print_report(
        &self,
        json: impl FnOnce() -> Value,
        text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), CliError> {
        let mut out = io::BufWriter::new(io::stdout().lock());
        let written = match self.json {
            true => {
                writeln!(out, "{}", printable_json(&json().to_string()))
            }
            false => text(&mut out),
        };
        written.and_then(|()| out.flush()).map_err(|error| CliError::write_error(None, &error))
    }
}

/// Reads the manifest of the requested checkpoint, or of the newest.
fn read_manifest(checkpoints: &Checkpoints, name: Option<CheckpointName>) -> Result<Manifest, CliError> {
    let newest = || checkpoints.list_names().map(|names| names.first().copied());
    let name = name.map_or_else(newest, |name| Ok(Some(name))).map_err(checkpoint_error)?;
    let none = || CliError::Failed(format!("there is no checkpoint in {}", checkpoints.location()));
    checkpoints.read_manifest(name.ok_or_else(none)?).map_err(checkpoint_error)
}

fn kind_name(manifest: &Manifest) -> &'static str {
    if manifest.adds_to.is_some() { "increment" } else { "full" }
}

impl ListArgs {
    fn run(self) -> Result<(), CliError> {
        let checkpoints = self.location.open_checkpoints()?;
        let mut manifests = Vec::new();
        for name in checkpoints.list_names().map_err(checkpoint_error)? {
            match checkpoints.read_manifest(name) {
                Err(error) if !error.is_specific_to_checkpoint() => return Err(checkpoint_error(error)),
                read => manifests.push((name, read)),
            }
        }
        // An object store has no empty folders: an empty location does not exist.
        if manifests.is_empty() && !matches!(checkpoints.location(), CheckpointLocation::Folder(_)) {
            return Err(CliError::Failed(format!("there is no checkpoint in {}", checkpoints.location())));
        }
        let json = || manifests.iter().map(|(name, read)| line_json(*name, read)).collect();
        self.location.print_report(json, |out| {
            if manifests.is_empty() {
                return writeln!(out, "no checkpoints");
            }
            writeln!(
                out,
                "{:<26} {:<24} {:<9} {:>9} {:>13} {:>10}",
                "name", "made", "kind", "cities", "readings", "bytes"
            )?;
            for (name, read) in &manifests {
                match read {
                    Ok(manifest) => {
                        let created_at = manifest.created_at.to_string();
                        let (cities, readings, bytes) =
                            (manifest.cities, manifest.readings, format_bytes(manifest.own_bytes()));
                        writeln!(
                            out,
                            "{name:<26} {created_at:<24} {:<9} {cities:>9} {readings:>13} {bytes:>10}",
                            kind_name(manifest)
                        )?;
                    }
                    Err(error) => writeln!(out, "{name:<26} {}", printable(&error.to_string()))?,
                }
            }
            Ok(())
        })
    }
}

fn line_json(name: CheckpointName, read: &Result<Manifest, CheckpointError>) -> Value {
    match read {
        Ok(manifest) => json!({
            "name": name.to_string(), "created_at": manifest.created_at.to_string(), "kind": kind_name(manifest),
            "adds_to": manifest.adds_to, "cities": manifest.cities, "readings": manifest.readings, "bytes": manifest.own_bytes(),
        }),
        Err(error) => json!({"name": name.to_string(), "error": error.to_string()}),
    }
}

fn format_bytes(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

impl VerifyArgs {
    fn run(self) -> Result<(), CliError> {
        let checkpoints = self.location.open_checkpoints()?;
        let names = match self.name {
            Some(name) => vec![name],
            None => checkpoints.list_names().map_err(checkpoint_error)?,
        };
        let mut results = Vec::new();
        for name in names {
            match checkpoints.read_manifest(name).and_then(|manifest| checkpoints.verify_contents(&manifest))
            {
                Err(error) if !error.is_specific_to_checkpoint() => return Err(checkpoint_error(error)),
                result => results.push((name, result)),
            }
        }
        let json = || results.iter().map(|(name, result)| verified_json(*name, result)).collect();
        self.location.print_report(json, |out| {
            results.iter().try_for_each(|(name, result)| match result {
                Ok((cities, readings)) => writeln!(out, "{name}  ok: {cities} cities, {readings} readings"),
                Err(error) => writeln!(out, "{name}  {}", printable(&error.to_string())),
            })
        })?;
        match results.iter().filter(|(_, result)| result.is_err()).count() {
            // The user relies on at least one.
            0 if results.is_empty() => {
                Err(CliError::Failed(format!("there is no checkpoint in {}", checkpoints.location())))
            }
            0 => Ok(()),
            wrong => {
                Err(CliError::Failed(format!("{wrong} of {} checkpoints cannot be used", results.len())))
            }
        }
    }
}

fn verified_json(name: CheckpointName, result: &Result<(u64, u64), CheckpointError>) -> Value {
    let name = name.to_string();
    match result {
        Ok((cities, readings)) => json!({"name": name, "ok": true, "cities": cities, "readings": readings}),
        Err(error) => json!({"name": name, "ok": false, "error": error.to_string()}),
    }
}

impl ShowArgs {
    fn run(self) -> Result<(), CliError> {
        let checkpoints = self.location.open_checkpoints()?;
        let manifest = read_manifest(&checkpoints, self.name)?;
        match &self.city {
            Some(city) => self.show_city(&checkpoints, &manifest, city),
            None => {
                self.location.print_report(|| manifest_json(&manifest), |out| write_manifest(&manifest, out))
            }
        }
    }

    fn show_city(&self, checkpoints: &Checkpoints, manifest: &Manifest, city: &str) -> Result<(), CliError> {
        let city_state = checkpoints.load_city(manifest, city).map_err(checkpoint_error)?;
        let (partition, state) = city_state.ok_or_else(|| {
            CliError::Failed(format!("the checkpoint {} has no city {city:?}", manifest.name()))
        })?;
        self.location
            .print_report(|| city_json(&partition, &state), |out| write_city(&partition, &state, out))
    }
}

fn manifest_json(manifest: &Manifest) -> Value {
    let mut facts = line_json(manifest.name(), &Ok(manifest.clone()));
    facts["program"] = json!(manifest.program);
    facts["generation"] = json!(manifest.generation);
    facts["epoch"] = json!(manifest.epoch);
    facts["chain"] = json!(manifest.chain);
    facts["identity"] = json!(manifest.identity);
    facts["positions"] = json!(manifest.positions);
    facts["files"] = manifest
        .files()
        .map(|file| json!({"path": file.path, "bytes": file.bytes, "rows": file.rows}))
        .collect();
    facts
}

fn write_manifest(manifest: &Manifest, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "name        {}", manifest.name())?;
    writeln!(out, "made        {} by swelter {}", manifest.created_at, printable(&manifest.program))?;
    writeln!(out, "generation  {}", printable(&manifest.generation))?;
    match &manifest.adds_to {
        None => writeln!(out, "kind        full")?,
        Some(below) => writeln!(
            out,
            "kind        increment, adds to {below}; with it {} increments of {} on {}",
            manifest.chain.increments,
            format_bytes(manifest.chain.increment_bytes),
            format_bytes(manifest.chain.full_bytes)
        )?,
    }
    let files = manifest.files().count();
    writeln!(out, "cities      {}", manifest.cities)?;
    writeln!(out, "readings    {}", manifest.readings)?;
    writeln!(out, "files       {files}, {}", format_bytes(manifest.own_bytes()))?;
    writeln!(out, "computed with")?;
    for (key, value) in &manifest.identity {
        writeln!(out, "  {} = {}", printable(key), printable(value))?;
    }
    writeln!(out, "complete up to")?;
    for (source, partitions) in &manifest.positions {
        for (partition, position) in partitions {
            writeln!(out, "  {}/{partition}/{position}", printable(source))?;
        }
    }
    Ok(())
}

fn city_json(partition: &PartitionName, state: &CitySnapshot) -> Value {
    let time = |time: EventTime| time.to_string();
    let readings: Vec<Value> = stored_readings(state)
        .map(|reading| {
            json!({
                "reading_at": time(reading.reading_at), "heat_index": reading.heat_index.fahrenheit(),
                "category": reading.category, "revision": reading.revision.map(Revision::number),
            })
        })
        .collect();
    let withdrawn = state
        .tombstones
        .iter()
        .map(|(at, revision)| json!({"reading_at": time(*at), "revision": revision.map(Revision::number)}));
    let measured = state.measurements.iter().map(|(at, measurement)| {
        json!({
            "reading_at": time(*at), "temperature": measurement.temperature(), "humidity": measurement.humidity(),
            "wind_speed": measurement.wind_speed(),
        })
    });
    json!({
        "city": state.name, "source": partition.source, "partition": partition.partition, "split": state.is_split,
        "high": state.high.map(time),
        "units": OutputUnits::STORED.temperature.name(), "wind_units": OutputUnits::STORED.wind.name(),
        "time_zone": state.periods.as_ref().and_then(|periods| periods.zone).map(IanaZone::name),
        "open_periods": state.periods.as_ref().map(open_periods),
        "readings": readings, "withdrawn": withdrawn.collect::<Vec<_>>(), "measured": measured.collect::<Vec<_>>(),
    })
}

/// The hours and days that an arrival can still change.
fn open_periods(periods: &CityPeriods) -> Vec<Value> {
    let of_kind = |kind: PeriodKind| {
        periods.of_kind(kind).iter().map(move |period| {
            let StoredPeriod { number, starts, ends, readings, categories, max, .. } = period;
            let time = |millis: i64| EventTime::from_millis(millis).map(|time| time.to_string());
            json!({
                "kind": kind.name(), "number": number, "starts": time(*starts), "ends": time(*ends),
                "readings": readings, "mean_heat_index": mean_fahrenheit(period.sum, *readings),
                "max_heat_index": max.0.fahrenheit(), "max_at": max.1.to_string(), "categories": categories,
            })
        })
    };
    PeriodKind::ALL.into_iter().flat_map(of_kind).collect()
}

fn stored_readings(state: &CitySnapshot) -> impl Iterator<Item = StoredReading> {
    state.blocks.iter().flat_map(|block| block.iter())
}

fn write_city(partition: &PartitionName, state: &CitySnapshot, out: &mut dyn Write) -> io::Result<()> {
    let revision = |revision: Option<Revision>| {
        revision.map_or_else(String::new, |r| format!("  revision {}", r.number()))
    };
    writeln!(out, "city        {}", printable(&state.name))?;
    writeln!(out, "partition   {}/{}", printable(&partition.source), partition.partition)?;
    if state.is_split {
        writeln!(out, "split       in several partitions: results may differ after a restart")?;
    }
    writeln!(out, "newest      {}", state.high.map_or_else(|| "none".to_owned(), |high| high.to_string()))?;
    writeln!(out, "measured")?;
    for (at, measurement) in &state.measurements {
        let (temperature, humidity) = (measurement.temperature(), measurement.humidity());
        let wind_speed = measurement.wind_speed().map_or_else(String::new, |speed| format!("  {speed} mph"));
        writeln!(out, "  {at:<24}  {temperature} °F  {humidity} %{wind_speed}")?;
    }
    writeln!(out, "withdrawn")?;
    for (at, number) in &state.tombstones {
        writeln!(out, "  {at}{}", revision(*number))?;
    }
    writeln!(out, "readings")?;
    for reading in stored_readings(state) {
        let (at, heat_index, category) =
            (reading.reading_at, reading.heat_index.fahrenheit(), reading.category.name());
        writeln!(out, "  {at:<24}  {heat_index:>12.6} °F  {category}{}", revision(reading.revision))?;
    }
    Ok(())
}
