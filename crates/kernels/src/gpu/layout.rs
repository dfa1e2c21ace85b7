//! Where the parts of a batch lie in its workspace: pure functions of shapes.
//!
//! ```text
//! workspace   norms, partial sums │ matrix 0: X registers, S registers │ matrix 1: … │
//! X register  grid of tiles, short side first, zero-padded to whole blocks
//! S register  the same, short × short
//! ```

use device::Arch;

use super::abi;
use super::arch::{Class, TILE, TILE_BYTES};
use crate::KernelError;

const KERNEL: &str = "newton_schulz";

/// Parts of a workspace start at multiples of this.
const ALIGNMENT: u64 = 256;

/// Bytes from the start of a workspace on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cursor(u64);

impl Cursor {
    /// Takes `bytes` and returns where they start.
    pub(crate) fn take(&mut self, bytes: u64) -> u64 {
        let start = self.0.next_multiple_of(ALIGNMENT);
        self.0 = start + bytes;
        start
    }

    pub(crate) fn end(self) -> u64 {
        self.0.next_multiple_of(ALIGNMENT)
    }
}

/// A matrix as kernels see it: short side first, padded to whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Extents {
    pub short: usize,
    pub long: usize,
    /// The caller's matrix is the transpose.
    pub is_tall: bool,
    pub classes: Classes,
}

/// The class of each kind of product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Classes {
    /// `X·Xᵀ`.
    pub gram: Class,
    /// Of two symmetric matrices, giving one.
    pub square: Class,
    /// Of a symmetric matrix and `X`.
    pub apply: Class,
}

/// A side whose padding to large blocks adds more than this part of it takes small ones.
const PADDING: f64 = 1.0 / 12.0;

impl Classes {
    /// Large blocks load less for each product; small ones of Hopper store under the products of
    /// the next, and waste less on the diagonal. So large ones pay where sums are long: measured
    /// on an H200, at its power limit (benches/RESULTS.md). For others nothing is measured, and
    /// what large blocks waste on the diagonal is held against their higher rate.
    fn new(arch: Arch, short: usize, long: usize) -> Classes {
        let pads_little = |side: usize| {
            let padding = side.next_multiple_of(Class::Large.side()) - side;
            padding as f64 <= side as f64 * PADDING
        };
        let pads_little = pads_little(short) && pads_little(long);
        let large_if = |is_large| if is_large && pads_little { Class::Large } else { Class::Small };
        match arch {
            Arch::Sm90a => Classes {
                gram: large_if(long > 3072 && short >= 2048),
                square: large_if(short > 3072),
                apply: large_if(short >= 2048),
            },
            _ => {
                let symmetric = large_if(short > 2048);
                Classes { gram: symmetric, square: symmetric, apply: large_if(true) }
            }
        }
    }

    fn largest(self) -> Class {
        self.gram.max(self.square).max(self.apply)
    }
}

impl Extents {
    /// # Errors
    /// A side that 32-bit extents do not hold.
    pub fn new(arch: Arch, rows: usize, cols: usize) -> Result<Extents, KernelError> {
        let (short, long) = (rows.min(cols), rows.max(cols));
        if long > (i32::MAX as usize) - Class::Large.side() {
            let message = format!("a matrix of {rows}×{cols} is beyond 32-bit extents");
            return Err(KernelError::Argument { kernel: KERNEL, message });
        }
        let classes = Classes::new(arch, short, long);
        Ok(Extents { short, long, is_tall: rows > cols, classes })
    }

    /// Both sides are multiples of this.
    fn side(&self) -> usize {
        self.classes.largest().side()
    }

    /// Tiles along the short side, with padding.
    pub(crate) fn short_tiles(&self) -> u32 {
        (self.short.next_multiple_of(self.side()) / TILE) as u32
    }

    /// Tiles along the long side, with padding.
    pub(crate) fn long_tiles(&self) -> u32 {
        (self.long.next_multiple_of(self.side()) / TILE) as u32
    }

    /// Bytes of a register of X's shape.
    pub(crate) fn x_bytes(&self) -> u64 {
        u64::from(self.short_tiles()) * u64::from(self.long_tiles()) * TILE_BYTES
    }

    /// Bytes of a symmetric register.
    pub(crate) fn s_bytes(&self) -> u64 {
        u64::from(self.short_tiles()).pow(2) * TILE_BYTES
    }
}

/// Strips whose sums of squares make up the norm of a matrix.
pub fn strips(rows: usize, cols: usize) -> u64 {
    let (strip_rows, strip_cols) = abi::NS_STRIP;
    rows.div_ceil(strip_rows as usize) as u64 * cols.div_ceil(strip_cols as usize) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_and_padding_follow_the_shape() {
        let of = |arch, rows, cols| {
            let e = Extents::new(arch, rows, cols).unwrap();
            let Classes { gram, square, apply } = e.classes;
            let sides = (e.short_tiles() as usize * TILE, e.long_tiles() as usize * TILE);
            (gram.side(), square.side(), apply.side(), sides.0, sides.1)
        };
        for (arch, at_1024, at_2048) in [
            (Arch::Sm90a, (128, 128, 128), (256, 128, 256)),
            (Arch::Gfx942, (128, 128, 256), (128, 128, 256)),
        ] {
            let (gram, square, apply) = at_1024;
            assert_eq!(of(arch, 768, 3072), (gram, square, apply, 768, 3072));
            assert_eq!(of(arch, 2816, 1024), (gram, square, apply, 1024, 2816));
            let (gram, square, apply) = at_2048;
            assert_eq!(of(arch, 2048, 7168), (gram, square, apply, 2048, 7168));
            assert_eq!(of(arch, 4096, 11008), (256, 256, 256, 4096, 11008));
            assert_eq!(of(arch, 1, 1000), (128, 128, 128, 128, 1024));
            assert_eq!(of(arch, 129, 64), (128, 128, 128, 128, 256));
            // 640 would grow by a fifth.
            assert_eq!(of(arch, 640, 2560), (128, 128, 128, 640, 2560));
            assert_eq!(of(arch, 0, 7), (128, 128, 128, 0, 128));
            assert!(Extents::new(arch, 1, 1 << 31).is_err());
        }
    }

    #[test]
    fn a_matrix_and_its_transpose_are_laid_out_alike() {
        for (rows, cols) in [(3, 5), (200, 4096), (4096, 4095)] {
            let wide = Extents::new(Arch::Sm90a, rows, cols).unwrap();
            let tall = Extents::new(Arch::Sm90a, cols, rows).unwrap();
            assert_eq!((wide.x_bytes(), wide.s_bytes()), (tall.x_bytes(), tall.s_bytes()));
            assert_ne!(wide.is_tall, tall.is_tall);
        }
    }

    #[test]
    fn parts_are_aligned_and_disjoint() {
        let mut cursor = Cursor::default();
        assert_eq!((cursor.take(1), cursor.take(0), cursor.take(300)), (0, 256, 256));
        assert_eq!(cursor.end(), 768);
    }

    #[test]
    fn strips_cover_the_matrix() {
        assert_eq!((strips(64, 256), strips(65, 257), strips(0, 9)), (1, 4, 0));
    }
}
