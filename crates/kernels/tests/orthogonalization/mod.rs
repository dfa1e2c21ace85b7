//! Batches for tests, run on a device with kernels of modules, and what they should give.

// Each test file uses its own part of this.
#![allow(dead_code)]

use device::{Arch, DType, Device, Element, SimOptions, Tensor};
use half::{bf16, f16};
use kernels::KernelError;
use kernels::Op as _;
use kernels::gpu::execute::Prepared;
use kernels::gpu::modules::{Family, Kernels};
use kernels::newton_schulz::{
    AOL_LEAST, Algorithm, Batch, Coefficients, Iteration, Matrix, Method, Orthogonalize, Storage,
};

/// An orthogonalization: the matrices and the method.
#[derive(Clone)]
pub struct Case {
    pub algorithm: Algorithm,
    pub storage: Storage,
    pub coefficients: Coefficients,
    pub steps: usize,
    pub least_norm: f64,
    pub input: DType,
    pub output: DType,
    /// Most bytes of registers.
    pub limit: Option<u64>,
    /// Elements between the rows, on both sides.
    pub gap: usize,
    /// Factor on the results.
    pub scale: f64,
    pub shapes: Vec<(usize, usize)>,
    /// Row-major.
    pub matrices: Vec<Vec<f32>>,
}

pub struct Outcome {
    pub outputs: Vec<Vec<f32>>,
    pub statuses: Vec<u32>,
    pub launches: usize,
}

impl Case {
    /// Gaussian matrices, by Polar Express in f16.
    pub fn new(shapes: &[(usize, usize)]) -> Case {
        let matrix =
            |(index, &(rows, cols)): (usize, &(usize, usize))| gaussian(index, rows * cols);
        Case {
            algorithm: Algorithm::Symmetric,
            storage: Storage::F16,
            coefficients: Coefficients::polar_express(),
            steps: 5,
            least_norm: 0.0,
            input: DType::F32,
            output: DType::F32,
            limit: None,
            gap: 0,
            scale: 1.0,
            shapes: shapes.to_vec(),
            matrices: shapes.iter().enumerate().map(matrix).collect(),
        }
    }

    pub fn iteration(&self) -> Iteration {
        let Case { algorithm, storage, steps, least_norm, .. } = *self;
        let coefficients = self.coefficients.clone();
        let method =
            Method { algorithm, storage, coefficients, steps, least_norm, ..Method::default() };
        Iteration::new(&method).unwrap()
    }

    /// The members `order` as a batch of their own.
    pub fn part(&self, order: &[usize]) -> Case {
        Case {
            shapes: order.iter().map(|&index| self.shapes[index]).collect(),
            matrices: order.iter().map(|&index| self.matrices[index].clone()).collect(),
            ..self.clone()
        }
    }

    pub fn run(&self, device: &Device) -> Outcome {
        self.try_run(device).unwrap()
    }

    /// The same with matrices that the input's type holds exactly.
    pub fn rounded(mut self) -> Case {
        for x in self.matrices.iter_mut().flatten() {
            *x = match self.input {
                DType::Bf16 => bf16::from_f32(*x).to_f32(),
                DType::F16 => f16::from_f32(*x).to_f32(),
                _ => *x,
            };
        }
        self
    }

    pub fn batch(&self) -> Result<Batch, KernelError> {
        let mut start = 0;
        let matrix = |&(rows, cols): &(usize, usize)| {
            let stride = cols + self.gap;
            let dense = Matrix::dense(start, start, rows, cols);
            start += rows * stride;
            Matrix { input_stride: stride, output_stride: stride, scale: self.scale, ..dense }
        };
        Batch::new(&self.iteration(), self.shapes.iter().map(matrix).collect())
    }

    pub fn prepare(&self, device: &Device) -> Result<Prepared, KernelError> {
        let types = (self.input, self.output);
        Prepared::new(&Kernels::of(device)?, &self.batch()?, types, self.limit)
    }

    /// The results of the CPU, which emulates the storage; of a case with f32 results.
    pub fn twin(&self) -> Vec<Vec<f32>> {
        let (device, batch) = (Device::cpu(1).unwrap(), self.batch().unwrap());
        let flat = self.with_gaps();
        let [input, output] = [flat.clone(), vec![f32::NAN; flat.len()]]
            .map(|values| device.tensor(&[values.len()], &values).unwrap());
        let work = device.zeros(&[batch.least_workspace_elements()], DType::F32).unwrap();
        let status = device.zeros(&[self.shapes.len()], DType::U32).unwrap();
        let stream = device.stream();
        let once = Orthogonalize { batch, input, output: output.clone(), workspace: work, status };
        once.launch(&stream).unwrap();
        self.without_gaps(&stream.to_vec(&output).unwrap())
    }

    /// The rows of all matrices, with infinities in the gaps: no one may read them.
    fn with_gaps(&self) -> Vec<f32> {
        let mut flat = Vec::new();
        for (matrix, &(rows, cols)) in self.matrices.iter().zip(&self.shapes) {
            for row in 0..rows {
                flat.extend_from_slice(&matrix[row * cols..(row + 1) * cols]);
                flat.extend(vec![f32::INFINITY; self.gap]);
            }
        }
        flat
    }

    /// The matrices of a flat result; the gaps must be as they were.
    fn without_gaps(&self, mut flat: &[f32]) -> Vec<Vec<f32>> {
        let mut matrix = |&(rows, cols): &(usize, usize)| {
            let (of, rest) = flat.split_at(rows * (cols + self.gap));
            flat = rest;
            for row in of.chunks((cols + self.gap).max(1)) {
                assert!(row[cols..].iter().all(|x| x.is_nan()), "a gap was written");
            }
            of.chunks((cols + self.gap).max(1)).flat_map(|row| row[..cols].to_vec()).collect()
        };
        self.shapes.iter().map(&mut matrix).collect()
    }

    pub fn try_run(&self, device: &Device) -> Result<Outcome, KernelError> {
        let prepared = self.prepare(device)?;
        let flat = self.with_gaps();
        let input = upload(device, &flat, self.input);
        // Elements that no kernel writes stay visible.
        let output = upload(device, &vec![f32::NAN; flat.len()], self.output);
        let garbage = vec![0xff_u8; prepared.workspace_bytes()];
        let workspace = device.tensor(&[garbage.len()], &garbage)?;
        let status = device.tensor(&[self.shapes.len()], &vec![7_u32; self.shapes.len()])?;
        let stream = device.stream();
        let bound = prepared.bind(&stream, &input, &output, &workspace, &status)?;
        bound.launch(&stream)?;
        stream.synchronize()?;
        let outputs = self.without_gaps(&download(device, &output));
        let statuses = stream.to_vec::<u32>(&status)?;
        Ok(Outcome { outputs, statuses, launches: bound.launches() })
    }
}

fn upload(device: &Device, values: &[f32], dtype: DType) -> Tensor {
    fn as_type<T: Element>(device: &Device, values: Vec<T>) -> Tensor {
        device.tensor(&[values.len()], &values).unwrap()
    }
    match dtype {
        DType::Bf16 => as_type(device, values.iter().map(|&x| bf16::from_f32(x)).collect()),
        DType::F16 => as_type(device, values.iter().map(|&x| f16::from_f32(x)).collect()),
        _ => as_type(device, values.to_vec()),
    }
}

fn download(device: &Device, tensor: &Tensor) -> Vec<f32> {
    let stream = device.stream();
    match tensor.dtype() {
        DType::Bf16 => {
            stream.to_vec::<bf16>(tensor).unwrap().into_iter().map(bf16::to_f32).collect()
        }
        _ => stream.to_vec(tensor).unwrap(),
    }
}

/// Calls `test` with a simulated device, unless the build has no kernels for it.
pub fn with_kernels(arch: Arch, options: SimOptions, test: impl FnOnce(Device)) {
    let device = Device::sim(arch, 1, options).unwrap();
    let kernels = Kernels::of(&device).unwrap();
    match kernels.function(Family::NewtonSchulz, "ns_norm") {
        Err(KernelError::Image(error)) => eprintln!("nothing was tested on {arch}: {error}"),
        Err(error) => panic!("{error}"),
        Ok(_) => test(device),
    }
}

/// Gaussian numbers of a seed, by Box and Muller from a 64-bit mixing function.
pub fn gaussian(seed: usize, len: usize) -> Vec<f32> {
    let mut state = seed as u64 + 1;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    };
    let normal = |_| {
        let (u, v) = (1.0 - uniform(), uniform());
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    };
    (0..len).map(normal).collect()
}

/// The result of member `index` in f64, by plain loops.
pub fn reference(case: &Case, index: usize) -> Vec<f64> {
    let (rows, cols) = case.shapes[index];
    let input: Vec<f64> = case.matrices[index].iter().map(|&x| x.into()).collect();
    let (n, m) = (rows.min(cols), rows.max(cols));
    let norm = input.iter().map(|x| x * x).sum::<f64>().sqrt().max(case.least_norm);
    if norm == 0.0 || !norm.is_finite() {
        return vec![0.0; rows * cols];
    }
    let at =
        |i: usize, j: usize| if rows > cols { input[j * cols + i] } else { input[i * cols + j] };
    let mut x: Vec<f64> = (0..n * m).map(|e| at(e / m, e % m) / norm).collect();
    let iteration = case.iteration();
    if case.coefficients.is_preconditioned() {
        let gram = product_nt(&x, &x, n, n, m);
        for (row, gram) in x.chunks_mut(m).zip(gram.chunks(n)) {
            let sum: f64 = gram.iter().map(|g| g.abs()).sum();
            let scale = 1.0 / sum.max(AOL_LEAST).sqrt();
            row.iter_mut().for_each(|x| *x *= scale);
        }
    }
    for polynomial in iteration.polynomials() {
        let gram = product_nt(&x, &x, n, n, m);
        let c = polynomial.coefficients();
        let mut factor = vec![0.0; n * n];
        for &coefficient in c.iter().rev() {
            // Symmetric matrices are their own transposes.
            factor = product_nt(&factor, &gram, n, n, n);
            (0..n).for_each(|i| factor[i * n + i] += coefficient);
        }
        let transposed: Vec<f64> = (0..m * n).map(|e| x[e % n * m + e / n]).collect();
        x = product_nt(&factor, &transposed, n, m, n);
    }
    let back = |e: usize| {
        let (i, j) = (e / cols, e % cols);
        case.scale * if rows > cols { x[j * m + i] } else { x[i * m + j] }
    };
    (0..rows * cols).map(back).collect()
}

/// `A·Bᵀ` of `[n, k]` and `[m, k]`.
fn product_nt(a: &[f64], b: &[f64], n: usize, m: usize, k: usize) -> Vec<f64> {
    let dot = |i: usize, j: usize| -> f64 {
        a[i * k..(i + 1) * k].iter().zip(&b[j * k..(j + 1) * k]).map(|(a, b)| a * b).sum()
    };
    (0..n * m).map(|e| dot(e / m, e % m)).collect()
}

/// Of the Frobenius norms; 0 for two empty or zero matrices.
pub fn relative_error(got: &[f32], expected: &[f64]) -> f64 {
    let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
    let pairs = got.iter().zip(expected);
    let error = pairs.map(|(&g, e)| (f64::from(g) - e).powi(2)).sum::<f64>().sqrt();
    if error == 0.0 { 0.0 } else { error / norm }
}
