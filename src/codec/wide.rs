//! CSV with a column for each city: one file of temperatures and one of humidities, joined by time.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use memchr::memchr;

use super::compress::decompressing_reader;
use super::csv::{close_quotes, read_header, unquote_fields, unquoted_fields};
use super::field::{Field, FieldValue};
use super::field_values::FieldValues;
use super::options::{RecordNormalizer, eq_ignoring_case};
use super::panic_guard::catch_decoder_panic;
use super::record_lines::{Advance, RecordLines, too_long_detail};
use super::text_output::push_json_text;
use super::{DecodeError, DecodeSettings, LocalTimeCounts, ReadOptions, detect_compression};
use crate::model::refusal::quoted_excerpt;
use crate::model::{Reason, Refusal, Upsert};

/// Reads a reading of each city from each row. A cell that is blank in both files is no reading.
pub(super) struct WideReader {
    settings: DecodeSettings,
    temperatures: WideFile,
    cities: Vec<WideCity>,
    humidities: HashMap<i64, HumidityRow>,
    /// The digest of the whole file of humidities.
    digest: u64,
    /// The current row: its humidities, and the next city in it.
    row: WideRow,
    next_city: usize,
    /// The bytes of the last record.
    raw: Vec<u8>,
    line: u64,
    /// Rows of humidities whose time has no temperatures, the last one first.
    unmatched: Option<Vec<HumidityRow>>,
}

/// A city, and its columns in both files.
struct WideCity {
    name: String,
    temperature: usize,
    humidity: usize,
}

#[derive(Default)]
struct WideRow {
    cells: String,
    ends: Vec<usize>,
    time: String,
    humidities: Option<HumidityRow>,
}

/// A row of the file of humidities.
#[derive(Clone)]
struct HumidityRow {
    cells: String,
    ends: Vec<usize>,
    line: u64,
    is_matched: bool,
}

/// One of the two files.
struct WideFile {
    lines: RecordLines,
    delimiter: u8,
    preparation: Box<RecordNormalizer>,
    /// The columns of the time, and which part of it each has.
    time: Vec<(usize, Field)>,
    cities: Vec<(usize, String)>,
    columns: usize,
    unquoted: String,
    ends: Vec<usize>,
}

impl WideFile {
    fn new(mut lines: RecordLines, options: &ReadOptions) -> Result<WideFile, DecodeError> {
        let delimiter = options.layout.delimiter();
        let names: Vec<String> = match &options.layout.header {
            Some(header) => header.to_vec(),
            None => {
                let (mut unquoted, mut ends) = (String::new(), Vec::new());
                read_header(&mut lines, delimiter, &mut unquoted, &mut ends)?;
                unquoted_fields(&unquoted, &ends).map(|name| name.trim_matches(' ').to_owned()).collect()
            }
        };
        let (mut time, mut cities) = (Vec::new(), Vec::<(usize, String)>::new());
        for (at, name) in names.iter().enumerate() {
            match options.record.columns.time_part(name, &options.settings) {
                Some(part) => time.push((at, part)),
                None if cities.iter().any(|(_, city)| city == name) => {
                    return Err(DecodeError::Wide(format!("has two columns {}", quoted_excerpt(name))));
                }
                None => cities.push((at, name.clone())),
            }
        }
        if time.len() != options.record.columns.time_parts().len() {
            let columns =
                names.iter().take(20).map(|name| quoted_excerpt(name)).collect::<Vec<_>>().join(", ");
            let detail =
                "has no column of times, or more than one: name it, as in --columns reading_at=datetime";
            return Err(DecodeError::Wide(format!("{detail} (its columns: {columns})")));
        }
        Ok(WideFile {
            lines,
            delimiter,
            preparation: RecordNormalizer::always(options),
            time,
            cities,
            columns: names.len(),
            unquoted: String::new(),
            ends: Vec::new(),
        })
    }

    /// Reads the next row into cells; `None` at the end.
    fn next_row(&mut self) -> Result<Option<Result<(), Refusal>>, DecodeError> {
        let refused = |detail: String| Ok(Some(Err(Refusal::new(Reason::NotDecodable, detail))));
        match self.lines.advance()? {
            Advance::Line => {}
            Advance::End => return Ok(None),
            Advance::Truncated => return refused(too_long_detail()),
        }
        if memchr(b'"', self.lines.record()).is_some() && !close_quotes(&mut self.lines, self.delimiter)? {
            return refused("a quoted field does not end, or goes on after its closing quote".into());
        }
        let Ok(line) = std::str::from_utf8(self.lines.record()) else {
            return refused("the line is not UTF-8".into());
        };
        unquote_fields(line, self.delimiter, &mut self.unquoted, &mut self.ends);
        if self.ends.len() != self.columns {
            let (count, columns) = (self.ends.len(), self.columns);
            return refused(format!(
                "{count} fields, but the header has {columns} columns: {}",
                quoted_excerpt(line)
            ));
        }
        Ok(Some(Ok(())))
    }

    fn cell_at(&self, column: usize) -> &str {
        cell(&self.unquoted, &self.ends, column)
    }

    /// The time of the current row in milliseconds since 1970, and as it is written.
    fn row_time(&mut self, settings: &DecodeSettings) -> Result<(i64, String), Refusal> {
        let mut record = FieldValues::new();
        for &(column, part) in &self.time {
            record.set(part, FieldValue::Untyped(cell(&self.unquoted, &self.ends, column)));
        }
        let written: Vec<&str> = self.time.iter().map(|(column, _)| self.cell_at(*column)).collect();
        let written = written.join(" ");
        catch_decoder_panic(|| {
            self.preparation.normalize(&mut record)?;
            record.reading_at(settings)
        })
        .map(|at| (at.millis(), written))
    }
}

fn cell<'a>(unquoted: &'a str, ends: &[usize], column: usize) -> &'a str {
    let start = if column == 0 { 0 } else { ends[column - 1] };
    &unquoted[start..ends[column]]
}

impl WideReader {
    /// Reads the whole file of humidities, which is kept in memory, and the header of the other
    /// one.
    pub(super) fn new(
        lines: RecordLines,
        wide: &Path,
        options: &ReadOptions,
    ) -> Result<WideReader, DecodeError> {
        let of_wide = |error: DecodeError| {
            DecodeError::Wide(format!("has humidities in {}, which {error}", wide.display()))
        };
        let temperatures = WideFile::new(lines, options)?;
        let mut humidities = open_humidity_file(wide, options).map_err(of_wide)?;
        let mut cities = Vec::new();
        for (temperature, name) in &temperatures.cities {
            let column = humidities.cities.iter().position(|(_, other)| eq_ignoring_case(other, name));
            let Some(column) = column else {
                return Err(of_wide(DecodeError::Wide(format!("has no column {}", quoted_excerpt(name)))));
            };
            let (humidity, _) = humidities.cities.swap_remove(column);
            cities.push(WideCity { name: name.clone(), temperature: *temperature, humidity });
        }
        if let Some((_, name)) = humidities.cities.first() {
            let detail = format!("has a column {} of which there are no temperatures", quoted_excerpt(name));
            return Err(of_wide(DecodeError::Wide(detail)));
        }
        let rows = read_humidity_rows(&mut humidities, &options.settings).map_err(of_wide)?;
        Ok(WideReader {
            settings: options.settings,
            next_city: cities.len(),
            temperatures,
            cities,
            humidities: rows,
            digest: humidities.lines.digest().unwrap_or_default(),
            row: WideRow::default(),
            raw: Vec::new(),
            line: 0,
            unmatched: None,
        })
    }

    pub(super) fn next(&mut self) -> Result<Option<Result<Upsert<'_>, Refusal>>, DecodeError> {
        loop {
            while self.next_city < self.cities.len() {
                self.next_city += 1;
                if self.has_values(self.next_city - 1) {
                    return Ok(Some(self.decode_city(self.next_city - 1)));
                }
            }
            match self.temperatures.next_row()? {
                None => return Ok(self.next_unmatched().map(Err)),
                Some(Err(refusal)) => return Ok(Some(Err(self.refuse_row(refusal)))),
                Some(Ok(())) => {
                    if let Err(refusal) = self.begin_row() {
                        return Ok(Some(Err(self.refuse_row(refusal))));
                    }
                }
            }
        }
    }

    fn begin_row(&mut self) -> Result<(), Refusal> {
        let (at, time) = self.temperatures.row_time(&self.settings)?;
        let humidities = self.humidities.get_mut(&at).map(|row| {
            row.is_matched = true;
            row.clone()
        });
        let WideFile { unquoted, ends, lines, .. } = &self.temperatures;
        self.row = WideRow { cells: unquoted.clone(), ends: ends.clone(), time, humidities };
        self.line = lines.line();
        self.next_city = 0;
        Ok(())
    }

    /// Refuses a row with all its bytes.
    fn refuse_row(&mut self, refusal: Refusal) -> Refusal {
        self.raw.clear();
        self.raw.extend_from_slice(self.temperatures.lines.record());
        self.line = self.temperatures.lines.line();
        refusal
    }

    fn city_values(&self, city: usize) -> (&str, Option<&str>) {
        let WideCity { temperature, humidity, .. } = &self.cities[city];
        let humidities = self.row.humidities.as_ref();
        let humidity = humidities.map(|row| cell(&row.cells, &row.ends, *humidity));
        (cell(&self.row.cells, &self.row.ends, *temperature), humidity)
    }

    fn has_values(&self, city: usize) -> bool {
        let (temperature, humidity) = self.city_values(city);
        let is_value = |text: &str| !self.temperatures.preparation.is_null_text(text);
        is_value(temperature) || humidity.is_some_and(is_value)
    }

    fn decode_city(&mut self, city: usize) -> Result<Upsert<'_>, Refusal> {
        let mut raw = std::mem::take(&mut self.raw);
        self.write_raw(city, &mut raw);
        self.raw = raw;
        let WideReader { temperatures, cities, row, settings, .. } = self;
        let WideCity { name, temperature, humidity } = &cities[city];
        let mut record = FieldValues::new();
        record.set(Field::City, FieldValue::Text(name));
        for &(column, part) in &temperatures.time {
            record.set(part, FieldValue::Untyped(cell(&row.cells, &row.ends, column)));
        }
        record.set(Field::Temperature, FieldValue::Untyped(cell(&row.cells, &row.ends, *temperature)));
        if let Some(humidities) = &row.humidities {
            record.set(
                Field::Moisture,
                FieldValue::Untyped(cell(&humidities.cells, &humidities.ends, *humidity)),
            );
        }
        let preparation = &mut temperatures.preparation;
        catch_decoder_panic(move || {
            preparation.normalize(&mut record)?;
            record.to_upsert(settings)
        })
    }

    fn write_raw(&self, city: usize, raw: &mut Vec<u8>) {
        let (temperature, humidity) = self.city_values(city);
        raw.clear();
        for (name, value) in [
            ("city", self.cities[city].name.as_str()),
            ("reading_at", self.row.time.as_str()),
            ("temperature", temperature),
            ("humidity", humidity.unwrap_or_default()),
        ] {
            raw.push(if raw.is_empty() { b'{' } else { b',' });
            push_json_text(name, raw);
            raw.push(b':');
            push_json_text(value, raw);
        }
        raw.push(b'}');
    }

    /// After the last row, a refusal of the next row of humidities that no temperatures matched.
    fn next_unmatched(&mut self) -> Option<Refusal> {
        let humidities = &mut self.humidities;
        let unmatched = self.unmatched.get_or_insert_with(|| {
            let rows = std::mem::take(humidities).into_values().filter(|row| !row.is_matched);
            let mut rows: Vec<HumidityRow> = rows.collect();
            rows.sort_unstable_by_key(|row| std::cmp::Reverse(row.line));
            rows
        });
        let row = unmatched.pop()?;
        self.line = row.line;
        self.raw.clear();
        self.raw.extend_from_slice(row.cells.as_bytes());
        let detail = format!("there are no temperatures of the time of line {} of the humidities", row.line);
        Some(Refusal::new(Reason::MissingField, detail))
    }

    pub(super) fn digest(&mut self) -> Option<u64> {
        Some(self.temperatures.lines.digest()?.rotate_left(1) ^ self.digest)
    }

    /// The lines of the file of temperatures.
    pub(super) fn lines(&mut self) -> &mut RecordLines {
        &mut self.temperatures.lines
    }

    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// The last reading as one JSON object; a row that is refused as a whole as it is.
    pub(super) fn raw(&self) -> &[u8] {
        &self.raw
    }

    pub(super) fn local_times(&self) -> LocalTimeCounts {
        self.temperatures.preparation.local_times()
    }
}

fn open_humidity_file(path: &Path, options: &ReadOptions) -> Result<WideFile, DecodeError> {
    let file = File::open(path)?;
    let mut lines = RecordLines::new(
        decompressing_reader(Box::new(file), detect_compression(path))?,
        super::Framing::Quotes,
        true,
    )?;
    lines.skip_lines(options.layout.skip_lines)?;
    WideFile::new(lines, options)
}

/// All rows by time. Of two rows of one time the later one counts, as of two readings.
fn read_humidity_rows(
    file: &mut WideFile,
    settings: &DecodeSettings,
) -> Result<HashMap<i64, HumidityRow>, DecodeError> {
    let mut rows = HashMap::new();
    loop {
        let line = |file: &WideFile| file.lines.line();
        let wrong =
            |line: u64, refusal: Refusal| DecodeError::Wide(format!("is wrong at line {line}: {refusal}"));
        match file.next_row()? {
            None => return Ok(rows),
            Some(Err(refusal)) => return Err(wrong(line(file), refusal)),
            Some(Ok(())) => {
                let (at, _) = file.row_time(settings).map_err(|refusal| wrong(line(file), refusal))?;
                let (cells, ends) = (file.unquoted.clone(), file.ends.clone());
                rows.insert(at, HumidityRow { cells, ends, line: line(file), is_matched: false });
            }
        }
    }
}
