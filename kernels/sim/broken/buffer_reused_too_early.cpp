// A buffer is written again while the copy engine may still read it.
//
// arch: sm_90a
// launch: blocks=1 cluster=1 shared=2048
// expect: bulk_store
#include "broken.h"

template <bool BROKEN>
DEV_FN void buffer_reused_too_early(const BrokenArgs& args) {
    uint32_t thread = dev::thread();
    for (uint32_t round = 0; round < 2; round++) {
        dev::store16(dev::shared() + 16 * thread,
                     dev::load16(word(args.in, round * 512 + 4 * thread)));
        dev::fence_async_shared();
        dev::sync();
        if (thread == 0) {
            dev::bulk_store(word(args.out, round * 512), dev::shared(), 2048);
            dev::bulk_commit();
            if (!BROKEN) dev::bulk_wait_read<0>();
        }
        dev::sync();
    }
    if (thread == 0) dev::bulk_wait<0>();
}

BROKEN_KERNELS(buffer_reused_too_early, 128)
