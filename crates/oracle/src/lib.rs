//! Home of the tests that hold models and optimizers against candle (`tests/oracle_candle.rs`).
//!
//! They live in a crate of their own so that only they wait for candle to build.
