// Loads to LDS are read by another wave after a barrier, but nobody waited for the loads.
//
// arch: gfx950
// launch: blocks=1 cluster=1 shared=4096
// expect: load to LDS
#include "broken.h"

template <bool BROKEN>
DEV_FN void lds_load_not_waited(const BrokenArgs& args) {
    uint32_t thread = dev::thread();
    unsigned char* base = dev::shared() + dev::wave() * 1024;
    dev::lds_load16(base, word(args.in, 4 * thread));
    if (!BROKEN) dev::wait_memory<0>();
    dev::block_barrier();
    dev::store16(word(args.out, 4 * thread), dev::load16(dev::shared() + 16 * (255 - thread)));
}

BROKEN_KERNELS(lds_load_not_waited, 256)
