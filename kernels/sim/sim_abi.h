// The symbols that a simulated module exports. A module is a shared object with the simulator's
// runtime and the kernels of one family compiled for one simulated architecture; the device kind
// `sim` loads it as other devices load a cubin or a code object.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MUSTER_SIM_OK 0
#define MUSTER_SIM_REFUSED 1   // the launch itself is wrong: unknown kernel, shape, argument size
#define MUSTER_SIM_FAULT 2     // the kernel is wrong: bounds, race, deadlock, poison, misuse

typedef struct MusterSimKernel {
    const char* name;
    uint32_t max_threads;      // __launch_bounds__
    uint32_t args_bytes;
} MusterSimKernel;

typedef struct MusterSimRange {
    uint64_t start;
    uint64_t bytes;
} MusterSimRange;

typedef struct MusterSimLaunch {
    const char* kernel;
    uint32_t grid[3];          // in blocks
    uint32_t block[3];         // in threads
    uint32_t cluster[3];       // in blocks; 1,1,1 where there are none
    uint32_t shared_bytes;     // dynamic
    const void* args;
    uint64_t args_bytes;
    const MusterSimRange* ranges;  // live device memory, sorted by start
    uint64_t range_count;
    uint64_t seed;             // of the order in which fibers run and asynchronous work completes
    uint32_t check_races;      // 0 for speed
    uint32_t reserved;
} MusterSimLaunch;

// Name of the simulated architecture: "sm_90a", "gfx942", ….
const char* muster_sim_arch(void);
// Kernel number `index`; 0 if there is none.
int muster_sim_kernel(uint32_t index, MusterSimKernel* kernel);
// Runs a launch to its end. Returns MUSTER_SIM_*; on failure `message` holds a report.
int muster_sim_launch(const MusterSimLaunch* launch, char* message, size_t message_bytes);

#ifdef __cplusplus
}
#endif
