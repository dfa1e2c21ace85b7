// NVIDIA's matrix instructions: ldmatrix, stmatrix and mma of a warp, wgmma of a warpgroup.
#include <string.h>

#include <algorithm>

#include "models_nvidia.h"
#include "state.h"

namespace sim {

namespace {

struct MatrixLane {
    uint32_t* registers;
    unsigned char* row;
};

struct MmaLane {
    float* d;
    const uint32_t* a;
    const uint32_t* b;
};

void need_warp(const char* what, uint32_t lanes) {
    if (lanes != 32) fault("%s in a warp of %u threads; it needs 32", what, lanes);
}

// The row that this lane addresses; who lacks a barrier before it is found here.
void check_row(const void* row, bool write, const char* what) {
    if (!is_shared(row)) fault("%s of %s: not in shared memory", what, who(current));
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
        fault("misaligned: %s of %s at %s, not a multiple of 16", what, who(current), place(row));
    }
    check(row, 16, write);
}

template <bool TRANS>
void run_ldmatrix(void* const* payloads, uint32_t lanes) {
    need_warp("ldmatrix", lanes);
    const unsigned char* rows[32];
    uint32_t registers[32][4];
    for (uint32_t i = 0; i < 32; i++) rows[i] = static_cast<MatrixLane*>(payloads[i])->row;
    nvidia::ldmatrix_x4(registers, rows, TRANS);
    for (uint32_t i = 0; i < 32; i++) {
        memcpy(static_cast<MatrixLane*>(payloads[i])->registers, registers[i],
               sizeof registers[i]);
    }
}

template <bool TRANS>
void run_stmatrix(void* const* payloads, uint32_t lanes) {
    need_warp("stmatrix", lanes);
    unsigned char* rows[32];
    uint32_t registers[32][4];
    for (uint32_t i = 0; i < 32; i++) {
        const MatrixLane& lane = *static_cast<MatrixLane*>(payloads[i]);
        rows[i] = lane.row;
        memcpy(registers[i], lane.registers, sizeof registers[i]);
    }
    nvidia::stmatrix_x4(rows, registers, TRANS);
}

template <class Values>
void run_mma(void* const* payloads, uint32_t lanes) {
    need_warp("mma_16816", lanes);
    static float d[32][4];
    static uint32_t a[32][4], b[32][2];
    for (uint32_t i = 0; i < 32; i++) {
        const MmaLane& lane = *static_cast<MmaLane*>(payloads[i]);
        memcpy(d[i], lane.d, sizeof d[i]);
        memcpy(a[i], lane.a, sizeof a[i]);
        memcpy(b[i], lane.b, sizeof b[i]);
    }
    nvidia::mma_16816<Values>(d, a, b);
    for (uint32_t i = 0; i < 32; i++) {
        memcpy(static_cast<MmaLane*>(payloads[i])->d, d[i], sizeof d[i]);
    }
}

}  // namespace

void ldmatrix_x4(uint32_t* registers, const void* row, bool trans) {
    check_row(row, false, "ldmatrix");
    MatrixLane payload{registers, static_cast<unsigned char*>(const_cast<void*>(row))};
    wave_meet("ldmatrix", trans, &payload, trans ? run_ldmatrix<true> : run_ldmatrix<false>);
}

void stmatrix_x4(void* row, const uint32_t* registers, bool trans) {
    check_row(row, true, "stmatrix");
    MatrixLane payload{const_cast<uint32_t*>(registers), static_cast<unsigned char*>(row)};
    wave_meet("stmatrix", trans, &payload, trans ? run_stmatrix<true> : run_stmatrix<false>);
}

void mma_16816(float* d, const uint32_t* a, const uint32_t* b, Format format) {
    MmaLane payload{d, a, b};
    wave_meet("mma_16816", static_cast<uint64_t>(format), &payload,
              format == Format::Bf16 ? run_mma<Bf16Format> : run_mma<F16Format>);
}

}  // namespace sim
