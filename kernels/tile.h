// The one format of 16-bit operands in memory: a grid of 64×64 tiles.
//
//   grid   [row_tiles, col_tiles], row-major; a tile is 8192 contiguous bytes
//   tile   64 rows of 128 bytes; the 16-byte chunk c of row r lies at position c ^ (r % 8)
//
// That is the 128-byte swizzle of Hopper's shared memory (PTX ISA, "Shared Memory Matrix Layout"),
// kept in device memory too. So a pipeline stage is filled by plain bulk copies without tensor
// maps, by cp.async on older chips, and by direct LDS loads, which cannot swizzle, on gfx950; and
// the reads of matrix instructions meet no bank conflict on any of them. Grids are padded with
// zeros to whole blocks, so main loops need no predicates.
#pragma once

#include <stdint.h>

namespace tile {

constexpr uint32_t SIDE = 64;
constexpr uint32_t ROW_BYTES = 128;
constexpr uint32_t BYTES = SIDE * ROW_BYTES;
constexpr uint32_t CHUNK_BYTES = 16;
constexpr uint32_t CHUNK_ELEMENTS = 8;

// Byte of chunk `chunk` (0..8) of row `row` (0..64) in its tile.
constexpr uint32_t chunk_offset(uint32_t row, uint32_t chunk) {
    return row * ROW_BYTES + ((chunk ^ (row % 8)) * CHUNK_BYTES);
}

// Byte of element (row, col) in its tile, both 0..64.
constexpr uint32_t element_offset(uint32_t row, uint32_t col) {
    return chunk_offset(row, col / CHUNK_ELEMENTS) + (col % CHUNK_ELEMENTS) * 2;
}

// Byte of tile (row_tile, col_tile) in a grid with `tiles_per_row` tiles across.
constexpr uint64_t tile_offset(uint32_t row_tile, uint32_t col_tile, uint32_t tiles_per_row) {
    return (static_cast<uint64_t>(row_tile) * tiles_per_row + col_tile) * BYTES;
}

}  // namespace tile
