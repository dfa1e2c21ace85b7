// A program keeps two sums below the top, in a launch with shared memory for one.
//
// arch: sm_90a gfx942
// launch: blocks=1 cluster=1 shared=4096
// expect: out of bounds
#include "broken.h"
#include "../../ordered_sum/ordered_sum.h"

template <bool BROKEN>
DEV_FN void stack_deeper_than_shared(const BrokenArgs& args) {
    using Floats = ordered_sum::Plain<float>;
    MusterReduceArgs reduction = {};
    MusterSumArgs& sum = reduction.stage;
    for (uint32_t i = 0; i < 3; i++) sum.inputs[i] = args.in + 4096 * i;
    sum.out = args.out;
    sum.len = 1024;
    // Push, push, push, fold, fold; or push, push, fold, push, fold.
    const uint64_t deep = MUSTER_SUM_FOLD << 6 | MUSTER_SUM_FOLD << 8;
    const uint64_t flat = MUSTER_SUM_FOLD << 4 | MUSTER_SUM_FOLD << 8;
    sum.ops[0] = BROKEN ? deep : flat;
    sum.op_count = 5;
    ordered_sum::reduce<Floats, Floats>(reduction);
}

BROKEN_KERNELS(stack_deeper_than_shared, 256)
