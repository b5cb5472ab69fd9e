//! Reads a finite log, epoch by epoch: decodes and admits records, and counts and writes refused
//! ones.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::vec;

use super::batch_plan::{BatchError, BatchPlan, OutputTarget};
use crate::admission::{Admission, AdmissionRules};
use crate::codec::{DeadLettersWriter, FileDecoder, ReadOptions, ReadStatistics};
use crate::dataflow::heat_index::Formula;
use crate::model::{
    Arrival, CityIntroduction, DeadLetterLine, ReadingEvent, Reason, RecordLocation, Refusal, Upsert,
};
use crate::sources::file::InputFile;

/// How many refusals are shown if they are not written to a file.
const EXAMPLES: usize = 10;

/// The input of the dataflow in one epoch.
#[derive(Debug, Default)]
pub struct InputEpoch {
    /// The number of records read when the epoch ended.
    pub upto: u64,
    pub cities: Vec<CityIntroduction>,
    pub arrivals: Vec<Arrival>,
}

#[derive(Debug)]
pub struct BatchReader {
    inputs: vec::IntoIter<InputFile>,
    current: Option<(String, FileDecoder)>,
    options: ReadOptions,
    formula: Formula,
    epoch_size: usize,
    admission: Admission,
    /// The file of refused records, and its name.
    dead_letters: Option<(String, DeadLettersWriter)>,
    /// The city of the log's first reading, set as soon as it is known.
    first_city: Arc<OnceLock<String>>,
    /// Records of the current file, and how many of them were refused.
    of_file: (u64, u64),
    pub read: ReadSummary,
}

/// The counts and warnings of the input.
#[derive(Debug, Default)]
pub struct ReadSummary {
    pub records: u64,
    pub refused: BTreeMap<Reason, u64>,
    /// The first refusals as text, if they are not written to a file.
    pub examples: Vec<String>,
    pub ignored_fields: u64,
    /// A warning on readings outside the range of the formula.
    pub warning: Option<String>,
    pub notes: ReadStatistics,
    /// Files that have records, all of which were refused.
    pub refused_files: Vec<(String, u64)>,
}

impl ReadSummary {
    /// Possible problems of the input, as text.
    pub fn warnings(&self, plan: &BatchPlan) -> Vec<String> {
        let mut warnings: Vec<String> = self
            .refused_files
            .iter()
            .map(|(name, records)| format!("all {records} records of {name} were refused"))
            .collect();
        warnings.extend(self.notes.warnings(&plan.read));
        warnings
    }
}

impl BatchReader {
    pub fn new(
        plan: &BatchPlan,
        dead_letters: Option<DeadLettersWriter>,
        first_city: Arc<OnceLock<String>>,
    ) -> BatchReader {
        let rules = AdmissionRules::new(plan.lateness);
        BatchReader {
            inputs: plan.inputs.clone().into_iter(),
            current: None,
            options: plan.read.clone(),
            formula: plan.formula,
            epoch_size: plan.epoch_size.max(1),
            admission: Admission::new(0, rules),
            dead_letters: plan.dead_letters.as_ref().map(OutputTarget::name).zip(dead_letters),
            first_city,
            of_file: (0, 0),
            read: ReadSummary::default(),
        }
    }

    /// Reads the next epoch: `epoch_size` records, or the rest of a file. Returns false at the end
    /// of the log.
    pub fn next_epoch(&mut self, epoch: &mut InputEpoch) -> Result<bool, BatchError> {
        epoch.cities.clear();
        epoch.arrivals.clear();
        epoch.arrivals.reserve(self.epoch_size.min(1 << 20));
        let first = self.read.records;
        loop {
            let Some((name, decoder)) = &mut self.current else {
                let Some(input) = self.inputs.next() else { return Ok(false) };
                let name = input.name();
                let decoder =
                    input.open_decoder(&self.options).map_err(|error| BatchError::input(&name, error))?;
                self.current = Some((name, decoder));
                continue;
            };
            let end = match decoder.next().map_err(|error| BatchError::input(name, error))? {
                Some(decoded) => {
                    self.read.records += 1;
                    self.of_file.0 += 1;
                    let admitted = match decoded {
                        Ok(upsert) => {
                            if let ReadingEvent::Reading(measurement) = &upsert.event {
                                self.first_city.get_or_init(|| upsert.city.to_string());
                                if self.read.warning.is_none() && !self.formula.is_made_for(measurement) {
                                    self.read.warning = Some(self.formula.warning(measurement));
                                }
                            }
                            self.read.notes.humidities.count_reading(&upsert);
                            admit(&upsert, &mut self.admission, &self.read, epoch)
                        }
                        Err(refusal) => Err(refusal),
                    };
                    if let Err(refusal) = admitted {
                        self.of_file.1 += 1;
                        record_refusal(&refusal, name, decoder, &mut self.dead_letters, &mut self.read)?;
                    }
                    self.read.records - first == self.epoch_size as u64
                }
                None => {
                    self.read.ignored_fields += decoder.ignored_fields();
                    self.read.notes.local_times += decoder.local_times();
                    let (records, refused) = std::mem::take(&mut self.of_file);
                    if records > 0 && records == refused {
                        self.read.refused_files.push((std::mem::take(name), records));
                    }
                    self.current = None;
                    self.read.records > first
                }
            };
            if end {
                epoch.upto = self.read.records;
                return Ok(true);
            }
        }
    }

    /// Ends reading. All dead letters are written when this returns.
    pub fn finish(self) -> std::io::Result<ReadSummary> {
        self.dead_letters.map_or(Ok(()), |(_, writer)| writer.finish())?;
        Ok(self.read)
    }
}

#[inline]
fn admit(
    upsert: &Upsert<'_>,
    admission: &mut Admission,
    read: &ReadSummary,
    epoch: &mut InputEpoch,
) -> Result<(), Refusal> {
    let admitted = admission.admit(upsert, None)?;
    if admitted.is_new {
        epoch.cities.push(admitted.introduction(upsert.city));
    }
    epoch.arrivals.push(admitted.arrival(upsert, read.records));
    Ok(())
}

#[cold]
fn record_refusal(
    refusal: &Refusal,
    source: &str,
    decoder: &mut FileDecoder,
    dead_letters: &mut Option<(String, DeadLettersWriter)>,
    read: &mut ReadSummary,
) -> Result<(), BatchError> {
    *read.refused.entry(refusal.reason).or_default() += 1;
    let line = decoder.line();
    match dead_letters {
        Some((name, writer)) => {
            let letter = DeadLetterLine {
                source,
                at: RecordLocation::Line { line },
                refusal,
                retry: None,
                raw: &decoder.raw(),
            };
            writer.write(&letter).map_err(|error| BatchError::output(name, error))?;
        }
        None if read.examples.len() < EXAMPLES => {
            read.examples.push(format!("{source}:{line}: {refusal}"));
        }
        None => {}
    }
    Ok(())
}
