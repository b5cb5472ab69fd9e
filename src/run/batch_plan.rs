//! The plan of a finite run, and its errors.

use std::io;
use std::path::{Path, PathBuf};

use crate::codec::{Compression, DecodeError, Format, ReadOptions};
use crate::dataflow::heat_index::Formula;
use crate::fault::{remedy_suffix, start_failure_text};
use crate::model::time::DayZone;
use crate::model::{Millis, OutputUnits};
use crate::sources::file::InputFile;

/// The inputs, outputs and settings of a finite run.
#[derive(Clone, Debug)]
pub struct BatchPlan {
    pub inputs: Vec<InputFile>,
    pub read: ReadOptions,
    /// The time zone of the days in daily summaries.
    pub day_zone: DayZone,
    pub formula: Formula,
    pub window: Millis,
    pub lateness: Millis,
    pub workers: usize,
    /// Records in an epoch, at least 1. An epoch also ends with its file.
    pub epoch_size: usize,
    /// The units of all outputs.
    pub output_units: OutputUnits,
    /// Result rows.
    pub output: Option<OutputTarget>,
    pub changes: Option<OutputTarget>,
    pub daily: Option<OutputTarget>,
    pub dead_letters: Option<OutputTarget>,
    pub plot: Option<PlotPlan>,
}

/// The destination of an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputTarget {
    /// `None` is standard output.
    pub path: Option<PathBuf>,
    pub format: Format,
    pub compression: Compression,
}

impl OutputTarget {
    /// The name that the user gave it.
    pub fn name(&self) -> String {
        self.path.as_ref().map_or("standard output".into(), |path| path.display().to_string())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlotPlan {
    pub path: PathBuf,
    /// The city to plot; by default the first city of the log.
    pub city: Option<String>,
}

/// Why a run stops.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    #[error("{name} {error}")]
    Input { name: String, error: DecodeError },
    #[error("{name} cannot be written: {error}{}", remedy_suffix(error, Path::new(name)))]
    Output { name: String, error: io::Error },
    #[error("--plot: the log has no readings of city {city}: name another one with --city")]
    NoSuchCity { city: String },
    #[error("--plot: the log has no readings to draw")]
    NothingToDraw,
    #[error("the workers cannot be started: {0}")]
    Workers(String),
    #[error("{}", start_failure_text(.0))]
    Threads(io::Error),
}

impl BatchError {
    pub fn input(name: &str, error: DecodeError) -> BatchError {
        BatchError::Input { name: name.to_string(), error }
    }

    pub fn output(name: &str, error: io::Error) -> BatchError {
        BatchError::Output { name: name.to_string(), error }
    }
}
