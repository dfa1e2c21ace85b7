//! The products of one orthogonalization, as every executor runs them.
//!
//! With `X` the matrix over its norm, short side first (`n ≤ m`), and `p(x) = a·x + b·x³ + c·x⁵`, a
//! step of the standard and of the symmetric algorithm is
//!
//! ```text
//! A = X·Xᵀ        Z = b·A + c·A·A        X ← a·X + Z·X
//! ```
//!
//! and the Gram form, from a start to the next, is
//!
//! ```text
//! R = X·Xᵀ        Z = b·R + c·R·R        Q = a·I + Z             (the first step)
//!                                        Q ← a·Q + Z·Q           (the others)
//!                 R ← a·W + Z·W   with   W = a·R + R·Z           (all but the last)
//! X ← Q·X
//! ```
//!
//! All `n × n` matrices are polynomials of one symmetric matrix: they are symmetric and commute,
//! but for rounding: with `Z` on both sides of `R` it cancels, on one side it adds up (half as much
//! error again on decaying spectra in 16 bits). Higher degrees take `Z` by Horner's rule, cubics
//! need no product for it.
//!
//! Where matrices are stored in 16 bits, `a` joins in the f32 accumulators and `Z + a·I`, whose
//! diagonal would lose the bits that matter, is stored only as the first `Q`. In f32 `P = Z + a·I`
//! is stored instead of `Z`, and a product needs no addend.
//!
//! Operations of one stage do not depend on each other: an executor may merge them.

use super::method::{Algorithm, Iteration, Storage};
use crate::Entries;

/// A register of a program: a matrix of the workspace, or the caller's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Register {
    /// `[n, m]`.
    X(usize),
    /// `[n, n]`, symmetric.
    S(usize),
    /// The caller's matrix; the last operation alone writes it, and none reads it.
    Out,
}

/// Where the matrix lies, divided by its norm, before the first operation.
pub(crate) const INPUT: Register = Register::X(0);

/// The operands of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `X·Xᵀ`, an S; `left` and `right` are the same X.
    Gram,
    /// S·S, an S.
    Square,
    /// S·X, an X or the result.
    Apply,
    /// No product: the addend and `gamma` alone, an S. Left and right are the addend's register and
    /// `alpha` is zero, so that an executor may run any part of the square as a product.
    Combine,
}

/// `into = alpha·left·right + beta·addend + gamma·I`, where `addend` is `(beta, register)`.
///
/// `into` is none of the registers that the operations of the same stage read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Product {
    pub kind: Kind,
    pub left: Register,
    pub right: Register,
    pub addend: Option<(f64, Register)>,
    pub alpha: f64,
    pub gamma: f64,
    pub into: Register,
    pub entries: Entries,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    Product(Product),
    /// With `s_i = 1/sqrt(max(Σ_j |gram_ij|, AOL_LEAST))`: `x ← diag(s)·x` and
    /// `gram ← diag(s)·gram·diag(s)`, both in place.
    Aol {
        x: Register,
        gram: Register,
    },
}

/// Keeps the rescale of rows of zeros finite, and of a matrix below its least norm from undoing it.
pub const AOL_LEAST: f64 = 1e-12;

/// The operations on a matrix whose sides are `short` and `long`.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    pub short: usize,
    pub long: usize,
    /// Never [`Algorithm::Auto`]. That of an SVD has no stage.
    pub algorithm: Algorithm,
    /// Operations of a stage read what earlier stages wrote.
    pub stages: Vec<Vec<Op>>,
    /// Registers `X(0..x_registers)` and `S(0..s_registers)` are used.
    pub x_registers: usize,
    pub s_registers: usize,
}

impl Program {
    /// Useful FLOPs: a product of `[i, k]` and `[k, j]` is `2·i·j·k`, a triangle half of it.
    pub fn flops(&self) -> f64 {
        let (n, m) = (self.short as f64, self.long as f64);
        let products = self.stages.iter().flatten().map(|op| match op {
            Op::Aol { .. } => 0.0,
            Op::Product(product) => {
                let full = match product.kind {
                    Kind::Gram | Kind::Apply => 2.0 * n * n * m,
                    Kind::Square => 2.0 * n * n * n,
                    Kind::Combine => 0.0,
                };
                match product.entries {
                    Entries::All => full,
                    Entries::Triangle => full / 2.0,
                }
            }
        });
        products.sum()
    }

    /// An X that the last operation does not read: memory of the result may hold it until then.
    pub(crate) fn spare_x(&self) -> Option<usize> {
        let last = self.stages.last()?;
        (0..self.x_registers)
            .rev()
            .find(|&x| last.iter().all(|op| !op.reads().contains(&Register::X(x))))
    }
}

impl Op {
    /// The registers that are read; some more than once.
    pub fn reads(&self) -> [Register; 3] {
        match *self {
            Op::Aol { x, gram } => [x, gram, gram],
            Op::Product(Product { left, right, addend, .. }) => {
                [left, right, addend.map_or(right, |(_, register)| register)]
            }
        }
    }
}

impl Iteration {
    /// The products for a matrix whose sides are `short` and `long`.
    pub fn program(&self, short: usize, long: usize) -> Program {
        let build = |algorithm| Builder::build(self, algorithm, short, long);
        match self.method().algorithm {
            Algorithm::Auto => {
                let symmetric = build(Algorithm::Symmetric);
                // bf16 is too coarse for a Gram form (see the rounding table).
                if self.method().storage == Storage::Bf16 {
                    return symmetric;
                }
                let gram = build(Algorithm::Gram);
                if gram.flops() <= 0.9 * symmetric.flops() { gram } else { symmetric }
            }
            algorithm => build(algorithm),
        }
    }
}

/// The matrix `alpha·register + a·I`, where `a` is zero if it is stored with the register.
#[derive(Clone, Copy)]
struct Factor {
    register: Register,
    alpha: f64,
    a: f64,
}

/// Where the factor stands.
#[derive(Clone, Copy)]
enum Side {
    Left,
    Right,
}

fn addend(a: f64, register: Register) -> Option<(f64, Register)> {
    (a != 0.0).then_some((a, register))
}

/// Collects operations on numbered values, one register each, and the stage where each is ready.
struct Builder<'a> {
    iteration: &'a Iteration,
    /// Of the products that are symmetric.
    symmetric: Entries,
    stages: Vec<Vec<Op>>,
    ready_x: Vec<usize>,
    ready_s: Vec<usize>,
}

impl Builder<'_> {
    fn build(iteration: &Iteration, algorithm: Algorithm, short: usize, long: usize) -> Program {
        let mut builder = Builder {
            iteration,
            symmetric: match algorithm {
                Algorithm::Standard => Entries::All,
                _ => Entries::Triangle,
            },
            stages: Vec::new(),
            ready_x: vec![0],
            ready_s: Vec::new(),
        };
        match algorithm {
            Algorithm::Svd => {}
            Algorithm::Gram => builder.gram_form(),
            _ => builder.direct(),
        }
        let Builder { stages, ready_x, ready_s, .. } = builder;
        let mut program =
            Program { short, long, algorithm, stages, x_registers: 1, s_registers: 0 };
        share_registers(&mut program, ready_x.len(), ready_s.len());
        program
    }

    fn direct(&mut self) {
        let (mut x, last) = (INPUT, self.iteration.polynomials().len() - 1);
        for index in 0..=last {
            let a = self.gram(x, index);
            let factor = self.factor(a, index);
            x = self.apply(factor, x, index == last);
        }
    }

    fn gram_form(&mut self) {
        let (mut x, steps) = (INPUT, self.iteration.polynomials().len());
        let (mut r, mut q) = (self.gram(x, 0), None);
        for index in 0..steps {
            let last = index + 1 == steps;
            let restart = self.iteration.restarts().contains(&(index + 1));
            let factor = self.factor(r, index);
            if !(last || restart) {
                q = Some(match q {
                    None => self.stored(factor),
                    Some(q) => self.square(factor, q, Side::Left),
                });
                let half = self.square(factor, r, Side::Right);
                r = self.square(factor, half, Side::Left);
                continue;
            }
            let whole = match q.take() {
                None => factor,
                Some(q) => {
                    Factor { register: self.square(factor, q, Side::Left), alpha: 1.0, a: 0.0 }
                }
            };
            x = self.apply(whole, x, last);
            if restart {
                r = self.gram(x, index + 1);
            }
        }
    }

    /// `X·Xᵀ` before step `index`, rescaled before the first if the set asks for it.
    fn gram(&mut self, x: Register, index: usize) -> Register {
        let into = self.new_s();
        self.product(Kind::Gram, (1.0, x, x), None, 0.0, into);
        if index == 0 && self.iteration.method().coefficients.is_preconditioned() {
            self.push(Op::Aol { x, gram: into }, &[x, into]);
        }
        into
    }

    /// `p(x)/x` of the Gram matrix `a`.
    fn factor(&mut self, a: Register, index: usize) -> Factor {
        let iteration = self.iteration;
        let c = iteration.polynomials()[index].coefficients();
        let top = c.len() - 1;
        if top == 1 {
            return Factor { register: a, alpha: c[1], a: c[0] };
        }
        let stored = iteration.method().storage == Storage::F32;
        let (mut register, mut alpha) = (a, c[top]);
        for (i, &coefficient) in c.iter().enumerate().take(top).skip(1).rev() {
            let gamma = if i == 1 && stored { c[0] } else { 0.0 };
            let into = self.new_s();
            self.product(Kind::Square, (alpha, a, register), Some((coefficient, a)), gamma, into);
            (register, alpha) = (into, 1.0);
        }
        Factor { register, alpha: 1.0, a: if stored { 0.0 } else { c[0] } }
    }

    /// The factor as a matrix.
    fn stored(&mut self, factor: Factor) -> Register {
        let Factor { register, alpha, a } = factor;
        if alpha == 1.0 && a == 0.0 {
            return register;
        }
        let into = self.new_s();
        self.product(Kind::Combine, (0.0, register, register), Some((alpha, register)), a, into);
        into
    }

    fn square(
        &mut self,
        Factor { register, alpha, a }: Factor,
        s: Register,
        side: Side,
    ) -> Register {
        let into = self.new_s();
        let (left, right) = match side {
            Side::Left => (register, s),
            Side::Right => (s, register),
        };
        self.product(Kind::Square, (alpha, left, right), addend(a, s), 0.0, into);
        into
    }

    fn apply(
        &mut self,
        Factor { register, alpha, a }: Factor,
        x: Register,
        last: bool,
    ) -> Register {
        let into = if last { Register::Out } else { self.new_x() };
        self.product(Kind::Apply, (alpha, register, x), addend(a, x), 0.0, into);
        into
    }

    fn product(
        &mut self,
        kind: Kind,
        (alpha, left, right): (f64, Register, Register),
        addend: Option<(f64, Register)>,
        gamma: f64,
        into: Register,
    ) {
        let entries = match kind {
            Kind::Gram | Kind::Square => self.symmetric,
            Kind::Apply | Kind::Combine => Entries::All,
        };
        let product = Product { kind, left, right, addend, alpha, gamma, into, entries };
        self.push(Op::Product(product), &[into]);
    }

    fn new_x(&mut self) -> Register {
        self.ready_x.push(0);
        Register::X(self.ready_x.len() - 1)
    }

    fn new_s(&mut self) -> Register {
        self.ready_s.push(0);
        Register::S(self.ready_s.len() - 1)
    }

    /// Puts an operation where all that it reads is ready.
    fn push(&mut self, op: Op, writes: &[Register]) {
        let ready = |register: Register| match register {
            Register::X(x) => self.ready_x[x],
            Register::S(s) => self.ready_s[s],
            Register::Out => 0,
        };
        let stage = op.reads().map(ready).into_iter().max().unwrap_or(0);
        if self.stages.len() <= stage {
            self.stages.resize(stage + 1, Vec::new());
        }
        self.stages[stage].push(op);
        for &register in writes {
            match register {
                Register::X(x) => self.ready_x[x] = stage + 1,
                Register::S(s) => self.ready_s[s] = stage + 1,
                Register::Out => {}
            }
        }
    }
}

/// Gives values that do not live at the same time the same register. A value lives from the stage
/// that writes it to the last that reads it, both included: no stage writes what it reads.
fn share_registers(program: &mut Program, x_values: usize, s_values: usize) {
    let mut last_read = [vec![0; x_values], vec![0; s_values]];
    for (stage, ops) in program.stages.iter().enumerate() {
        for (class, value) in ops.iter().flat_map(Op::reads).filter_map(number) {
            last_read[class][value] = stage;
        }
    }
    let mut registers = [vec![usize::MAX; x_values], vec![usize::MAX; s_values]];
    // Free registers, and registers in use with the last stage that reads them.
    let mut classes = [Pool::default(), Pool::default()];
    registers[0][0] = classes[0].take(last_read[0][0]);
    for (stage, ops) in program.stages.iter_mut().enumerate() {
        classes.iter_mut().for_each(|pool| pool.release_before(stage));
        for op in ops.iter() {
            let Op::Product(product) = op else { continue };
            if let Some((class, value)) = number(product.into) {
                registers[class][value] = classes[class].take(last_read[class][value]);
            }
        }
        let rename = |register: &mut Register| match register {
            Register::X(value) => *value = registers[0][*value],
            Register::S(value) => *value = registers[1][*value],
            Register::Out => {}
        };
        for op in ops.iter_mut() {
            match op {
                Op::Aol { x, gram } => [x, gram].map(rename),
                Op::Product(Product { left, right, addend, into, .. }) => {
                    addend.iter_mut().for_each(|(_, register)| rename(register));
                    rename(into);
                    [left, right].map(rename)
                }
            };
        }
    }
    (program.x_registers, program.s_registers) = (classes[0].count, classes[1].count);
}

/// The class of a register, and its number.
fn number(register: Register) -> Option<(usize, usize)> {
    match register {
        Register::X(x) => Some((0, x)),
        Register::S(s) => Some((1, s)),
        Register::Out => None,
    }
}

#[derive(Default)]
struct Pool {
    free: Vec<usize>,
    /// Registers and the last stage that reads each.
    used: Vec<(usize, usize)>,
    count: usize,
}

impl Pool {
    fn take(&mut self, last_read: usize) -> usize {
        let register = self.free.pop().unwrap_or_else(|| {
            self.count += 1;
            self.count - 1
        });
        self.used.push((register, last_read));
        register
    }

    /// Frees what no stage from `stage` on reads.
    fn release_before(&mut self, stage: usize) {
        let free = &mut self.free;
        self.used.retain(|&(register, last_read)| {
            if last_read < stage {
                free.push(register);
            }
            last_read >= stage
        });
    }
}

#[cfg(test)]
#[path = "program_tests.rs"]
mod tests;
