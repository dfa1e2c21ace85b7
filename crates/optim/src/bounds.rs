//! Checks of numbers in a config: each names the value, where it is, and the nearest valid one.

use crate::OptimError;

/// A refused value.
pub(crate) fn value(
    at: &str,
    got: impl ToString,
    allowed: &str,
    nearest: impl ToString,
) -> OptimError {
    let (got, nearest) = (got.to_string(), nearest.to_string());
    OptimError::Value { at: at.to_owned(), got, allowed: allowed.to_owned(), nearest }
}

pub(crate) fn positive(at: &str, got: f64, usual: f64) -> Result<(), OptimError> {
    if got > 0.0 && got.is_finite() {
        return Ok(());
    }
    Err(value(at, got, "a positive number", usual))
}

pub(crate) fn below_one(at: &str, got: f64, usual: f64) -> Result<(), OptimError> {
    if (0.0..1.0).contains(&got) {
        return Ok(());
    }
    let nearest = if got < 0.0 { 0.0 } else { usual };
    Err(value(at, got, "a number from 0 to below 1", nearest))
}

pub(crate) fn within(at: &str, got: f64, least: f64, most: f64) -> Result<(), OptimError> {
    if (least..=most).contains(&got) {
        return Ok(());
    }
    let nearest = if got.is_nan() { least } else { got.clamp(least, most) };
    Err(value(at, got, &format!("a number from {least} to {most}"), nearest))
}
