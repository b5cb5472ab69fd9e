//! A column of one batch, as values of fields.

use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::{
    Array, ArrayRef, BooleanArray, Float32Array, Float64Array, Int32Array, Int64Array, LargeStringArray,
    PrimitiveArray, StringArray, StringViewArray,
};
use arrow_schema::{DataType, TimeUnit};

use super::super::RecordOptions;
use super::super::decimal::{decimal_value, wide_decimal_value};
use super::super::field::{Field, FieldValue};

pub(super) enum ValueColumn {
    /// A column without values.
    Null,
    Float64(Float64Array),
    Float32(Float32Array),
    Integer(Int64Array),
    /// Integers that may not fit an i64.
    Unsigned(PrimitiveArray<UInt64Type>),
    /// With this number of digits behind the point.
    Decimal(PrimitiveArray<Decimal128Type>, u32),
    WideDecimal(PrimitiveArray<Decimal256Type>, u32),
    Boolean(BooleanArray),
    Utf8(StringArray),
    LargeUtf8(LargeStringArray),
    Utf8View(StringViewArray),
    Dictionary {
        keys: Int32Array,
        values: StringArray,
    },
    /// In units of `multiply / divide` ms.
    Time {
        array: Int64Array,
        multiply: i64,
        divide: i64,
        instant: bool,
    },
}

/// What type a column must have for its field, as an error names it; `None` if its type fits.
pub(super) fn unsupported_type(
    field: Field,
    kind: &DataType,
    options: &RecordOptions,
) -> Option<&'static str> {
    use DataType::*;
    let text = |kind: &DataType| match kind {
        Utf8 | LargeUtf8 | Utf8View => true,
        Dictionary(key, value) => **key == Int32 && **value == Utf8,
        _ => false,
    };
    let whole = |kind: &DataType| kind.is_integer() || decimal_scale(kind) == Some(0);
    let fits = match field {
        _ if *kind == Null => true,
        Field::City => text(kind) || whole(kind),
        Field::ReadingAt if options.time_format.is_number() => {
            kind.is_integer() || matches!(kind, Float32 | Float64) || decimal_scale(kind).is_some()
        }
        Field::ReadingAt if !options.time_format.is_default() => text(kind) || kind.is_integer(),
        Field::ReadingAt => text(kind) || matches!(kind, Timestamp(_, _)),
        Field::TimePart2 | Field::TimePart3 | Field::TimePart4 => text(kind) || kind.is_integer(),
        Field::Temperature | Field::Moisture | Field::WindSpeed => {
            kind.is_integer() || matches!(kind, Float32 | Float64) || decimal_scale(kind).is_some()
        }
        Field::Revision => whole(kind),
        Field::Op => text(kind),
        Field::Deleted => *kind == Boolean,
    };
    let expected = match field {
        Field::City => "a string or an integer",
        Field::ReadingAt if options.time_format.is_number() => "a number since 1970",
        Field::ReadingAt if !options.time_format.is_default() => "a string",
        Field::TimePart2 | Field::TimePart3 | Field::TimePart4 => "a string or an integer",
        Field::ReadingAt => "a timestamp with a time zone or an RFC 3339 string",
        Field::Temperature | Field::Moisture | Field::WindSpeed => {
            "a double, a float, an integer or a decimal whose scale is not negative"
        }
        Field::Revision => "an integer",
        Field::Op => "a string",
        Field::Deleted => "a boolean",
    };
    (!fits).then_some(expected)
}

/// The number of digits behind the point of a decimal; `None` for other types and for decimals that
/// are not read.
fn decimal_scale(kind: &DataType) -> Option<u32> {
    use DataType::*;
    match kind {
        Decimal32(_, scale) | Decimal64(_, scale) | Decimal128(_, scale) | Decimal256(_, scale) => {
            u32::try_from(*scale).ok()
        }
        _ => None,
    }
}

impl ValueColumn {
    /// The column; `None` if its type is not read.
    pub(super) fn new(array: &ArrayRef) -> Option<ValueColumn> {
        fn widened<T: ArrowPrimitiveType>(array: &ArrayRef) -> ValueColumn
        where
            i64: From<T::Native>,
        {
            ValueColumn::Integer(array.as_primitive::<T>().unary(i64::from))
        }
        fn narrow<T: ArrowPrimitiveType>(array: &ArrayRef, digits: u32) -> ValueColumn
        where
            i128: From<T::Native>,
        {
            ValueColumn::Decimal(array.as_primitive::<T>().unary(i128::from), digits)
        }
        Some(match array.data_type() {
            DataType::Null => ValueColumn::Null,
            DataType::Float64 => ValueColumn::Float64(array.as_primitive().clone()),
            DataType::Float32 => ValueColumn::Float32(array.as_primitive().clone()),
            DataType::Int8 => widened::<Int8Type>(array),
            DataType::Int16 => widened::<Int16Type>(array),
            DataType::Int32 => widened::<Int32Type>(array),
            DataType::Int64 => ValueColumn::Integer(array.as_primitive().clone()),
            DataType::UInt8 => widened::<UInt8Type>(array),
            DataType::UInt16 => widened::<UInt16Type>(array),
            DataType::UInt32 => widened::<UInt32Type>(array),
            DataType::UInt64 => ValueColumn::Unsigned(array.as_primitive().clone()),
            kind if decimal_scale(kind).is_some() => {
                let digits = decimal_scale(kind)?;
                match kind {
                    DataType::Decimal32(_, _) => narrow::<Decimal32Type>(array, digits),
                    DataType::Decimal64(_, _) => narrow::<Decimal64Type>(array, digits),
                    DataType::Decimal128(_, _) => narrow::<Decimal128Type>(array, digits),
                    _ => ValueColumn::WideDecimal(array.as_primitive().clone(), digits),
                }
            }
            DataType::Boolean => ValueColumn::Boolean(array.as_boolean().clone()),
            DataType::Utf8 => ValueColumn::Utf8(array.as_string().clone()),
            DataType::LargeUtf8 => ValueColumn::LargeUtf8(array.as_string().clone()),
            DataType::Utf8View => ValueColumn::Utf8View(array.as_string_view().clone()),
            DataType::Dictionary(key, value) if **key == DataType::Int32 && **value == DataType::Utf8 => {
                let dictionary = array.as_dictionary::<Int32Type>();
                ValueColumn::Dictionary {
                    keys: dictionary.keys().clone(),
                    values: dictionary.values().as_string().clone(),
                }
            }
            DataType::Date32 => {
                let array = array.as_primitive::<Date32Type>().unary(i64::from);
                ValueColumn::Time { array, multiply: 86_400_000, divide: 1, instant: false }
            }
            DataType::Timestamp(unit, zone) => {
                let instant = zone.is_some();
                let (array, multiply, divide) = match unit {
                    TimeUnit::Second => (as_int64::<TimestampSecondType>(array), 1_000, 1),
                    TimeUnit::Millisecond => (as_int64::<TimestampMillisecondType>(array), 1, 1),
                    TimeUnit::Microsecond => (as_int64::<TimestampMicrosecondType>(array), 1, 1_000),
                    TimeUnit::Nanosecond => (as_int64::<TimestampNanosecondType>(array), 1, 1_000_000),
                };
                ValueColumn::Time { array, multiply, divide, instant }
            }
            _ => return None,
        })
    }

    #[inline]
    pub(super) fn value(&self, row: usize) -> FieldValue<'_> {
        match self {
            ValueColumn::Null => FieldValue::Missing,
            ValueColumn::Float64(array) if array.is_valid(row) => FieldValue::Number(array.value(row)),
            ValueColumn::Float32(array) if array.is_valid(row) => {
                FieldValue::Number(f64::from(array.value(row)))
            }
            ValueColumn::Integer(array) if array.is_valid(row) => FieldValue::Integer(array.value(row)),
            ValueColumn::Unsigned(array) if array.is_valid(row) => {
                let number = array.value(row);
                i64::try_from(number).map_or(FieldValue::Number(number as f64), FieldValue::Integer)
            }
            ValueColumn::Decimal(array, scale) if array.is_valid(row) => {
                decimal_value(array.value(row), *scale)
            }
            ValueColumn::WideDecimal(array, scale) if array.is_valid(row) => {
                let unscaled = array.value(row);
                match unscaled.to_i128() {
                    Some(unscaled) => decimal_value(unscaled, *scale),
                    None => wide_decimal_value(&unscaled, *scale),
                }
            }
            ValueColumn::Boolean(array) if array.is_valid(row) => FieldValue::Boolean(array.value(row)),
            ValueColumn::Utf8(array) if array.is_valid(row) => FieldValue::Text(array.value(row)),
            ValueColumn::LargeUtf8(array) if array.is_valid(row) => FieldValue::Text(array.value(row)),
            ValueColumn::Utf8View(array) if array.is_valid(row) => FieldValue::Text(array.value(row)),
            ValueColumn::Dictionary { keys, values } if keys.is_valid(row) => {
                let key = keys.value(row) as usize;
                if values.is_valid(key) { FieldValue::Text(values.value(key)) } else { FieldValue::Missing }
            }
            ValueColumn::Time { array, multiply, divide, instant } if array.is_valid(row) => {
                // A time outside the range of i64 is outside that of event times too.
                let ms = match (*multiply, *divide) {
                    (multiply, 1) => array.value(row).saturating_mul(multiply),
                    (_, divide) => array.value(row).div_euclid(divide),
                };
                if *instant { FieldValue::Instant(ms) } else { FieldValue::Local(ms) }
            }
            _ => FieldValue::Missing,
        }
    }
}

fn as_int64<T: ArrowPrimitiveType<Native = i64>>(array: &ArrayRef) -> Int64Array {
    array.as_primitive::<T>().reinterpret_cast()
}

/// The type in which a column of strings is read: as a dictionary if it is written as one, so that
/// a string is copied and checked once a batch rather than once a row.
pub(super) fn arrow_read_type(kind: &DataType, written_as_dictionary: bool) -> Option<DataType> {
    let text = |kind: &DataType| matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    match kind {
        DataType::Dictionary(_, value) if !text(value) => None,
        kind if !text(kind) && !matches!(kind, DataType::Dictionary(_, _)) => None,
        _ if written_as_dictionary => {
            Some(DataType::Dictionary(DataType::Int32.into(), DataType::Utf8.into()))
        }
        _ => Some(DataType::Utf8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_decimal_scale_is_refused() {
        let expected = |field, kind: &DataType| unsupported_type(field, kind, &RecordOptions::default());
        assert_eq!(expected(Field::Temperature, &DataType::Decimal128(5, 0)), None);
        let said = expected(Field::Temperature, &DataType::Decimal128(5, -1)).unwrap();
        assert!(said.contains("a decimal whose scale is not negative"), "{said}");
        assert_eq!(expected(Field::City, &DataType::Decimal128(38, 0)), None);
        assert!(expected(Field::City, &DataType::Decimal128(38, 1)).is_some());
    }
}
