// The matrix instructions as NVIDIA publishes them, as pure functions over the registers of all
// lanes and the bytes of shared memory. Written from the documents named at each function and from
// nothing in this project, so that a misreading is not shared with the kernels.
//
// Sources: "PTX ISA" 8.x/9.x, by the titles of its sections (numbers move between versions), and
// the canonical layouts in the comments of CUTLASS, cute/atom/mma_traits_sm90_gmma.hpp.
//
// Sums: f32, one product after the other in ascending k, beginning with the accumulator. The
// hardware keeps the products aligned in a wider adder whose order and truncation are not
// published; its results differ from the model's in the last bits.
#pragma once

#include "formats.h"

namespace sim {
namespace nvidia {

// == mma.sync.aligned.m16n8k16.row.col.f32.{bf16,f16} ==
//
// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type". groupID = lane / 4,
// threadID_in_group = lane % 4; element i of a fragment lies in register i / 2, half i % 2.

constexpr Cell mma_a(uint32_t lane, uint32_t i) {  // i < 8: (m, k)
    return {lane / 4 + ((i / 2) % 2) * 8, (lane % 4) * 2 + i % 2 + (i / 4) * 8};
}

constexpr Cell mma_b(uint32_t lane, uint32_t i) {  // i < 4: (k, n)
    return {(lane % 4) * 2 + i % 2 + (i / 2) * 8, lane / 4};
}

constexpr Cell mma_d(uint32_t lane, uint32_t i) {  // i < 4: (m, n)
    return {lane / 4 + (i / 2) * 8, (lane % 4) * 2 + i % 2};
}

// d += a·b over a warp; first index: lane.
template <class Format>
void mma_16816(float (&d)[32][4], const uint32_t (&a)[32][4], const uint32_t (&b)[32][2]) {
    float a_matrix[16][16], b_matrix[16][8];
    for (uint32_t lane = 0; lane < 32; lane++) {
        for (uint32_t i = 0; i < 8; i++) {
            Cell at = mma_a(lane, i);
            a_matrix[at.row][at.col] = Format::decode(half_of(a[lane][i / 2], i % 2));
        }
        for (uint32_t i = 0; i < 4; i++) {
            Cell at = mma_b(lane, i);
            b_matrix[at.row][at.col] = Format::decode(half_of(b[lane][i / 2], i % 2));
        }
    }
    for (uint32_t lane = 0; lane < 32; lane++) {
        for (uint32_t i = 0; i < 4; i++) {
            Cell at = mma_d(lane, i);
            for (uint32_t k = 0; k < 16; k++)
                d[lane][i] += a_matrix[at.row][k] * b_matrix[k][at.col];
        }
    }
}

// == ldmatrix, stmatrix .sync.aligned.m8n8.x4[.trans].shared.b16 ==
//
// PTX ISA, "Warp-level matrix load instruction: ldmatrix" and "… store instruction: stmatrix".
// Matrix j < 4 is 8 rows of 16 bytes; lane 8·j + r gives the address of its row r. Register j of
// lane l holds elements (l / 4, 2·(l % 4)) and the next one in the row; with .trans, of the
// transpose.

constexpr Cell matrix_8x8(uint32_t lane, uint32_t half, bool trans) {  // (row, col) in memory
    return trans ? Cell{(lane % 4) * 2 + half, lane / 4} : Cell{lane / 4, (lane % 4) * 2 + half};
}

inline void ldmatrix_x4(uint32_t (&r)[32][4], const unsigned char* const (&rows)[32], bool trans) {
    for (uint32_t lane = 0; lane < 32; lane++) {
        for (uint32_t j = 0; j < 4; j++) {
            r[lane][j] = 0;
            for (uint32_t half = 0; half < 2; half++) {
                Cell at = matrix_8x8(lane, half, trans);
                uint16_t value;
                memcpy(&value, rows[8 * j + at.row] + 2 * at.col, sizeof value);
                r[lane][j] |= static_cast<uint32_t>(value) << (16 * half);
            }
        }
    }
}

inline void stmatrix_x4(unsigned char* const (&rows)[32], const uint32_t (&r)[32][4], bool trans) {
    for (uint32_t lane = 0; lane < 32; lane++) {
        for (uint32_t j = 0; j < 4; j++) {
            for (uint32_t half = 0; half < 2; half++) {
                Cell at = matrix_8x8(lane, half, trans);
                uint16_t value = half_of(r[lane][j], half);
                memcpy(rows[8 * j + at.row] + 2 * at.col, &value, sizeof value);
            }
        }
    }
}

// == wgmma.mma_async.sp::dense m64nNk16 ==
//
// PTX ISA, "Asynchronous Warpgroup Level Matrix Shared Memory Layout", "Matrix-descriptor":
//   bits 0–13 start address, 16–29 leading dimension byte offset, 32–45 stride dimension byte
//   offset, each encoded as (x & 0x3FFFF) >> 4; 49–51 base offset; 62–63 swizzle: 0 none, 1 128, 2
//   64, 3 32 bytes.

struct Descriptor {
    uint32_t start;    // byte address in the shared window
    uint32_t leading;  // bytes
    uint32_t stride;   // bytes
    uint32_t base_offset;
    uint32_t swizzle;
    uint64_t reserved;  // the bits that must be zero
};

constexpr uint32_t SWIZZLE_128 = 1;

constexpr Descriptor decode_descriptor(uint64_t bits) {
    return {static_cast<uint32_t>(bits & 0x3fff) << 4,
            static_cast<uint32_t>((bits >> 16) & 0x3fff) << 4,
            static_cast<uint32_t>((bits >> 32) & 0x3fff) << 4,
            static_cast<uint32_t>((bits >> 49) & 7),
            static_cast<uint32_t>(bits >> 62),
            bits & 0x3ff1c000c000c000ull};
}

constexpr uint64_t encode_descriptor(uint32_t start, uint32_t leading, uint32_t stride,
                                     uint32_t swizzle) {
    return static_cast<uint64_t>((start & 0x3ffff) >> 4) |
           static_cast<uint64_t>((leading & 0x3ffff) >> 4) << 16 |
           static_cast<uint64_t>((stride & 0x3ffff) >> 4) << 32 |
           static_cast<uint64_t>(swizzle) << 62;
}

// Why the model refuses a descriptor of an operand with `extent` rows (m or n); 0 if it does not.
inline const char* descriptor_fault(const Descriptor& d, bool mn_major, uint32_t extent) {
    if (d.reserved != 0) return "reserved bits are set";
    if (d.swizzle != SWIZZLE_128) return "the swizzle is not 128 bytes, the one that is modelled";
    // "The value of base offset is 0 when the repeating pattern of the specified swizzling mode
    // starts as per …: 128-Byte swizzle, 1024-Byte boundary."
    if (d.base_offset != 0) return "the base offset is not 0, the one that is modelled";
    if ((d.start & 0x380) != 0)
        return "start address: the 8-row pattern does not begin on a 1024-byte boundary";
    if (d.stride % 1024 != 0)
        return "stride: groups of 8 rows do not begin on 1024-byte boundaries";
    bool strides =
        mn_major || extent > 8;  // K-major: between groups of 8 rows; MN-major: of 8 k's
    if (strides && d.stride == 0) return "stride is 0: every group of 8 rows would be the first";
    if (!mn_major) {
        if ((d.start & 0x7f) > 128 - 32)
            return "start address: the 16 k's leave their 128-byte row";
        return nullptr;
    }
    if ((d.start & 0x7f) != 0)
        return "start address of an MN-major operand is not at the begin of its rows";
    if (extent > 64 && d.leading % 1024 != 0)
        return "leading: panels of 64 do not begin on 1024-byte boundaries";
    if (extent > 64 && d.leading == 0) return "leading is 0: every panel of 64 would be the first";
    return nullptr;
}

// The swizzle is a function of the address: bits 4–6 are XORed with bits 7–9 ("Swizzle<3,4,3>").
constexpr uint32_t swizzle_128(uint32_t address) { return address ^ ((address >> 3) & 0x70); }

// Byte address of element (mn, k), k < 16, in the shared window. In units of T = 8 elements of 16
// bits:
//   K-major   ((8, m), (T, 2)) : ((8T, SBO), (1, T))             128 bytes a row, SBO between 8
//   rows MN-major  ((T, 8, m), (8, k)) : ((1, T, LBO), (8T, SBO))      128 bytes a k, SBO between
//   8 k's,
//                                                              LBO between panels of 64 mn
constexpr uint32_t operand_address(const Descriptor& d, bool mn_major, uint32_t mn, uint32_t k) {
    return swizzle_128(mn_major ? d.start + (mn / 64) * d.leading + (mn % 64) * 2 +
                                      (k / 8) * d.stride + (k % 8) * 128
                                : d.start + (mn / 8) * d.stride + (mn % 8) * 128 + k * 2);
}

// Calls visit(address) for each 16-byte chunk that an operand of `extent` × k16 reads.
template <class Visit>
void operand_chunks(const Descriptor& d, bool mn_major, uint32_t extent, Visit visit) {
    for (uint32_t mn = 0; mn < extent; mn += mn_major ? 8 : 1) {
        for (uint32_t k = 0; k < 16; k += mn_major ? 1 : 8)
            visit(operand_address(d, mn_major, mn, k));
    }
}

// PTX ISA, "Register Fragments …", wgmma.mma_async.m64nNk16, accumulator D: register i of thread t
// < 128.
constexpr Cell wgmma_d(uint32_t t, uint32_t i) {  // i < N / 2: (m, n)
    return {(t / 32) * 16 + (t % 32) / 4 + ((i / 2) % 2) * 8, (i / 4) * 8 + (t % 4) * 2 + i % 2};
}

// The 64 × N result in the accumulators of 128 threads. A is K-major. `window` is the host address
// of shared address 0. The descriptors have passed descriptor_fault and their chunks a bounds
// check.
template <class Format, uint32_t N>
void wgmma(float* const (&d)[128], const unsigned char* window, const Descriptor& a,
           const Descriptor& b, bool b_mn_major, bool accumulate) {
    static_assert(N % 8 == 0 && N <= 256, "PTX ISA: N is a multiple of 8 up to 256");
    auto load = [&](const Descriptor& operand, bool mn_major, uint32_t mn, uint32_t k) {
        uint16_t bits;
        memcpy(&bits, window + operand_address(operand, mn_major, mn, k), sizeof bits);
        return Format::decode(bits);
    };
    float b_matrix[16][N];
    for (uint32_t k = 0; k < 16; k++) {
        for (uint32_t n = 0; n < N; n++) b_matrix[k][n] = load(b, b_mn_major, n, k);
    }
    for (uint32_t m = 0; m < 64; m++) {
        // Row m lies in the four threads t of one quad, in registers i with the same (i / 2) % 2.
        uint32_t first = (m / 16) * 32 + (m % 8) * 4, upper = ((m / 8) % 2) * 2;
        auto cell = [&](uint32_t n) -> float& {
            return d[first + (n / 2) % 4][(n / 8) * 4 + upper + n % 2];
        };
        float row[N];
        for (uint32_t n = 0; n < N; n++) row[n] = accumulate ? cell(n) : 0.0f;
        for (uint32_t k = 0; k < 16; k++) {
            float left = load(a, false, m, k);
            for (uint32_t n = 0; n < N; n++) row[n] += left * b_matrix[k][n];
        }
        for (uint32_t n = 0; n < N; n++) cell(n) = row[n];
    }
}

}  // namespace nvidia
}  // namespace sim
