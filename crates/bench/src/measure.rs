//! A device made ready for measuring: warm-up, cold caches, device clocks.

use std::time::Instant;

use device::{DType, Device, Stream, Tensor};
use rayon::prelude::*;

use crate::{BenchError, Environment, Repeat, Timing};

/// A device, its stream, and how often a case runs.
pub struct Bench {
    pub device: Device,
    pub stream: Stream,
    pub repeat: Repeat,
    /// Written before every timed run of a GPU, so that nothing of the operands is in its cache.
    flush: Option<Tensor>,
}

impl Bench {
    /// # Errors
    /// No memory to flush the caches with.
    pub fn new(device: Device, repeat: Repeat) -> Result<Bench, BenchError> {
        let properties = device.properties();
        let clocked = !device.kind().is_host() && !properties.simulated;
        let bytes = (2 * properties.l2_bytes as usize).max(64 << 20);
        let flush = clocked.then(|| device.zeros(&[bytes], DType::U8)).transpose()?;
        let stream = device.stream();
        Ok(Bench { device, stream, repeat, flush })
    }

    /// Times of `work`; none on a simulated device, where it runs once.
    ///
    /// On a CPU caches are as the run before left them.
    ///
    /// # Errors
    /// An error of `work`; a failure of the device.
    pub fn time(
        &self,
        mut work: impl FnMut(&Stream) -> Result<(), BenchError>,
    ) -> Result<Option<Timing>, BenchError> {
        if self.device.properties().simulated {
            work(&self.stream)?;
            self.stream.synchronize()?;
            return Ok(None);
        }
        for _ in 0..self.repeat.warmup {
            work(&self.stream)?;
        }
        self.stream.synchronize()?;
        let times = match &self.flush {
            Some(flush) => self.by_events(flush, work)?,
            None => self.by_the_host(work)?,
        };
        Ok(Timing::of(times))
    }

    fn by_the_host(
        &self,
        mut work: impl FnMut(&Stream) -> Result<(), BenchError>,
    ) -> Result<Vec<f64>, BenchError> {
        let mut times = Vec::with_capacity(self.repeat.iterations);
        for _ in 0..self.repeat.iterations {
            let start = Instant::now();
            work(&self.stream)?;
            self.stream.synchronize()?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok(times)
    }

    fn by_events(
        &self,
        flush: &Tensor,
        mut work: impl FnMut(&Stream) -> Result<(), BenchError>,
    ) -> Result<Vec<f64>, BenchError> {
        let mut events = Vec::with_capacity(self.repeat.iterations);
        for _ in 0..self.repeat.iterations {
            // Also gives the host time to run ahead, so that its calls are not in the times.
            self.stream.fill(flush, 1)?;
            let start = self.stream.record()?;
            work(&self.stream)?;
            events.push((start, self.stream.record()?));
        }
        self.stream.synchronize()?;
        events.iter().map(|(start, end)| Ok(end.elapsed_ms(start)?)).collect()
    }

    /// The part of a report about the device.
    pub fn environment(&self, benchmark: &'static str, command: String) -> Environment {
        let properties = self.device.properties();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Environment {
            benchmark,
            muster: env!("CARGO_PKG_VERSION").to_owned(),
            device: self.device.kind().to_string(),
            device_name: match self.device.kind().is_host() {
                true => cpu_model().unwrap_or(properties.name),
                false => properties.name,
            },
            driver: properties.driver,
            simulated: properties.simulated,
            threads: self.device.threads(),
            warmup: self.repeat.warmup,
            iterations: self.repeat.iterations,
            command,
            unix_time_s: now.map_or(0, |since| since.as_secs()),
        }
    }
}

/// The name of the CPU, as Linux gives it.
fn cpu_model() -> Option<String> {
    model_in(&std::fs::read_to_string("/proc/cpuinfo").ok()?).map(str::to_owned)
}

/// The first model's name in the text of `/proc/cpuinfo`; some architectures give none.
fn model_in(cpuinfo: &str) -> Option<&str> {
    let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let mut names =
        fields.filter(|(key, _)| key.trim() == "model name").map(|(_, name)| name.trim());
    names.find(|name| !name.is_empty())
}

/// Bell-shaped random numbers with mean 0 and variance 1: sums of four uniform ones.
///
/// Functions of seed and index (splitmix64, Steele et al. 2014).
pub fn noise(len: usize, seed: u64) -> Vec<f32> {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    // Four uniform values of 0..65536 have mean 131070 and variance 4·65536²/12.
    let scale = (3.0_f32).sqrt() / 65536.0;
    let one = |index: usize| {
        let mut z = (seed ^ 0x5DEE_CE66).wrapping_add(GOLDEN.wrapping_mul(index as u64 + 1));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        let parts = [z & 0xffff, z >> 16 & 0xffff, z >> 32 & 0xffff, z >> 48];
        (parts.iter().sum::<u64>() as f32 - 131_070.0) * scale
    };
    (0..len).into_par_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_mean_zero_and_variance_one_and_depends_on_the_seed() {
        let values = noise(100_000, 7);
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / 1e5;
        let square = values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (square - 1.0).abs() < 0.02, "{mean} {square}");
        assert!(noise(10, 1) != noise(10, 2));
        assert_eq!(noise(10, 1)[..5], noise(5, 1));
    }

    #[test]
    fn the_cpu_is_called_what_linux_calls_it() {
        let text =
            "processor\t: 0\nmodel\t\t: 17\nmodel name\t: A CPU: v2 @ 3 GHz\n\nprocessor\t: 1\n";
        assert_eq!(model_in(text), Some("A CPU: v2 @ 3 GHz"));
        assert_eq!(model_in("processor\t: 0\nBogoMIPS\t: 50\n"), None);
    }

    #[test]
    fn a_case_runs_as_often_as_was_asked() {
        let repeat = Repeat { warmup: 2, iterations: 3 };
        let bench = Bench::new(Device::cpu(1).unwrap(), repeat).unwrap();
        let mut runs = 0;
        let timing = bench.time(|_| {
            runs += 1;
            Ok(())
        });
        assert_eq!((timing.unwrap().unwrap().iterations, runs), (3, 5));
    }
}
