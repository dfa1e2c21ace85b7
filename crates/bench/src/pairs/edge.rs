//! A measurement of two ranks, one direction each, and where ranks are.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a rank is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Seat {
    pub host: usize,
    /// Its number within the host; ranks of the same number share a rail where there are rails.
    pub rail: usize,
}

/// One direction between two ranks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Edge {
    pub from: usize,
    pub to: usize,
    /// The median over all messages of that direction, while no other used these two ranks.
    pub gb_per_s: f64,
    /// Of 8 bytes and their answer, the median; the same for both directions.
    pub round_trip_us: f64,
}
