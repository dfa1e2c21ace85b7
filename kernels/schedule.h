// Which part of which matrix a block computes: pure functions of indices, for host and device.
//
// A product is cut into square units, as wide as the kernel's class says (256 or 128 elements). A
// unit is the work of one cluster: of one block, or on Hopper of two that share their right
// operand. All units of a launch are numbered through its table of problems:
//
//   unit → problem (search on first_block) → local unit → (row, column) of the square
//
// Three orders: dense, lower triangle, and both over a group of problems. Every order is a
// bijection, and the row of squares is the same whoever computes it, so the order decides speed and
// never bits. crates/kernels mirrors this file in Rust; a property test holds the two together.
//
// All arithmetic is in integers: with floats, the square root of a triangle order goes wrong from
// some size on. nvcc needs --expt-relaxed-constexpr for constexpr functions in device code.
#pragma once

#include <stdint.h>

#include "abi.h"

namespace schedule {

struct Square {
    uint32_t row;
    uint32_t col;
};

struct Unit {
    uint32_t problem;
    Square at;
};

constexpr uint32_t smaller(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

// Squares of rows 0..rows of a lower triangle with its diagonal.
constexpr uint64_t triangle(uint64_t rows) {
    return rows * (rows + 1) / 2;
}

// Units of a problem: all squares, or those that meet the lower triangle.
constexpr uint64_t units_of(const MusterGemmProblem& problem) {
    return problem.flags & MUSTER_GEMM_LOWER
               ? triangle(problem.m_blocks)
               : static_cast<uint64_t>(problem.m_blocks) * problem.n_blocks;
}

// Dense order: bands of `group_rows` rows, in each band column by column, so that the units in
// flight share a compact set of operand tiles in the second-level cache.
//
//   group_rows 2:   0 2 4
//                   1 3 5
//                   6 7 8
constexpr Square dense(uint32_t unit, uint32_t m_blocks, uint32_t n_blocks, uint32_t group_rows) {
    const uint32_t band_rows = smaller(group_rows, m_blocks);  // No more units than 32 bits count.
    const uint32_t band_units = band_rows * n_blocks;
    const uint32_t first = unit / band_units * band_rows;
    const uint32_t height = smaller(band_rows, m_blocks - first);
    const uint32_t within = unit % band_units;
    return {first + within % height, within / height};
}

// Lower-triangle order: the same bands; a band is a rectangle left of its diagonal, and a small
// triangle.
//
//   group_rows 2:   0
//                   1 2
//                   3 5 7
//                   4 6 8 9
constexpr Square lower(uint32_t unit, uint32_t m_blocks, uint32_t group_rows) {
    uint32_t band = 0;  // The last whose first unit is not behind `unit`, among `bands` from it on.
    for (uint32_t bands = (m_blocks + group_rows - 1) / group_rows; bands > 1;) {
        const uint32_t half = bands / 2;
        if (triangle(static_cast<uint64_t>(band + half) * group_rows) <= unit) {
            band += half;
        }
        bands -= half;
    }
    const uint32_t first = band * group_rows;
    const uint32_t height = smaller(group_rows, m_blocks - first);
    uint32_t within = unit - static_cast<uint32_t>(triangle(first));
    const uint32_t rectangle = height * (first + 1);
    if (within < rectangle) {
        return {first + within % height, within / height};
    }
    within -= rectangle;
    uint32_t step = 1;  // Column first + step holds height - step squares.
    while (within >= height - step) {
        within -= height - step;
        ++step;
    }
    return {first + step + within, first + step};
}

// The unit's square in its problem.
constexpr Square square(const MusterGemmProblem& problem, uint32_t local, uint32_t group_rows) {
    return problem.flags & MUSTER_GEMM_LOWER
               ? lower(local, problem.m_blocks, group_rows)
               : dense(local, problem.m_blocks, problem.n_blocks, group_rows);
}

// Problem of a unit: the last whose first_block is not behind it. `guess` is one that may well be
// it, such as the previous unit's in a persistent loop: each step of a search waits for memory.
constexpr uint32_t problem_of(const MusterGemmProblem* problems, uint32_t count, uint32_t unit,
                              uint32_t guess) {
    if (problems[guess].first_block <= unit &&
        (guess + 1 == count || unit < problems[guess + 1].first_block)) {
        return guess;
    }
    uint32_t index = 0;
    for (uint32_t left = count; left > 1;) {
        const uint32_t half = left / 2;
        if (problems[index + half].first_block <= unit) {
            index += half;
        }
        left -= half;
    }
    return index;
}

// Grouped order: a unit's problem and its square there.
constexpr Unit locate(const MusterGemmProblem* problems, uint32_t count, uint32_t unit,
                      uint32_t group_rows, uint32_t guess) {
    const uint32_t index = problem_of(problems, count, unit, guess);
    const MusterGemmProblem& problem = problems[index];
    return {index, square(problem, unit - problem.first_block, group_rows)};
}

// The work that a cluster of a persistent launch takes at a time: a unit, or half the rows of one.
struct Piece {
    uint32_t unit;
    uint32_t half;
    bool whole;
};

// A last round that would leave half of the `clusters` or more without work is cut into halves.
constexpr uint32_t pieces(uint32_t units, uint32_t clusters) {
    const uint32_t rest = units % clusters;
    return rest <= clusters / 2 ? units + rest : units;
}

// Piece number `index` of pieces(units, clusters); cluster c takes c, c + clusters, ….
constexpr Piece piece(uint32_t index, uint32_t units, uint32_t clusters) {
    const uint32_t rounds = units - units % clusters;
    if (index < rounds || pieces(units, clusters) == units) {
        return {index, 0, true};
    }
    return {rounds + (index - rounds) / 2, (index - rounds) % 2, false};
}

// Consecutive blocks go to `xcds` chiplets in turn, each with a cache of its own. Renumbers
// the `blocks` of a grid so that a chiplet gets a run of neighbouring numbers.
//
//   8 blocks, 3 chiplets:   block 0 1 2 3 4 5 6 7   becomes   0 3 6 1 4 7 2 5
constexpr uint32_t chiplet_order(uint32_t block, uint32_t blocks, uint32_t xcds) {
    const uint32_t chiplet = block % xcds;
    return chiplet * (blocks / xcds) + smaller(chiplet, blocks % xcds) + block / xcds;
}

}  // namespace schedule
