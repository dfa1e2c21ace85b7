// The three functions that a module exports.
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <mutex>
#include <utility>

#include "state.h"

namespace sim {

unsigned char* shared_window = nullptr;

namespace {

const Kernel* kernels = nullptr;
std::mutex one_launch;

const Kernel* find_kernel(const char* name) {
    const Kernel* kernel = kernels;
    while (kernel != nullptr && strcmp(kernel->name, name) != 0) kernel = kernel->next;
    return kernel;
}

// Why the launch cannot be made, as the driver would refuse it; empty if it can.
void refusal(const MusterSimLaunch& request, const Kernel* kernel, char* text, size_t bytes) {
    text[0] = 0;
    uint32_t threads = request.block[0];
    uint32_t cluster = request.cluster[0];
    if (kernel == nullptr) {
        snprintf(text, bytes, "the module for %s has no kernel `%s`", target.name, request.kernel);
    } else if (request.args_bytes != kernel->args_bytes) {
        snprintf(text, bytes, "kernel `%s` takes %u bytes of arguments, not %lu", kernel->name,
                 kernel->args_bytes, request.args_bytes);
    } else if (request.grid[1] != 1 || request.grid[2] != 1 || request.block[1] != 1 ||
               request.block[2] != 1 || request.cluster[1] != 1 || request.cluster[2] != 1) {
        snprintf(text, bytes, "kernel `%s`: grids, blocks and clusters have one dimension",
                 kernel->name);
    } else if (request.grid[0] == 0 || threads == 0 || threads > kernel->max_threads) {
        snprintf(text, bytes, "kernel `%s`: %u blocks of %u threads; it is compiled for 1 to %u",
                 kernel->name, request.grid[0], threads, kernel->max_threads);
    } else if (cluster == 0 || cluster > target.cluster_limit || request.grid[0] % cluster != 0) {
        snprintf(text, bytes, "kernel `%s`: clusters of %u blocks in a grid of %u; %s allows %u",
                 kernel->name, cluster, request.grid[0], target.name, target.cluster_limit);
    } else if (request.shared_bytes > target.shared_limit) {
        snprintf(text, bytes, "kernel `%s`: %u bytes of shared memory; a block on %s has %u",
                 kernel->name, request.shared_bytes, target.name, target.shared_limit);
    }
}

bool map_shared() {
    if (shared_window != nullptr) return true;
    size_t bytes = CLUSTER_LIMIT * SHARED_STRIDE;
    void* area = mmap(nullptr, bytes + SHARED_STRIDE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) return false;
    // Aligned to its size in a descriptor, so that host and shared addresses agree in their low
    // bits.
    uintptr_t start =
        (reinterpret_cast<uintptr_t>(area) + SHARED_STRIDE - 1) & ~(SHARED_STRIDE - 1);
    shared_window = reinterpret_cast<unsigned char*>(start);
    return true;
}

void prepare_launch(const MusterSimLaunch& request, const Kernel* kernel) {
    launch.request = &request;
    launch.kernel = kernel;
    launch.failed = false;
    launch.suspicion[0] = 0;
    launch.threads = request.block[0];
    launch.cluster = request.cluster[0];
    launch.shared_bytes = request.shared_bytes;
    launch.random = request.seed * 0x9e3779b97f4a7c15ull + 0x2545f4914f6cdd1dull;
    launch.races = request.check_races != 0;
    bool old = stamp_counter > 0x80000000u;
    forget_old_shadows(old);
    if (old) stamp_counter = 0;
    launch.launch_floor = ++stamp_counter;
    uint32_t fibers = launch.threads * launch.cluster;
    launch.actors = fibers + (target.late_shared ? fibers : ASYNC_ACTORS);
    launch.clock_words = launch.races ? launch.actors * (target.async_proxy ? 2 : 1) : 0;
    launch.fibers.clear();
    launch.fibers.resize(fibers);
    launch.blocks.clear();
    launch.blocks.resize(launch.cluster);
    launch.ready.assign(fibers, nullptr);
    launch.ready_head = launch.ready_count = 0;
    launch.loads.clear();
    launch.cluster_barrier = Barrier();
    launch.counters.clear();
}

void prepare_block(Block& block, uint32_t rank) {
    block.index = launch.first_block + rank;
    block.rank = rank;
    block.live = launch.threads;
    block.shared = shared_window + rank * SHARED_STRIDE;
    uint32_t waves = (launch.threads + target.wave - 1) / target.wave;
    block.waves.assign(waves, Meeting());
    for (uint32_t wave = 0; wave < waves; wave++) {
        uint32_t rest = launch.threads - wave * target.wave;
        block.waves[wave].expected = rest < target.wave ? rest : target.wave;
    }
    block.warpgroups.clear();
    block.warpgroups.resize(launch.threads / WARPGROUP);
    for (Warpgroup& group : block.warpgroups) group.meeting.expected = WARPGROUP;
    for (Barrier& barrier : block.barriers) barrier = Barrier();
    block.mbars.clear();
    block.exited.clear();
    block.touched.assign(launch.actors, 0);
    reset_shared(block);
}

void prepare_cluster(uint32_t first_block) {
    launch.first_block = first_block;
    launch.alive = static_cast<uint32_t>(launch.fibers.size());
    for (uint32_t rank = 0; rank < launch.cluster; rank++)
        prepare_block(launch.blocks[rank], rank);
    for (uint32_t index = 0; index < launch.fibers.size(); index++) {
        Fiber& fiber = launch.fibers[index];
        fiber.index = index;
        fiber.thread = index % launch.threads;
        fiber.lane = fiber.thread % target.wave;
        fiber.wave = fiber.thread / target.wave;
        fiber.block = &launch.blocks[index / launch.threads];
        fiber.done = false;
        fiber.wait.what = nullptr;
        fiber.wgmma_fenced = false;
        fiber.copy_group = fiber.store_group = fiber.multiply_group = 0;
    }
    begin_clocks();
}

}  // namespace

Kernel::Kernel(const char* name, uint32_t max_threads, uint32_t args_bytes,
               void (*run)(const void*))
    : name(name), max_threads(max_threads), args_bytes(args_bytes), run(run), next(kernels) {
    kernels = this;
}

// Clusters one after another, in an order that the seed decides: a walk by a step without a common
// divisor.
void run_clusters() {
    uint64_t count = launch.request->grid[0] / launch.cluster;
    uint64_t step = 1, at = 0;
    if (launch.request->seed != 0) {
        at = random_below(count);
        step = 1 + random_below(count);
        auto divisor = [](uint64_t a, uint64_t b) {
            while (b != 0) a = std::exchange(b, a % b);
            return a;
        };
        while (divisor(step, count) != 1) step++;
    }
    for (uint64_t i = 0; i < count; i++, at = (at + step) % count) {
        prepare_cluster(static_cast<uint32_t>(at * launch.cluster));
        run_cluster();
    }
}

uint32_t thread_index() { return current->thread; }
uint32_t block_index() { return current->block->index; }
uint32_t grid_blocks() { return launch.request->grid[0]; }
uint32_t cluster_rank() { return current->block->rank; }
uint32_t cluster_blocks() { return launch.cluster; }
unsigned char* shared_memory() { return current->block->shared; }

}  // namespace sim

#define MUSTER_SIM_EXPORT extern "C" __attribute__((visibility("default")))

MUSTER_SIM_EXPORT const char* muster_sim_arch(void) { return sim::target.name; }

MUSTER_SIM_EXPORT int muster_sim_kernel(uint32_t index, MusterSimKernel* kernel) {
    const sim::Kernel* found = sim::kernels;
    for (; found != nullptr && index != 0; index--) found = found->next;
    if (found == nullptr) return 0;
    *kernel = {found->name, found->max_threads, found->args_bytes};
    return 1;
}

MUSTER_SIM_EXPORT int muster_sim_launch(const MusterSimLaunch* request, char* message,
                                        size_t bytes) {
    std::lock_guard<std::mutex> guard(sim::one_launch);
    const sim::Kernel* kernel = sim::find_kernel(request->kernel);
    sim::refusal(*request, kernel, message, bytes);
    if (message[0] != 0) return MUSTER_SIM_REFUSED;
    sim::launch.message = message;
    sim::launch.message_bytes = bytes;
    if (!sim::map_shared()) {
        snprintf(message, bytes, "no address space for the simulator's shared memory");
        return MUSTER_SIM_REFUSED;
    }
    sim::prepare_launch(*request, kernel);
    bool passed = sim::run_guarded();
    if (passed) return MUSTER_SIM_OK;
    if (sim::launch.failed) return MUSTER_SIM_FAULT;
    snprintf(message, bytes, "no memory for the simulator's stacks");
    return MUSTER_SIM_REFUSED;
}
