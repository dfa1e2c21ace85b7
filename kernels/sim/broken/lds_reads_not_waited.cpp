// s_barrier alone: reads of LDS may still be on their way when another wave writes there.
//
// arch: gfx90a gfx950
// launch: blocks=1 cluster=1 shared=1024
// expect: race
#include "broken.h"

template <bool BROKEN>
DEV_FN void lds_reads_not_waited(const BrokenArgs& args) {
    uint32_t thread = dev::thread();
    dev::store4(dev::shared() + 4 * thread, thread);
    dev::wait_lds<0>();
    dev::block_barrier();
    uint32_t value = dev::load4(dev::shared() + 4 * (255 - thread));
    if (!BROKEN) dev::wait_lds<0>();
    dev::block_barrier();
    dev::store4(dev::shared() + 4 * thread, value + 1);
    dev::store4(word(args.out, thread), value);
}

BROKEN_KERNELS(lds_reads_not_waited, 256)
