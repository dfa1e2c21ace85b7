//! `muster bench gemm`: dense and symmetric products, and the ceiling that other cases are held
//! against.

use device::{DType, Tensor};
use kernels::gemm::{Layout, Matmul, Matrix};
use kernels::gpu::arch::{Class, Form, TileType};
use kernels::gpu::limit::Ceiling;
use kernels::gpu::modules::Kernels;
use kernels::gpu::product::{Products, Shape, Spec};
use kernels::newton_schulz::Storage;
use kernels::{Entries, Op};
use rayon::prelude::*;
use serde::Serialize;

use crate::measure::{Bench, noise};
use crate::{Bar, BenchError, ProductShape, Row, Timing};

/// One batch of products.
#[derive(Debug, Clone, Serialize)]
pub struct GemmRow {
    pub shape: ProductShape,
    pub dtype: &'static str,
    /// X·Xᵀ, of which a triangle is computed; its useful operations are half.
    pub symmetric: bool,
    /// Side of the blocks: on devices with kernels for two.
    pub block: Option<usize>,
    pub time: Option<Timing>,
    pub useful_gflop: f64,
    pub useful_tflops: Option<f64>,
    /// Of the bytes of operands and results that tiles and waves allow, given a ceiling.
    pub limit_ms: Option<f64>,
    pub percent_of_limit: Option<f64>,
    /// Largest error of sampled entries against f64, over the norm of what is summed.
    pub error: f64,
}

impl Row for GemmRow {
    const COLUMNS: &'static [&'static str] = &[
        "shape", "kind", "dtype", "block", "ms", "least", "most", "TFLOP/s", "limit ms", "% limit",
        "error",
    ];
    const UNIT: &'static str = "useful TFLOP/s";

    fn cells(&self) -> Vec<String> {
        let number = |value: Option<f64>, digits: usize| {
            value.map_or("–".to_owned(), |value| format!("{value:.digits$}"))
        };
        vec![
            self.shape.to_string(),
            if self.symmetric { "symmetric" } else { "dense" }.to_owned(),
            self.dtype.to_owned(),
            self.block.map_or("–".to_owned(), |block| block.to_string()),
            number(self.time.map(|time| time.median_ms), 4),
            number(self.time.map(|time| time.least_ms), 4),
            number(self.time.map(|time| time.most_ms), 4),
            number(self.useful_tflops, 3),
            number(self.limit_ms, 4),
            number(self.percent_of_limit, 0),
            format!("{:.1e}", self.error),
        ]
    }

    fn bar(&self) -> Bar {
        let kind = if self.symmetric { "symmetric" } else { "dense" };
        let block = self.block.map_or(String::new(), |block| format!(" block {block}"));
        let limit = self.limit_ms.map(|ms| self.useful_gflop / ms * 1e-3);
        Bar {
            label: format!("{} {kind} {}{block}", self.shape, self.dtype),
            value: self.useful_tflops.unwrap_or(0.0),
            limit,
        }
    }
}

/// A product as it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GemmCase {
    pub shape: ProductShape,
    pub storage: Storage,
    pub symmetric: bool,
}

/// Measures a case: on a GPU once for each size of block.
///
/// # Errors
/// A device that fails or lacks the type; results that are wrong.
pub fn measure(
    bench: &Bench,
    case: GemmCase,
    ceiling: Option<Ceiling>,
) -> Result<Vec<GemmRow>, BenchError> {
    let ProductShape { m, n, .. } = case.shape;
    if case.symmetric && m != n {
        let why = "X·Xᵀ is square: M and N must be equal".to_owned();
        return Err(BenchError::Shape { text: case.shape.to_string(), why });
    }
    if bench.device.kind().is_host() {
        return Ok(vec![on_the_host(bench, case)?]);
    }
    let tiles = tiles_of(bench, case.storage)?;
    let operands = Operands::new(case, tiles);
    let classes = [Class::Large, Class::Small];
    let measure = |class| on_the_device(bench, case, &operands, (tiles, class), ceiling);
    classes.into_iter().map(measure).collect()
}

/// TFLOP/s of dense products, from the largest that is quick: what other cases are held against.
///
/// # Errors
/// As [`measure`].
pub fn ceiling_tflops(bench: &Bench, storage: Storage) -> Result<Option<f64>, BenchError> {
    let side = match bench.device.kind().is_host() {
        _ if bench.device.properties().simulated => return Ok(None),
        true => 768,
        false => 8192,
    };
    let shape = ProductShape { count: 1, m: side, n: side, k: side };
    // CPUs emulate 16-bit storage: their products are those of f32.
    let storage = if bench.device.kind().is_host() { Storage::F32 } else { storage };
    let rows = measure(bench, GemmCase { shape, storage, symmetric: false }, None)?;
    Ok(rows.iter().filter_map(|row| row.useful_tflops).reduce(f64::max))
}

fn on_the_host(bench: &Bench, case: GemmCase) -> Result<GemmRow, BenchError> {
    let ProductShape { count, m, n, k } = case.shape;
    if case.storage != Storage::F32 || case.symmetric {
        let message = "products on the CPU are dense and f32; its triangles are measured within \
                       `muster bench newton-schulz`";
        return Err(BenchError::Argument(message.to_owned()));
    }
    let (a, b) = (noise(count * m * k, 1), noise(count * k * n, 2));
    let device = &bench.device;
    let (ta, tb) = (device.tensor(&[a.len()], &a)?, device.tensor(&[b.len()], &b)?);
    let c = device.zeros(&[count * m * n], DType::F32)?;
    let at = |tensor: &Tensor, index: usize, rows: usize, cols: usize| {
        let layout = Layout::strided(index * rows * cols, rows, cols, cols);
        Matrix { tensor: tensor.clone(), layout }
    };
    let time = bench.time(|stream| {
        for i in 0..count {
            let (a, b, c) = (at(&ta, i, m, k), at(&tb, i, k, n), at(&c, i, m, n));
            Matmul { alpha: 1.0, a, b, beta: 0.0, c }.launch(stream)?;
        }
        Ok(())
    })?;
    let last = count - 1;
    let result: Vec<f32> = bench.stream.to_vec(&c.flat(last * m * n..count * m * n)?)?;
    let (a, b) = (&a[last * m * k..], &b[last * k * n..]);
    let error = sampled_error(case.shape, &result, |i, p| a[i * k + p], |p, j| b[p * n + j]);
    row(case, None, time, (None, error))
}

fn tiles_of(bench: &Bench, storage: Storage) -> Result<TileType, BenchError> {
    match storage {
        Storage::Bf16 => Ok(TileType::Bf16),
        Storage::F16 => Ok(TileType::F16),
        Storage::F32 => {
            let message = format!("{} multiplies bf16 and f16, not f32", bench.device.kind());
            Err(BenchError::Argument(message))
        }
    }
}

/// Random operands, `[count, m, k]` and `[count, n, k]`, rounded as they will be stored: so what
/// remains is the product's own error.
struct Operands {
    a: Vec<f32>,
    /// None: the same as `a`.
    b: Option<Vec<f32>>,
}

impl Operands {
    fn new(case: GemmCase, tiles: TileType) -> Operands {
        let ProductShape { count, m, n, k } = case.shape;
        let rounded = |mut values: Vec<f32>| {
            values.par_iter_mut().for_each(|x| {
                *x = match tiles {
                    TileType::Bf16 => half::bf16::from_f32(*x).to_f32(),
                    TileType::F16 => half::f16::from_f32(*x).to_f32(),
                };
            });
            values
        };
        let b = (!case.symmetric).then(|| rounded(noise(count * n * k, 2)));
        Operands { a: rounded(noise(count * m * k, 1)), b }
    }

    fn b(&self) -> &[f32] {
        self.b.as_deref().unwrap_or(&self.a)
    }
}

fn on_the_device(
    bench: &Bench,
    case: GemmCase,
    operands: &Operands,
    (tiles, class): (TileType, Class),
    ceiling: Option<Ceiling>,
) -> Result<GemmRow, BenchError> {
    let ProductShape { count, m, n, k } = case.shape;
    let kernels = Kernels::of(&bench.device)?;
    let shape = Shape { batch: count, m, n, k };
    let entries = if case.symmetric { Entries::Triangle } else { Entries::All };
    let spec = Spec { shape, entries, form: Form::Nt, tiles, class };
    let products = Products::new(&kernels, spec)?;
    let (a, b) = (&operands.a[..], operands.b());
    let tensor = |values: &[f32]| bench.device.tensor(&[values.len()], values);
    let (ta, tb): (Tensor, Tensor) = (tensor(a)?, tensor(b)?);
    let workspace = bench.device.zeros(&[products.workspace_bytes()], DType::U8)?;
    let bound = products.bind(&bench.stream, (&ta, &tb), &workspace)?;
    let time = bench.time(|stream| Ok(bound.launch(stream)?))?;
    let last = count - 1;
    let result = bound.result(&bench.stream, last)?;
    let (a, b) = (&a[last * m * k..], &b[last * n * k..]);
    let error = sampled_error(case.shape, &result, |i, p| a[i * k + p], |p, j| b[j * k + p]);
    let limit_ms = ceiling.map(|ceiling| {
        1e3 * bound.limit(kernels.arch(), kernels.multiprocessors(), ceiling).seconds
    });
    row(case, Some(class.side()), time, (limit_ms, error))
}

fn row(
    case: GemmCase,
    block: Option<usize>,
    time: Option<Timing>,
    (limit_ms, error): (Option<f64>, f64),
) -> Result<GemmRow, BenchError> {
    let flops = case.shape.flops() / if case.symmetric { 2.0 } else { 1.0 };
    // The rounding of a 16-bit result, of an entry as large as its bound.
    if error.is_nan() || error >= 1e-2 {
        let GemmCase { shape, storage, .. } = case;
        let message = format!("{shape} in {} is wrong by {error:.1e}", storage.word());
        return Err(BenchError::Wrong(message));
    }
    Ok(GemmRow {
        shape: case.shape,
        dtype: case.storage.word(),
        symmetric: case.symmetric,
        block,
        time,
        useful_gflop: flops * 1e-9,
        useful_tflops: time.map(|time| time.tflops(flops)),
        limit_ms,
        percent_of_limit: time.and_then(|time| Some(100.0 * limit_ms? / time.median_ms)),
        error,
    })
}

/// The largest |C − A·B| of some entries, in f64: each over the root of Σ(a·b)², or over the entry
/// where that is larger, as on the diagonal of X·Xᵀ. Corners are among them; the others spread over
/// the result.
fn sampled_error(
    ProductShape { m, n, k, .. }: ProductShape,
    result: &[f32],
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
) -> f64 {
    const SAMPLES: usize = 400;
    let corners = [(0, 0), (0, n - 1), (m - 1, 0), (m - 1, n - 1)];
    // Steps by primes visit all parts of the matrix.
    let spread = (0..SAMPLES).map(|i| (i * 7919 % m, i * 104_729 % n));
    let errors = corners.into_iter().chain(spread).map(|(i, j)| {
        let (mut sum, mut square) = (0.0, 0.0);
        for p in 0..k {
            let term = f64::from(a(i, p)) * f64::from(b(p, j));
            sum += term;
            square += term * term;
        }
        let error = (f64::from(result[i * n + j]) - sum).abs() / square.sqrt().max(sum.abs());
        // A NaN must win, which `max` would drop.
        if error.is_nan() { f64::INFINITY } else { error }
    });
    errors.fold(0.0, f64::max)
}
