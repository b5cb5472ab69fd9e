//! Parquet of other programs: times of 96 bits, and decimals of every physical type.

use ::parquet::data_type::{
    ByteArray, ByteArrayType, FixedLenByteArray, FixedLenByteArrayType, Int32Type, Int64Type, Int96,
    Int96Type,
};
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use arrow_array::{ArrayRef, Decimal128Array, RecordBatch, StringArray};

use super::*;

/// The Julian day of 1970-01-01.
const EPOCH_DAY: i64 = 2_440_588;

/// A time as Spark and Impala write it: the nanoseconds of a day, and the Julian day.
fn wide_time(day: i64, nanoseconds: u64) -> Int96 {
    let mut time = Int96::new();
    time.set_data(nanoseconds as u32, (nanoseconds >> 32) as u32, (day + EPOCH_DAY) as u32);
    time
}

/// A file with readings at these times, of 70.5 °F and 50.25 %.
fn file_of(times: &[Int96]) -> Vec<u8> {
    let schema = parse_message_type(
        "message readings {
            required int64 city (DECIMAL(18, 0));
            required int96 reading_at;
            required int32 temperature (DECIMAL(4, 1));
            required int64 humidity (DECIMAL(18, 2));
            required fixed_len_byte_array(5) wind_speed (DECIMAL(10, 3));
            required binary revision (DECIMAL(20, 0));
        }",
    );
    let mut bytes = Vec::new();
    let mut writer =
        SerializedFileWriter::new(&mut bytes, Arc::new(schema.unwrap()), Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let count = times.len();
    macro_rules! column {
        ($kind:ty, $values:expr) => {
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<$kind>().write_batch($values, None, None).unwrap();
            column.close().unwrap();
        };
    }
    column!(Int64Type, &vec![5_128_581; count]);
    column!(Int96Type, times);
    column!(Int32Type, &vec![705; count]);
    column!(Int64Type, &vec![5025; count]);
    column!(FixedLenByteArrayType, &vec![FixedLenByteArray::from(vec![0, 0, 0, 0x30, 0x39]); count]);
    column!(ByteArrayType, &vec![ByteArray::from(vec![0xFF, 0xFE]); count]);
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

fn read(bytes: &[u8], local_time: LocalTimePolicy) -> Vec<DecodedRecord> {
    let settings = DecodeSettings { local_time, ..DecodeSettings::default() };
    decode_with(bytes, Format::Parquet, Compression::None, settings).unwrap().0
}

#[test]
fn wide_parquet_timestamps_do_not_wrap() {
    let noon = 43_200_000_000_000;
    let utc = LocalTimePolicy::Offset(jiff::tz::Offset::UTC);
    let times = [
        (wide_time(0, 1_999_999), Ok("1970-01-01T00:00:00.001Z")),
        (wide_time(-1, noon), Ok("1969-12-31T12:00:00Z")),
        // Nanoseconds before 1677 and after 2262 do not fit 64 bits.
        (wide_time(-106_753, noon), Ok("1677-09-20T12:00:00Z")),
        (wide_time(106_752, noon), Ok("2262-04-12T12:00:00Z")),
        (wide_time(2_932_895, noon), Ok("9999-12-30T12:00:00Z")),
        (wide_time(-719_528, noon), Ok("0000-01-01T12:00:00Z")),
        (wide_time(2_932_896, noon), Err("times end at 9999-12-30T22:00:00Z")),
        (wide_time(-719_529, noon), Err("times begin at 0000-01-01T00:00:00Z")),
        (wide_time(-EPOCH_DAY, 0), Err("times begin at")),
        (wide_time(i64::from(i32::MAX) - EPOCH_DAY, noon), Err("times end at")),
    ];
    let records = read(&file_of(&times.map(|(time, _)| time)), utc);
    for ((_, expected), (.., found)) in times.into_iter().zip(&records) {
        match (found, expected) {
            (Ok(upsert), Ok(instant)) => assert_eq!(upsert.1.to_string(), instant),
            (Err(refusal), Err(said)) => {
                assert_eq!(refusal.reason, Reason::BadTime);
                assert!(refusal.detail.contains(said), "{refusal}");
            }
            (found, expected) => panic!("{found:?}, not {expected:?}"),
        }
    }
    assert_eq!(records.len(), times.len());
    let refused = &read(&file_of(&[wide_time(0, 0)]), LocalTimePolicy::Refuse)[0];
    assert_eq!(refused.2.as_ref().unwrap_err().reason, Reason::NoOffset);
}

#[test]
fn parquet_decimals_of_every_physical_type_are_numbers() {
    let records = read(&file_of(&[wide_time(0, 0)]), LocalTimePolicy::Offset(jiff::tz::Offset::UTC));
    let (city, _, event, revision) = records[0].2.as_ref().unwrap();
    assert_eq!((&**city, *revision), ("5128581", Revision::new(-2)));
    assert_eq!(*event, reading(70.5, 50.25, Some(12.345)));
}

/// Decimals as data frames write them, up to the widest; digits beyond an f64 are rounded once.
#[test]
fn parquet_decimals_of_every_width_are_nearest_doubles() {
    let text = |values: [&str; 1]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let file = |temperature: ArrayRef| {
        let humidity = Decimal128Array::from(vec![33_333_333_333_333_333_333_333_333_333_333_333_333]);
        let humidity = humidity.with_precision_and_scale(38, 36).unwrap();
        let batch = RecordBatch::try_from_iter([
            ("city", text(["x"])),
            ("reading_at", text(["2025-01-01T00:00:00Z"])),
            ("temperature", temperature),
            ("humidity", Arc::new(humidity)),
        ]);
        let batch = batch.unwrap();
        let mut bytes = Vec::new();
        let mut writer = ::parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    };
    use arrow_array::types::{Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, DecimalType};
    use arrow_array::{ArrowPrimitiveType, PrimitiveArray};
    fn column<T: DecimalType>(unscaled: T::Native, precision: u8, scale: i8) -> ArrayRef {
        let array = PrimitiveArray::<T>::from_value(unscaled, 1);
        Arc::new(array.with_precision_and_scale(precision, scale).unwrap())
    }
    let wide = <Decimal256Type as ArrowPrimitiveType>::Native::from_string(
        "70500000000000000000000000000000000000000000000000000000000001",
    );
    for temperature in [
        column::<Decimal32Type>(705, 9, 1),
        column::<Decimal64Type>(70_500, 18, 3),
        column::<Decimal128Type>(70_500_000_000_000_000_000_000_000, 38, 24),
        column::<Decimal256Type>(wide.unwrap(), 76, 60),
    ] {
        let records = read(&file(temperature), LocalTimePolicy::Refuse);
        assert_eq!(records[0].2.as_ref().unwrap().2, reading(70.5, 33.333_333_333_333_336, None));
    }
}
