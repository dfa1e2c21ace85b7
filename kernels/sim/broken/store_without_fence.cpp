// Threads write a tile, and the copy engine stores it without a fence between the two.
//
// arch: sm_90a
// launch: blocks=1 cluster=1 shared=2048
// expect: fence
#include "broken.h"

template <bool BROKEN>
DEV_FN void store_without_fence(const BrokenArgs& args) {
    uint32_t thread = dev::thread();
    dev::store16(dev::shared() + 16 * thread, dev::load16(word(args.in, 4 * thread)));
    if (!BROKEN) dev::fence_async_shared();
    dev::sync();
    if (thread == 0) {
        dev::bulk_store(word(args.out, 0), dev::shared(), 2048);
        dev::bulk_commit();
        dev::bulk_wait<0>();
    }
}

BROKEN_KERNELS(store_without_fence, 128)
