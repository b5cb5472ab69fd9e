//! Writes values as CSV and JSON have them, and files of lines.

use std::io::{self, Write};

use super::{CompressedWriter, Compression, compressing_writer};
use crate::model::HeatIndex;

const FLUSH_BYTES: usize = 64 * 1024;

/// A file of lines, each built in a buffer.
pub(super) struct TextFileWriter {
    out: CompressedWriter,
    pub(super) line: Vec<u8>,
}

impl TextFileWriter {
    pub(super) fn new(out: Box<dyn Write + Send>, compression: Compression) -> io::Result<TextFileWriter> {
        Ok(TextFileWriter {
            out: compressing_writer(out, compression)?,
            line: Vec::with_capacity(2 * FLUSH_BYTES),
        })
    }

    /// Ends the current line, which may stay in the buffer.
    #[inline]
    pub(super) fn end_line(&mut self) -> io::Result<()> {
        self.line.push(b'\n');
        if self.line.len() < FLUSH_BYTES {
            return Ok(());
        }
        self.flush_buffer()
    }

    #[cold]
    fn flush_buffer(&mut self) -> io::Result<()> {
        self.out.write_all(&self.line)?;
        self.line.clear();
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.flush_buffer()?;
        self.out.finish()
    }
}

impl std::fmt::Debug for TextFileWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TextFile")
    }
}

/// Appends a field of CSV, quoted only if it must be.
pub(crate) fn push_csv_text(text: &str, out: &mut Vec<u8>) {
    if !text.bytes().any(|byte| matches!(byte, b'"' | b',' | b'\n' | b'\r')) {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    out.push(b'"');
    out.extend_from_slice(text.replace('"', "\"\"").as_bytes());
    out.push(b'"');
}

pub(crate) fn push_json_text(text: &str, out: &mut Vec<u8>) {
    // Strings always serialize, and writing to a `Vec` cannot fail.
    let _ = serde_json::to_writer(out, text);
}

/// Appends a number; one that JSON cannot have becomes a string.
pub(super) fn push_json_number(number: f64, out: &mut Vec<u8>) {
    if number.is_finite() {
        push_number(number, out);
    } else {
        out.push(b'"');
        push_number(number, out);
        out.push(b'"');
    }
}

pub(crate) fn push_integer(number: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends the shortest decimal that reads back to the same f64, as the standard library writes it,
/// in a fifth of the time.
///
/// Some numbers lie in the middle between two such decimals, of which the libraries choose
/// different ones: all are whole multiples of 2^-22.
#[inline]
pub(crate) fn push_number(number: f64, out: &mut Vec<u8>) {
    let whole = number as i64;
    if whole as f64 == number && whole.unsigned_abs() < 1 << 53 && (whole != 0 || number.is_sign_positive()) {
        push_integer(whole, out);
        return;
    }
    let fine = number * 4_194_304.0;
    if (1e-3..1e15).contains(&number.abs()) && fine != fine.trunc() {
        out.extend_from_slice(zmij::Buffer::new().format_finite(number).as_bytes());
    } else {
        // Writing to a `Vec` cannot fail.
        let _ = write!(out, "{number}");
    }
}

/// Appends a heat index as [`push_number`] writes its degrees: 15 digits or fewer are the shortest
/// decimal of the f64 nearest to them.
#[inline]
pub(crate) fn push_heat_index(heat_index: HeatIndex, out: &mut Vec<u8>) {
    let micros = heat_index.micros();
    if micros.unsigned_abs() >= 1_000_000_000_000_000 {
        return push_number(heat_index.fahrenheit(), out);
    }
    if micros < 0 {
        out.push(b'-');
    }
    let mut buffer = itoa::Buffer::new();
    out.extend_from_slice(buffer.format(micros.unsigned_abs() / 1_000_000).as_bytes());
    let fraction = micros.unsigned_abs() % 1_000_000;
    if fraction > 0 {
        out.push(b'.');
        // The 1 in front keeps the fraction's leading zeros.
        let digits = &buffer.format(1_000_000 + fraction)[1..];
        out.extend_from_slice(digits.trim_end_matches('0').as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn floats_are_written_like_std(
            number in prop_oneof![
                any::<f64>(),
                (-5000i64..5000).prop_map(|n| n as f64),
                (-1e7..1e7f64).prop_map(|n| n.round() / 100.0),
                -1e7..1e7f64,
                (any::<i64>(), 1..64u32, 0..20u32).prop_map(|(n, bits, digits)| (n >> bits) as f64 / 10f64.powi(digits as i32)),
                // Also fractions that end with a 5 in the binary system.
                (any::<i64>(), 0..64u32, 0..12u32).prop_map(|(n, bits, halves)| (n >> bits) as f64 / f64::from(1 << halves)),
                (any::<i64>(), 0..64u32, 12..31u32).prop_map(|(n, bits, halves)| (n >> bits) as f64 / f64::from(1 << halves)),
            ]
        ) {
            prop_assert_eq!(written(|out| push_number(number, out)), number.to_string());
        }

        #[test]
        fn heat_indexes_are_written_like_std(
            micros in prop_oneof![-500_000_000..4_000_000_000i64, any::<i64>(), (-500..4_000i64).prop_map(|n| n * 1_000_000)]
        ) {
            let heat_index = HeatIndex::from_micros(micros);
            let expected = heat_index.fahrenheit().to_string();
            prop_assert_eq!(written(|out| push_heat_index(heat_index, out)), expected);
        }

        #[test]
        fn integers_are_written_like_std(number: i64) {
            prop_assert_eq!(written(|out| push_integer(number, out)), number.to_string());
        }
    }

    #[test]
    fn special_floats_are_written() {
        for number in
            [0.0, -0.0, f64::MAX, f64::MIN_POSITIVE, f64::NAN, f64::INFINITY, -1.0, 9007199254740992.0]
        {
            assert_eq!(written(|out| push_number(number, out)), number.to_string());
        }
        assert_eq!(written(|out| push_json_number(f64::NAN, out)), "\"NaN\"");
    }

    #[test]
    fn csv_fields_are_quoted_only_if_needed() {
        for (text, field) in
            [("New York", "New York"), ("a,b", "\"a,b\""), ("a\"b", "\"a\"\"b\""), ("a\nb", "\"a\nb\"")]
        {
            assert_eq!(written(|out| push_csv_text(text, out)), field);
        }
    }
}
