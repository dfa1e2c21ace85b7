//! One batch of equal products, to be measured and checked apart from everything else.

use device::{Arch, DType, Stream, Tensor};

use super::abi::{self, GemmProblem, NsMatrix};
use super::arch::{Class, Form, TILE, TILE_BYTES, TileType, gemm};
use super::bound_launch::{Binder, BoundLaunch};
use super::execute::{bytes_of, upload};
use super::layout::Cursor;
use super::limit::{Ceiling, Limit, limit_of};
use super::modules::Kernels;
use super::plan::{Bases, GemmLaunch, Launch, Part, Plan, Problem};
use super::tiles;
use crate::{Entries, KernelError, op::check_home};

const KERNEL: &str = "gemm";

/// `batch` products `[m, k]·[k, n]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub batch: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// Products as they are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    pub shape: Shape,
    /// A triangle: the right operand is the left one's transpose.
    pub entries: Entries,
    /// Whether the right operand is given as `[n, k]` or as `[k, n]`.
    pub form: Form,
    pub tiles: TileType,
    pub class: Class,
}

impl Spec {
    /// Useful FLOPs of the batch.
    pub fn flops(&self) -> f64 {
        let Shape { batch, m, n, k } = self.shape;
        let full = 2.0 * batch as f64 * m as f64 * n as f64 * k as f64;
        if self.is_symmetric() { full / 2.0 } else { full }
    }

    fn is_symmetric(&self) -> bool {
        self.entries == Entries::Triangle
    }

    fn check(&self) -> Result<(), KernelError> {
        let Shape { batch, m, n, k } = self.shape;
        let refused = |message: &str| {
            let message = format!("{batch} × {m}×{n}×{k}: {message}");
            Err(KernelError::Argument { kernel: KERNEL, message })
        };
        if [batch, m, n, k].iter().any(|&extent| extent == 0 || extent > 1 << 20) {
            return refused("use extents of 1 to 2^20");
        }
        if self.is_symmetric() && (m != n || self.form != Form::Nt) {
            return refused("a symmetric product is square, of form nt");
        }
        Ok(())
    }

    /// Tiles along an extent, with padding.
    fn padded(&self, extent: usize) -> u32 {
        (extent.next_multiple_of(self.class.side()) / TILE) as u32
    }
}

/// Where everything lies in the workspace.
struct Places {
    a: Vec<u64>,
    b: Vec<u64>,
    d: Vec<u64>,
    table_bytes: u64,
    end: u64,
}

/// Products that are planned for a device.
pub struct Products {
    kernels: Kernels,
    spec: Spec,
    places: Places,
}

impl Products {
    /// # Errors
    /// Extents that are zero or too large; a symmetric product that is not square.
    pub fn new(kernels: &Kernels, spec: Spec) -> Result<Products, KernelError> {
        spec.check()?;
        let Shape { batch, m, n, k } = spec.shape;
        let grid = |rows: usize, cols: usize| {
            u64::from(spec.padded(rows)) * u64::from(spec.padded(cols)) * TILE_BYTES
        };
        let mut cursor = Cursor::default();
        let mut grids = |bytes| (0..batch).map(|_| cursor.take(bytes)).collect::<Vec<u64>>();
        let a = grids(grid(m, k));
        let b = if spec.is_symmetric() { a.clone() } else { grids(grid(n, k)) };
        let d = grids(grid(m, n));
        let table = batch * (2 * size_of::<NsMatrix>() + size_of::<GemmProblem>());
        // Each of the two tables starts aligned.
        let places = Places { a, b, d, table_bytes: table as u64 + 512, end: cursor.end() };
        Ok(Products { kernels: kernels.clone(), spec, places })
    }

    pub fn workspace_bytes(&self) -> usize {
        self.places.end as usize
    }

    /// Packs the operands, f32 and dense: `a` is `[batch, m, k]`, `b` is `[batch, n, k]` or
    /// `[batch, k, n]` by the form; a symmetric product has `a` twice.
    ///
    /// # Errors
    /// Tensors of other types or sizes; kernels that do not load.
    pub fn bind(
        &self,
        stream: &Stream,
        (a, b): (&Tensor, &Tensor),
        workspace: &Tensor,
    ) -> Result<BoundProducts, KernelError> {
        let Shape { batch, m, n, k } = self.spec.shape;
        for (operand, tensor, expected) in [("a", a, batch * m * k), ("b", b, batch * n * k)] {
            if tensor.dtype() != DType::F32 {
                return Err(KernelError::Dtype { kernel: KERNEL, dtype: tensor.dtype() });
            }
            crate::error::expect(KERNEL, operand, tensor, expected)?;
        }
        check_home(KERNEL, self.kernels.device(), [a, b, workspace])?;
        let (got, expected) = (workspace.bytes(), self.workspace_bytes());
        if got < expected || !workspace.address().is_multiple_of(256) {
            let operand = "workspace (in bytes, aligned to 256)";
            return Err(KernelError::Operand { kernel: KERNEL, operand, got, expected });
        }
        let (part, launch) = self.part(a.address(), b.address());
        let Places { end: workspace_bytes, table_bytes, .. } = self.places;
        let plan = Plan { parts: vec![part], workspace_bytes, table_bytes };
        let bases = Bases { input: 0, output: 0, status: 0, workspace: workspace.address() };
        let tables = upload(stream, &plan.tables(&bases))?;
        let start = tables.address();
        let binder = Binder { kernels: &self.kernels, tiles: self.spec.tiles, tables: start };
        for bound in binder.before(&plan.parts[0])? {
            // SAFETY: every place in the tables was measured above, and memory that is freed
            // later is freed after the work that was enqueued before.
            unsafe { bound.launch(stream) }?;
        }
        let bound = binder.gemm(&launch)?;
        let (spec, d) = (self.spec, self.places.d.clone());
        let workspace = workspace.clone();
        Ok(BoundProducts { bound, launch, spec, d, workspace, _tables: tables })
    }

    fn part(&self, a: u64, b: u64) -> (Part, GemmLaunch) {
        let Spec { shape: Shape { batch, m, n, k }, form, tiles, class, .. } = self.spec;
        let symmetric = self.spec.is_symmetric();
        let mut matrices = Vec::new();
        let mut tiles_before = 0;
        let mut pack = |input: u64, x: u64, rows: usize, cols: usize| {
            let (row_tiles, col_tiles) = (self.spec.padded(rows), self.spec.padded(cols));
            let f16 = if tiles == TileType::F16 { abi::NS_TILES_F16 } else { 0 };
            matrices.push(NsMatrix {
                input,
                x,
                rows: rows as u32,
                cols: cols as u32,
                row_stride: cols as u32,
                flags: abi::NS_PLAIN | f16,
                row_tiles,
                col_tiles,
                first_tile: tiles_before,
                ..NsMatrix::default()
            });
            tiles_before += row_tiles * col_tiles;
        };
        let mut problems = Vec::new();
        let (m_tiles, n_tiles, k_tiles) =
            (self.spec.padded(m), self.spec.padded(n), self.spec.padded(k));
        let per_unit = gemm(self.kernels.arch(), class).unit / TILE as u32;
        let mut units = 0;
        for i in 0..batch {
            let places = (self.places.a[i], self.places.b[i], self.places.d[i]);
            pack(a + (i * m * k * 4) as u64, places.0, m, k);
            if !symmetric {
                let (rows, cols) = if form == Form::Nt { (n, k) } else { (k, n) };
                pack(b + (i * n * k * 4) as u64, places.1, rows, cols);
            }
            let problem = Problem::plain(GemmProblem {
                a: places.0,
                b: places.1,
                d: places.2,
                a_tiles_per_row: k_tiles,
                b_tiles_per_row: if form == Form::Nt { k_tiles } else { n_tiles },
                d_tiles_per_row: n_tiles,
                m_blocks: m_tiles / per_unit,
                n_blocks: n_tiles / per_unit,
                k_tiles: k.div_ceil(TILE) as u32,
                first_block: units,
                rows: m as u32,
                cols: n as u32,
                flags: if symmetric { abi::GEMM_LOWER } else { 0 },
                alpha: 1.0,
                ..GemmProblem::default()
            });
            units += problem.units() as u32;
            problems.push(problem);
        }
        let mut tables = Cursor::default();
        let table = tables.take(size_of_val(&matrices[..]) as u64);
        let of_problems = tables.take((problems.len() * size_of::<GemmProblem>()) as u64);
        let is_chain = false;
        let launch = GemmLaunch { form, class, problems, units, is_chain, table: of_problems };
        let launches = vec![Launch::Gemm(launch.clone())];
        (Part::new(matrices, (0, tiles_before), launches, table), launch)
    }
}

/// Packed products.
pub struct BoundProducts {
    bound: BoundLaunch,
    launch: GemmLaunch,
    spec: Spec,
    d: Vec<u64>,
    workspace: Tensor,
    _tables: Tensor,
}

impl BoundProducts {
    /// Enqueues the products, one launch.
    ///
    /// # Errors
    /// The device refuses.
    pub fn launch(&self, stream: &Stream) -> Result<(), KernelError> {
        // SAFETY: the tables of `bind`, which nobody else has, name places of the workspace; `self`
        // keeps both.
        unsafe { self.bound.launch(stream) }
    }

    /// Result `index`, `[m, n]`, after the work of the stream.
    ///
    /// # Errors
    /// An error of earlier work.
    pub fn result(&self, stream: &Stream, index: usize) -> Result<Vec<f32>, KernelError> {
        let Shape { m, n, .. } = self.spec.shape;
        let (down, across) = (self.spec.padded(m) as usize, self.spec.padded(n) as usize);
        let bytes = down * across * TILE_BYTES as usize;
        let place = bytes_of(&self.workspace, self.d[index] as usize, bytes)?;
        Ok(tiles::unpack(&stream.to_vec(&place)?, self.spec.tiles, (m, n), across))
    }

    /// The limit of the launch.
    pub fn limit(&self, arch: Arch, multiprocessors: u32, ceiling: Ceiling) -> Limit {
        limit_of(&self.launch, arch, multiprocessors, ceiling)
    }
}
