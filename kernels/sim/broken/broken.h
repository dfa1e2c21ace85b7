// Deliberately broken kernels, by which the simulator shows that it finds what it claims to find.
//
// Each file here has one mistake: a function template `name<BROKEN>` and BROKEN_KERNELS(name,
// threads), which makes the kernels broken_name and fixed_name of it.
// crates/kernels/tests/sim_broken.rs runs both under several seeds; the fixed one must pass, with
// the same output each time, and the broken one must be reported. Lines that the test reads:
//
//   // arch: sm_90a gfx950                     simulated architectures, one or more
//   // launch: blocks=1 cluster=1 shared=4096  blocks, blocks in a cluster, bytes of shared memory
//   // expect: text                            in the report of the broken kernel
#pragma once

#include "../../dev/dev.h"

constexpr uint32_t BROKEN_BYTES = 32768;  // of each of the two

struct BrokenArgs {
    uint64_t in;
    uint64_t out;
};

#define BROKEN_KERNELS(name, threads)                                       \
    DEV_KERNEL(broken_##name, threads, 1, BrokenArgs) { name<true>(args); } \
    DEV_KERNEL(fixed_##name, threads, 1, BrokenArgs) { name<false>(args); }

// Word `index` of an array in device memory.
DEV_FN void* word(uint64_t array, uint32_t index) {
    return reinterpret_cast<void*>(array + 4ull * index);
}
