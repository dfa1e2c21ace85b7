//! Products of tables of problems on a simulated `gemm` module, and what they must give.

use bytemuck::{Pod, Zeroable};
use half::bf16;

use super::module::{Module, Order, Shape};
use super::tiles::{Format, Grid, Random};

const LOWER: u32 = 1;
const OUT_BF16: u32 = 2;
const OUT_TRANSPOSED: u32 = 4;
/// The value of the caller's matrix before, to see which elements are written.
const UNTOUCHED: f32 = 12345.0;

/// `MusterGemmProblem`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable, Default)]
struct Problem {
    a: u64,
    b: u64,
    c: u64,
    d: u64,
    out: u64,
    a_tiles_per_row: u32,
    b_tiles_per_row: u32,
    c_tiles_per_row: u32,
    d_tiles_per_row: u32,
    m_blocks: u32,
    n_blocks: u32,
    k_tiles: u32,
    first_block: u32,
    rows: u32,
    cols: u32,
    out_row_stride: u32,
    flags: u32,
    alpha: f32,
    beta: f32,
    gamma: f32,
    out_scale: f32,
    reserved: [u32; 6],
}

/// `MusterGemmArgs`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    problems: u64,
    problem_count: u32,
    block_count: u32,
    group_rows: u32,
    xcds: u32,
}

/// A kernel of the family: its name and the launch that it needs, as gemm.cu and gemm.hip say.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    pub nn: bool,
    pub format: Format,
    pub class: usize,
}

impl Kernel {
    pub fn name(&self) -> String {
        let form = if self.nn { "nn" } else { "nt" };
        format!("gemm_{form}_{}_{}", self.format.name(), self.class)
    }

    /// Elements of a unit's side: what `m_blocks` and `n_blocks` count.
    fn unit(&self, arch: &str) -> usize {
        if arch == "sm_80" { 128 } else { self.class }
    }

    /// The shape for `units` units on a chip that holds `resident` blocks.
    fn shape(&self, arch: &str, units: u32, resident: u32) -> Shape {
        let (threads, shared_bytes, cluster) = match (arch, self.class) {
            ("sm_90a", 256) => (384, 230_112, 2),
            ("sm_90a", _) => (384, 230_144, 1),
            ("sm_80", _) => (256, 98_304, 1),
            ("gfx950", 256) => (512, 163_840, 1),
            ("gfx950", _) => (256, 81_920, 1),
            (_, 256) => (512, 65_536, 1),
            (_, _) => (256, 32_768, 1),
        };
        Shape { blocks: cluster * units.min(resident / cluster), threads, cluster, shared_bytes }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addend {
    None,
    /// Present, but beta is 0: it must not be read.
    Ignored,
    Separate,
    InPlace,
}

#[derive(Clone, Copy, Debug)]
pub struct Out {
    pub bf16: bool,
    pub transposed: bool,
    pub scale: f32,
    /// Elements between the rows.
    pub gap: usize,
}

/// One problem, by what it computes.
#[derive(Clone, Debug)]
pub struct Spec {
    pub rows: usize,
    pub cols: usize,
    pub depth: usize,
    pub lower: bool,
    /// A lower triangle of a product that is not symmetric, which its transpose is to complete.
    pub skewed: bool,
    pub alpha: f32,
    pub beta: f32,
    pub gamma: f32,
    pub addend: Addend,
    pub store: bool,
    pub out: Option<Out>,
    /// Integers, whose results are exact.
    pub exact: bool,
    pub seed: u64,
}

/// A problem with its memory.
#[derive(Clone)]
struct Memory {
    spec: Spec,
    a: Grid,
    /// Not there if B is A.
    b: Option<Grid>,
    c: Option<Grid>,
    d: Option<Grid>,
    out: Vec<u128>,
    stride: usize,
}

/// The results of a launch for one problem.
#[derive(PartialEq)]
pub struct Answer {
    d: Vec<u8>,
    out: Vec<u8>,
}

impl Spec {
    /// A problem of up to two units a side.
    pub fn random(random: &mut Random, exact: bool, unit: usize) -> Self {
        let lower = random.below(2) == 0;
        let rows = 1 + random.below(2 * unit);
        let cols = if lower { rows } else { 1 + random.below(2 * unit) };
        let addend =
            random.pick(&[Addend::None, Addend::Ignored, Addend::Separate, Addend::InPlace]);
        let beta = if addend == Addend::Ignored { 0.0 } else { random.pick(&[0.25, -3.0]) };
        let out = Out {
            bf16: random.below(2) == 0,
            transposed: !lower && random.below(2) == 0,
            scale: random.pick(&[1.0, 0.5]),
            gap: random.pick(&[0, 1, 8]),
        };
        let with_out = random.below(2) == 0;
        Self {
            rows,
            cols,
            depth: 1 + random.below(200),
            lower,
            skewed: lower && random.below(2) == 0,
            alpha: random.pick(&[1.0, 0.5, -2.0]),
            beta,
            // The identity is for square results.
            gamma: if rows == cols { random.pick(&[0.0, 1.5]) } else { 0.0 },
            addend,
            store: !with_out || addend == Addend::InPlace || random.below(2) == 0,
            out: with_out.then_some(out),
            exact,
            seed: random.below(1 << 30) as u64,
        }
    }
}

impl Memory {
    fn new(spec: &Spec, kernel: &Kernel, unit: usize) -> Self {
        let mut random = Random::new(spec.seed);
        let exact = spec.exact;
        let mut value = move || if exact { random.integer() } else { random.real() };
        let padded = |size: usize| size.div_ceil(unit) * (unit / 64);
        let (m, n, k) = (padded(spec.rows), padded(spec.cols), spec.depth.div_ceil(64));
        let mut a = Grid::new(kernel.format, m, k + 1);
        let b = match (spec.lower && !spec.skewed, kernel.nn) {
            // A symmetric matrix times itself.
            (true, true) => {
                a = Grid::new(kernel.format, m, m);
                symmetric(&mut a, spec.rows, &mut value);
                None
            }
            // X·Xᵀ.
            (true, false) => {
                a.fill(spec.rows, spec.depth, |_, _| value());
                None
            }
            (false, nn) => {
                a.fill(spec.rows, spec.depth, |_, _| value());
                let (rows, cols) = if nn { (k, n + 1) } else { (n, k) };
                let mut b = Grid::new(kernel.format, rows, cols);
                let (rows, cols) =
                    if nn { (spec.depth, spec.cols) } else { (spec.cols, spec.depth) };
                b.fill(rows, cols, |_, _| value());
                Some(b)
            }
        };
        let mut addend = Grid::new(kernel.format, m, n);
        match spec.addend {
            Addend::Ignored => addend.fill(m * 64, n * 64, |_, _| f32::NAN),
            _ if spec.lower && !spec.skewed => symmetric(&mut addend, spec.rows, &mut value),
            _ => addend.fill(spec.rows, spec.cols, |_, _| value()),
        }
        let mut d = spec.store.then(|| Grid::new(kernel.format, m, n));
        if let (Some(d), Addend::InPlace) = (&mut d, spec.addend) {
            d.bytes_mut().copy_from_slice(addend.bytes());
        }
        let own = matches!(spec.addend, Addend::Separate | Addend::Ignored);
        let (mut out, mut stride) = (Vec::new(), 0);
        if let Some(to) = spec.out {
            let (height, width) = out_shape(spec, to);
            stride = width + to.gap;
            out = vec![0; (height * stride * if to.bf16 { 2 } else { 4 }).div_ceil(16)];
            for index in 0..height * stride {
                write_out(&mut out, to, index, UNTOUCHED);
            }
        }
        Self { spec: spec.clone(), a, b, c: own.then_some(addend), d, out, stride }
    }

    fn k_tiles(&self, kernel: &Kernel) -> usize {
        match (self.spec.lower && !self.spec.skewed, kernel.nn) {
            (true, true) => self.spec.rows.div_ceil(64),
            _ => self.spec.depth.div_ceil(64),
        }
    }

    fn problem(&mut self, kernel: &Kernel, unit: usize, first_block: u32) -> Problem {
        let spec = &self.spec;
        let blocks = |size: usize| size.div_ceil(unit) as u32;
        let address = |grid: &Grid| grid.bytes().as_ptr() as u64;
        let b = self.b.as_ref().unwrap_or(&self.a);
        let d = self.d.as_ref();
        let c = match spec.addend {
            Addend::InPlace => d,
            _ => self.c.as_ref(),
        };
        let across = |grid: Option<&Grid>| grid.map_or(0, |grid| grid.col_tiles as u32);
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        let out = spec.out;
        Problem {
            a: address(&self.a),
            b: address(b),
            c: c.map_or(0, address),
            d: d.map_or(0, address),
            out: out.map_or(0, |_| self.out.as_ptr() as u64),
            a_tiles_per_row: self.a.col_tiles as u32,
            b_tiles_per_row: b.col_tiles as u32,
            c_tiles_per_row: across(c),
            d_tiles_per_row: across(d),
            m_blocks: blocks(spec.rows),
            n_blocks: blocks(spec.cols),
            k_tiles: self.k_tiles(kernel) as u32,
            first_block,
            rows: spec.rows as u32,
            cols: spec.cols as u32,
            out_row_stride: self.stride as u32,
            flags: flag(spec.lower, LOWER)
                | flag(out.is_some_and(|out| out.bf16), OUT_BF16)
                | flag(out.is_some_and(|out| out.transposed), OUT_TRANSPOSED),
            alpha: spec.alpha,
            beta: spec.beta,
            gamma: spec.gamma,
            out_scale: out.map_or(1.0, |out| out.scale),
            reserved: [0; 6],
        }
    }

    /// Elements before they are stored, by plain loops, and what roundings can do to each.
    fn expected(&self, before: &Self, kernel: &Kernel) -> Vec<(f64, f64)> {
        let spec = &self.spec;
        let depth = self.k_tiles(kernel) * 64;
        let right = self.b.as_ref().unwrap_or(&self.a);
        let a = rows_of(spec.rows, depth, |row, k| self.a.get(row, k));
        let b = rows_of(spec.cols, depth, |col, k| {
            if kernel.nn { right.get(k, col) } else { right.get(col, k) }
        });
        let c = match spec.addend {
            Addend::None | Addend::Ignored => None,
            Addend::Separate => before.c.as_ref(),
            Addend::InPlace => before.d.as_ref(),
        };
        let element = |row: usize, col: usize| {
            let (row, col) = if spec.lower && col > row { (col, row) } else { (row, col) };
            let products = || a[row].iter().zip(&b[col]).map(|(a, b)| a * b);
            let addend = f64::from(spec.beta * c.map_or(0.0, |c| c.get(row, col)));
            let identity = if row == col { f64::from(spec.gamma) } else { 0.0 };
            let value = f64::from(spec.alpha) * products().sum::<f64>() + addend + identity;
            if spec.exact {
                return (value, 0.0);
            }
            // Each of at most depth + 3 roundings of f32 is at most 2⁻²⁴ of the sum of magnitudes.
            let products: f64 = products().map(f64::abs).sum();
            let magnitude = products * f64::from(spec.alpha.abs()) + addend.abs() + identity.abs();
            (value, magnitude * (depth + 3) as f64 / (1 << 24) as f64)
        };
        let rows = 0..spec.rows;
        rows.flat_map(|row| (0..spec.cols).map(move |col| (row, col)))
            .map(|(row, col)| element(row, col))
            .collect()
    }

    fn check(&self, before: &Self, kernel: &Kernel) {
        let Self { spec, d, .. } = self;
        let values = self.expected(before, kernel);
        if let Some(d) = d {
            for row in 0..d.rows() {
                for col in 0..d.cols() {
                    let inside = row < spec.rows && col < spec.cols;
                    let (value, error) =
                        if inside { values[row * spec.cols + col] } else { (0.0, 0.0) };
                    let got = d.get(row, col);
                    let stored =
                        |value: f64| kernel.format.decode(kernel.format.encode(value as f32));
                    let most = stored(value + error);
                    let least = stored(value - error);
                    assert!(
                        least <= got && got <= most,
                        "D[{row}][{col}] is {got}, not {value}: {spec:?}"
                    );
                    assert!(
                        !spec.lower || !inside || got == d.get(col, row),
                        "D[{row}][{col}] is not mirrored: {spec:?}"
                    );
                }
            }
        }
        let Some(to) = spec.out else { return };
        let (height, width) = out_shape(spec, to);
        for index in 0..height * self.stride {
            let (row, col) = (index / self.stride, index % self.stride);
            let got = read_out(&self.out, to, index);
            if col >= width {
                assert_eq!(
                    got,
                    stored_out(to, UNTOUCHED),
                    "out[{row}][{col}] is written: {spec:?}"
                );
                continue;
            }
            let (i, j) = if to.transposed { (col, row) } else { (row, col) };
            let (value, error) = values[i * spec.cols + j];
            let scale = f64::from(to.scale);
            let most = stored_out(to, ((value + error) * scale) as f32);
            let least = stored_out(to, ((value - error) * scale) as f32);
            assert!(
                least <= got && got <= most,
                "out[{row}][{col}] is {got}, not {}: {spec:?}",
                value * scale
            );
        }
    }

    fn parts(&mut self) -> Vec<&mut [u8]> {
        let grids = [Some(&mut self.a), self.b.as_mut(), self.c.as_mut(), self.d.as_mut()];
        let mut parts: Vec<&mut [u8]> = grids.into_iter().flatten().map(Grid::bytes_mut).collect();
        if !self.out.is_empty() {
            parts.push(bytemuck::cast_slice_mut(&mut self.out));
        }
        parts
    }
}

/// One launch over a table; its answers are checked against plain loops if `checked`.
pub fn launch(
    module: &Module,
    kernel: &Kernel,
    specs: &[Spec],
    (group_rows, xcds, resident): (u32, u32, u32),
    order: Order,
    checked: bool,
) -> Vec<Answer> {
    let unit = kernel.unit(&module.arch);
    let mut memory: Vec<Memory> =
        specs.iter().map(|spec| Memory::new(spec, kernel, unit)).collect();
    let before = memory.clone();
    let mut units = 0;
    let mut table: Vec<Problem> = Vec::new();
    for part in &mut memory {
        table.push(part.problem(kernel, unit, units));
        let last = table.last().unwrap();
        let (m, n) = (last.m_blocks, last.n_blocks);
        units += if part.spec.lower { m * (m + 1) / 2 } else { m * n };
    }
    let args = Args {
        problems: table.as_ptr() as u64,
        problem_count: table.len() as u32,
        block_count: units,
        group_rows,
        xcds,
    };
    let shape = kernel.shape(&module.arch, units, resident);
    let mut parts: Vec<&mut [u8]> = memory.iter_mut().flat_map(Memory::parts).collect();
    parts.push(bytemuck::cast_slice_mut(&mut table));
    let done = module.launch(&kernel.name(), shape, bytemuck::bytes_of(&args), &mut parts, order);
    done.unwrap_or_else(|report| {
        panic!("{} on {}, {order:?}, {shape:?}: {report}\n{specs:#?}", kernel.name(), module.arch)
    });
    for (after, before) in memory.iter().zip(&before) {
        assert!(
            after.a == before.a && after.b == before.b,
            "an operand is written: {:?}",
            after.spec
        );
        if checked {
            after.check(before, kernel);
        }
    }
    let answer = |memory: &Memory| Answer {
        d: memory.d.as_ref().map_or(Vec::new(), |d| d.bytes().to_vec()),
        out: bytemuck::cast_slice(&memory.out).to_vec(),
    };
    memory.iter().map(answer).collect()
}

pub fn unit(module: &Module, kernel: &Kernel) -> usize {
    kernel.unit(&module.arch)
}

fn symmetric(grid: &mut Grid, size: usize, value: &mut impl FnMut() -> f32) {
    for row in 0..size {
        for col in 0..=row {
            let value = value();
            grid.set(row, col, value);
            grid.set(col, row, value);
        }
    }
}

fn rows_of(rows: usize, depth: usize, at: impl Fn(usize, usize) -> f32) -> Vec<Vec<f64>> {
    let row = |row| (0..depth).map(|k| f64::from(at(row, k))).collect();
    (0..rows).map(row).collect()
}

fn out_shape(spec: &Spec, out: Out) -> (usize, usize) {
    if out.transposed { (spec.cols, spec.rows) } else { (spec.rows, spec.cols) }
}

fn stored_out(out: Out, value: f32) -> f32 {
    if out.bf16 { bf16::from_f32(value).to_f32() } else { value }
}

fn write_out(memory: &mut [u128], out: Out, index: usize, value: f32) {
    if out.bf16 {
        bytemuck::cast_slice_mut::<_, u16>(memory)[index] = bf16::from_f32(value).to_bits();
    } else {
        bytemuck::cast_slice_mut::<_, f32>(memory)[index] = value;
    }
}

fn read_out(memory: &[u128], out: Out, index: usize) -> f32 {
    if out.bf16 {
        bf16::from_bits(bytemuck::cast_slice::<_, u16>(memory)[index]).to_f32()
    } else {
        bytemuck::cast_slice::<_, f32>(memory)[index]
    }
}
