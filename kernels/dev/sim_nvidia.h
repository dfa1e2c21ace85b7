// The seam for NVIDIA, in the simulator; included by sim.h. What the matrix instructions do is in
// sim/models_nvidia.h, from NVIDIA's documents; what copies and barriers do is in the runtime.
#pragma once

namespace dev {

inline void cp_async16(void* to, const void* from) { sim::queue_copy("cp.async", to, from, 16); }
inline void cp_async_commit() { sim::queue_commit(); }
template <int N>
void cp_async_wait() {
    sim::queue_wait(N);
}

inline void ldmatrix_x4(u32 (&r)[4], const void* row) { sim::ldmatrix_x4(r, row, false); }
inline void ldmatrix_x4_trans(u32 (&r)[4], const void* row) { sim::ldmatrix_x4(r, row, true); }

template <class T>
void mma_16816(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    sim::mma_16816(d, a, b, sim_format<T>());
}

inline void named_sync(u32 id, u32 threads) { sim::named_sync(id, threads); }
inline void named_arrive(u32 id, u32 threads) { sim::named_arrive(id, threads); }

#if defined(DEV_SM90)

inline void stmatrix_x4(void* row, const u32 (&r)[4]) { sim::stmatrix_x4(row, r, false); }
inline void stmatrix_x4_trans(void* row, const u32 (&r)[4]) { sim::stmatrix_x4(row, r, true); }

// Launches run one after the other here.
inline void let_next_launch_begin() {}
inline void await_launch_before() {}

inline void count_add(u64 counter, u32 amount) { sim::count_add(pointer<u32>(counter), amount); }
inline void count_await(u64 counter, u32 amount) {
    sim::count_await(pointer<u32>(counter), amount);
}
inline void fence_async_global() {}  // Only the fence of shared memory is modelled.

inline u32 cluster_rank() { return sim::cluster_rank(); }
inline u32 cluster_blocks() { return sim::cluster_blocks(); }
inline void cluster_sync() { sim::cluster_sync(); }

inline void mbar_init(u64* bar, u32 count) { sim::mbar_init(bar, count); }
inline void mbar_init_fence() { sim::mbar_init_fence(); }
inline void mbar_arrive(u64* bar) { sim::mbar_arrive(bar); }
inline void mbar_arrive_cluster(u64* bar, u32 rank) { sim::mbar_arrive_cluster(bar, rank); }
inline void mbar_expect(u64* bar, u32 bytes) { sim::mbar_expect(bar, bytes); }
inline void mbar_wait(u64* bar, u32 parity) { sim::mbar_wait(bar, parity); }

inline void bulk_load(void* to, const void* from, u32 bytes, u64* bar) {
    sim::bulk_load(to, from, bytes, bar, 0, false);
}
inline void bulk_load_multicast(void* to, const void* from, u32 bytes, u64* bar, u16 mask) {
    sim::bulk_load(to, from, bytes, bar, mask, true);
}
inline void bulk_store(void* to, const void* from, u32 bytes) { sim::bulk_store(to, from, bytes); }
inline void bulk_commit() { sim::bulk_commit(); }
template <int N>
void bulk_wait_read() {
    sim::bulk_wait(N, true);
}
template <int N>
void bulk_wait() {
    sim::bulk_wait(N, false);
}
inline void fence_async_shared() { sim::fence_async_shared(); }

template <int N>
void registers_down() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "PTX ISA, setmaxnreg");
}
template <int N>
void registers_up() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "PTX ISA, setmaxnreg");
}
inline bool elect() { return sim::elect(); }

inline u64 wgmma_desc(const void* at, u32 leading_bytes, u32 stride_bytes) {
    return sim::wgmma_descriptor(at, leading_bytes, stride_bytes);
}
inline void wgmma_fence() { sim::wgmma_fence(); }
inline void wgmma_commit() { sim::wgmma_commit(); }
template <int N, int COUNT>
void wgmma_wait(f32 (&)[COUNT]) {
    sim::wgmma_wait(N);
}
template <class T, int N, bool B_MN>
void wgmma(f32 (&acc)[N / 2], u64 a, u64 b, bool accumulate) {
    sim::wgmma(acc, N, a, b, B_MN, accumulate, sim_format<T>());
}

#endif

}  // namespace dev
