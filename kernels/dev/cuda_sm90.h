// The part of cuda.h that only Hopper has: clusters, mbarriers, bulk copies, warpgroup matrix
// products.
#pragma once

namespace dev {

// ---- clusters -----------------------------------------------------------------------------------

DEV_FN u32 cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
DEV_FN u32 cluster_blocks() {
    u32 blocks;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
    return blocks;
}
DEV_FN void cluster_sync() {
    asm volatile(
        "barrier.cluster.arrive.release.aligned;\n"
        "barrier.cluster.wait.acquire.aligned;" ::
            : "memory");
}

// ---- launches -----------------------------------------------------------------------------------

// The next launch of the stream, if it was told to be early, may have its blocks begin on
// multiprocessors that have room.
DEV_FN void let_next_launch_begin() { asm volatile("griddepcontrol.launch_dependents;"); }
// In an early launch: until the one before has ended, and all that it wrote is visible.
DEV_FN void await_launch_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// ---- counters in device memory ------------------------------------------------------------------

// All that this thread knows to be written is visible to who awaits the count.
DEV_FN void count_add(u64 counter, u32 amount) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(amount) : "memory");
}
DEV_FN void count_await(u64 counter, u32 amount) {
    u32 count;
    do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
    } while (count < amount);
}
// Makes known writes to device memory visible to the copies that this thread begins.
DEV_FN void fence_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

// ---- mbarriers ----------------------------------------------------------------------------------

DEV_FN void mbar_init(u64* bar, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count)
                 : "memory");
}
// Initialized barriers become visible to the cluster and to the copy engine.
DEV_FN void mbar_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
DEV_FN void mbar_arrive(u64* bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}
DEV_FN void mbar_arrive_cluster(u64* bar, u32 rank) {
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
        "}" ::"r"(shared_address(bar)),
        "r"(rank)
        : "memory");
}
DEV_FN void mbar_expect(u64* bar, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     shared_address(bar)),
                 "r"(bytes)
                 : "memory");
}
// try_wait sleeps in hardware for a while before it answers no.
DEV_FN void mbar_wait(u64* bar, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred over;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
        "@!over bra again;\n"
        "}" ::"r"(shared_address(bar)),
        "r"(parity)
        : "memory");
}

// ---- bulk copies --------------------------------------------------------------------------------

DEV_FN void bulk_load(void* to, const void* from, u32 bytes, u64* bar) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
        "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(bar))
        : "memory");
}
DEV_FN void bulk_load_multicast(void* to, const void* from, u32 bytes, u64* bar, u16 mask) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)),
        "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(bar)), "h"(mask)
        : "memory");
}
DEV_FN void bulk_store(void* to, const void* from, u32 bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(
                     __cvta_generic_to_global(to)),
                 "r"(shared_address(from)), "r"(bytes)
                 : "memory");
}
DEV_FN void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// All but the last N groups have read their source.
template <int N>
DEV_FN void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
template <int N>
DEV_FN void bulk_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}
DEV_FN void fence_async_shared() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- warps --------------------------------------------------------------------------------------

template <int N>
DEV_FN void registers_down() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
DEV_FN void registers_up() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
DEV_FN bool elect() {
    u32 chosen;
    asm volatile(
        "{\n"
        ".reg .pred one;\n"
        "elect.sync _|one, 0xffffffff;\n"
        "selp.u32 %0, 1, 0, one;\n"
        "}"
        : "=r"(chosen));
    return chosen != 0;
}

DEV_FN void stmatrix_x4(void* row, const u32 (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     shared_address(row)),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}
DEV_FN void stmatrix_x4_trans(void* row, const u32 (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     shared_address(row)),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

// ---- warpgroup matrix products ------------------------------------------------------------------

// Matrix descriptor (PTX ISA, "Matrix-descriptor"), 128-byte swizzle. Offsets in units of 16 bytes.
DEV_FN u64 wgmma_desc(const void* at, u32 leading_bytes, u32 stride_bytes) {
    const u32 low = (shared_address(at) & 0x3ffff) >> 4 | (leading_bytes >> 4) << 16;
    const u32 high = stride_bytes >> 4 | 1u << 30;
    return static_cast<u64>(high) << 32 | low;
}

DEV_FN void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV_FN void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most N groups are in flight. `acc` are the registers that groups write: after a
// full wait the compiler must not have moved their reads before it. While some are in flight they
// must not be named at all, or the assembler gives up the overlap.
template <int N, int COUNT>
DEV_FN void wgmma_wait(f32 (&acc)[COUNT]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
    if constexpr (N == 0) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            asm volatile("" : "+f"(acc[i])::"memory");
        }
    }
}

template <class T, int N>
struct Wgmma;

#define MUSTER_REGS_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
    "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, " \
    "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, " \
    "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MUSTER_REGS_128 \
    MUSTER_REGS_64 ", " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, " \
    "%81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, " \
    "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, " \
    "%126, %127"
#define MUSTER_ACC_8(i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define MUSTER_ACC_64(i) \
    MUSTER_ACC_8(i), MUSTER_ACC_8(i + 8), MUSTER_ACC_8(i + 16), MUSTER_ACC_8(i + 24), \
        MUSTER_ACC_8(i + 32), MUSTER_ACC_8(i + 40), MUSTER_ACC_8(i + 48), MUSTER_ACC_8(i + 56)

// Operands after the registers: descriptors of a and b, accumulate, whether B is MN-major.
#define MUSTER_WGMMA(T, name, N, registers, accumulators, a_op, b_op, accumulate_op, trans_op) \
    template <> \
    struct Wgmma<T, N> { \
        template <bool B_MN> \
        static DEV_FN void run(f32(&d)[N / 2], u64 a, u64 b, bool accumulate) { \
            asm volatile( \
                "{\n" \
                ".reg .pred p;\n" \
                "setp.ne.b32 p, " accumulate_op ", 0;\n" \
                "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." name "." name \
                " {" registers "}, " a_op ", " b_op ", p, 1, 1, 0, " trans_op ";\n" \
                "}" \
                : accumulators \
                : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(B_MN ? 1 : 0)); \
        } \
    };

#define MUSTER_ACC_128 MUSTER_ACC_64(0), MUSTER_ACC_64(64)
MUSTER_WGMMA(Bf16, "bf16", 256, MUSTER_REGS_128, MUSTER_ACC_128, "%128", "%129", "%130", "%131")
MUSTER_WGMMA(F16, "f16", 256, MUSTER_REGS_128, MUSTER_ACC_128, "%128", "%129", "%130", "%131")
MUSTER_WGMMA(Bf16, "bf16", 128, MUSTER_REGS_64, MUSTER_ACC_64(0), "%64", "%65", "%66", "%67")
MUSTER_WGMMA(F16, "f16", 128, MUSTER_REGS_64, MUSTER_ACC_64(0), "%64", "%65", "%66", "%67")
#undef MUSTER_WGMMA
#undef MUSTER_ACC_128
#undef MUSTER_ACC_64
#undef MUSTER_ACC_8
#undef MUSTER_REGS_128
#undef MUSTER_REGS_64

// acc (+)= a·b: 64 rows, N columns, 16 k's. B_MN: the rows of b's tiles are k's.
template <class T, int N, bool B_MN>
DEV_FN void wgmma(f32 (&acc)[N / 2], u64 a, u64 b, bool accumulate) {
    Wgmma<T, N>::template run<B_MN>(acc, a, b, accumulate);
}

}  // namespace dev
