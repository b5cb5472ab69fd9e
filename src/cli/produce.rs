//! `swelter produce`: writes readings to a Kafka topic.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Parser, ValueEnum};
use indicatif::ProgressBar;

use super::batch::{NOTHING_TAKEN_TEXT, group_digits, progress_bar};
use super::generate::GeneratorArgs;
use super::read_args::ReadArgs;
use super::time_shift::{ShiftTo, TimeShift};
use super::{CliError, parse_file_argument};
use crate::codec::{Format, ReadOptions, ReadStatistics, RecordFields, push_json_record};
use crate::kafka::partitioner::Partitioner;
use crate::kafka::{KafkaCluster, properties, topic_admin};
use crate::model::printable::printable;
use crate::model::{AppendError, AppendReport, Appender, NewRecord, Refusal, Upsert};
use crate::sources::file::InputFile;
use crate::sources::generator::{BadReading, GeneratedRecord, Generator};
use crate::sources::kafka::{AppendLimits, AppendPlan, KafkaAppender, RecordWriter, RegistryPlan};

/// Records per append at full speed, and the maximum number of appends in flight.
const APPEND_RECORDS: usize = 1_000;
const MAX_APPENDS_IN_FLIGHT: usize = 64;
/// How often paced records are sent.
const PACE_INTERVAL: Duration = Duration::from_millis(5);
/// How long to wait for the last records; the timeout of librdkafka is shorter.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(60);
/// The maximum number of refused records in the output.
const MAX_SHOWN_REFUSALS: u64 = 10;

/// Write readings from files or a generator to a topic of Kafka
///
/// The key of a record is its city. A record of a JSON file is sent unchanged, valid or not, unless
/// options describe how the file is written. Records of other files that are not readings are not
/// sent; they are counted and shown.
#[derive(Args, Debug)]
pub struct ProduceArgs {
    /// Files of readings: .csv, .json or .parquet, the first two also with .gz or .zst; - is
    /// standard input
    #[arg(value_name = "FILE", required_unless_present = "generate", conflicts_with = "generate")]
    files: Vec<PathBuf>,
    /// The brokers: host:port, separated by commas
    #[arg(long)]
    brokers: String,
    /// The topic, which must exist
    #[arg(long)]
    topic: String,
    /// The format of all files [default: from their names]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    #[command(flatten)]
    read: ReadArgs,
    /// The format of the records in the topic
    #[arg(long, value_name = "FORMAT", default_value = "json", requires_if("avro", "registry"))]
    value_format: ValueFormat,
    /// The URL of the schema registry in which the schema of Avro records is registered
    #[arg(long, value_name = "URL")]
    registry: Option<String>,
    /// The number of records a second, as in 1000 or 1000/s [default: as many as the brokers
    /// accept]
    #[arg(long, value_name = "N/s", value_parser = rate)]
    rate: Option<f64>,
    /// The partitioner, which assigns cities to partitions; all writers of the topic must use the
    /// same one
    #[arg(long, value_name = "NAME", default_value = "murmur2_random", value_parser = partitioner)]
    partitioner: Partitioner,
    /// A property of librdkafka; can be repeated
    #[arg(long = "property", value_name = "NAME=VALUE", value_parser = property)]
    properties: Vec<(String, String)>,
    /// Shift all times of the files so that the newest one is this time: now, or as in
    /// 2025-07-24T16:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "generate")]
    shift_to: Option<ShiftTo>,
    /// Exit with 0 even if no record of any file was accepted
    #[arg(long, conflicts_with = "generate")]
    allow_empty: bool,
    /// Generate readings instead of reading files
    #[arg(long, conflicts_with_all = ["ReadArgs", "format"])]
    generate: bool,
    #[command(flatten, next_help_heading = "Options of --generate")]
    log: Option<GeneratorArgs>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ValueFormat {
    /// One JSON object for each record
    #[value(name = "json")]
    Json,
    /// Avro in Confluent's wire format
    #[value(name = "avro")]
    Avro,
}

fn rate(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text).parse().ok();
    let number = number.filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
    number.ok_or_else(|| format!("{text:?} is not a number of records a second: write 1000 or 1000/s"))
}

fn partitioner(text: &str) -> Result<Partitioner, String> {
    let names = || Partitioner::ALL.map(Partitioner::name).join(", ");
    Partitioner::from_name(text).ok_or_else(|| format!("{text:?} is none of {}", names()))
}

fn property(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=VALUE"))?;
    properties::check_property(name, value).map_err(|problem| format!("{name} {problem}"))?;
    Ok((name.to_string(), value.to_string()))
}

impl ProduceArgs {
    pub(super) fn run(mut self) -> Result<(), CliError> {
        let log = self.log.take();
        if !self.generate && log.is_some() {
            return Err(CliError::Usage("options of generated readings need --generate".into()));
        }
        if self.value_format == ValueFormat::Json && self.registry.is_some() {
            return Err(CliError::Usage("--registry is for --value-format avro: leave it out".into()));
        }
        let files = self.input_files()?;
        let options = self.read.read_options_for(&files)?;
        let shift = self.shift_to.map(|to| TimeShift::measure(&files, &options, to)).transpose()?;
        let generator =
            self.generate.then(|| log.unwrap_or_else(default_generator_args).into_generator()).transpose()?;
        let mut run = ProduceRun::new(self.open_appender()?, self.rate);
        let start = Instant::now();
        let result = match &generator {
            Some(generator) => run.push_generated(generator),
            None => files.iter().try_for_each(|file| self.push_file(file, &options, shift, &mut run)),
        };
        let result = result.and_then(|()| run.append_batch());
        let waited = run.wait_for_all();
        run.bar.finish_and_clear();
        let _ = run.counts.report_counts(&self.topic, start.elapsed().as_secs_f64());
        for warning in run.read_statistics.warnings(&options) {
            let _ = writeln!(io::stderr(), "warning: {}", printable(&warning));
        }
        result.and(waited)?;
        if run.counts.acknowledged == 0 && !self.generate && !self.allow_empty {
            return Err(CliError::NothingTaken(NOTHING_TAKEN_TEXT.into()));
        }
        Ok(())
    }

    fn open_appender(&self) -> Result<KafkaAppender, CliError> {
        let failed = |error: &dyn std::fmt::Display| CliError::Failed(error.to_string());
        let properties: BTreeMap<String, String> = self.properties.iter().cloned().collect();
        let cluster = KafkaCluster { brokers: self.brokers.clone(), properties };
        let topics =
            topic_admin::describe_topics(&cluster, &[&self.topic]).map_err(|error| failed(&error))?;
        if !matches!(topics.get(&self.topic), Some(Some(_))) {
            return Err(CliError::Failed(format!(
                "{} does not have topic {}: create it (kafka-topics.sh --create)",
                self.brokers, self.topic
            )));
        }
        let writer = match (self.value_format, &self.registry) {
            (ValueFormat::Avro, Some(url)) => {
                let registry = RegistryPlan { urls: vec![url.clone()], user: None };
                // The encoder's input is our own JSON, whatever the format of the files.
                RecordWriter::registered(&self.topic, &registry, &ReadOptions::default())
                    .map_err(|error| failed(&error))?
            }
            (ValueFormat::Avro, None) => return Err(CliError::Usage("Avro needs --registry".into())),
            (ValueFormat::Json, _) => RecordWriter::json(),
        };
        let plan = AppendPlan {
            cluster,
            topic: self.topic.clone(),
            partitioner: self.partitioner,
            limits: AppendLimits { records: usize::MAX / 2, bytes: usize::MAX / 2 },
        };
        KafkaAppender::new(&self.topic, &plan, writer).map_err(|error| failed(&error))
    }

    fn input_files(&self) -> Result<Vec<InputFile>, CliError> {
        let input = |path: &PathBuf| {
            let (path, format, compression) = parse_file_argument(path, self.format, None, "--format")?;
            Ok(InputFile { path, format, compression })
        };
        self.files.iter().map(input).collect()
    }

    fn push_file(
        &self,
        file: &InputFile,
        options: &ReadOptions,
        shift: Option<TimeShift>,
        run: &mut ProduceRun,
    ) -> Result<(), CliError> {
        let name = file.name();
        let failed = |error: &dyn std::fmt::Display| CliError::Failed(format!("{name}: {error}"));
        let mut decoder = file.open_decoder(options).map_err(|error| failed(&error))?;
        // The bytes can be copied only if they have the default format, because readers of the
        // topic do not know the options of this command.
        let is_as_written = file.format == Format::Json && options.is_default() && shift.is_none();
        let as_it_is = is_as_written && self.value_format == ValueFormat::Json;
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let (city, refusal) = match decoder.next().map_err(|error| failed(&error))? {
                None => {
                    run.read_statistics.local_times += decoder.local_times();
                    return Ok(());
                }
                Some(Ok(upsert)) => {
                    let reading_at =
                        shift.map_or(upsert.reading_at, |shift| shift.apply_to(upsert.reading_at));
                    let upsert = Upsert { reading_at, ..upsert };
                    run.read_statistics.humidities.count_reading(&upsert);
                    push_json_record(&RecordFields::from_upsert(&upsert), &mut bytes);
                    (Some(Box::from(upsert.city)), None)
                }
                Some(Err(refusal)) => (None, Some(refusal)),
            };
            if as_it_is {
                run.push_record(NewRecord::new(city.as_deref(), &*decoder.raw()))?;
            } else if let Some(refusal) = refusal {
                run.report_refusal(&name, decoder.line(), &refusal);
            } else {
                run.push_record(NewRecord::new(city.as_deref(), &*bytes))?;
            }
        }
    }
}

/// The defaults of the generator options.
fn default_generator_args() -> GeneratorArgs {
    #[derive(Parser)]
    struct GeneratorArgsParser {
        #[command(flatten)]
        log: GeneratorArgs,
    }
    GeneratorArgsParser::parse_from(["generate"]).log
}

/// The state of a run: the appender, its pace, and counters.
struct ProduceRun {
    appender: KafkaAppender,
    pace: Option<RecordPace>,
    batch: Vec<NewRecord>,
    appends_in_flight: usize,
    append_results: Receiver<(usize, Result<AppendReport, AppendError>)>,
    append_result_sender: Sender<(usize, Result<AppendReport, AppendError>)>,
    counts: ProduceCounts,
    read_statistics: ReadStatistics,
    bar: ProgressBar,
}

/// The schedule of records at a rate.
struct RecordPace {
    rate: f64,
    start: Instant,
    records: u64,
}

impl RecordPace {
    fn next_due(&self) -> Instant {
        self.start + Duration::from_secs_f64(self.records as f64 / self.rate)
    }
}

#[derive(Default)]
struct ProduceCounts {
    acknowledged: u64,
    not_acknowledged: u64,
    refused: u64,
}

impl ProduceRun {
    fn new(appender: KafkaAppender, rate: Option<f64>) -> ProduceRun {
        let (append_result_sender, append_results) = mpsc::channel();
        let pace = rate.map(|rate| RecordPace { rate, start: Instant::now(), records: 0 });
        let (batch, counts, bar) =
            (Vec::with_capacity(APPEND_RECORDS), ProduceCounts::default(), progress_bar());
        let notes = ReadStatistics::default();
        ProduceRun {
            appender,
            pace,
            batch,
            appends_in_flight: 0,
            append_results,
            append_result_sender,
            counts,
            read_statistics: notes,
            bar,
        }
    }

    fn push_generated(&mut self, generator: &Generator) -> Result<(), CliError> {
        for delivery in generator.timed_records() {
            let mut bytes = Vec::with_capacity(160);
            delivery.record.push_json(&mut bytes);
            let city = match delivery.record {
                GeneratedRecord::Upsert { city, .. } => Some(city),
                GeneratedRecord::Invalid(BadReading { city, .. }) => city,
            };
            self.push_record(NewRecord::new(city, bytes))?;
        }
        Ok(())
    }

    fn push_record(&mut self, record: NewRecord) -> Result<(), CliError> {
        if let Some(pace) = &mut self.pace {
            let due = pace.next_due();
            pace.records += 1;
            let early = due.saturating_duration_since(Instant::now());
            if early >= PACE_INTERVAL {
                self.append_batch()?;
                thread::sleep(early);
            }
        }
        self.batch.push(record);
        if self.batch.len() >= APPEND_RECORDS { self.append_batch() } else { Ok(()) }
    }

    fn append_batch(&mut self) -> Result<(), CliError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(APPEND_RECORDS));
        let (records, hear) = (batch.len(), self.append_result_sender.clone());
        // The receiver may be gone after a timeout.
        self.appender.append(batch, Box::new(move |result| drop(hear.send((records, result)))));
        self.appends_in_flight += 1;
        self.handle_append_results(if self.appends_in_flight >= MAX_APPENDS_IN_FLIGHT {
            ACKNOWLEDGE_TIMEOUT
        } else {
            Duration::ZERO
        })
    }

    /// Handles the results of appends; waits for the first one.
    fn handle_append_results(&mut self, mut wait: Duration) -> Result<(), CliError> {
        loop {
            let (records, result) = match self.append_results.recv_timeout(wait) {
                Ok(append_result) => append_result,
                Err(RecvTimeoutError::Timeout) if wait.is_zero() => return Ok(()),
                Err(_) => return Err(CliError::Failed("the brokers have not acknowledged the records in time: check the cluster, then try again".into())),
            };
            self.appends_in_flight -= 1;
            wait = Duration::ZERO;
            match result {
                Ok(_) => self.counts.acknowledged += records as u64,
                Err(error) => {
                    self.counts.not_acknowledged += records as u64;
                    return Err(CliError::Failed(error.to_string()));
                }
            }
            self.bar.set_position(self.counts.acknowledged);
        }
    }

    fn wait_for_all(&mut self) -> Result<(), CliError> {
        let mut first = Ok(());
        while self.appends_in_flight > 0 {
            let before = self.appends_in_flight;
            first = first.and(self.handle_append_results(ACKNOWLEDGE_TIMEOUT));
            if self.appends_in_flight == before {
                break;
            }
        }
        self.counts.not_acknowledged += self.batch.len() as u64;
        first
    }

    fn report_refusal(&mut self, file: &str, line: u64, refusal: &Refusal) {
        self.counts.refused += 1;
        if self.counts.refused <= MAX_SHOWN_REFUSALS {
            let print_refusal = || {
                let refused = format!("{file}:{line}: {refusal}");
                writeln!(io::stderr(), "refused {}", printable(&refused))
            };
            let _ = self.bar.suspend(print_refusal);
        }
    }
}

impl ProduceCounts {
    /// Writes the counts to standard error. A failure to write is not an error of the command.
    fn report_counts(&self, topic: &str, seconds: f64) -> io::Result<()> {
        let mut parts = vec![format!("{} records acknowledged", group_digits(self.acknowledged))];
        let rare = [(self.not_acknowledged, "not acknowledged"), (self.refused, "refused and not sent")];
        let rare = rare.into_iter().filter(|(count, _)| *count > 0);
        parts.extend(rare.map(|(count, what)| format!("{} {what}", group_digits(count))));
        let rate = group_digits((self.acknowledged as f64 / seconds.max(1e-9)) as u64);
        writeln!(io::stderr(), "{topic}: {} in {seconds:.2} s, {rate} records/s", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: ProduceArgs,
    }

    fn args(line: &str) -> Result<ProduceArgs, clap::Error> {
        let words = ["produce", "--brokers", "127.0.0.1:1", "--topic", "t"].into_iter();
        Command::try_parse_from(words.chain(line.split_whitespace())).map(|command| command.args)
    }

    #[test]
    fn readings_come_from_files_or_generator() {
        assert!(args("a.csv").unwrap().log.is_none());
        assert!(args("--generate").unwrap().log.is_none());
        assert!(args("--generate --cities 7").unwrap().log.is_some());
        assert!(args("a.csv --shift-to now").unwrap().shift_to.is_some());
        for wrong in ["", "a.csv --generate", "--generate --value-format avro", "--generate --shift-to now"] {
            assert!(args(wrong).is_err(), "{wrong}");
        }
        let refused = args("a.csv --cities 7").unwrap().run();
        assert!(matches!(refused, Err(CliError::Usage(_))), "{refused:?}");
        default_generator_args().into_generator().unwrap();
    }

    #[test]
    fn rate_partitioner_and_properties_are_validated() {
        assert_eq!((rate("1000/s"), rate("0.5")), (Ok(1000.0), Ok(0.5)));
        for wrong in ["--rate 0", "--rate -1", "--rate x", "--partitioner random", "--property acks=0"] {
            assert!(args(&format!("a.csv {wrong}")).is_err(), "{wrong}");
        }
        let args = args("a.csv --property compression.type=lz4 --partitioner fnv1a_random").unwrap();
        assert_eq!(args.properties, [("compression.type".to_string(), "lz4".to_string())]);
        assert_eq!(args.partitioner, Partitioner::Fnv1a);
    }
}
