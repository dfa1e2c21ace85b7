// An operand written by the threads is multiplied without a fence to the asynchronous proxy.
//
// arch: sm_90a
// launch: blocks=1 cluster=1 shared=25600
// expect: fence
#include "wgmma.h"

template <bool BROKEN>
DEV_FN void operand_without_fence(const BrokenArgs& args) {
    float acc[64];
    load_operands(args);
    for (uint32_t at = 16 * dev::thread(); at < A_BYTES; at += 2048) {
        dev::store16(dev::shared() + at, dev::load16(word(args.in, at / 4)));
    }
    if (!BROKEN) dev::fence_async_shared();
    dev::sync();
    dev::wgmma_fence();
    multiply(acc, dev::shared(), dev::shared() + A_BYTES);
    dev::wgmma_wait<0>(acc);
    store_sum(args, acc);
}

BROKEN_KERNELS(operand_without_fence, 128)
