// A tile begins 512 bytes off its 1024-byte pattern: data and descriptor disagree on the swizzle.
//
// arch: sm_90a
// launch: blocks=1 cluster=1 shared=25600
// expect: 1024-byte
#include "wgmma.h"

template <bool BROKEN>
DEV_FN void misplaced_tile(const BrokenArgs& args) {
    float acc[64];
    load_operands(args);
    dev::wgmma_fence();
    multiply(acc, dev::shared(), dev::shared() + A_BYTES - (BROKEN ? 512 : 0));
    dev::wgmma_wait<0>(acc);
    store_sum(args, acc);
}

BROKEN_KERNELS(misplaced_tile, 128)
