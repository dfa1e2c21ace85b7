// The simulator's runtime, as it is offered to the seam (dev/sim*.h). Kernels never include this
// themselves.
//
// A simulated thread is a fiber. One operating-system thread runs a launch, one fiber at a time,
// so nothing here needs locks; a fiber runs until it has to wait. The functions below act for the
// fiber that runs. A fault abandons the launch and returns a report to its caller.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace sim {

// The architecture a module is built for. Defined by dev/sim.h, so that the runtime's own object
// files serve every module.
struct Target {
    const char* name;
    uint32_t wave;           // lanes
    uint32_t shared_limit;   // bytes of shared memory a block can have
    uint32_t cluster_limit;  // blocks
    bool async_proxy;        // generic writes reach asynchronous readers only through a fence
    bool late_shared;  // shared accesses are over, for other waves, only after a wait for them
};
extern const Target target;

// A kernel puts itself on the module's list when the module is loaded.
struct Kernel {
    const char* name;
    uint32_t max_threads;
    uint32_t args_bytes;
    void (*run)(const void* args);
    const Kernel* next;
    Kernel(const char* name, uint32_t max_threads, uint32_t args_bytes, void (*run)(const void*));
};

// ---- where the fiber is
// ----------------------------------------------------------------------------
uint32_t thread_index();
uint32_t block_index();
uint32_t grid_blocks();
uint32_t cluster_rank();
uint32_t cluster_blocks();
unsigned char* shared_memory();

// ---- memory
// ---------------------------------------------------------------------------------------- Checks
// an access of `bytes` bytes at an address that must be a multiple of them (bounds, races,
// operations in flight) and performs it. Ordinary loads and stores of kernels are checked too,
// through the compiler's instrumentation.
void load(void* value, const void* from, uint32_t bytes);
void store(void* to, const void* value, uint32_t bytes);
// The check alone.
void check(const void* address, uint32_t bytes, bool write);
// The kernel does what its target does not allow.
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- barriers and collectives
// ----------------------------------------------------------------------
void block_sync();         // orders memory
void execution_barrier();  // s_barrier: orders nothing that is not waited for
void named_sync(uint32_t id, uint32_t threads);
void named_arrive(uint32_t id, uint32_t threads);  // does not wait
void cluster_sync();
void wave_sync();

// All lanes of the wave meet with the same `what` and `tag`; the last to arrive runs `work` over
// the payloads by lane (none where the block ends within the wave), unchecked; then all go on.
// Orders no memory.
using Work = void (*)(void* const* payloads, uint32_t lanes);
void wave_meet(const char* what, uint64_t tag, void* payload, Work work);

// The 32 or 64 bits at `value` become those of lane `lane ^ operand` (exchange) or `operand`
// (else).
void shuffle(void* value, uint32_t bytes, uint32_t operand, bool exchange);
uint32_t uniform(uint32_t value);  // faults where lanes disagree
bool elect();

// ---- copies in a thread's own queue: cp.async, and loads to LDS
// -------------------------------------- The destination is poisoned until the thread waits for
// the group. `what` names the instruction.
void queue_copy(const char* what, void* shared, const void* global, uint32_t bytes);
void queue_commit();  // closes a group, which may be empty
void queue_wait(uint32_t groups_left);
void settle_shared();  // late_shared: the thread's accesses are over

// ---- Hopper
// ------------------------------------------------------------------------------------------
void mbar_init(uint64_t* bar, uint32_t count);
void mbar_init_fence();
void mbar_arrive(uint64_t* bar);
void mbar_arrive_cluster(uint64_t* bar, uint32_t rank);
void mbar_expect(uint64_t* bar, uint32_t bytes);
void mbar_wait(uint64_t* bar, uint32_t parity);
void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* bar, uint32_t mask,
               bool multicast);
void bulk_store(void* global, const void* shared, uint32_t bytes);
void bulk_commit();
void bulk_wait(uint32_t groups_left, bool read_only);
void fence_async_shared();

// ---- counters in device memory
// ----------------------------------------------------------------------
void count_add(uint32_t* counter, uint32_t amount);    // releases
void count_await(uint32_t* counter, uint32_t amount);  // waits for so much, and acquires

// ---- NVIDIA's matrix instructions
// --------------------------------------------------------------------
enum class Format { Bf16, F16 };
void ldmatrix_x4(uint32_t* registers, const void* row, bool trans);
void stmatrix_x4(void* row, const uint32_t* registers, bool trans);
void mma_16816(float* d, const uint32_t* a, const uint32_t* b, Format format);
void wgmma(float* acc, uint32_t n, uint64_t a, uint64_t b, bool b_mn_major, bool accumulate,
           Format format);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(uint32_t groups_left);
uint64_t wgmma_descriptor(const void* shared, uint32_t leading_bytes, uint32_t stride_bytes);

}  // namespace sim
