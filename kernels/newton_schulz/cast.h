// ns_cast: X = the caller's matrix over its norm, short side first, as 16-bit tiles with zeros
// around it.
//
// A block takes a contiguous range of tiles, so that it finishes the norm of few matrices. Stores
// go to consecutive addresses; a tall matrix turns round in shared memory, so that loads do too.
#pragma once

#include "norm.h"

namespace newton_schulz {

// x / norm = x·power·inverse: `power` is a power of two (so nothing is rounded twice) and 1 unless
// the norm lies so far out that its inverse is no normal f32.
struct Scale {
    float power;
    float inverse;
    bool is_zero;  // the result is zero whatever the elements
};

DEV_FN Scale scale_of(double norm, double least_norm) {
    constexpr double FAR = 1.2676506002282294e30;  // 2^100
    const double divisor = norm > least_norm ? norm : least_norm;
    Scale scale = {1, static_cast<float>(1 / divisor), false};
    if (divisor < 1 / FAR) {
        scale = {static_cast<float>(FAR), static_cast<float>(1 / (divisor * FAR)), false};
    } else if (divisor > FAR) {
        scale = {static_cast<float>(1 / FAR), static_cast<float>(FAR / divisor), false};
    }
    return scale;
}

// Finishes the norm; the block that has the matrix's first tile reports it.
DEV_FN Scale prepare(const MusterNsMatrix& matrix, bool reports) {
    if (matrix.flags & MUSTER_NS_PLAIN) return {1, 1, false};
    const double sum = finish(matrix);
    constexpr double MOST = 1.7976931348623157e308;
    const bool is_finite = sum <= MOST;  // false for NaN
    const double norm = dev::sqrt(sum);
    if (reports && dev::thread() == 0) {
        if (matrix.norm) *dev::pointer<double>(matrix.norm) = norm;
        if (matrix.status) {
            *dev::pointer<uint32_t>(matrix.status) =
                is_finite ? MUSTER_NS_FINITE : MUSTER_NS_NON_FINITE;
        }
    }
    if (!is_finite || sum == 0) return {0, 0, true};
    return scale_of(norm, matrix.least_norm);
}

// A quad over the norm, as two words.
DEV_FN dev::u32x2 pack_scaled(const Quad& quad, Scale scale, bool f16) {
    float v[4];
    for (uint32_t i = 0; i < 4; i++) v[i] = quad.v[i] * scale.power * scale.inverse;
    const dev::u32x2 words = {pack(v[0], v[1], f16), pack(v[2], v[3], f16)};
    return words;
}

// The tile at `to` from rows row … and columns col … of the caller's matrix.
template <class Access>
DEV_FN void cast_wide(const MusterNsMatrix& matrix, Scale scale, uint32_t row, uint32_t col,
                      uint64_t to) {
    constexpr uint32_t CHUNKS = tile::BYTES / tile::CHUNK_BYTES / THREADS;  // of a thread
    const bool f16 = matrix.flags & MUSTER_NS_TILES_F16;
    const uint32_t tile_row = dev::thread() / 8;
    const uint32_t chunk = dev::thread() % 8 ^ tile_row % 8;
    Quad quads[CHUNKS][2];  // all on their way before the first is used
    for (uint32_t i = 0; i < CHUNKS; i++) {
        const uint32_t from = row + tile_row + i * (THREADS / 8);
        quads[i][0] = load_quad<Access>(matrix, from, col + chunk * 8);
        quads[i][1] = load_quad<Access>(matrix, from, col + chunk * 8 + 4);
    }
    for (uint32_t i = 0; i < CHUNKS; i++) {
        const dev::u32x2 low = pack_scaled(quads[i][0], scale, f16);
        const dev::u32x2 high = pack_scaled(quads[i][1], scale, f16);
        const dev::u32x4 words = {low[0], low[1], high[0], high[1]};
        const uint32_t place = dev::thread() + i * THREADS;
        dev::store16(dev::pointer<void>(to + place * tile::CHUNK_BYTES), words);
    }
}

// The tile at `to` is the transpose of rows row … and columns col … of the caller's matrix.
template <class Access>
DEV_FN void cast_tall(const MusterNsMatrix& matrix, Scale scale, uint32_t row, uint32_t col,
                      uint64_t to) {
    const bool f16 = matrix.flags & MUSTER_NS_TILES_F16;
    auto* stage = reinterpret_cast<uint16_t*>(dev::shared() + STAGE_OFFSET);
    constexpr uint32_t QUADS = tile::SIDE / 4;
    constexpr uint32_t STEP = THREADS / QUADS;
    const uint32_t first = dev::thread() % QUADS * 4;
    const uint32_t own = dev::thread() / QUADS;
    Quad quads[4];
    for (uint32_t i = 0; i < 4; i++) {
        quads[i] = load_quad<Access>(matrix, row + own + i * STEP, col + first);
    }
    dev::sync();  // the tile before has been read
    for (uint32_t i = 0; i < 4; i++) {
        uint16_t* at = stage + first * STAGE_PITCH + own + i * STEP;
        const dev::u32x2 words = pack_scaled(quads[i], scale, f16);
        at[0] = static_cast<uint16_t>(words[0]);
        at[STAGE_PITCH] = static_cast<uint16_t>(words[0] >> 16);
        at[2 * STAGE_PITCH] = static_cast<uint16_t>(words[1]);
        at[3 * STAGE_PITCH] = static_cast<uint16_t>(words[1] >> 16);
    }
    dev::sync();
    constexpr uint32_t CHUNKS = tile::BYTES / tile::CHUNK_BYTES;
    for (uint32_t place = dev::thread(); place < CHUNKS; place += THREADS) {
        const uint32_t tile_row = place / 8;
        const uint32_t chunk = place % 8 ^ tile_row % 8;
        // The odd pitch leaves a chunk aligned to words only.
        const uint16_t* from = stage + tile_row * STAGE_PITCH + chunk * 8;
        const dev::u32x4 words = {dev::load4(from), dev::load4(from + 2), dev::load4(from + 4),
                                  dev::load4(from + 6)};
        dev::store16(dev::pointer<void>(to + place * tile::CHUNK_BYTES), words);
    }
}

template <class Access>
DEV_FN void cast_by(const MusterNsMatrix& matrix, Scale scale, uint32_t row, uint32_t col,
                    uint64_t to) {
    if (matrix.flags & MUSTER_NS_TALL) {
        cast_tall<Access>(matrix, scale, row, col, to);
    } else {
        cast_wide<Access>(matrix, scale, row, col, to);
    }
}

DEV_FN void clear(uint64_t to) {
    const dev::u32x4 zero = {0, 0, 0, 0};
    constexpr uint32_t CHUNKS = tile::BYTES / tile::CHUNK_BYTES;
    for (uint32_t place = dev::thread(); place < CHUNKS; place += THREADS) {
        dev::store16(dev::pointer<void>(to + place * tile::CHUNK_BYTES), zero);
    }
}

// Tile `index` of X.
DEV_FN void cast_tile(const MusterNsMatrix& matrix, Scale scale, uint32_t index) {
    const uint32_t short_at = index / matrix.col_tiles * tile::SIDE;
    const uint32_t long_at = index % matrix.col_tiles * tile::SIDE;
    const uint64_t to = matrix.x + static_cast<uint64_t>(index) * tile::BYTES;
    const bool tall = matrix.flags & MUSTER_NS_TALL;
    const uint32_t row = tall ? long_at : short_at;
    const uint32_t col = tall ? short_at : long_at;
    if (scale.is_zero || row >= matrix.rows || col >= matrix.cols) {
        clear(to);
    } else if (!is_whole(matrix, row, tile::SIDE, col, tile::SIDE)) {
        cast_by<Guarded>(matrix, scale, row, col, to);
    } else if (!(matrix.flags & MUSTER_NS_INPUT_16)) {
        cast_by<WholeF32>(matrix, scale, row, col, to);
    } else if (matrix.flags & MUSTER_NS_INPUT_F16) {
        cast_by<Whole16<dev::F16>>(matrix, scale, row, col, to);
    } else {
        cast_by<Whole16<dev::Bf16>>(matrix, scale, row, col, to);
    }
}

DEV_FN void cast(const MusterNsArgs& args) {
    const auto* matrices = dev::pointer<const MusterNsMatrix>(args.matrices);
    const uint64_t units = args.unit_count;
    const uint32_t begin = static_cast<uint32_t>(units * dev::block() / dev::grid());
    const uint32_t end = static_cast<uint32_t>(units * (dev::block() + 1) / dev::grid());
    if (begin == end) return;
    uint32_t entry = entry_of(matrices, args.matrix_count, &MusterNsMatrix::first_tile, begin);
    MusterNsMatrix matrix = matrices[entry];
    Scale scale = prepare(matrix, matrix.first_tile == begin);
    for (uint32_t unit = begin; unit < end; unit++) {
        if (entry + 1 < args.matrix_count && matrices[entry + 1].first_tile == unit) {
            entry++;
            matrix = matrices[entry];
            scale = prepare(matrix, true);
        }
        if (matrix.x) cast_tile(matrix, scale, unit - matrix.first_tile);
    }
}

}  // namespace newton_schulz
