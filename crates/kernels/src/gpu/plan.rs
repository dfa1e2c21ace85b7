//! From a batch to launches: a pure function.
//!
//! ```text
//! ns_norm │ ns_cast │ stage 0: gemm … │ stage 1: gemm … │ …        one part; then the next part
//! ```
//!
//! All matrices of a part advance together, stage by stage of their programs: products of one
//! stage, form and class are one launch whatever their matrices' shapes. On Hopper short stages of
//! the same form and class that follow each other are one launch, too: its units wait for what they
//! need by counters, which `ns_norm` sets to zero. The launches' tables lie apart from the
//! workspace. Here all addresses are relative; [`Plan::tables`] makes them absolute.
//!
//! Invariant: parts, order and grids change no bit of any result.

mod builder;

use device::{Arch, DType};

use super::abi::{self, GemmProblem, NsAol, NsMatrix};
use super::arch::{Class, Form, TILE, TileType};
use super::layout::{Cursor, Extents};
use super::schedule;
use crate::newton_schulz::{Matrix, Program};
use crate::{Entries, KernelError};
use builder::Builder;

const KERNEL: &str = "newton_schulz";

/// The properties that all matrices of a batch have in common.
#[derive(Debug, Clone, Copy)]
pub struct Common {
    pub arch: Arch,
    pub tiles: TileType,
    pub input: DType,
    pub output: DType,
    pub least_norm: f64,
    /// Short stages that follow each other may be one launch …
    pub chains: bool,
    /// … and how long they take depends on this.
    pub multiprocessors: u32,
}

/// Where the caller's tensors and the workspace lie on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bases {
    pub input: u64,
    pub output: u64,
    pub status: u64,
    pub workspace: u64,
}

/// A product of one matrix, with relative addresses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Problem {
    /// Number of the matrix in the batch.
    pub matrix: usize,
    abi: GemmProblem,
    has_addend: bool,
    /// The last product of its program: the result goes to the caller.
    is_last: bool,
}

impl Problem {
    /// Units of work.
    pub fn units(&self) -> u64 {
        let GemmProblem { m_blocks, n_blocks, flags, .. } = self.abi;
        let entries = match flags & abi::GEMM_LOWER {
            0 => Entries::All,
            _ => Entries::Triangle,
        };
        schedule::units(m_blocks.into(), n_blocks.into(), entries)
    }

    /// Tiles along the dimension that is summed over.
    pub fn k_tiles(&self) -> u32 {
        self.abi.k_tiles
    }

    /// Tiles of all operands and of the result.
    pub fn tiles(&self) -> u64 {
        let GemmProblem { rows, cols, k_tiles, .. } = self.abi;
        let (down, across) = (rows.div_ceil(TILE as u32), cols.div_ceil(TILE as u32));
        let of = |rows: u32, cols: u32| u64::from(rows) * u64::from(cols);
        // The two operands of a Gram product are one.
        let right = if self.abi.a == self.abi.b { 0 } else { of(across, k_tiles) };
        let addend = if self.has_addend { of(down, across) } else { 0 };
        of(down, k_tiles) + right + addend + of(down, across)
    }

    /// A product by itself, into tiles.
    pub(super) fn plain(abi: GemmProblem) -> Problem {
        Problem { matrix: 0, abi, has_addend: false, is_last: false }
    }

    fn bind(&self, bases: &Bases) -> GemmProblem {
        let mut abi = self.abi;
        abi.a += bases.workspace;
        abi.b += bases.workspace;
        abi.c = if self.has_addend { abi.c + bases.workspace } else { 0 };
        abi.d = if self.is_last { 0 } else { abi.d + bases.workspace };
        abi.out = if self.is_last { abi.out + bases.output } else { 0 };
        for counter in [&mut abi.after, &mut abi.done] {
            *counter += if *counter == 0 { 0 } else { bases.workspace };
        }
        abi
    }
}

/// One launch of a product kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct GemmLaunch {
    pub form: Form,
    pub class: Class,
    pub problems: Vec<Problem>,
    pub units: u32,
    /// Some units wait for others: all blocks must run at the same time.
    pub is_chain: bool,
    /// Where its table starts.
    pub table: u64,
}

/// Launches of the kernels that rescale rows.
#[derive(Debug, Clone, PartialEq)]
pub struct AolLaunch {
    /// With relative addresses.
    matrices: Vec<NsAol>,
    pub rows: u32,
    pub tiles: u32,
    pub table: u64,
}

impl AolLaunch {
    pub fn matrix_count(&self) -> u32 {
        self.matrices.len() as u32
    }
}

/// One step after the cast.
#[derive(Debug, Clone, PartialEq)]
pub enum Launch {
    Gemm(GemmLaunch),
    Aol(AolLaunch),
}

/// Matrices that advance together.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// For `ns_norm` and `ns_cast`, with relative addresses.
    matrices: Vec<NsMatrix>,
    pub strips: u32,
    pub tiles: u32,
    pub launches: Vec<Launch>,
    /// Where the table of `matrices` starts.
    pub table: u64,
}

impl Part {
    pub(super) fn new(
        matrices: Vec<NsMatrix>,
        (strips, tiles): (u32, u32),
        launches: Vec<Launch>,
        table: u64,
    ) -> Part {
        Part { matrices, strips, tiles, launches, table }
    }

    pub fn matrix_count(&self) -> u32 {
        self.matrices.len() as u32
    }

    fn write_tables(&self, bases: &Bases, bytes: &mut [u8]) {
        let mut put = |at: u64, table: &[u8]| {
            bytes[at as usize..at as usize + table.len()].copy_from_slice(table);
        };
        let bind = |matrix: &NsMatrix| NsMatrix {
            input: matrix.input + bases.input,
            partials: matrix.partials + bases.workspace,
            x: if matrix.row_tiles == 0 { 0 } else { matrix.x + bases.workspace },
            counters: if matrix.counter_count == 0 { 0 } else { matrix.counters + bases.workspace },
            status: if matrix.flags & abi::NS_PLAIN == 0 {
                matrix.status + bases.status
            } else {
                0
            },
            ..*matrix
        };
        let matrices: Vec<NsMatrix> = self.matrices.iter().map(bind).collect();
        put(self.table, bytemuck::cast_slice(&matrices));
        for launch in &self.launches {
            match launch {
                Launch::Gemm(gemm) => {
                    let bound: Vec<_> = gemm.problems.iter().map(|p| p.bind(bases)).collect();
                    put(gemm.table, bytemuck::cast_slice(&bound));
                }
                Launch::Aol(aol) => {
                    let bind = |matrix: &NsAol| NsAol {
                        gram: matrix.gram + bases.workspace,
                        x: matrix.x + bases.workspace,
                        scales: matrix.scales + bases.workspace,
                        ..*matrix
                    };
                    let bound: Vec<_> = aol.matrices.iter().map(bind).collect();
                    put(aol.table, bytemuck::cast_slice(&bound));
                }
            }
        }
    }
}

/// Launches of a whole batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub parts: Vec<Part>,
    /// Of the registers of the largest part.
    pub workspace_bytes: u64,
    /// Of the tables of all parts.
    pub table_bytes: u64,
}

impl Plan {
    /// `programs` has the program of each matrix. With `limit`, the batch is cut into parts that
    /// need no more than so many bytes for registers, as far as each matrix alone does not.
    ///
    /// # Errors
    /// Shapes beyond 32-bit extents; types that tiles are not made from or to.
    pub fn new(
        common: &Common,
        matrices: &[Matrix],
        programs: &[&Program],
        limit: Option<u64>,
    ) -> Result<Plan, KernelError> {
        check_types(common)?;
        let extents = matrices.iter().map(|m| Extents::new(common.arch, m.rows, m.cols));
        let extents: Vec<Extents> = extents.collect::<Result<_, _>>()?;
        let builder = Builder { common, matrices, extents: &extents, programs };
        let mut tables = Cursor::default();
        let mut registers_end = 0;
        let mut parts = Vec::new();
        for range in builder.cut(limit.unwrap_or(u64::MAX)) {
            let places = builder.places(range.clone());
            registers_end = places.end.max(registers_end);
            parts.push(builder.part(range, &places, &mut tables)?);
        }
        Ok(Plan { parts, workspace_bytes: registers_end, table_bytes: tables.end() })
    }

    /// The tables, to be copied to memory of their own.
    pub fn tables(&self, bases: &Bases) -> Vec<u8> {
        let mut bytes = vec![0; self.table_bytes as usize];
        for part in &self.parts {
            part.write_tables(bases, &mut bytes);
        }
        bytes
    }

    /// Launches of the whole batch.
    pub fn launches(&self) -> usize {
        let of = |launch: &Launch| if matches!(launch, Launch::Aol(_)) { 2 } else { 1 };
        self.parts.iter().map(|part| 2 + part.launches.iter().map(of).sum::<usize>()).sum()
    }
}

fn check_types(common: &Common) -> Result<(), KernelError> {
    for (dtype, supported) in [
        (common.input, &[DType::F32, DType::Bf16, DType::F16][..]),
        (common.output, &[DType::F32, DType::Bf16][..]),
    ] {
        if !supported.contains(&dtype) {
            return Err(KernelError::Dtype { kernel: KERNEL, dtype });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
