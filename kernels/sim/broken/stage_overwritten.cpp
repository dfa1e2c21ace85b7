// A stage is filled again while a product that reads it is in flight.
//
// arch: sm_90a
// launch: blocks=1 cluster=1 shared=25600
// expect: wgmma
#include "wgmma.h"

template <bool BROKEN>
DEV_FN void stage_overwritten(const BrokenArgs& args) {
    uint64_t* bar = reinterpret_cast<uint64_t*>(dev::shared() + BAR_AT);
    float acc[64];
    load_operands(args);
    dev::wgmma_fence();
    multiply(acc, dev::shared(), dev::shared() + A_BYTES);
    if (!BROKEN) dev::wgmma_wait<0>(acc);
    dev::sync();
    if (dev::thread() == 0) {
        dev::mbar_expect(bar, A_BYTES);
        dev::bulk_load(dev::shared(), word(args.in, 0), A_BYTES, bar);
    }
    dev::mbar_wait(bar, 1);
    if (BROKEN) dev::wgmma_wait<0>(acc);
    store_sum(args, acc);
}

BROKEN_KERNELS(stage_overwritten, 128)
