//! AdamW and Muon from their papers, in f64, on candle tensors.

use candle_core::{DType, Device, Result, Tensor, Var};
use layout::{LogicalTensor, Role, Schema};

/// Numbers that both sides are given.
#[derive(Debug, Clone, Copy)]
pub struct Numbers {
    pub adamw_lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub adamw_decay: f64,
    /// The rule of matrices of the hidden layers, if it is not AdamW.
    pub muon: Option<Muon>,
    pub clip: f64,
    pub warmup_steps: u64,
}

#[derive(Debug, Clone, Copy)]
pub struct Muon {
    pub lr: f64,
    pub momentum: f64,
    pub decay: f64,
    pub steps: usize,
    /// Polar Express coefficients and RMS-matching scale; otherwise Jordan's and the spectral one.
    pub modern: bool,
}

/// The optimizer of all parameters.
pub struct Optimizer {
    numbers: Numbers,
    tensors: Vec<LogicalTensor>,
    /// Two moments (AdamW), or the momentum (Muon).
    states: Vec<[Tensor; 2]>,
}

impl Optimizer {
    pub fn new(schema: &Schema, numbers: Numbers) -> Result<Optimizer> {
        let zeros = |t: &LogicalTensor| Tensor::zeros(t.shape.as_slice(), DType::F64, &Device::Cpu);
        let state = |t: &LogicalTensor| Ok([zeros(t)?, zeros(t)?]);
        let states = schema.tensors.iter().map(state).collect::<Result<_>>()?;
        Ok(Optimizer { numbers, tensors: schema.tensors.clone(), states })
    }

    /// Update `step` (from 1) with gradients summed over `tokens` tokens.
    pub fn update(
        &mut self,
        variables: &[Var],
        gradients: &[Option<Tensor>],
        tokens: usize,
        step: u64,
    ) -> Result<()> {
        let mut means = Vec::new();
        let mut squares = 0.0;
        for (variable, gradient) in variables.iter().zip(gradients) {
            // An expert that no token visited has a gradient of zero, and is updated with it.
            let gradient = match gradient {
                Some(gradient) => gradient.to_dtype(DType::F64)?,
                None => variable.zeros_like()?.to_dtype(DType::F64)?,
            };
            let mean = (gradient / tokens as f64)?;
            squares += mean.sqr()?.sum_all()?.to_scalar::<f64>()?;
            means.push(mean);
        }
        let factor = (self.numbers.clip / squares.sqrt()).min(1.0);
        let warm = (step as f64 / self.numbers.warmup_steps as f64).min(1.0);
        for (i, (variable, mean)) in variables.iter().zip(means).enumerate() {
            let hidden = matches!(self.tensors[i].role, Role::Matrix | Role::Expert { .. });
            let (w, g) = (variable.to_dtype(DType::F64)?, (mean * factor)?);
            let new = match self.numbers.muon {
                Some(muon) if hidden => self.muon(i, muon, &w, &g, warm)?,
                _ => self.adamw(i, &w, &g, warm, step)?,
            };
            variable.set(&new.to_dtype(variable.dtype())?)?;
        }
        Ok(())
    }

    /// Loshchilov & Hutter (arXiv 1711.05101), algorithm 2.
    fn adamw(&mut self, i: usize, w: &Tensor, g: &Tensor, warm: f64, step: u64) -> Result<Tensor> {
        let n = self.numbers;
        let average = |old: &Tensor, new: &Tensor, beta: f64| (old * beta)? + (new * (1.0 - beta))?;
        let m = average(&self.states[i][0], g, n.beta1)?;
        let v = average(&self.states[i][1], &g.sqr()?, n.beta2)?;
        let corrected = |x: &Tensor, beta: f64| x / (1.0 - beta.powi(step as i32));
        let root = (corrected(&v, n.beta2)?.sqrt()? + n.eps)?;
        let direction = (corrected(&m, n.beta1)? / root)?;
        self.states[i] = [m, v];
        let lr = n.adamw_lr * warm;
        (w * (1.0 - lr * n.adamw_decay))? - (direction * lr)?
    }

    /// Momentum as a moving average with Nesterov's look ahead (Jordan 2024), each true matrix
    /// orthogonalized by itself.
    fn muon(&mut self, i: usize, muon: Muon, w: &Tensor, g: &Tensor, warm: f64) -> Result<Tensor> {
        let mix = |old: &Tensor| (old * muon.momentum)? + (g * (1.0 - muon.momentum))?;
        let m = mix(&self.states[i][0])?;
        let ahead = mix(&m)?;
        self.states[i][0] = m;
        let lr = muon.lr * warm;
        let mut parts = Vec::new();
        for rows in self.tensors[i].row_ranges() {
            let part = |of: &Tensor| of.narrow(0, rows.start, rows.len());
            let (out, input) = part(w)?.dims2()?;
            let scale = match muon.modern {
                true => 0.2 * (out.max(input) as f64).sqrt(),
                false => (out as f64 / input as f64).max(1.0).sqrt(),
            };
            let direction = orthogonalize(&part(&ahead)?, muon)?;
            let kept = (part(w)? * (1.0 - lr * muon.decay))?;
            parts.push((kept - (direction * (lr * scale))?)?);
        }
        Tensor::cat(&parts, 0)
    }
}

/// "The Polar Express" (arXiv 2505.16932), degree 5, for singular values from 1e-3 on.
const POLAR_EXPRESS: [[f64; 3]; 5] = [
    [8.28721201814563, -23.595886519098837, 17.300387312530933],
    [4.107059111542203, -2.9478499167379106, 0.5448431082926601],
    [3.9486908534822946, -2.908902115962949, 0.5518191394370137],
    [3.3184196573706015, -2.488488024314874, 0.51004894012372],
    [2.300652019954817, -1.6689039845747493, 0.4188073119525673],
];

/// Of Newton–Schulz step `step`.
fn coefficients(muon: Muon, step: usize) -> [f64; 3] {
    if !muon.modern {
        return [3.4445, -4.7750, 2.0315];
    }
    // The paper's safety factor: the polynomials are applied to x / 1.01.
    let [a, b, c] = POLAR_EXPRESS[step];
    [a / 1.01, b / 1.01f64.powi(3), c / 1.01f64.powi(5)]
}

/// `aX + b(XXᵀ)X + c(XXᵀ)²X`, repeated, from `X` over its Frobenius norm.
fn orthogonalize(x: &Tensor, muon: Muon) -> Result<Tensor> {
    let (rows, cols) = x.dims2()?;
    if rows > cols {
        return orthogonalize(&x.t()?.contiguous()?, muon)?.t()?.contiguous();
    }
    let norm = x.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt();
    if norm == 0.0 {
        return x.zeros_like();
    }
    let mut x = (x / norm)?;
    for step in 0..muon.steps {
        let [a, b, c] = coefficients(muon, step);
        let gram = x.matmul(&x.t()?.contiguous()?)?;
        let polynomial = ((&gram * b)? + (gram.matmul(&gram)? * c)?)?;
        x = ((&x * a)? + polynomial.matmul(&x)?)?;
    }
    Ok(x)
}
