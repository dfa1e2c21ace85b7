// s_barrier alone: writes to LDS may still be on their way when other waves read.
//
// arch: gfx90a gfx942
// launch: blocks=1 cluster=1 shared=1024
// expect: race
#include "broken.h"

template <bool BROKEN>
DEV_FN void lds_writes_not_waited(const BrokenArgs& args) {
    uint32_t thread = dev::thread();
    dev::store4(dev::shared() + 4 * thread, thread);
    if (!BROKEN) dev::wait_lds<0>();
    dev::block_barrier();
    dev::store4(word(args.out, thread), dev::load4(dev::shared() + 4 * (255 - thread)));
}

BROKEN_KERNELS(lds_writes_not_waited, 256)
