// The runtime of AMD's instructions, behind dev/sim_amd.h: the models of models_amd.h as operations
// of a wave.
#pragma once

#include "runtime.h"

namespace sim {

// d = a·b + d over the wave: V_MFMA_F32_{m}x{m}x{k}. Registers of this lane.
void mfma(float* d, const uint32_t* a, const uint32_t* b, uint32_t m, uint32_t k, Format format,
          bool flush_subnormals);

uint32_t perm(uint32_t s0, uint32_t s1, uint32_t selector);

// DS_READ_B64_TR_B16: this lane reads 8 bytes and receives its column.
void lds_read_transposed(uint32_t* registers, const void* address);

// A load of 16 bytes into LDS, at `wave_base` (one address for the wave) plus 16 times the lane.
// Each is a group of its own in the thread's queue of copies, as vmcnt counts it.
void lds_load16(void* wave_base, const void* global);

}  // namespace sim
