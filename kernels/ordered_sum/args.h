// The arguments of a launch of ordered_sum_*; mirrored in Rust (gpu/abi.rs).
#pragma once

#include "../abi.h"

// By what inputs are combined. An average is a sum that is divided in the end.
#define MUSTER_REDUCE_SUM 0u
#define MUSTER_REDUCE_PROD 1u
#define MUSTER_REDUCE_MIN 2u
#define MUSTER_REDUCE_MAX 3u

typedef struct MusterReduceArgs {
    MusterSumArgs stage;
    double factor;             // of an average: 1 / inputs, and of floats alone
    uint64_t inputs;           // of the whole program, where an average is made of them; else 0
    uint32_t reduce;           // MUSTER_REDUCE_*
    uint32_t is_rounded;       // whether `out` is 16-bit; else it has the type of the stack
} MusterReduceArgs;

#ifdef __cplusplus
static_assert(sizeof(MusterReduceArgs) == 264, "mirrored in Rust");
#endif
