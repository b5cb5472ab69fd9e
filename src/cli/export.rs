//! `swelter export`: rows from PostgreSQL as Parquet, a file a day.

use std::io::{self, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::Args;
use jiff::civil::Date;
use jiff::tz::Offset;

use super::CliError;
use super::database_args::DatabaseArgs;
use crate::codec::ExportedRowsWriter;
use crate::fault::remedy_suffix;
use crate::model::{EventTime, OutputUnits, TemperatureUnit, WindUnit};
use crate::sinks::output::OutputFile;
use crate::sinks::postgres::PostgresDatabase;
use crate::sinks::postgres::history::{DayExport, ExportError};
use crate::sinks::postgres::schema::SchemaName;

/// Write the rows in PostgreSQL as Parquet, a file a UTC day
///
/// The columns are those of the results of swelter batch. A file is named by its day, as in
/// 2025-11-24.parquet, and appears when it is complete; one that is there is replaced. Days without
/// rows have no file. The rows of a day and a database are of one moment, whose epoch is as_of in the
/// metadata of the file. A replica may be read: --url names it.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// The first day, as in 2025-11-24
    #[arg(long, value_name = "DAY")]
    from: Date,
    /// The day behind the last one
    #[arg(long, value_name = "DAY")]
    to: Date,
    /// The folder for the files, which must be there
    #[arg(long, short, value_name = "FOLDER")]
    output: PathBuf,
    /// The unit of heat indexes and temperatures
    #[arg(long, value_name = "UNIT", default_value = "fahrenheit")]
    output_units: TemperatureUnit,
    /// The unit of wind speeds
    #[arg(long, value_name = "UNIT", default_value = "mph")]
    output_wind_units: WindUnit,
    #[command(flatten)]
    databases: DatabaseArgs,
}

impl ExportArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        if self.from >= self.to {
            return Err(CliError::Usage(format!("--to {} is not behind --from {}", self.to, self.from)));
        }
        if !self.output.is_dir() {
            return Err(CliError::Failed(format!(
                "{} is not a folder: make it first",
                self.output.display()
            )));
        }
        let targets = self.databases.targets()?;
        let units = OutputUnits { temperature: self.output_units, wind: self.output_wind_units };
        let mut day = self.from;
        while day < self.to {
            let next = day.tomorrow().map_err(|_| CliError::Usage("--to is too late".into()))?;
            let path = self.output.join(format!("{day}.parquet"));
            let rows = export_day(&targets, begin_of(day)?..begin_of(next)?, units, &path)?;
            let line = if rows == 0 {
                format!("{day}: no rows")
            } else {
                format!("{}: {rows} rows", path.display())
            };
            let mut out = io::stdout().lock();
            let written = writeln!(out, "{line}").and_then(|()| out.flush());
            written.map_err(|error| CliError::write_error(None, &error))?;
            day = next;
        }
        Ok(())
    }
}

/// The first instant of a UTC day.
fn begin_of(day: Date) -> Result<EventTime, CliError> {
    let begin = Offset::UTC.to_timestamp(day.at(0, 0, 0, 0)).map(|begin| begin.as_millisecond());
    let begin = begin.ok().and_then(EventTime::from_millis);
    begin.ok_or_else(|| {
        CliError::Usage(format!("{day} is out of range: readings are from 0000-01-02 to 9999-12-30"))
    })
}

/// Writes the rows of all databases to one file, and returns their number. Without rows there is no
/// file.
fn export_day(
    targets: &[(PostgresDatabase, SchemaName)],
    range: Range<EventTime>,
    units: OutputUnits,
    path: &Path,
) -> Result<u64, CliError> {
    let failed = |error: &io::Error| {
        let remedy = remedy_suffix(error, path);
        CliError::Failed(format!("{} cannot be written: {error}{remedy}", path.display()))
    };
    let file = OutputFile::create(path).map_err(|error| failed(&error))?;
    let (mut writer, mut rows, mut as_of) = (None, 0, None);
    for (database, schema) in targets {
        let read = DayExport::read(database, schema, range.clone(), |city, row| {
            let writer = match &mut writer {
                Some(writer) => writer,
                empty => empty.insert(ExportedRowsWriter::new(units, file.writer()?)?),
            };
            writer.write(city, row)
        });
        match read {
            Ok(day) => {
                rows += day.rows;
                as_of = as_of.into_iter().chain(day.as_of).min();
            }
            Err(ExportError::Output(error)) => return Err(failed(&error)),
            Err(ExportError::Database(error)) => return Err(CliError::Failed(error.to_string())),
        }
    }
    if let Some(writer) = writer {
        writer.finish(as_of).and_then(|()| file.commit()).map_err(|error| failed(&error))?;
    }
    Ok(rows)
}
