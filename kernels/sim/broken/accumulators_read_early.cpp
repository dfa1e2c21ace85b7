// Accumulators are read while the product that writes them is in flight.
//
// arch: sm_90a
// launch: blocks=1 cluster=1 shared=25600
// expect: wgmma
#include "wgmma.h"

template <bool BROKEN>
DEV_FN void accumulators_read_early(const BrokenArgs& args) {
    float acc[64];
    load_operands(args);
    dev::wgmma_fence();
    multiply(acc, dev::shared(), dev::shared() + A_BYTES);
    dev::wgmma_wait<BROKEN ? 1 : 0>(acc);
    store_sum(args, acc);
    if (BROKEN) dev::wgmma_wait<0>(acc);
}

BROKEN_KERNELS(accumulators_read_early, 128)
