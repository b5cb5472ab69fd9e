//! Decimals of Parquet and Avro: an integer, and how many of its digits are behind the point.

use std::fmt::Display;

use super::field::FieldValue;

/// Powers of ten that are exact as f64.
const EXACT_POWERS_OF_TEN: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
    1e19, 1e20, 1e21, 1e22,
];

/// The f64 nearest to `unscaled / 10^scale`. A whole number that fits 64 bits is an integer.
#[inline]
pub(super) fn decimal_value(unscaled: i128, scale: u32) -> FieldValue<'static> {
    if let (0, Ok(whole)) = (scale, i64::try_from(unscaled)) {
        return FieldValue::Integer(whole);
    }
    match EXACT_POWERS_OF_TEN.get(scale as usize) {
        // Both operands are exact, so the quotient is rounded once.
        Some(power) if unscaled.unsigned_abs() <= 1 << 53 => FieldValue::Number(unscaled as f64 / power),
        _ => wide_decimal_value(&unscaled, scale),
    }
}

/// [`decimal_value`] of an integer of any width.
pub(super) fn wide_decimal_value(unscaled: &dyn Display, scale: u32) -> FieldValue<'static> {
    // The standard library rounds a decimal text once, however long it is.
    let nearest = format!("{unscaled}e-{scale}").parse();
    nearest.map_or(FieldValue::Other("a decimal that is none"), FieldValue::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn scaled_integer_becomes_nearest_double() {
        for (unscaled, scale, expected) in [
            (705, 1, FieldValue::Number(70.5)),
            (-705, 1, FieldValue::Number(-70.5)),
            (70, 0, FieldValue::Integer(70)),
            (i128::MAX, 0, FieldValue::Number(i128::MAX as f64)),
            (0, 38, FieldValue::Number(0.0)),
            (
                33_333_333_333_333_333_333_333_333_333_333_333_333,
                36,
                FieldValue::Number(33.333_333_333_333_336),
            ),
            (7_000_000_000_000_000_000_000_000_000_000_000_001, 35, FieldValue::Number(70.0)),
            (1, 400, FieldValue::Number(0.0)),
        ] {
            assert_eq!(decimal_value(unscaled, scale), expected, "{unscaled} / 10^{scale}");
        }
    }

    proptest! {
        #[test]
        fn scaled_integer_equals_parsed_text(unscaled in any::<i128>(), bits in 0u32..127, scale in 1u32..40) {
            let unscaled = unscaled >> bits;
            let text: f64 = format!("{unscaled}e-{scale}").parse().unwrap();
            prop_assert_eq!(decimal_value(unscaled, scale), FieldValue::Number(text));
        }
    }
}
