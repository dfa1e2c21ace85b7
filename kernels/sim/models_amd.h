// The matrix, permute and LDS instructions as AMD publishes them, as pure functions over the
// registers of the 64 lanes of a wave. Written from the documents named at each function and from
// nothing in this project, so that a misreading is not shared with the kernels.
//
// Sources: "AMD Instinct MI300" (CDNA3) and "CDNA4 Instruction Set Architecture" reference guides;
// AMD's amd_matrix_instruction_calculator (its --detail-instruction formulas); for gfx950's wider
// forms, which the calculator does not have, IREE's single-subgroup layouts
// (Codegen/Dialect/GPU/IR, MFMA_F32_16x16x32_* and _32x32x16_*), which agree with the calculator
// on the narrower ones.
//
// Sums: f32, one product after the other in ascending k, beginning with C. The order and the
// intermediate width in hardware are not published; its results differ from the model's in the
// last bits.
#pragma once

#include "formats.h"

namespace sim {
namespace amd {

constexpr uint32_t LANES = 64;

// == V_MFMA_F32_MxMxK_{BF16,F16} ==
//
// The bf16 forms of gfx90a are those named _1K; layouts are the same from gfx90a to gfx950.
//   16x16x16, 32x32x8: 4 values a lane; 16x16x32, 32x32x16 (gfx950): 8 values a lane

template <uint32_t M, uint32_t K>
struct Mfma {
    static_assert(M == 16 || M == 32, "the square forms with one block");
    static constexpr uint32_t VALUES = K * M / LANES;  // of A, and of B, in a lane
    static constexpr uint32_t REGISTERS = VALUES / 2;
    static constexpr uint32_t RESULTS = M * M / LANES;  // of C and D in a lane

    // Calculator: "A i: lane % M; A k: VALUES·floor(lane / M) + 2·GPR_num + floor(GPR_bits / 16)".
    static constexpr Cell a(uint32_t lane, uint32_t value) {  // (i, k)
        return {lane % M, VALUES * (lane / M) + value};
    }
    static constexpr Cell b(uint32_t lane, uint32_t value) {  // (k, j)
        return {VALUES * (lane / M) + value, lane % M};
    }
    // "C or D i: 8·floor(GPR_num / 4) + 4·floor(lane / 32) + GPR_num % 4" for 32, and
    // "4·floor(lane / 16) + GPR_num % 4" for 16; "j: lane % M".
    static constexpr Cell d(uint32_t lane, uint32_t reg) {  // (i, j)
        return {(LANES / M) * 4 * (reg / 4) + 4 * (lane / M) + reg % 4, lane % M};
    }
};

// AMD, "MI200 matrix fused multiply-add (MFMA) behavior specifics" (MIOpen): on gfx90a the f16 and
// bf16 forms flush subnormal inputs and outputs to zero. From gfx942 on they do not.
enum class Subnormals { Kept, Flushed };

inline float flush(float value, bool is_subnormal, Subnormals mode) {
    return is_subnormal && mode == Subnormals::Flushed ? float_of(bits_of(value) & 0x80000000u)
                                                       : value;
}

inline float flush_f32(float value, Subnormals mode) {
    return flush(value, (bits_of(value) & 0x7f800000u) == 0, mode);
}

template <class Format>
float mfma_input(uint16_t bits, Subnormals mode) {
    float value = Format::decode(bits);
    float magnitude = value < 0 ? -value : value;
    return flush(value, magnitude < Format::smallest_normal(), mode);
}

// d = a·b + c over a wave; first index: lane. d may be c.
template <class Format, uint32_t M, uint32_t K>
void mfma(float (*d)[Mfma<M, K>::RESULTS], const uint32_t (*a)[Mfma<M, K>::REGISTERS],
          const uint32_t (*b)[Mfma<M, K>::REGISTERS], const float (*c)[Mfma<M, K>::RESULTS],
          Subnormals mode) {
    using Shape = Mfma<M, K>;
    float left[M][K], right[K][M];
    for (uint32_t lane = 0; lane < LANES; lane++) {
        for (uint32_t value = 0; value < Shape::VALUES; value++) {
            Cell at = Shape::a(lane, value);
            left[at.row][at.col] =
                mfma_input<Format>(half_of(a[lane][value / 2], value % 2), mode);
            at = Shape::b(lane, value);
            right[at.row][at.col] =
                mfma_input<Format>(half_of(b[lane][value / 2], value % 2), mode);
        }
    }
    for (uint32_t lane = 0; lane < LANES; lane++) {
        for (uint32_t reg = 0; reg < Shape::RESULTS; reg++) {
            Cell at = Shape::d(lane, reg);
            float sum = flush_f32(c[lane][reg], mode);
            for (uint32_t k = 0; k < K; k++) sum += left[at.row][k] * right[k][at.col];
            d[lane][reg] = flush_f32(sum, mode);
        }
    }
}

// == V_PERM_B32 ==
//
// CDNA3 ISA, V_PERM_B32: each byte of the selector picks a byte of {S0, S1}, S1 being bytes 0–3;
// 8–11 replicate the sign of bytes 1, 3, 5, 7; 12 is 0x00; from 13 on 0xFF.
constexpr uint32_t perm(uint32_t s0, uint32_t s1, uint32_t selector) {
    uint64_t bytes = static_cast<uint64_t>(s0) << 32 | s1;
    uint32_t result = 0;
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t pick = (selector >> (8 * i)) & 0xff, byte = 0xff;
        if (pick < 8) byte = static_cast<uint32_t>(bytes >> (8 * pick)) & 0xff;
        else if (pick < 12) byte = (bytes >> (16 * (pick - 8) + 15)) & 1 ? 0xff : 0x00;
        else if (pick == 12) byte = 0x00;
        result |= byte << (8 * i);
    }
    return result;
}

// == DS_READ_B64_TR_B16 (gfx950) ==
//
// CDNA4 ISA 11.4, "MFMA Transpose Load from LDS": a column-major A or row-major B of 16-bit
// elements, two reads to a matrix (K = 0–3 and 8–11, then 4–7 and 12–15). Every 16 lanes read a 4
// × 16 tile, lane l four elements of row l / 4 from column 4·(l % 4) on, and lane l gets column
// l: so Modular's amd_tile_io documents it (ds_read_tr16_b64_row). The instruction requires EXEC
// to be all ones.

// Lane (of the same 16) and element that lane l < 64 receives as its value j < 4.
constexpr Cell transpose_source(uint32_t lane, uint32_t j) {  // (lane, element)
    return {lane / 16 * 16 + 4 * j + (lane % 16) / 4, lane % 4};
}

inline void ds_read_b64_tr_b16(uint32_t (*r)[2], const unsigned char* const (&addresses)[LANES]) {
    for (uint32_t lane = 0; lane < LANES; lane++) {
        r[lane][0] = r[lane][1] = 0;
        for (uint32_t j = 0; j < 4; j++) {
            Cell from = transpose_source(lane, j);
            uint16_t value;
            memcpy(&value, addresses[from.row] + 2 * from.col, sizeof value);
            r[lane][j / 2] |= static_cast<uint32_t>(value) << (16 * (j % 2));
        }
    }
}

// == loads from memory into LDS ==
//
// CDNA3 and CDNA4 ISA 9.1.9, "Memory Buffer Load to LDS" (global loads alike): LDS_ADDR =
// LDS_base + M0 + instruction offset + TIDinWave·4 for a dword; CDNA4 adds dwordx3 and dwordx4
// with TIDinWave·16. M0 is one value for the wave, so the destination of a lane is not the lane's
// choice.
constexpr uint32_t lds_load_offset(uint32_t lane, uint32_t bytes) {
    return lane * (bytes == 4 ? 4 : 16);
}

}  // namespace amd
}  // namespace sim
