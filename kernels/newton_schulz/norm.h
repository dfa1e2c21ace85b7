// The Frobenius norm of every matrix of a batch, in f64 and in an order that depends on its shape
// alone.
//
//   ns_norm   a block takes strips of 64×256 elements and leaves one sum of squares of each
//   finish    whoever needs the norm adds the strips' sums; that costs less than another launch
//
// f32 squares neither overflow nor vanish in f64, so the sum is finite exactly if every element is.
#pragma once

#include "units.h"

namespace newton_schulz {

constexpr uint32_t STRIP_QUADS = MUSTER_NS_STRIP_COLS / 4;
constexpr uint32_t ROWS_AT_ONCE = THREADS / STRIP_QUADS;
static_assert(THREADS == 32 * SUMS, "a sum of each 32 threads");
static_assert(MUSTER_NS_STRIP_ROWS % (ROWS_AT_ONCE * WholeF32::AHEAD) == 0,
              "a strip is whole steps");

DEV_FN uint32_t strips_across(const MusterNsMatrix& matrix) {
    return (matrix.cols + MUSTER_NS_STRIP_COLS - 1) / MUSTER_NS_STRIP_COLS;
}

DEV_FN uint32_t strips(const MusterNsMatrix& matrix) {
    return (matrix.rows + MUSTER_NS_STRIP_ROWS - 1) / MUSTER_NS_STRIP_ROWS * strips_across(matrix);
}

// This thread's share of a strip: every ROWS_AT_ONCE-th row of four columns.
template <class Access>
DEV_FN double strip_share(const MusterNsMatrix& matrix, uint32_t row, uint32_t col) {
    row += dev::thread() / STRIP_QUADS;
    col += dev::thread() % STRIP_QUADS * 4;
    constexpr uint32_t AHEAD = Access::AHEAD;
    double sum = 0;
#pragma unroll 1
    for (uint32_t step = 0; step < MUSTER_NS_STRIP_ROWS; step += ROWS_AT_ONCE * AHEAD) {
        Quad quads[AHEAD];
        for (uint32_t i = 0; i < AHEAD; i++) {
            quads[i] = load_quad<Access>(matrix, row + step + i * ROWS_AT_ONCE, col);
        }
        for (uint32_t i = 0; i < AHEAD; i++) {
            for (uint32_t j = 0; j < 4; j++) {
                const double x = quads[i].v[j];
                sum += x * x;
            }
        }
    }
    return sum;
}

DEV_FN double strip_share_of(const MusterNsMatrix& matrix, uint32_t row, uint32_t col) {
    if (!is_whole(matrix, row, MUSTER_NS_STRIP_ROWS, col, MUSTER_NS_STRIP_COLS)) {
        return strip_share<Guarded>(matrix, row, col);
    }
    if (!(matrix.flags & MUSTER_NS_INPUT_16)) return strip_share<WholeF32>(matrix, row, col);
    if (matrix.flags & MUSTER_NS_INPUT_F16) return strip_share<Whole16<dev::F16>>(matrix, row, col);
    return strip_share<Whole16<dev::Bf16>>(matrix, row, col);
}

DEV_FN void norm(const MusterNsArgs& args) {
    const auto* matrices = dev::pointer<const MusterNsMatrix>(args.matrices);
    for (uint32_t unit = dev::block(); unit < args.unit_count; unit += dev::grid()) {
        const MusterNsMatrix matrix =
            matrices[entry_of(matrices, args.matrix_count, &MusterNsMatrix::first_strip, unit)];
        const uint32_t strip = unit - matrix.first_strip;
        const uint32_t row = strip / strips_across(matrix) * MUSTER_NS_STRIP_ROWS;
        const uint32_t col = strip % strips_across(matrix) * MUSTER_NS_STRIP_COLS;
        const double sum = block_sum(strip_share_of(matrix, row, col));
        if (dev::thread() == 0) dev::pointer<double>(matrix.partials)[strip] = sum;
        for (uint32_t i = dev::thread(); strip == 0 && i < matrix.counter_count; i += THREADS) {
            dev::pointer<uint32_t>(matrix.counters)[i] = 0;
        }
    }
}

// The sum of squares of a matrix from its strips, in every thread of the block.
DEV_FN double finish(const MusterNsMatrix& matrix) {
    const auto* partials = dev::pointer<const double>(matrix.partials);
    const uint32_t count = strips(matrix);
    double share = 0;
    for (uint32_t i = dev::thread(); i < count; i += THREADS) share += partials[i];
    return block_sum(share);
}

}  // namespace newton_schulz
