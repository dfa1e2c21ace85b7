// The seam by NVIDIA's instructions: sm_80 and later, with Hopper's own under DEV_SM90 (sm_90a).
//
// Each function is one instruction, or the few that its meaning needs; PTX ISA describes them under
// the names in the assembly. Shared-memory operands take 32-bit addresses of the shared window.
#pragma once

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DEV_SM90 1
#else
#define DEV_SM80 1
#endif

#define DEV_FN __device__ __forceinline__
#define DEV_KERNEL(name, threads, min_blocks, Args) \
    extern "C" __global__ void __launch_bounds__(threads, min_blocks) \
        name(const __grid_constant__ Args args)

namespace dev {

using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using f32 = float;
using f64 = double;

struct alignas(8) u32x2 {
    u32 of[2];
    __device__ __forceinline__ u32& operator[](u32 i) { return of[i]; }
    __device__ __forceinline__ u32 operator[](u32 i) const { return of[i]; }
};
struct alignas(16) u32x4 {
    u32 of[4];
    __device__ __forceinline__ u32& operator[](u32 i) { return of[i]; }
    __device__ __forceinline__ u32 operator[](u32 i) const { return of[i]; }
};

struct Bf16 {};
struct F16 {};

constexpr u32 WAVE = 32;

DEV_FN u32 thread() { return threadIdx.x; }
DEV_FN u32 block() { return blockIdx.x; }
DEV_FN u32 grid() { return gridDim.x; }
DEV_FN u32 lane() { return threadIdx.x % WAVE; }
DEV_FN u32 wave() { return threadIdx.x / WAVE; }

DEV_FN unsigned char* shared() {
    extern __shared__ __align__(1024) unsigned char muster_shared[];
    return muster_shared;
}

DEV_FN u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

DEV_FN void sync() { __syncthreads(); }
DEV_FN void named_sync(u32 id, u32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEV_FN void named_arrive(u32 id, u32 threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEV_FN void wave_sync() { __syncwarp(); }

template <class V>
DEV_FN V shfl(V value, u32 from) {
    return __shfl_sync(0xffffffffu, value, from);
}
template <class V>
DEV_FN V shfl_xor(V value, u32 mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}
DEV_FN u32 uniform(u32 value) { return shfl(value, 0); }

DEV_FN u16 to_bf16(f32 value) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
DEV_FN u16 to_f16(f32 value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
DEV_FN f32 from_bf16(u16 bits) { return __uint_as_float(static_cast<u32>(bits) << 16); }
DEV_FN f32 from_f16(u16 bits) {
    f32 value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// The lower half holds `lo`, the element of the lower index.
template <class T>
DEV_FN u32 pack(f32 lo, f32 hi);
template <>
DEV_FN u32 pack<Bf16>(f32 lo, f32 hi) {
    u32 bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(hi), "f"(lo));
    return bits;
}
template <>
DEV_FN u32 pack<F16>(f32 lo, f32 hi) {
    u32 bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(hi), "f"(lo));
    return bits;
}

template <class T>
DEV_FN void unpack(u32 bits, f32& lo, f32& hi);
template <>
DEV_FN void unpack<Bf16>(u32 bits, f32& lo, f32& hi) {
    lo = __uint_as_float(bits << 16);
    hi = __uint_as_float(bits & 0xffff0000u);
}
template <>
DEV_FN void unpack<F16>(u32 bits, f32& lo, f32& hi) {
    lo = from_f16(static_cast<u16>(bits));
    hi = from_f16(static_cast<u16>(bits >> 16));
}

// An address in device memory. Not by __cvta_global_to_generic: with it, nvcc 13.0 does not come to
// an end on a search through a table.
template <class T>
DEV_FN T* pointer(u64 address) {
    return reinterpret_cast<T*>(address);
}
// Memory that no launch in flight writes to.
template <class T>
DEV_FN const T* constant(u64 address) {
    return pointer<const T>(address);
}

DEV_FN u32x4 load16(const void* at) {
    const uint4 v = *static_cast<const uint4*>(at);
    return {{v.x, v.y, v.z, v.w}};
}
DEV_FN u32x2 load8(const void* at) {
    const uint2 v = *static_cast<const uint2*>(at);
    return {{v.x, v.y}};
}
DEV_FN u32 load4(const void* at) { return *static_cast<const u32*>(at); }
DEV_FN void store16(void* at, u32x4 v) {
    *static_cast<uint4*>(at) = make_uint4(v[0], v[1], v[2], v[3]);
}
DEV_FN void store8(void* at, u32x2 v) { *static_cast<uint2*>(at) = make_uint2(v[0], v[1]); }
DEV_FN void store4(void* at, u32 value) { *static_cast<u32*>(at) = value; }

DEV_FN f32 fma(f32 a, f32 b, f32 c) { return __fmaf_rn(a, b, c); }
DEV_FN f64 fma(f64 a, f64 b, f64 c) { return __fma_rn(a, b, c); }
DEV_FN f32 sqrt(f32 value) { return __fsqrt_rn(value); }
DEV_FN f64 sqrt(f64 value) { return __dsqrt_rn(value); }
DEV_FN f32 mul(f32 a, f32 b) { return __fmul_rn(a, b); }
DEV_FN f32 add(f32 a, f32 b) { return __fadd_rn(a, b); }
DEV_FN f32 div(f32 a, f32 b) { return __fdiv_rn(a, b); }
DEV_FN f64 add(f64 a, f64 b) { return __dadd_rn(a, b); }

// ---- asynchronous copies, matrix loads and the warp's matrix instruction (sm_80) ----------------

DEV_FN void cp_async16(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)),
                 "l"(__cvta_generic_to_global(from))
                 : "memory");
}
DEV_FN void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
DEV_FN void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

DEV_FN void ldmatrix_x4(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
DEV_FN void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

template <class T>
DEV_FN void mma_16816(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]);

#define MUSTER_MMA(T, name) \
    template <> \
    DEV_FN void mma_16816<T>(f32(&d)[4], const u32(&a)[4], const u32(&b)[2]) { \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name \
            ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); \
    }
MUSTER_MMA(Bf16, "bf16")
MUSTER_MMA(F16, "f16")
#undef MUSTER_MMA

}  // namespace dev

#if defined(DEV_SM90)
#include "cuda_sm90.h"
#endif
