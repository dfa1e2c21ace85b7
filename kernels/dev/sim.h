// The seam by simulation: every name of dev.h as a call of the simulator's runtime
// (sim/runtime.h).
//
// The architecture is chosen on the command line: -DDEV_SIM and one of DEV_SM90, DEV_SM80,
// DEV_GFX90A, DEV_GFX942, DEV_GFX950.
#pragma once

#include "../sim/formats.h"
#include "../sim/runtime.h"

#if defined(DEV_GFX90A) || defined(DEV_GFX942) || defined(DEV_GFX950)
#define DEV_CDNA 1
#elif !defined(DEV_SM80) && !defined(DEV_SM90)
#error "the simulator needs DEV_SM90, DEV_SM80, DEV_GFX90A, DEV_GFX942 or DEV_GFX950"
#endif

#define DEV_FN inline
// A kernel as a function of its own in the module's list. `args` is a copy, as on a device.
#define DEV_KERNEL(name, threads, min_blocks, Args)                                               \
    static void name(Args args);                                                                  \
    static const ::sim::Kernel name##_kernel(                                                     \
        #name, threads, sizeof(Args), [](const void* p) { name(*static_cast<const Args*>(p)); }); \
    static void name([[maybe_unused]] const Args args)

namespace sim {

// Name, lanes of a wave, bytes of shared memory, blocks of a cluster, asynchronous proxy, late
// writes. The limits are those of the CUDA programming guide ("Technical Specifications per
// Compute Capability") and of AMD's instruction set guides (LDS of a work-group).
#if defined(DEV_SM90)
extern const Target target = {"sm_90a", 32, 227 << 10, 8, true, false};
#elif defined(DEV_SM80)
extern const Target target = {"sm_80", 32, 163 << 10, 1, false, false};
#elif defined(DEV_GFX90A)
extern const Target target = {"gfx90a", 64, 64 << 10, 1, false, true};
#elif defined(DEV_GFX942)
extern const Target target = {"gfx942", 64, 64 << 10, 1, false, true};
#elif defined(DEV_GFX950)
extern const Target target = {"gfx950", 64, 160 << 10, 1, false, true};
#endif

}  // namespace sim

namespace dev {

using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using f32 = float;
using f64 = double;

#if defined(DEV_CDNA)
constexpr u32 WAVE = 64;
typedef u32 u32x2 __attribute__((vector_size(8)));
typedef u32 u32x4 __attribute__((vector_size(16)));
typedef f32 f32x4 __attribute__((vector_size(16)));
typedef f32 f32x16 __attribute__((vector_size(64)));
#else
constexpr u32 WAVE = 32;
struct alignas(8) u32x2 {
    u32 of[2];
    u32& operator[](u32 i) { return of[i]; }
    u32 operator[](u32 i) const { return of[i]; }
};
struct alignas(16) u32x4 {
    u32 of[4];
    u32& operator[](u32 i) { return of[i]; }
    u32 operator[](u32 i) const { return of[i]; }
};
#endif

struct Bf16 {};
struct F16 {};

template <class T>
constexpr sim::Format sim_format();
template <>
constexpr sim::Format sim_format<Bf16>() {
    return sim::Format::Bf16;
}
template <>
constexpr sim::Format sim_format<F16>() {
    return sim::Format::F16;
}

inline u32 thread() { return sim::thread_index(); }
inline u32 block() { return sim::block_index(); }
inline u32 grid() { return sim::grid_blocks(); }
inline u32 lane() { return thread() % WAVE; }
inline u32 wave() { return thread() / WAVE; }
inline u32 uniform(u32 value) { return sim::uniform(value); }
inline u32 opaque(u32 value) { return value; }
inline unsigned char* shared() { return sim::shared_memory(); }

inline void sync() { sim::block_sync(); }
inline void wave_sync() { sim::wave_sync(); }

template <class V>
V shfl(V value, u32 from) {
    static_assert(sizeof(V) == 4 || sizeof(V) == 8, "32 or 64 bits");
    sim::shuffle(&value, sizeof value, from, false);
    return value;
}
template <class V>
V shfl_xor(V value, u32 mask) {
    static_assert(sizeof(V) == 4 || sizeof(V) == 8, "32 or 64 bits");
    sim::shuffle(&value, sizeof value, mask, true);
    return value;
}

inline u16 to_bf16(f32 value) { return sim::f32_to_bf16(value); }
inline u16 to_f16(f32 value) { return sim::f32_to_f16(value); }
inline f32 from_bf16(u16 bits) { return sim::bf16_to_f32(bits); }
inline f32 from_f16(u16 bits) { return sim::f16_to_f32(bits); }

template <class T>
u32 pack(f32 lo, f32 hi) {
    if (sim_format<T>() == sim::Format::Bf16)
        return static_cast<u32>(to_bf16(hi)) << 16 | to_bf16(lo);
    return static_cast<u32>(to_f16(hi)) << 16 | to_f16(lo);
}
template <class T>
void unpack(u32 bits, f32& lo, f32& hi) {
    u16 low = static_cast<u16>(bits), high = static_cast<u16>(bits >> 16);
    bool bf16 = sim_format<T>() == sim::Format::Bf16;
    lo = bf16 ? from_bf16(low) : from_f16(low);
    hi = bf16 ? from_bf16(high) : from_f16(high);
}

template <class T>
T* pointer(u64 address) {
    return reinterpret_cast<T*>(address);
}

template <class T>
const T* constant(u64 address) {
    return reinterpret_cast<const T*>(address);
}

template <class V>
V sim_load(const void* at) {
    V value;
    sim::load(&value, at, sizeof value);
    return value;
}
inline u32 load4(const void* at) { return sim_load<u32>(at); }
inline u32x2 load8(const void* at) { return sim_load<u32x2>(at); }
inline u32x4 load16(const void* at) { return sim_load<u32x4>(at); }
inline void store4(void* at, u32 value) { sim::store(at, &value, sizeof value); }
inline void store8(void* at, u32x2 value) { sim::store(at, &value, sizeof value); }
inline void store16(void* at, u32x4 value) { sim::store(at, &value, sizeof value); }

// The contraction of a·b + c is the kernel's to ask for: modules are compiled with
// -ffp-contract=off.
inline f32 fma(f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); }
inline f64 fma(f64 a, f64 b, f64 c) { return __builtin_fma(a, b, c); }
inline f32 sqrt(f32 value) { return __builtin_sqrtf(value); }
inline f64 sqrt(f64 value) { return __builtin_sqrt(value); }
inline f32 mul(f32 a, f32 b) { return a * b; }
inline f32 add(f32 a, f32 b) { return a + b; }
inline f32 div(f32 a, f32 b) { return a / b; }
inline f64 add(f64 a, f64 b) { return a + b; }

}  // namespace dev

#if defined(DEV_CDNA)
#include "sim_amd.h"
#else
#include "sim_nvidia.h"
#endif
