//! Rust's side of `kernels/tile.h`: reading the tile format on the host.

use half::{bf16, f16};

use super::arch::{TILE, TILE_BYTES, TileType};

/// Byte of element (`row`, `col`) in its tile.
const fn element_offset(row: usize, col: usize) -> usize {
    row * 128 + ((col / 8) ^ (row % 8)) * 16 + col % 8 * 2
}

/// The row-major matrix `[rows, cols]` at the head of a grid with `tiles_per_row` tiles across.
pub fn unpack(
    bytes: &[u8],
    tiles: TileType,
    (rows, cols): (usize, usize),
    tiles_per_row: usize,
) -> Vec<f32> {
    let mut values = Vec::with_capacity(rows * cols);
    for row in 0..rows {
        for col in 0..cols {
            let tile = row / TILE * tiles_per_row + col / TILE;
            let at = tile * TILE_BYTES as usize + element_offset(row % TILE, col % TILE);
            let bits = u16::from_le_bytes([bytes[at], bytes[at + 1]]);
            values.push(match tiles {
                TileType::Bf16 => bf16::from_bits(bits).to_f32(),
                TileType::F16 => f16::from_bits(bits).to_f32(),
            });
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tile_holds_each_element_once_and_swizzled() {
        let mut seen = vec![false; TILE_BYTES as usize / 2];
        for row in 0..TILE {
            for col in 0..TILE {
                let at = element_offset(row, col);
                assert!(at.is_multiple_of(2) && !std::mem::replace(&mut seen[at / 2], true));
            }
        }
        // Row 1 has its chunks 0 and 1 exchanged.
        assert_eq!((element_offset(1, 0), element_offset(1, 8)), (128 + 16, 128));
    }

    #[test]
    fn tiles_follow_each_other_row_by_row() {
        let mut bytes = vec![0; 4 * TILE_BYTES as usize];
        bytes[3 * TILE_BYTES as usize..][..2].copy_from_slice(&f16::from_f32(2.5).to_le_bytes());
        let values = unpack(&bytes, TileType::F16, (65, 65), 2);
        assert_eq!(values[64 * 65 + 64], 2.5);
        assert_eq!(values.iter().filter(|&&x| x != 0.0).count(), 1);
    }
}
