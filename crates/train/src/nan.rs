//! Numbers in JSON, which has no word for NaN and infinities.

use serde::{Deserialize, Deserializer};

/// A number: NaN and infinities are written as `null` and come back as NaN.
pub(crate) fn null_is_nan<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

/// As [`null_is_nan`], of several.
pub(crate) fn nulls_are_nan<'de, const N: usize, D: Deserializer<'de>>(
    from: D,
) -> Result<[f64; N], D::Error>
where
    [Option<f64>; N]: Deserialize<'de>,
{
    let numbers = <[Option<f64>; N]>::deserialize(from)?;
    Ok(numbers.map(|number| number.unwrap_or(f64::NAN)))
}

/// As [`nulls_are_nan`], of three that may be missing.
pub(crate) fn nulls_are_nan_if_any<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<[f64; 3]>, D::Error> {
    let numbers = Option::<[Option<f64>; 3]>::deserialize(from)?;
    Ok(numbers.map(|numbers| numbers.map(|number| number.unwrap_or(f64::NAN))))
}
