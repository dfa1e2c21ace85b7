//! `muster bench memory`: copying, reading and writing of device memory.

use device::DType;
use kernels::gpu::bandwidth::{Traffic, launch, read_target_bytes};
use kernels::gpu::modules::Kernels;
use serde::Serialize;

use crate::measure::Bench;
use crate::{Bar, BenchError, Row, Timing};

/// One kind of traffic through a buffer.
#[derive(Debug, Clone, Serialize)]
pub struct MemoryRow {
    pub traffic: &'static str,
    /// Of one buffer; a copy has two.
    pub bytes: usize,
    pub time: Option<Timing>,
    /// Bytes read plus bytes written.
    pub gb_per_s: Option<f64>,
}

impl Row for MemoryRow {
    const COLUMNS: &'static [&'static str] = &["traffic", "MiB", "ms", "least", "most", "GB/s"];
    const UNIT: &'static str = "GB/s, bytes read plus bytes written";

    fn cells(&self) -> Vec<String> {
        let number = |value: Option<f64>, digits: usize| {
            value.map_or("–".to_owned(), |value| format!("{value:.digits$}"))
        };
        vec![
            self.traffic.to_owned(),
            format!("{:.2}", self.bytes as f64 / f64::from(1 << 20)),
            number(self.time.map(|time| time.median_ms), 4),
            number(self.time.map(|time| time.least_ms), 4),
            number(self.time.map(|time| time.most_ms), 4),
            number(self.gb_per_s, 1),
        ]
    }

    fn bar(&self) -> Bar {
        let label = format!("{} {:.0} MiB", self.traffic, self.bytes as f64 / f64::from(1 << 20));
        Bar { label, value: self.gb_per_s.unwrap_or(0.0), limit: None }
    }
}

/// A word that no read of the pattern folds to: see [`check`].
const VALUE: u32 = 0x5EED_0001;

/// Measures all kinds of traffic through buffers of `bytes`, a multiple of 16.
///
/// # Errors
/// Not enough memory; contents that are wrong afterwards.
pub fn measure(bench: &Bench, bytes: usize) -> Result<Vec<MemoryRow>, BenchError> {
    if !bytes.is_multiple_of(16) {
        let near = bytes.next_multiple_of(16);
        return Err(BenchError::Argument(format!(
            "{bytes} bytes are no whole number of 16-byte words; use {near}"
        )));
    }
    Traffic::ALL.into_iter().map(|traffic| measure_one(bench, traffic, bytes)).collect()
}

/// Measures one kind of traffic through buffers of `bytes`, a multiple of 16.
///
/// # Errors
/// Not enough memory; contents that are wrong afterwards.
pub fn measure_one(bench: &Bench, traffic: Traffic, bytes: usize) -> Result<MemoryRow, BenchError> {
    let time = match bench.device.kind().is_host() {
        true => on_the_host(bench, traffic, bytes)?,
        false => on_the_device(bench, traffic, bytes)?,
    };
    let moved = traffic.moved(bytes as u64) as f64;
    Ok(MemoryRow {
        traffic: traffic.word(),
        bytes,
        time,
        gb_per_s: time.map(|time| time.gb_per_s(moved)),
    })
}

fn on_the_device(
    bench: &Bench,
    traffic: Traffic,
    bytes: usize,
) -> Result<Option<Timing>, BenchError> {
    let kernels = Kernels::of(&bench.device)?;
    let target_bytes = match traffic {
        Traffic::Read => read_target_bytes(&kernels),
        Traffic::Copy | Traffic::Write => bytes,
    };
    let source = bench.device.zeros(&[bytes / 4], DType::U32)?;
    let target = bench.device.zeros(&[target_bytes / 4], DType::U32)?;
    bench.stream.fill(&source, 0x3C)?;
    let time =
        bench.time(|stream| Ok(launch(&kernels, stream, traffic, (&source, &target), VALUE)?))?;
    check(traffic, &bench.stream.to_vec(&target)?)?;
    Ok(time)
}

/// A copy must have arrived, words must be written, and a read, whose words fold to something else
/// than [`VALUE`], must write nothing.
fn check(traffic: Traffic, target: &[u32]) -> Result<(), BenchError> {
    let want = match traffic {
        Traffic::Copy => 0x3C3C_3C3C,
        Traffic::Write => VALUE,
        Traffic::Read => 0,
    };
    match target.iter().position(|&word| word != want) {
        None => Ok(()),
        Some(at) => Err(BenchError::Wrong(format!(
            "memory_{}: word {at} of {} is {:#x} instead of {want:#x}",
            traffic.word(),
            target.len(),
            target[at]
        ))),
    }
}

/// Chunks that threads take, in words.
const CHUNK: usize = 1 << 16;

fn on_the_host(
    bench: &Bench,
    traffic: Traffic,
    bytes: usize,
) -> Result<Option<Timing>, BenchError> {
    let words = bytes / 4;
    let source = bench.device.zeros(&[words], DType::U32)?;
    let target = bench.device.zeros(&[words.max(1)], DType::U32)?;
    bench.stream.fill(&source, 0x3C)?;
    let time = bench.time(|stream| {
        let (source, target) = (source.clone(), target.clone());
        stream.launch("memory", move |k| {
            let (from, to) = (k.read::<u32>(&source)?, k.write::<u32>(&target)?);
            match traffic {
                Traffic::Copy => k.parallel().chunks(to, CHUNK, |i, to| {
                    to.copy_from_slice(&from[i * CHUNK..][..to.len()]);
                }),
                Traffic::Write => k.parallel().chunks(to, CHUNK, |_, to| to.fill(VALUE)),
                Traffic::Read => {
                    let parts = from.len().div_ceil(CHUNK);
                    k.parallel().chunks(&mut to[..parts], 1, |i, to| {
                        let part = &from[i * CHUNK..from.len().min((i + 1) * CHUNK)];
                        let folded = part.iter().fold(0, |folded: u32, word| folded ^ word);
                        // Nothing else makes the read necessary.
                        if folded == VALUE {
                            to[0] = folded;
                        }
                    });
                }
            }
            Ok(())
        })?;
        Ok(())
    })?;
    check(traffic, &bench.stream.to_vec(&target)?)?;
    Ok(time)
}
