// A copy is committed, but read before its group has been waited for.
//
// arch: sm_80
// launch: blocks=1 cluster=1 shared=8192
// expect: cp.async
#include "broken.h"

template <bool BROKEN>
DEV_FN void cp_async_not_waited(const BrokenArgs& args) {
    uint32_t thread = dev::thread();
    for (uint32_t stage = 0; stage < 2; stage++) {
        uint32_t at = stage * 4096 + thread * 16;
        dev::cp_async16(dev::shared() + at, word(args.in, at / 4));
        dev::cp_async_commit();
    }
    dev::cp_async_wait<1>();
    if (!BROKEN) dev::cp_async_wait<0>();
    dev::sync();
    uint32_t other = 4096 + (255 - thread) * 16;
    dev::store16(word(args.out, 4 * thread), dev::load16(dev::shared() + other));
}

BROKEN_KERNELS(cp_async_not_waited, 256)
