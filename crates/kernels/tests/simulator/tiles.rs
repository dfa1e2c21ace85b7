//! Matrices of 16-bit values in the tile format of `kernels/tile.h`.

use half::{bf16, f16};

const SIDE: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    Bf16,
    F16,
}

impl Format {
    pub fn encode(self, value: f32) -> u16 {
        match self {
            Self::Bf16 => bf16::from_f32(value).to_bits(),
            Self::F16 => f16::from_f32(value).to_bits(),
        }
    }

    pub fn decode(self, bits: u16) -> f32 {
        match self {
            Self::Bf16 => bf16::from_bits(bits).to_f32(),
            Self::F16 => f16::from_bits(bits).to_f32(),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

/// A grid of 64×64 tiles.
#[derive(Clone, PartialEq, Eq)]
pub struct Grid {
    pub format: Format,
    pub row_tiles: usize,
    pub col_tiles: usize,
    chunks: Vec<u128>,
}

impl Grid {
    /// Zeros.
    pub fn new(format: Format, row_tiles: usize, col_tiles: usize) -> Self {
        Self { format, row_tiles, col_tiles, chunks: vec![0; row_tiles * col_tiles * SIDE * 8] }
    }

    pub fn rows(&self) -> usize {
        self.row_tiles * SIDE
    }

    pub fn cols(&self) -> usize {
        self.col_tiles * SIDE
    }

    pub fn get(&self, row: usize, col: usize) -> f32 {
        let words: &[u16] = bytemuck::cast_slice(&self.chunks);
        self.format.decode(words[self.index(row, col)])
    }

    pub fn set(&mut self, row: usize, col: usize, value: f32) {
        let (index, bits) = (self.index(row, col), self.format.encode(value));
        let words: &mut [u16] = bytemuck::cast_slice_mut(&mut self.chunks);
        words[index] = bits;
    }

    /// Sets element (row, col) of the first `rows` × `cols` to `value(row, col)`.
    pub fn fill(&mut self, rows: usize, cols: usize, mut value: impl FnMut(usize, usize) -> f32) {
        for row in 0..rows {
            for col in 0..cols {
                self.set(row, col, value(row, col));
            }
        }
    }

    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.chunks)
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.chunks)
    }

    /// In units of 16 bits.
    fn index(&self, row: usize, col: usize) -> usize {
        let tile = row / SIDE * self.col_tiles + col / SIDE;
        let (row, col) = (row % SIDE, col % SIDE);
        let chunk = (col / 8) ^ (row % 8);
        tile * SIDE * SIDE + row * SIDE + chunk * 8 + col % 8
    }
}

/// A small generator, so that a failing case can be run again.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % bound
    }

    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// −3 … 3: exact in both formats, and so are their sums of products in f32.
    pub fn integer(&mut self) -> f32 {
        self.below(7) as f32 - 3.0
    }

    /// Uniform in −1 … 1.
    pub fn real(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0
    }
}
