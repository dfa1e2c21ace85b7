// The common part of the kernels around the products: which matrix a unit of work belongs to,
// reading the caller's matrix, and sums over a block in a fixed order.
#pragma once

#include "../abi.h"
#include "../dev/dev.h"
#include "../reduce.h"
#include "../tile.h"

namespace newton_schulz {

constexpr uint32_t THREADS = 256;

// Dynamic shared memory: the partial sums of a block, then one tile that is being transposed.
constexpr uint32_t SUMS = 8;
constexpr uint32_t STAGE_OFFSET = 128;
// In elements; an odd number of words spreads columns over banks.
constexpr uint32_t STAGE_PITCH = tile::SIDE + 2;
constexpr uint32_t SHARED_BYTES = STAGE_OFFSET + tile::SIDE * STAGE_PITCH * 2;

DEV_FN float as_f32(uint32_t bits) { return __builtin_bit_cast(float, bits); }

// The last entry whose `first` is not beyond `unit`; entry 0 starts at 0.
template <typename Entry>
DEV_FN uint32_t entry_of(const Entry* table, uint32_t count, uint32_t Entry::*first,
                         uint32_t unit) {
    uint32_t low = 0;
    uint32_t high = count;
    while (high - low > 1) {
        const uint32_t middle = low + (high - low) / 2;
        if (table[middle].*first <= unit) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

DEV_FN double block_sum(double value) { return reduce::block_sum<SUMS>(value); }

// Four neighbouring elements of a row.
struct Quad {
    float v[4];
};

// How a quad is read: whole ones of f32, bf16 and f16 by one load each, so that a loop keeps
// several in flight; and any by elements, with zeros beyond the edges.
struct WholeF32 {
    static constexpr uint32_t AHEAD = 8;  // loads in flight in each thread
    static DEV_FN Quad load(const MusterNsMatrix& matrix, uint64_t element, uint32_t, uint32_t) {
        const auto words = dev::load16(dev::pointer<const void>(matrix.input + element * 4));
        return {as_f32(words[0]), as_f32(words[1]), as_f32(words[2]), as_f32(words[3])};
    }
};

template <class T>
struct Whole16 {
    static constexpr uint32_t AHEAD = 8;
    static DEV_FN Quad load(const MusterNsMatrix& matrix, uint64_t element, uint32_t, uint32_t) {
        const auto words = dev::load8(dev::pointer<const void>(matrix.input + element * 2));
        Quad quad;
        dev::unpack<T>(words[0], quad.v[0], quad.v[1]);
        dev::unpack<T>(words[1], quad.v[2], quad.v[3]);
        return quad;
    }
};

struct Guarded {
    static constexpr uint32_t AHEAD = 1;
    static DEV_FN Quad load(const MusterNsMatrix& matrix, uint64_t element, uint32_t row,
                            uint32_t col) {
        Quad quad = {{0, 0, 0, 0}};
        for (uint32_t i = 0; i < 4; i++) {
            if (row >= matrix.rows || col + i >= matrix.cols) continue;
            if (!(matrix.flags & MUSTER_NS_INPUT_16)) {
                quad.v[i] = *dev::pointer<const float>(matrix.input + (element + i) * 4);
                continue;
            }
            const bool f16 = matrix.flags & MUSTER_NS_INPUT_F16;
            const auto bits = *dev::pointer<const uint16_t>(matrix.input + (element + i) * 2);
            quad.v[i] = f16 ? dev::from_f16(bits) : dev::from_bf16(bits);
        }
        return quad;
    }
};

// Elements (row, col … col + 4) of the caller's matrix.
template <class Access>
DEV_FN Quad load_quad(const MusterNsMatrix& matrix, uint32_t row, uint32_t col) {
    return Access::load(matrix, static_cast<uint64_t>(row) * matrix.row_stride + col, row, col);
}

// Whether every aligned quad of the box [row, row + rows) × [col, col + cols) may be loaded whole.
DEV_FN bool is_whole(const MusterNsMatrix& matrix, uint32_t row, uint32_t rows, uint32_t col,
                     uint32_t cols) {
    const uint32_t quad_bytes = matrix.flags & MUSTER_NS_INPUT_16 ? 8 : 16;
    return matrix.input % quad_bytes == 0 && matrix.row_stride % 4 == 0 &&
           row + rows <= matrix.rows && col + cols <= matrix.cols;
}

// Two f32 as 16-bit elements in one word.
DEV_FN uint32_t pack(float low, float high, bool f16) {
    return f16 ? dev::pack<dev::F16>(low, high) : dev::pack<dev::Bf16>(low, high);
}

}  // namespace newton_schulz
