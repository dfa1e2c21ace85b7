// The rescale of almost orthogonal layers: with s_i = 1/sqrt(Σ_j |G_ij|), G = X·Xᵀ,
//
//   X ← diag(s)·X        G ← diag(s)·G·diag(s)
//
// bounds the singular values of X by 1 more tightly than its norm does (Prach and Lampert 2022).
#pragma once

#include "units.h"

namespace newton_schulz {

constexpr uint32_t CHUNKS = tile::BYTES / tile::CHUNK_BYTES;
constexpr uint32_t THREADS_PER_ROW = THREADS / tile::SIDE;
constexpr uint32_t CHUNKS_PER_THREAD = tile::ROW_BYTES / tile::CHUNK_BYTES / THREADS_PER_ROW;

template <class T>
DEV_FN float magnitudes(dev::u32x4 words) {
    float sum = 0;
    for (uint32_t i = 0; i < 4; i++) {
        float low, high;
        dev::unpack<T>(words[i], low, high);
        sum += (low < 0 ? -low : low) + (high < 0 ? -high : high);
    }
    return sum;
}

// This thread's share of the magnitudes of its row, in the row of tiles that starts at `row`.
template <class T>
DEV_FN float row_share(uint64_t row, uint32_t tiles) {
    const uint32_t tile_row = dev::thread() / THREADS_PER_ROW;
    const uint32_t first = dev::thread() % THREADS_PER_ROW * CHUNKS_PER_THREAD;
    float sum = 0;
    for (uint32_t i = 0; i < tiles; i++) {
        for (uint32_t j = 0; j < CHUNKS_PER_THREAD; j++) {
            const uint64_t tile = row + static_cast<uint64_t>(i) * tile::BYTES;
            const uint64_t chunk = tile + tile::chunk_offset(tile_row, first + j);
            sum += magnitudes<T>(dev::load16(dev::pointer<const void>(chunk)));
        }
    }
    return sum;
}

DEV_FN void aol_rows(const MusterNsAolArgs& args) {
    const auto* matrices = dev::pointer<const MusterNsAol>(args.matrices);
    for (uint32_t unit = dev::block(); unit < args.unit_count; unit += dev::grid()) {
        const uint32_t entry =
            entry_of(matrices, args.matrix_count, &MusterNsAol::first_row, unit);
        const MusterNsAol matrix = matrices[entry];
        const uint32_t row_tile = unit - matrix.first_row;
        const uint64_t row = matrix.gram + tile::tile_offset(row_tile, 0, matrix.row_tiles);
        const bool f16 = matrix.flags & MUSTER_NS_TILES_F16;
        float sum = f16 ? row_share<dev::F16>(row, matrix.row_tiles)
                        : row_share<dev::Bf16>(row, matrix.row_tiles);
        for (uint32_t mask = 1; mask < THREADS_PER_ROW; mask *= 2) sum += dev::shfl_xor(sum, mask);
        if (dev::thread() % THREADS_PER_ROW == 0) {
            const uint32_t at = row_tile * tile::SIDE + dev::thread() / THREADS_PER_ROW;
            const float bounded = sum > MUSTER_NS_AOL_LEAST ? sum : MUSTER_NS_AOL_LEAST;
            dev::pointer<float>(matrix.scales)[at] = 1 / dev::sqrt(bounded);
        }
    }
}

// Multiplies a tile in place: its rows by `rows[0 … 64]` and, unless that is 0, its columns by
// `cols[0 … 64]`.
template <class T>
DEV_FN void scale_tile(uint64_t at, const float* rows, const float* cols) {
    for (uint32_t place = dev::thread(); place < CHUNKS; place += THREADS) {
        const uint32_t tile_row = place / 8;
        const uint32_t col = (place % 8 ^ tile_row % 8) * tile::CHUNK_ELEMENTS;
        void* chunk = dev::pointer<void>(at + place * tile::CHUNK_BYTES);
        dev::u32x4 words = dev::load16(chunk);
        for (uint32_t i = 0; i < 4; i++) {
            float low, high;
            dev::unpack<T>(words[i], low, high);
            low *= rows[tile_row];
            high *= rows[tile_row];
            if (cols) {
                low *= cols[col + 2 * i];
                high *= cols[col + 2 * i + 1];
            }
            words[i] = dev::pack<T>(low, high);
        }
        dev::store16(chunk, words);
    }
}

DEV_FN void aol_scale(const MusterNsAolArgs& args) {
    const auto* matrices = dev::pointer<const MusterNsAol>(args.matrices);
    for (uint32_t unit = dev::block(); unit < args.unit_count; unit += dev::grid()) {
        const uint32_t entry =
            entry_of(matrices, args.matrix_count, &MusterNsAol::first_tile, unit);
        const MusterNsAol matrix = matrices[entry];
        const uint32_t gram_tiles = matrix.row_tiles * matrix.row_tiles;
        uint32_t index = unit - matrix.first_tile;
        const bool in_gram = index < gram_tiles;
        if (!in_gram) index -= gram_tiles;
        const uint32_t across = in_gram ? matrix.row_tiles : matrix.col_tiles;
        const uint64_t grid = in_gram ? matrix.gram : matrix.x;
        const uint64_t at = grid + static_cast<uint64_t>(index) * tile::BYTES;
        const auto* scales = dev::pointer<const float>(matrix.scales);
        const float* rows = scales + index / across * tile::SIDE;
        const float* cols = in_gram ? scales + index % across * tile::SIDE : nullptr;
        if (matrix.flags & MUSTER_NS_TILES_F16) {
            scale_tile<dev::F16>(at, rows, cols);
        } else {
            scale_tile<dev::Bf16>(at, rows, cols);
        }
    }
}

}  // namespace newton_schulz
