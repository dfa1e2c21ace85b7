//! Makes the parts of a plan.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;

use device::DType;

use super::{AolLaunch, Common, GemmLaunch, KERNEL, Launch, Part, Problem};
use crate::gpu::abi::{self, GemmProblem, NsAol, NsMatrix};
use crate::gpu::arch::{Class, Form, TILE, TileType, gemm};
use crate::gpu::layout::{Classes, Cursor, Extents, strips};
use crate::gpu::schedule;
use crate::newton_schulz::{Kind, Matrix, Op, Product, Program, Register};
use crate::{Entries, KernelError};

/// Where the parts of one matrix lie in the workspace.
#[derive(Debug, Clone, Default)]
struct Place {
    partials: u64,
    /// Of the rescale of rows.
    scales: u64,
    /// How much of each stage is done, where launches chain stages.
    counters: u64,
    x: Vec<u64>,
    s: Vec<u64>,
}

impl Place {
    fn of(&self, register: Register) -> u64 {
        match register {
            Register::X(x) => self.x[x],
            Register::S(s) => self.s[s],
            Register::Out => 0,
        }
    }
}

pub(super) struct Places {
    of: Vec<Place>,
    pub(super) end: u64,
}

/// Products of one stage, form and class, with the counter of each one's matrix and stage.
struct Stage {
    problems: Vec<(u64, Problem)>,
}

impl Stage {
    fn units(&self) -> u64 {
        self.problems.iter().map(|(_, problem)| problem.units()).sum()
    }
}

pub(super) struct Builder<'a> {
    pub(super) common: &'a Common,
    pub(super) matrices: &'a [Matrix],
    pub(super) extents: &'a [Extents],
    pub(super) programs: &'a [&'a Program],
}

impl Builder<'_> {
    fn place(&self, index: usize, cursor: &mut Cursor) -> Place {
        let (item, extents, program) =
            (&self.matrices[index], &self.extents[index], self.programs[index]);
        let is_rescaled = program.stages.iter().flatten().any(|op| matches!(op, Op::Aol { .. }));
        let scales =
            if is_rescaled { u64::from(extents.short_tiles()) * TILE as u64 * 4 } else { 0 };
        Place {
            partials: cursor.take(strips(item.rows, item.cols) * 8),
            scales: cursor.take(scales),
            counters: cursor.take(4 * u64::from(self.counter_count(index))),
            x: (0..program.x_registers).map(|_| cursor.take(extents.x_bytes())).collect(),
            s: (0..program.s_registers).map(|_| cursor.take(extents.s_bytes())).collect(),
        }
    }

    fn counter_count(&self, index: usize) -> u32 {
        if self.common.chains { self.programs[index].stages.len() as u32 } else { 0 }
    }

    pub(super) fn places(&self, range: Range<usize>) -> Places {
        let mut cursor = Cursor::default();
        let of = range.map(|index| self.place(index, &mut cursor)).collect();
        Places { of, end: cursor.end() }
    }

    /// Runs of matrices whose registers fit `limit`; a matrix that does not fit is a run of its
    /// own.
    pub(super) fn cut(&self, limit: u64) -> Vec<Range<usize>> {
        let (mut ranges, mut start, mut cursor) = (Vec::new(), 0, Cursor::default());
        for index in 0..self.matrices.len() {
            self.place(index, &mut cursor);
            if cursor.end() > limit && index > start {
                ranges.push(start..index);
                (start, cursor) = (index, Cursor::default());
                self.place(index, &mut cursor);
            }
        }
        if start < self.matrices.len() {
            ranges.push(start..self.matrices.len());
        }
        ranges
    }

    pub(super) fn part(
        &self,
        range: Range<usize>,
        places: &Places,
        tables: &mut Cursor,
    ) -> Result<Part, KernelError> {
        let (mut matrices, mut strips_before, mut tiles_before) = (Vec::new(), 0, 0);
        let mut steps = BTreeMap::<(usize, Step), Vec<(usize, &Place, Op)>>::new();
        for (index, place) in range.zip(&places.of) {
            let matrix = self.matrix(index, place, strips_before, tiles_before)?;
            strips_before += strips(self.matrices[index].rows, self.matrices[index].cols);
            // One that is empty counts as one tile: some block has to report its status.
            tiles_before += (u64::from(matrix.row_tiles) * u64::from(matrix.col_tiles)).max(1);
            matrices.push(matrix);
            if matrix.row_tiles == 0 {
                continue;
            }
            for (stage, ops) in self.programs[index].stages.iter().enumerate() {
                for op in ops {
                    let step = Step::of(op, &self.extents[index]);
                    steps.entry((stage, step)).or_default().push((index, place, *op));
                }
            }
        }
        let table = tables.take(size_of_val(&matrices[..]) as u64);
        let mut launches = Vec::new();
        let mut steps = steps.into_iter().peekable();
        while let Some(((stage, step), ops)) = steps.next() {
            let Step::Gemm(form, class) = step else {
                launches.push(self.aol(&ops, tables)?);
                continue;
            };
            let mut chain = vec![self.stage(class, stage, &ops)?];
            while let Some(((stage, _), ops)) = steps.next_if(|&((_, next), _)| next == step) {
                chain.push(self.stage(class, stage, &ops)?);
            }
            let is_short = |stage: &Stage| {
                let Common { arch, multiprocessors, .. } = *self.common;
                schedule::is_short(arch, class, multiprocessors, stage.units())
            };
            // Long stages part a chain.
            for stages in
                chain.chunk_by_mut(|a, b| self.common.chains && is_short(a) && is_short(b))
            {
                launches.push(self.gemm((form, class), stages, tables)?);
            }
        }
        let (strips, tiles) = (narrow(strips_before)?, narrow(tiles_before)?);
        Ok(Part::new(matrices, (strips, tiles), launches, table))
    }

    fn matrix(
        &self,
        index: usize,
        place: &Place,
        strips_before: u64,
        tiles_before: u64,
    ) -> Result<NsMatrix, KernelError> {
        let (item, extents, common) = (&self.matrices[index], &self.extents[index], self.common);
        let mut flags = match common.input {
            DType::F16 => abi::NS_INPUT_16 | abi::NS_INPUT_F16,
            DType::Bf16 => abi::NS_INPUT_16,
            _ => 0,
        };
        if extents.is_tall {
            flags |= abi::NS_TALL;
        }
        if common.tiles == TileType::F16 {
            flags |= abi::NS_TILES_F16;
        }
        let is_empty = extents.short == 0;
        Ok(NsMatrix {
            input: (item.input * common.input.bytes()) as u64,
            partials: place.partials,
            x: place.x.first().copied().unwrap_or(0),
            norm: 0,
            status: index as u64 * 4,
            least_norm: common.least_norm,
            rows: item.rows as u32,
            cols: item.cols as u32,
            row_stride: narrow(item.input_stride as u64)?,
            flags,
            row_tiles: if is_empty { 0 } else { extents.short_tiles() },
            col_tiles: if is_empty { 0 } else { extents.long_tiles() },
            first_strip: narrow(strips_before)?,
            first_tile: narrow(tiles_before)?,
            counters: place.counters,
            counter_count: if is_empty { 0 } else { self.counter_count(index) },
            reserved: 0,
        })
    }

    /// Products of one stage, form and class.
    fn stage(
        &self,
        class: Class,
        stage: usize,
        ops: &[(usize, &Place, Op)],
    ) -> Result<Stage, KernelError> {
        let unit = gemm(self.common.arch, class).unit;
        let mut problems = Vec::with_capacity(ops.len());
        for (index, place, op) in ops {
            if let Op::Product(product) = op {
                let counter = place.counters + 4 * stage as u64;
                problems.push((counter, self.problem(*index, place, product, unit)?));
            }
        }
        // The longest first, so that the blocks end together.
        problems.sort_by_key(|(_, problem)| Reverse(problem.k_tiles()));
        Ok(Stage { problems })
    }

    /// One launch of products of the same form and class. Of several stages, a matrix's products
    /// wait until those of its stage before are done.
    fn gemm(
        &self,
        (form, class): (Form, Class),
        stages: &mut [Stage],
        tables: &mut Cursor,
    ) -> Result<Launch, KernelError> {
        let done_by_unit = gemm(self.common.arch, class).cluster * abi::GEMM_DONE_PER_BLOCK;
        let last = stages.len() - 1;
        // For each matrix the counter of its latest stage, and what it comes to.
        let mut awaited = BTreeMap::<usize, (u64, u32)>::new();
        let (mut problems, mut units) = (Vec::new(), 0);
        for (at, stage) in stages.iter_mut().enumerate() {
            let mut doing = BTreeMap::<usize, (u64, u32)>::new();
            for (counter, mut problem) in stage.problems.drain(..) {
                if let Some(&(after, after_count)) = awaited.get(&problem.matrix) {
                    (problem.abi.after, problem.abi.after_count) = (after, after_count);
                }
                problem.abi.done = if at == last { 0 } else { counter };
                problem.abi.first_block = narrow(units)?;
                units += problem.units();
                let count = narrow(problem.units() * u64::from(done_by_unit))?;
                doing.entry(problem.matrix).or_insert((counter, 0)).1 += count;
                problems.push(problem);
            }
            awaited.extend(doing);
        }
        let (table, units) = (tables.take(size_of_table(&problems)), narrow(units)?);
        Ok(Launch::Gemm(GemmLaunch { form, class, problems, units, is_chain: last > 0, table }))
    }

    fn aol(&self, ops: &[(usize, &Place, Op)], tables: &mut Cursor) -> Result<Launch, KernelError> {
        let (mut matrices, mut rows, mut tiles) = (Vec::new(), 0, 0);
        let is_f16 = self.common.tiles == TileType::F16;
        for (index, place, op) in ops {
            let (Op::Aol { x, gram }, extents) = (op, &self.extents[*index]) else { continue };
            let (row_tiles, col_tiles) = (extents.short_tiles(), extents.long_tiles());
            matrices.push(NsAol {
                gram: place.of(*gram),
                x: place.of(*x),
                scales: place.scales,
                row_tiles,
                col_tiles,
                first_row: narrow(rows)?,
                first_tile: narrow(tiles)?,
                flags: if is_f16 { abi::NS_TILES_F16 } else { 0 },
                reserved: 0,
            });
            rows += u64::from(row_tiles);
            tiles += u64::from(row_tiles) * u64::from(row_tiles + col_tiles);
        }
        let table = tables.take(size_of_val(&matrices[..]) as u64);
        Ok(Launch::Aol(AolLaunch { matrices, rows: narrow(rows)?, tiles: narrow(tiles)?, table }))
    }

    fn problem(
        &self,
        index: usize,
        place: &Place,
        product: &Product,
        unit: u32,
    ) -> Result<Problem, KernelError> {
        let (item, extents, common) = (&self.matrices[index], &self.extents[index], self.common);
        let (short, long) = (extents.short_tiles(), extents.long_tiles());
        let is_apply = product.kind == Kind::Apply;
        let k = if product.kind == Kind::Gram { extents.long } else { extents.short };
        let (cols, across) = if is_apply { (extents.long, long) } else { (extents.short, short) };
        let per_row = |register| if matches!(register, Register::S(_)) { short } else { long };
        let is_last = product.into == Register::Out;
        let (beta, addend) = product.addend.unwrap_or((0.0, product.left));
        let is_combined = product.kind == Kind::Combine;
        let is_lower = product.entries == Entries::Triangle || is_combined;
        let mut flags = if is_lower { abi::GEMM_LOWER } else { 0 };
        if is_last && extents.is_tall {
            flags |= abi::GEMM_OUT_TRANSPOSED;
        }
        if is_last && common.output == DType::Bf16 {
            flags |= abi::GEMM_OUT_BF16;
        }
        let abi = GemmProblem {
            a: place.of(product.left),
            b: place.of(product.right),
            c: place.of(addend),
            d: place.of(product.into),
            out: (item.output * common.output.bytes()) as u64,
            a_tiles_per_row: per_row(product.left),
            b_tiles_per_row: per_row(product.right),
            c_tiles_per_row: per_row(addend),
            d_tiles_per_row: across,
            m_blocks: short * TILE as u32 / unit,
            n_blocks: across * TILE as u32 / unit,
            // The product of a combination counts for nothing.
            k_tiles: if is_combined { 1 } else { k.div_ceil(TILE) as u32 },
            rows: extents.short as u32,
            cols: cols as u32,
            out_row_stride: narrow(item.output_stride as u64)?,
            flags,
            alpha: product.alpha as f32,
            beta: beta as f32,
            gamma: product.gamma as f32,
            out_scale: item.scale as f32,
            ..GemmProblem::default()
        };
        Ok(Problem { matrix: index, abi, has_addend: product.addend.is_some(), is_last })
    }
}

/// The kinds of operations that can be one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Aol,
    Gemm(Form, Class),
}

impl Step {
    fn of(op: &Op, extents: &Extents) -> Step {
        match op {
            Op::Aol { .. } => Step::Aol,
            Op::Product(Product { kind, .. }) => {
                let Classes { gram, square, apply } = extents.classes;
                match kind {
                    Kind::Gram => Step::Gemm(Form::Nt, gram),
                    Kind::Square | Kind::Combine => Step::Gemm(Form::Nt, square),
                    Kind::Apply => Step::Gemm(Form::Nn, apply),
                }
            }
        }
    }
}

fn size_of_table(problems: &[Problem]) -> u64 {
    (problems.len() * size_of::<GemmProblem>()) as u64
}

fn narrow(value: u64) -> Result<u32, KernelError> {
    u32::try_from(value).map_err(|_| {
        let message = format!("the batch needs {value} units or elements a row, beyond 32 bits");
        KernelError::Argument { kernel: KERNEL, message }
    })
}
