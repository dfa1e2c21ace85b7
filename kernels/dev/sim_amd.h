// The seam for CDNA, in the simulator; included by sim.h. What the instructions do is in
// sim/models_amd.h, from AMD's documents.
//
// Counters. A load to LDS completes as late as wait_memory demands: each is one count of vmcnt,
// and its destination is poisoned until then. All other loads complete at once and are not
// counted, so wait_memory<N> with N > 0 is right only while nothing but loads to LDS is in flight.
// Accesses of LDS are over, for other waves, only after wait_lds<0>, or the waiting that sync()
// includes. The compiler's own waits, before a value that was read is used, are not known here: a
// kernel that counts on them for a barrier alone is reported.
#pragma once

#include "../sim/amd.h"

namespace dev {

#if defined(DEV_GFX90A)
constexpr bool MFMA_FLUSHES_SUBNORMALS = true;
#else
constexpr bool MFMA_FLUSHES_SUBNORMALS = false;
#endif

template <class T, uint32_t M, uint32_t K, class Operand, class Result>
Result mfma_wave(Operand a, Operand b, Result c) {
    sim::mfma(reinterpret_cast<float*>(&c), reinterpret_cast<const uint32_t*>(&a),
              reinterpret_cast<const uint32_t*>(&b), M, K, sim_format<T>(),
              MFMA_FLUSHES_SUBNORMALS);
    return c;
}

template <class T>
f32x4 mfma_16x16x16(u32x2 a, u32x2 b, f32x4 c) {
    return mfma_wave<T, 16, 16>(a, b, c);
}

template <class T>
f32x16 mfma_32x32x8(u32x2 a, u32x2 b, f32x16 c) {
    return mfma_wave<T, 32, 8>(a, b, c);
}

inline uint32_t perm(uint32_t hi, uint32_t lo, uint32_t selector) {
    return sim::perm(hi, lo, selector);
}

// Instructions of gfx950 alone do not compile for its predecessors, as in the real compiler.
#if defined(DEV_GFX950)

template <class T>
f32x4 mfma_16x16x32(u32x4 a, u32x4 b, f32x4 c) {
    return mfma_wave<T, 16, 32>(a, b, c);
}

template <class T>
f32x16 mfma_32x32x16(u32x4 a, u32x4 b, f32x16 c) {
    return mfma_wave<T, 32, 16>(a, b, c);
}

inline void lds_load16(void* wave_base, const void* global) { sim::lds_load16(wave_base, global); }

inline u32x2 lds_read_tr8(const void* address) {
    u32x2 value;
    sim::lds_read_transposed(reinterpret_cast<uint32_t*>(&value), address);
    return value;
}

#endif

template <uint32_t N>
void wait_memory() {
    sim::queue_wait(N);
}

template <uint32_t N>
void wait_lds() {
    if (N == 0) sim::settle_shared();
}

inline void block_barrier() { sim::execution_barrier(); }

template <uint32_t N>
void priority() {
    static_assert(N < 4, "s_setprio takes two bits");
}

inline void schedule_fence() {}

}  // namespace dev
