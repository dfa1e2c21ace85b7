//! Newton–Schulz in f32 on the CPU: ours beside the same iteration written with candle's products.
//!
//! candle's is what one writes with a tensor library: `A = X·Xᵀ`, `B = b·A + c·A·A`,
//! `X = a·X + B·X`, all in full. Both sides take matrices one at a time, with as many threads. A
//! line per shape: medians in ms, and how many times as long candle takes.
//!
//! ```text
//! RAYON_NUM_THREADS=1 cargo bench -p oracle --bench newton_schulz_candle
//! ```

use std::time::Instant;

use candle_core::{Device as CandleDevice, Result, Tensor as CandleTensor};
use device::{DType, Device};
use kernels::Op as _;
use kernels::newton_schulz::{Algorithm, Batch, Iteration, Matrix, Method, Orthogonalize};

/// Hidden matrices of GPT-2 124M and of a 1B mixture, and a square one.
const SHAPES: [(usize, usize); 5] =
    [(256, 1024), (768, 768), (768, 3072), (3072, 768), (1024, 2816)];
const ROUNDS: usize = 7;

fn candle(x: &CandleTensor, iteration: &Iteration) -> Result<CandleTensor> {
    let (rows, cols) = x.dims2()?;
    let mut x = if rows > cols { x.t()?.contiguous()? } else { x.clone() };
    let norm = x.sqr()?.sum_all()?.sqrt()?;
    x = x.broadcast_div(&norm)?;
    for step in iteration.polynomials() {
        let [a, b, c] = *step.coefficients() else { unreachable!("Polar Express is quintic") };
        let gram = x.matmul(&x.t()?)?;
        let sum = ((gram.matmul(&gram)? * c)? + (gram * b)?)?;
        x = (sum.matmul(&x)? + (x * a)?)?;
    }
    if rows > cols { x.t()?.contiguous() } else { Ok(x) }
}

fn median(mut run: impl FnMut()) -> f64 {
    run();
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn ours(device: &Device, algorithm: Algorithm, (rows, cols): (usize, usize), x: &[f32]) -> Run {
    let method = Method { algorithm, ..Method::default() };
    let iteration = Iteration::new(&method).expect("a method");
    let batch = Batch::new(&iteration, vec![Matrix::dense(0, 0, rows, cols)]).expect("a batch");
    let input = device.tensor(&[rows, cols], x).expect("memory");
    let output = device.zeros(&[rows, cols], DType::F32).expect("memory");
    let work = device.zeros(&[batch.workspace_elements(1)], DType::F32).expect("memory");
    let status = device.zeros(&[1], DType::U32).expect("memory");
    let stream = device.stream();
    let flops = batch.program(0).flops();
    let once = Orthogonalize { batch, input, output: output.clone(), workspace: work, status };
    let ms = median(|| {
        once.clone().launch(&stream).expect("a launch");
        stream.synchronize().expect("no error");
    });
    Run { ms, flops, out: stream.to_vec(&output).expect("a copy") }
}

struct Run {
    ms: f64,
    flops: f64,
    out: Vec<f32>,
}

fn main() -> Result<()> {
    let threads = std::env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.parse().ok());
    let device = Device::cpu(threads.unwrap_or(1)).expect("threads");
    let iteration = Iteration::new(&Method::default()).expect("a method");
    for shape in SHAPES {
        let x = CandleTensor::randn(0_f32, 1.0, shape, &CandleDevice::Cpu)?;
        let host = x.flatten_all()?.to_vec1::<f32>()?;
        let theirs = candle(&x, &iteration)?.flatten_all()?.to_vec1::<f32>()?;
        let candle_ms = median(|| {
            candle(&x, &iteration).expect("candle");
        });
        print!("{}×{}: candle {candle_ms:.1} ms", shape.0, shape.1);
        for algorithm in [Algorithm::Standard, Algorithm::Symmetric, Algorithm::Auto] {
            let Run { ms, flops, out } = ours(&device, algorithm, shape, &host);
            let off = out.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-3, "{shape:?} {algorithm:?} is off by {off}");
            let (word, rate) = (algorithm.word(), flops / ms / 1e6);
            print!(", {word} {ms:.1} ms ({:.2}×, {rate:.1} GFLOP/s)", candle_ms / ms);
        }
        println!();
    }
    Ok(())
}
