// The plain reference of every gemm kernel: three loops over the arguments as the kernels get them.
// Runs on the host, on memory that the host can reach; sums in f64.
#pragma once

#include <math.h>
#include <string.h>

#include "../abi.h"
#include "../tile.h"

namespace reference {

enum class Type { BF16, F16 };

inline double decode(uint16_t bits, Type type) {
    const double sign = bits & 0x8000 ? -1.0 : 1.0;
    const int fraction_bits = type == Type::BF16 ? 7 : 10;
    const int exponent_mask = type == Type::BF16 ? 0xff : 0x1f;
    const int exponent = bits >> fraction_bits & exponent_mask;
    const int fraction = bits & ((1 << fraction_bits) - 1);
    const int bias = exponent_mask / 2;
    if (exponent == exponent_mask) {
        return fraction ? NAN : sign * INFINITY;
    }
    const int implied = exponent == 0 ? 0 : 1 << fraction_bits;
    return sign * ldexp(implied + fraction, (exponent == 0 ? 1 : exponent) - bias - fraction_bits);
}

// Element (row, col) of a grid of tiles.
inline double element(uint64_t grid, uint32_t tiles_per_row, uint32_t row, uint32_t col,
                      Type type) {
    const unsigned char* const at =
        reinterpret_cast<const unsigned char*>(grid) +
        tile::tile_offset(row / tile::SIDE, col / tile::SIDE, tiles_per_row) +
        tile::element_offset(row % tile::SIDE, col % tile::SIDE);
    uint16_t bits;
    memcpy(&bits, at, sizeof bits);
    return decode(bits, type);
}

// Element (row, col) of alpha·A·B + beta·C + gamma·I, before any rounding to a stored type. `nn`:
// the grid of B is [k_tiles, n_tiles], else [n_tiles, k_tiles].
inline double product(const MusterGemmProblem& p, bool nn, Type type, uint32_t row, uint32_t col) {
    double sum = 0.0;
    for (uint32_t k = 0; k < p.k_tiles * tile::SIDE; ++k) {
        sum += element(p.a, p.a_tiles_per_row, row, k, type) *
               (nn ? element(p.b, p.b_tiles_per_row, k, col, type)
                   : element(p.b, p.b_tiles_per_row, col, k, type));
    }
    sum *= p.alpha;
    if (p.c != 0 && p.beta != 0.0f) {
        sum += p.beta * element(p.c, p.c_tiles_per_row, row, col, type);
    }
    return row == col && row < p.rows ? sum + p.gamma : sum;
}

}  // namespace reference
