// The seam on AMD: instructions of CDNA by compiler builtins. See dev.h for what each name means.
//
// No ROCm header is needed: the file declares the few attributes that those would bring, so that
// any clang which knows the target makes the code objects.
//
// Waves have 64 lanes and run in lockstep. A wait or a barrier here also keeps the compiler from
// moving memory accesses across it: the builtins alone order the machine's instructions, not the
// program's.
#pragma once

#include <stdint.h>

// A kernel says where a product and a sum are rounded once, by fma; on every target the same.
#pragma clang fp contract(off)

#if defined(__gfx90a__)
#define DEV_GFX90A 1
#elif defined(__gfx942__)
#define DEV_GFX942 1
#elif defined(__gfx950__)
#define DEV_GFX950 1
#elif defined(__AMDGCN__)
#error "kernels are written for gfx90a, gfx942 and gfx950"
#endif
#define DEV_CDNA 1

#define DEV_FN __attribute__((device, always_inline)) inline

// `min_blocks` resident blocks on a compute unit of four SIMDs bound the registers of a wave.
#define DEV_KERNEL(name, threads, min_blocks, Args)                                           \
    extern "C" __attribute__((global, amdgpu_flat_work_group_size(threads, threads),         \
                              amdgpu_waves_per_eu(((threads) * (min_blocks) + 255) / 256)))  \
    void name(const Args args)

namespace dev {

using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using f32 = float;
using f64 = double;
using u32x2 = u32 __attribute__((ext_vector_type(2)));
using u32x4 = u32 __attribute__((ext_vector_type(4)));
using f32x4 = f32 __attribute__((ext_vector_type(4)));
using f32x16 = f32 __attribute__((ext_vector_type(16)));

struct Bf16 {};
struct F16 {};

constexpr u32 WAVE = 64;

DEV_FN u32 thread() { return __builtin_amdgcn_workitem_id_x(); }
DEV_FN u32 block() { return __builtin_amdgcn_workgroup_id_x(); }
// The first hidden argument of a kernel is the number of blocks (AMDGPU ABI, code object 5 and
// later).
DEV_FN u32 grid() {
    return *(const __attribute__((address_space(4))) u32*)__builtin_amdgcn_implicitarg_ptr();
}
DEV_FN u32 lane() { return thread() % WAVE; }
DEV_FN u32 uniform(u32 v) { return __builtin_amdgcn_readfirstlane(v); }
DEV_FN u32 opaque(u32 v) {
    asm volatile("" : "+v"(v));
    return v;
}
DEV_FN u32 wave() { return uniform(thread() / WAVE); }

// An address in device memory. The address space is named, so that accesses become global ones:
// flat ones would also count as LDS accesses in every wait.
template <class T>
DEV_FN T* pointer(u64 address) {
    return (T*)(__attribute__((address_space(1))) T*)address;
}

// The same for what no launch in flight writes: uniform accesses go through the scalar cache.
template <class T>
DEV_FN const T* constant(u64 address) {
    return (const T*)(const __attribute__((address_space(4))) T*)address;
}

// Outside the namespace's functions: LDS arrays of unknown size are global declarations in HIP.
extern __attribute__((shared, aligned(1024))) unsigned char dynamic_shared[];
DEV_FN unsigned char* shared() { return dynamic_shared; }

DEV_FN void compiler_fence() { asm volatile("" ::: "memory"); }
DEV_FN void schedule_fence() { __builtin_amdgcn_sched_barrier(0); }

DEV_FN void sync() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

DEV_FN void wave_sync() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
    __builtin_amdgcn_wave_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
}

DEV_FN void block_barrier() {
    compiler_fence();
    __builtin_amdgcn_s_barrier();
    compiler_fence();
}

// s_waitcnt's operand on gfx9: vmcnt in bits 3:0 and 15:14, expcnt in 6:4, lgkmcnt in 11:8; a
// counter that is not waited for stands at its maximum.
template <u32 N>
DEV_FN void wait_memory() {
    static_assert(N < 64, "vmcnt has six bits");
    compiler_fence();
    __builtin_amdgcn_s_waitcnt(0x0F70 | (N & 15) | (N >> 4) << 14);
    compiler_fence();
}

template <u32 N>
DEV_FN void wait_lds() {
    static_assert(N < 16, "lgkmcnt has four bits");
    compiler_fence();
    __builtin_amdgcn_s_waitcnt(0xC07F | N << 8);
    compiler_fence();
}

template <u32 N>
DEV_FN void priority() {
    __builtin_amdgcn_s_setprio(N);
}

DEV_FN u32 shfl(u32 v, u32 from) { return __builtin_amdgcn_ds_bpermute(from << 2, v); }
DEV_FN f32 shfl(f32 v, u32 from) {
    return __builtin_bit_cast(f32, shfl(__builtin_bit_cast(u32, v), from));
}
DEV_FN f64 shfl(f64 v, u32 from) {
    const u64 bits = __builtin_bit_cast(u64, v);
    const u64 low = shfl(static_cast<u32>(bits), from);
    const u64 high = shfl(static_cast<u32>(bits >> 32), from);
    return __builtin_bit_cast(f64, high << 32 | low);
}
template <class T>
DEV_FN T shfl_xor(T v, u32 mask) {
    return shfl(v, lane() ^ mask);
}

DEV_FN u32 perm(u32 hi, u32 lo, u32 selector) { return __builtin_amdgcn_perm(hi, lo, selector); }

DEV_FN f32 fma(f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); }
DEV_FN f64 fma(f64 a, f64 b, f64 c) { return __builtin_fma(a, b, c); }
DEV_FN f32 sqrt(f32 v) { return __builtin_sqrtf(v); }
DEV_FN f64 sqrt(f64 v) { return __builtin_sqrt(v); }
// Without contraction (above) these stay apart; clang rounds division and root correctly unless it
// is told otherwise.
DEV_FN f32 mul(f32 a, f32 b) { return a * b; }
DEV_FN f32 add(f32 a, f32 b) { return a + b; }
DEV_FN f32 div(f32 a, f32 b) { return a / b; }
DEV_FN f64 add(f64 a, f64 b) { return a + b; }

// --- 16-bit floats
// ------------------------------------------------------------------------------------

// The bits of a bf16 in the upper half: rounded to nearest even, a NaN stays one (and becomes
// quiet).
DEV_FN u32 round_bf16(f32 v) {
    const u32 bits = __builtin_bit_cast(u32, v);
    const u32 rounded = bits + 0x7FFF + ((bits >> 16) & 1);
    return v == v ? rounded : bits | 0x00400000;
}

DEV_FN u16 to_bf16(f32 v) { return static_cast<u16>(round_bf16(v) >> 16); }
DEV_FN f32 from_bf16(u16 v) { return __builtin_bit_cast(f32, static_cast<u32>(v) << 16); }
DEV_FN u16 to_f16(f32 v) { return __builtin_bit_cast(u16, static_cast<_Float16>(v)); }
DEV_FN f32 from_f16(u16 v) { return static_cast<f32>(__builtin_bit_cast(_Float16, v)); }

template <class T>
DEV_FN u32 pack(f32 lo, f32 hi);
template <>
DEV_FN u32 pack<Bf16>(f32 lo, f32 hi) {
#if defined(DEV_GFX950)
    using bf16x2 = __bf16 __attribute__((ext_vector_type(2)));
    return __builtin_bit_cast(u32, bf16x2{static_cast<__bf16>(lo), static_cast<__bf16>(hi)});
#else
    return perm(round_bf16(hi), round_bf16(lo), 0x07060302);  // the upper halves of both
#endif
}
template <>
DEV_FN u32 pack<F16>(f32 lo, f32 hi) {
    return static_cast<u32>(to_f16(hi)) << 16 | to_f16(lo);
}

template <class T>
DEV_FN void unpack(u32 v, f32& lo, f32& hi);
template <>
DEV_FN void unpack<Bf16>(u32 v, f32& lo, f32& hi) {
    lo = __builtin_bit_cast(f32, v << 16);
    hi = __builtin_bit_cast(f32, v & 0xFFFF0000);
}
template <>
DEV_FN void unpack<F16>(u32 v, f32& lo, f32& hi) {
    lo = from_f16(static_cast<u16>(v));
    hi = from_f16(static_cast<u16>(v >> 16));
}

// --- memory
// -------------------------------------------------------------------------------------------

DEV_FN u32 load4(const void* p) { return *static_cast<const u32*>(p); }
DEV_FN u32x2 load8(const void* p) { return *static_cast<const u32x2*>(p); }
DEV_FN u32x4 load16(const void* p) { return *static_cast<const u32x4*>(p); }
DEV_FN void store4(void* p, u32 v) { *static_cast<u32*>(p) = v; }
DEV_FN void store8(void* p, u32x2 v) { *static_cast<u32x2*>(p) = v; }
DEV_FN void store16(void* p, u32x4 v) { *static_cast<u32x4*>(p) = v; }

#if defined(DEV_GFX950)
// By hand, since the compiler waits for every such load before the next LDS read. It counts too few
// loads in flight then, which makes its own waits longer than needed, never shorter. Nothing else
// uses M0.
DEV_FN void lds_load16(void* wave_base, const void* global) {
    const u32 base = uniform((u32)(__attribute__((address_space(3))) unsigned char*)wave_base);
    asm volatile("s_mov_b32 m0, %0\n\ts_nop 0\n\tglobal_load_lds_dwordx4 %1, off"
                 :
                 : "s"(base), "v"(global)
                 : "memory");
}

DEV_FN u32x2 lds_read_tr8(const void* p) {
    using i16x4 = short __attribute__((ext_vector_type(4)));
    using Shared = __attribute__((address_space(3))) i16x4*;
    return __builtin_bit_cast(u32x2, __builtin_amdgcn_ds_read_tr16_b64_v4i16((Shared)(i16x4*)p));
}
#endif

// --- matrix instructions
// ------------------------------------------------------------------------------

using bf16x4 = short __attribute__((ext_vector_type(4)));
using f16x4 = _Float16 __attribute__((ext_vector_type(4)));

template <class T>
DEV_FN f32x4 mfma_16x16x16(u32x2 a, u32x2 b, f32x4 c);
template <>
DEV_FN f32x4 mfma_16x16x16<Bf16>(u32x2 a, u32x2 b, f32x4 c) {
    return __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(__builtin_bit_cast(bf16x4, a),
                                                     __builtin_bit_cast(bf16x4, b), c, 0, 0, 0);
}
template <>
DEV_FN f32x4 mfma_16x16x16<F16>(u32x2 a, u32x2 b, f32x4 c) {
    return __builtin_amdgcn_mfma_f32_16x16x16f16(__builtin_bit_cast(f16x4, a),
                                                 __builtin_bit_cast(f16x4, b), c, 0, 0, 0);
}

template <class T>
DEV_FN f32x16 mfma_32x32x8(u32x2 a, u32x2 b, f32x16 c);
template <>
DEV_FN f32x16 mfma_32x32x8<Bf16>(u32x2 a, u32x2 b, f32x16 c) {
    return __builtin_amdgcn_mfma_f32_32x32x8bf16_1k(__builtin_bit_cast(bf16x4, a),
                                                    __builtin_bit_cast(bf16x4, b), c, 0, 0, 0);
}
template <>
DEV_FN f32x16 mfma_32x32x8<F16>(u32x2 a, u32x2 b, f32x16 c) {
    return __builtin_amdgcn_mfma_f32_32x32x8f16(__builtin_bit_cast(f16x4, a),
                                                __builtin_bit_cast(f16x4, b), c, 0, 0, 0);
}

#if defined(DEV_GFX950)
using bf16x8 = __bf16 __attribute__((ext_vector_type(8)));
using f16x8 = _Float16 __attribute__((ext_vector_type(8)));

template <class T>
DEV_FN f32x4 mfma_16x16x32(u32x4 a, u32x4 b, f32x4 c);
template <>
DEV_FN f32x4 mfma_16x16x32<Bf16>(u32x4 a, u32x4 b, f32x4 c) {
    return __builtin_amdgcn_mfma_f32_16x16x32_bf16(__builtin_bit_cast(bf16x8, a),
                                                   __builtin_bit_cast(bf16x8, b), c, 0, 0, 0);
}
template <>
DEV_FN f32x4 mfma_16x16x32<F16>(u32x4 a, u32x4 b, f32x4 c) {
    return __builtin_amdgcn_mfma_f32_16x16x32_f16(__builtin_bit_cast(f16x8, a),
                                                  __builtin_bit_cast(f16x8, b), c, 0, 0, 0);
}

template <class T>
DEV_FN f32x16 mfma_32x32x16(u32x4 a, u32x4 b, f32x16 c);
template <>
DEV_FN f32x16 mfma_32x32x16<Bf16>(u32x4 a, u32x4 b, f32x16 c) {
    return __builtin_amdgcn_mfma_f32_32x32x16_bf16(__builtin_bit_cast(bf16x8, a),
                                                   __builtin_bit_cast(bf16x8, b), c, 0, 0, 0);
}
template <>
DEV_FN f32x16 mfma_32x32x16<F16>(u32x4 a, u32x4 b, f32x16 c) {
    return __builtin_amdgcn_mfma_f32_32x32x16_f16(__builtin_bit_cast(f16x8, a),
                                                  __builtin_bit_cast(f16x8, b), c, 0, 0, 0);
}
#endif

}  // namespace dev
