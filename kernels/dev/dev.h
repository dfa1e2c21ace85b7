// The seam between kernels and the instructions of a vendor.
//
// Kernels call nothing vendor-specific except these names. cuda.h and hip.h implement them by
// instructions; sim.h by the vendor's published semantics, executed on the CPU. Above the seam
// everything runs in the simulator; what lies below it is checked in the disassembly, and on a GPU
// where one is at hand.
//
// Every target:
//   DEV_KERNEL(name, threads, min_blocks, Args) { … args … }
//                                     a kernel taking one Args by value
//   DEV_FN                            qualifier of device functions
//   WAVE                              lanes of a wave: 32 or 64 (constexpr)
//   thread() block() grid()           x indices and extents
//   lane() wave()                     thread() % WAVE, thread() / WAVE
//   uniform(u32)                      the value, known to be equal in the wave (readfirstlane)
//   shared()                          dynamic shared memory, 1024-byte aligned: unsigned char*
//   sync()                            block barrier, orders memory
//   wave_sync()                       wave barrier (no instruction on 64-lane waves in lockstep)
//   shfl_xor(v, mask) shfl(v, lane)   f32, u32, f64
//   to_bf16(f32) to_f16(f32)          to u16, round to nearest even
//   from_bf16(u16) from_f16(u16)      to f32
//   pack<T>(f32 lo, f32 hi) -> u32    two 16-bit values, T = Bf16 or F16 (tag types)
//   unpack<T>(u32, f32&, f32&)
//   T* pointer<T>(u64 address)        device memory
//   const T* constant<T>(u64)         device memory that no launch in flight writes
//                                     (on AMD: global and scalar accesses; other casts give slow
//                                     flat ones)
//   load16(const void*) -> u32x4      memory of any kind; load8: u32x2, load4: u32
//   store16(void*, u32x4)             store8: u32x2, store4: u32
//   fma(f32, f32, f32) sqrt(f64) …    plain arithmetic where a library would be needed; rounded to
//                                     nearest
//   mul(f32, f32) add(f32, f32)       each rounded to nearest by itself: no compiler makes one of
//   div(f32, f32) add(f64, f64)       two of them, so that results are those of the host, bit for
//                                     bit, subnormal numbers included
//
// DEV_SM80 and DEV_SM90:
//   named_sync(u32 id, u32 threads)                bar.sync id, threads
//   named_arrive(u32 id, u32 threads)              bar.arrive id, threads: does not wait
//   cp_async16(dst_shared, src_global); cp_async_commit(); cp_async_wait<N>()
//   ldmatrix_x4(u32 (&r)[4], const void* row); ldmatrix_x4_trans(…)
//   stmatrix_x4(void* row, const u32 (&r)[4]); stmatrix_x4_trans(…)      (sm_90)
//   mma_16816<T>(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2])      d += a·b
//
// DEV_SM90:
//   cluster_rank(); cluster_blocks(); cluster_sync()
//   let_next_launch_begin()                        programmatic dependent launch: the next one may
//   await_launch_before()                          until the launch before has ended
//   count_add(u64 counter, u32 amount)             release: publishes what this thread has written
//   count_await(u64 counter, u32 amount)           acquire: until the counter in device memory is
//                                                  at least amount
//   fence_async_global()                           generic writes to device memory → async proxy
//   mbar_init(u64* bar, u32 count); mbar_init_fence()
//   mbar_arrive(u64* bar)
//   mbar_arrive_cluster(u64* bar, u32 rank)        the same offset in block `rank`
//   mbar_expect(u64* bar, u32 bytes)               arrive and expect bytes
//   mbar_wait(u64* bar, u32 parity)                until the phase `parity` is over
//   bulk_load(dst_shared, src_global, bytes, u64* bar)           complete_tx at bar
//   bulk_load_multicast(dst, src, bytes, bar, u16 mask)          same offsets in each block of mask
//   bulk_store(dst_global, src_shared, bytes); bulk_commit(); bulk_wait_read<N>(); bulk_wait<N>()
//   fence_async_shared()                           generic writes → async proxy
//   registers_down<N>(), registers_up<N>()         setmaxnreg
//   elect()                                        true in one lane of the wave
//   wgmma_fence(); wgmma_commit()
//   wgmma_wait<N>(acc)                             acc: the registers in flight
//   wgmma_desc(const void* shared, u32 leading_bytes, u32 stride_bytes) -> u64
//                                                  128-byte swizzle
//   wgmma<T, N, B_MN>(f32 (&acc)[N / 2], u64 a, u64 b, bool accumulate)
//                                                  m64 nN k16, B_MN: B is MN-major
//
// DEV_CDNA:
//   mfma_16x16x16<T>(u32x2 a, u32x2 b, f32x4 c) -> f32x4
//   mfma_32x32x8<T>(u32x2 a, u32x2 b, f32x16 c) -> f32x16
//   mfma_16x16x32<T>, mfma_32x32x16<T> with u32x4 operands       (gfx950)
//   perm(u32 hi, u32 lo, u32 selector) -> u32      v_perm_b32
//   lds_load16(void* wave_base, const void* global)              (gfx950)
//                                                  16 bytes a lane, lane l to base + 16·l
//   lds_read_tr8(const void*) -> u32x2             ds_read_b64_tr_b16 (gfx950)
//   wait_memory<N>(), wait_lds<N>()                s_waitcnt vmcnt / lgkmcnt
//   opaque(u32)                                    the value, made where it is used and not kept in
//                                                  a register
//   block_barrier()                                s_barrier alone
//   priority<N>(); schedule_fence()                s_setprio, sched_barrier(0)
#pragma once

#include <stdint.h>

#if defined(DEV_SIM)
#include "sim.h"
#elif defined(__CUDACC__)
#define DEV_CUDA 1
#include "cuda.h"
#elif defined(__HIP__)
#define DEV_HIP 1
#include "hip.h"
#else
#error "compile with nvcc, clang -x hip, or as C++ with -DDEV_SIM and an architecture macro"
#endif
