//! `muster bench newton-schulz`: time, useful operations, limits, and the error against f64.

use device::{DType, Device, Stream, Tensor};
use half::bf16;
use kernels::Op as _;
use kernels::gpu::execute::{Bound, Prepared};
use kernels::gpu::limit::{Ceiling, limit};
use kernels::gpu::modules::Kernels;
use kernels::newton_schulz::{
    Algorithm, Batch, Iteration, Matrix, Method, Orthogonalize, STATUS_FINITE, Storage,
};
use serde::Serialize;

use crate::measure::{Bench, noise};
use crate::{Bar, BatchShape, BenchError, Repeat, Row, Timing};

/// One batch under one method.
#[derive(Debug, Clone, Serialize)]
pub struct NewtonSchulzRow {
    pub shape: BatchShape,
    pub matrices: usize,
    /// As asked for.
    pub algorithm: &'static str,
    /// The algorithm that ran for the first matrix: `auto` depends on the shape.
    pub ran: &'static str,
    pub coefficients: &'static str,
    pub steps: usize,
    /// Of stored matrices.
    pub dtype: &'static str,
    /// Of the caller's matrices.
    pub io: &'static str,
    pub time: Option<Timing>,
    /// Of the algorithm that ran, counted as in `Program::flops`.
    pub useful_gflop: f64,
    pub useful_tflops: Option<f64>,
    /// Of the device's dense products.
    pub ceiling_tflops: Option<f64>,
    pub percent_of_ceiling: Option<f64>,
    /// The least time that tiles and waves allow at the ceiling.
    pub limit_ms: Option<f64>,
    pub percent_of_limit: Option<f64>,
    /// Relative Frobenius error against the same polynomials in f64; the worst of one matrix of
    /// each shape.
    pub error: Option<f64>,
    /// Of the whole batch, on devices with launches.
    pub launches: Option<usize>,
    /// Each of them, on devices with clocks. Events between launches cost a few microseconds.
    pub by_launch: Vec<LaunchTime>,
}

/// One launch of a run.
#[derive(Debug, Clone, Serialize)]
pub struct LaunchTime {
    pub kernel: &'static str,
    pub units: u32,
    /// The median of the runs.
    pub ms: f64,
}

impl Row for NewtonSchulzRow {
    const COLUMNS: &'static [&'static str] = &[
        "shape",
        "algorithm",
        "coefficients",
        "dtype",
        "in, out",
        "ms",
        "least",
        "most",
        "TFLOP/s",
        "% ceiling",
        "limit ms",
        "% limit",
        "error",
        "launches",
    ];
    const UNIT: &'static str = "useful TFLOP/s";

    fn cells(&self) -> Vec<String> {
        let number = |value: Option<f64>, digits: usize| {
            value.map_or("–".to_owned(), |value| format!("{value:.digits$}"))
        };
        let algorithm = match self.algorithm == self.ran {
            true => self.ran.to_owned(),
            false => format!("{} ({})", self.algorithm, self.ran),
        };
        vec![
            self.shape.to_string(),
            algorithm,
            format!("{} × {}", self.steps, self.coefficients),
            self.dtype.to_owned(),
            self.io.to_owned(),
            number(self.time.map(|time| time.median_ms), 3),
            number(self.time.map(|time| time.least_ms), 3),
            number(self.time.map(|time| time.most_ms), 3),
            number(self.useful_tflops, 3),
            number(self.percent_of_ceiling, 0),
            number(self.limit_ms, 3),
            number(self.percent_of_limit, 0),
            self.error.map_or("–".to_owned(), |error| format!("{error:.1e}")),
            self.launches.map_or("–".to_owned(), |launches| launches.to_string()),
        ]
    }

    fn bar(&self) -> Bar {
        let label =
            format!("{} {} {} {}", self.shape, self.algorithm, self.coefficients, self.dtype);
        Bar { label, value: self.useful_tflops.unwrap_or(0.0), limit: self.ceiling_tflops }
    }
}

/// Type of the caller's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Io {
    F32,
    /// On devices with kernels.
    Bf16,
}

impl Io {
    pub const fn word(self) -> &'static str {
        match self {
            Io::F32 => "f32",
            Io::Bf16 => "bf16",
        }
    }

    fn dtype(self) -> DType {
        match self {
            Io::F32 => DType::F32,
            Io::Bf16 => DType::Bf16,
        }
    }
}

/// Bounds of a case.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Dense products; none where nothing is measured.
    pub ceiling_tflops: Option<f64>,
    /// Device memory, for the limit of small cases.
    pub gb_per_s: Option<f64>,
    /// Cases up to so much work are compared with f64.
    pub check_gflop: f64,
}

/// Measures one batch.
///
/// # Errors
/// A device that fails or lacks the method; a result that is not finite.
pub fn measure(
    bench: &Bench,
    shape: &BatchShape,
    method: &Method,
    io: Io,
    bounds: Bounds,
) -> Result<NewtonSchulzRow, BenchError> {
    let iteration = Iteration::new(method)?;
    let case = Case::new(bench, shape, &iteration, io)?;
    let Run { time, launches, limit_ms, by_launch } = match bench.device.kind().is_host() {
        true => Run { time: case.time_on_the_host(bench)?, ..Run::default() },
        false => case.time_on_the_device(bench, bounds)?,
    };
    let programs = shape.0.iter().map(|part| {
        let (short, long) = (part.rows.min(part.cols), part.rows.max(part.cols));
        (part.count as f64, iteration.program(short, long))
    });
    let programs: Vec<_> = programs.collect();
    let flops: f64 = programs.iter().map(|(count, program)| count * program.flops()).sum();
    let useful_tflops = time.map(|time| time.tflops(flops)).filter(|_| flops > 0.0);
    let share = |whole: Option<f64>| Some(100.0 * useful_tflops? / whole?);
    let host_limit = bounds.ceiling_tflops.filter(|_| bench.device.kind().is_host());
    let limit_ms =
        limit_ms.or(host_limit.map(|ceiling| flops / ceiling * 1e-9)).filter(|ms| *ms > 0.0);
    Ok(NewtonSchulzRow {
        matrices: shape.matrices(),
        shape: shape.clone(),
        algorithm: method.algorithm.word(),
        ran: programs[0].1.algorithm.word(),
        coefficients: method.coefficients.word(),
        steps: method.steps,
        dtype: method.storage.word(),
        io: io.word(),
        time,
        useful_gflop: flops * 1e-9,
        useful_tflops,
        ceiling_tflops: bounds.ceiling_tflops,
        percent_of_ceiling: share(bounds.ceiling_tflops),
        limit_ms,
        percent_of_limit: time.and_then(|time| Some(100.0 * limit_ms? / time.median_ms)),
        error: case.error(bench, bounds.check_gflop)?,
        launches,
        by_launch,
    })
}

/// Measurements of a case, and its limit where tiles and waves have one.
#[derive(Default)]
struct Run {
    time: Option<Timing>,
    launches: Option<usize>,
    limit_ms: Option<f64>,
    by_launch: Vec<LaunchTime>,
}

/// Random matrices on the device, and room for their results.
struct Case {
    batch: Batch,
    io: Io,
    input: Tensor,
    output: Tensor,
    status: Tensor,
    /// (index, rows, columns) of the first matrix of each shape.
    firsts: Vec<(usize, usize, usize)>,
}

/// Elements of the pool that all matrices of a batch are windows of.
const WINDOW: usize = 1 << 12;

impl Case {
    fn new(
        bench: &Bench,
        shape: &BatchShape,
        iteration: &Iteration,
        io: Io,
    ) -> Result<Case, BenchError> {
        let device = &bench.device;
        if device.kind().is_host() && io != Io::F32 {
            let message = format!("the CPU takes f32 matrices, not {}", io.word());
            return Err(BenchError::Argument(message));
        }
        let (mut matrices, mut firsts, mut at) = (Vec::new(), Vec::new(), 0);
        for (index, (rows, cols)) in shape.each().enumerate() {
            matrices.push(Matrix::dense(at, at, rows, cols));
            if !firsts.iter().any(|&(_, r, c)| (r, c) == (rows, cols)) {
                firsts.push((index, rows, cols));
            }
            at += rows * cols;
        }
        let largest = shape.each().map(|(rows, cols)| rows * cols).max().unwrap_or(0);
        // Every matrix is another window of one pool: a batch of billions of elements is made on
        // the device, in no time, and no two matrices are equal.
        let pool = noise(largest + WINDOW, 1);
        let pool = match io {
            Io::F32 => device.tensor(&[pool.len()], &pool)?,
            Io::Bf16 => {
                let rounded: Vec<bf16> = pool.iter().map(|&x| bf16::from_f32(x)).collect();
                device.tensor(&[rounded.len()], &rounded)?
            }
        };
        let input = device.zeros(&[at], io.dtype())?;
        for (index, matrix) in matrices.iter().enumerate() {
            let len = matrix.rows * matrix.cols;
            let from = index * 61 % WINDOW;
            let window = pool.flat(from..from + len)?;
            bench.stream.copy(&input.flat(matrix.input..matrix.input + len)?, &window)?;
        }
        let output = device.zeros(&[at], io.dtype())?;
        let status = device.zeros(&[matrices.len()], DType::U32)?;
        bench.stream.synchronize()?;
        Ok(Case { batch: Batch::new(iteration, matrices)?, io, input, output, status, firsts })
    }

    fn time_on_the_host(&self, bench: &Bench) -> Result<Option<Timing>, BenchError> {
        let elements = self.batch.workspace_elements(bench.device.threads());
        let workspace = bench.device.zeros(&[elements], DType::F32)?;
        let [input, output, status] = [&self.input, &self.output, &self.status].map(Tensor::clone);
        let once = Orthogonalize { batch: self.batch.clone(), input, output, workspace, status };
        bench.time(|stream| Ok(once.clone().launch(stream)?))
    }

    fn time_on_the_device(&self, bench: &Bench, bounds: Bounds) -> Result<Run, BenchError> {
        let kernels = Kernels::of(&bench.device)?;
        let dtype = self.io.dtype();
        let prepared = Prepared::new(&kernels, &self.batch, (dtype, dtype), None)?;
        let workspace = bench.device.zeros(&[prepared.workspace_bytes()], DType::U8)?;
        let Case { input, output, status, .. } = self;
        let bound = prepared.bind(&bench.stream, input, output, &workspace, status)?;
        let launches = bound.launches();
        let time = bench.time(|stream| Ok(bound.launch(stream)?))?;
        let limit_ms = bounds.ceiling_tflops.map(|tflops| {
            let bytes_per_s = bounds.gb_per_s.map_or(f64::INFINITY, |rate| rate * 1e9);
            let ceiling = Ceiling { flops_per_s: tflops * 1e12, bytes_per_s };
            let units = kernels.multiprocessors();
            1e3 * limit(prepared.plan(), kernels.arch(), units, ceiling).seconds
        });
        let by_launch = match bench.device.properties().simulated {
            true => Vec::new(),
            false => time_by_launch(bench, &bound)?,
        };
        Ok(Run { time, launches: Some(launches), limit_ms, by_launch })
    }

    /// The worst error of one matrix of each shape, or none where that is too much work.
    fn error(&self, bench: &Bench, check_gflop: f64) -> Result<Option<f64>, BenchError> {
        let iteration = self.batch.iteration();
        let status: Vec<u32> = bench.stream.to_vec(&self.status)?;
        if let Some(matrix) = status.iter().position(|&status| status != STATUS_FINITE) {
            return Err(BenchError::Wrong(format!("matrix {matrix} was taken for not finite")));
        }
        let work = self.firsts.iter().map(|&(_, rows, cols)| {
            reference_of(iteration).map(|it| it.program(rows.min(cols), rows.max(cols)).flops())
        });
        let work: f64 = work.sum::<Result<f64, _>>()?;
        if work > check_gflop * 1e9 {
            return Ok(None);
        }
        let mut worst: f64 = 0.0;
        for &(index, rows, cols) in &self.firsts {
            let matrix = self.batch.matrices()[index];
            let part = |tensor: &Tensor, start: usize| -> Result<Vec<f32>, BenchError> {
                let tensor = tensor.flat(start..start + rows * cols)?;
                match self.io {
                    Io::F32 => Ok(bench.stream.to_vec(&tensor)?),
                    Io::Bf16 => {
                        let values: Vec<bf16> = bench.stream.to_vec(&tensor)?;
                        Ok(values.into_iter().map(bf16::to_f32).collect())
                    }
                }
            };
            let input = part(&self.input, matrix.input)?;
            let want = in_f64(iteration, &input, (rows, cols))?;
            let error = relative_error(&part(&self.output, matrix.output)?, &want);
            if !error.is_finite() {
                return Err(BenchError::Wrong(format!("matrix {index} came out not finite")));
            }
            worst = worst.max(error);
        }
        Ok(Some(worst))
    }
}

/// A batch that is orthogonalized again and again, beside something else.
pub(crate) struct Repeated {
    once: Once,
    /// The matrices that it is checked against.
    case: Case,
    bench: Bench,
    error_max: f64,
}

enum Once {
    Host(Box<Orthogonalize>),
    Device(Box<Bound>),
}

impl Repeated {
    /// Random matrices on the device, under the default method in the type that the device is best
    /// at: f32 on a CPU, f16 on others.
    ///
    /// # Errors
    /// Memory; a device without kernels.
    pub(crate) fn new(device: &Device, shape: &BatchShape) -> Result<Repeated, BenchError> {
        let is_host = device.kind().is_host();
        let storage = if is_host { Storage::F32 } else { Storage::F16 };
        let iteration = Iteration::new(&Method { storage, ..Method::default() })?;
        let repeat = Repeat { warmup: 0, iterations: 1 };
        let bench = Bench::new(device.clone(), repeat)?;
        let case = Case::new(&bench, shape, &iteration, Io::F32)?;
        let [input, output, status] = [&case.input, &case.output, &case.status].map(Tensor::clone);
        let batch = case.batch.clone();
        let once = match is_host {
            true => {
                let elements = batch.workspace_elements(device.threads());
                let workspace = device.zeros(&[elements], DType::F32)?;
                Once::Host(Box::new(Orthogonalize { batch, input, output, workspace, status }))
            }
            false => {
                let prepared = Prepared::new(&Kernels::of(device)?, &batch, DTYPES, None)?;
                let workspace = device.zeros(&[prepared.workspace_bytes()], DType::U8)?;
                let stream = &bench.stream;
                let bound = prepared.bind(stream, &input, &output, &workspace, &status)?;
                Once::Device(Box::new(bound))
            }
        };
        bench.stream.synchronize()?;
        let error_max = ERROR_MAX[usize::from(!is_host)];
        Ok(Repeated { once, case, bench, error_max })
    }

    /// Orthogonalizes, in the order of `stream`.
    ///
    /// # Errors
    /// The device refuses.
    pub(crate) fn launch(&self, stream: &Stream) -> Result<(), BenchError> {
        match &self.once {
            Once::Host(once) => Ok(once.as_ref().clone().launch(stream)?),
            Once::Device(bound) => Ok(bound.launch(stream)?),
        }
    }

    /// Whether what came out last is what it should be, within what Newton–Schulz in the type can
    /// be off; to be called when nothing is running.
    ///
    /// # Errors
    /// [`BenchError::Wrong`].
    pub(crate) fn check(&self) -> Result<(), BenchError> {
        match self.case.error(&self.bench, CHECK_GFLOP)? {
            Some(error) if error > self.error_max => {
                Err(BenchError::Wrong(format!("Newton–Schulz is off by {error:.1e}")))
            }
            _ => Ok(()),
        }
    }
}

/// Of the matrices given and returned.
const DTYPES: (DType, DType) = (DType::F32, DType::F32);

/// More work than that is not compared with f64.
const CHECK_GFLOP: f64 = 20.0;

/// Relative errors that rounding alone does not explain, of f32 and of 16-bit storage.
const ERROR_MAX: [f64; 2] = [1e-3, 0.05];

/// Times of each launch, from events between them.
fn time_by_launch(bench: &Bench, bound: &Bound) -> Result<Vec<LaunchTime>, BenchError> {
    let (mut names, mut runs) = (Vec::new(), Vec::new());
    for _ in 0..bench.repeat.iterations {
        names.clear();
        let mut events = vec![bench.stream.record()?];
        bound.launch_with(&bench.stream, |kernel, units| {
            names.push((kernel, units));
            events.push(bench.stream.record()?);
            Ok(())
        })?;
        runs.push(events);
    }
    bench.stream.synchronize()?;
    let launch = |(i, &(kernel, units)): (usize, &(&'static str, u32))| {
        let times = runs.iter().map(|events| events[i + 1].elapsed_ms(&events[i]));
        let times = times.collect::<Result<Vec<f64>, _>>()?;
        let ms = Timing::of(times).map_or(0.0, |timing| timing.median_ms);
        Ok(LaunchTime { kernel, units, ms })
    };
    names.iter().enumerate().map(launch).collect()
}

/// The same polynomials, stored without rounding to 16 bits.
fn reference_of(iteration: &Iteration) -> Result<Iteration, BenchError> {
    let algorithm = match iteration.method().algorithm {
        Algorithm::Svd => Algorithm::Svd,
        _ => Algorithm::Symmetric,
    };
    let method =
        Method { algorithm, storage: Storage::F32, restarts: None, ..iteration.method().clone() };
    Ok(Iteration::new(&method)?)
}

fn in_f64(
    iteration: &Iteration,
    input: &[f32],
    (rows, cols): (usize, usize),
) -> Result<Vec<f64>, BenchError> {
    let iteration = reference_of(iteration)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let device = Device::cpu(threads)?;
    let batch = Batch::new(&iteration, vec![Matrix::dense(0, 0, rows, cols)])?;
    let values: Vec<f64> = input.iter().map(|&x| f64::from(x)).collect();
    let input = device.tensor(&[values.len()], &values)?;
    let output = device.zeros(&[values.len()], DType::F64)?;
    let status = device.zeros(&[1], DType::U32)?;
    let workspace = device.zeros(&[batch.workspace_elements(1)], DType::F64)?;
    let stream = device.stream();
    let once = Orthogonalize { batch, input, output: output.clone(), workspace, status };
    once.launch(&stream)?;
    Ok(stream.to_vec(&output)?)
}

/// |got − want| / |want| in Frobenius norms.
pub(crate) fn relative_error(got: &[f32], want: &[f64]) -> f64 {
    let (mut difference, mut whole) = (0.0, 0.0);
    for (&got, &want) in got.iter().zip(want) {
        difference += (f64::from(got) - want).powi(2);
        whole += want * want;
    }
    (difference / whole).sqrt()
}
