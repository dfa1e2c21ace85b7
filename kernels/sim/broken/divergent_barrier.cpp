// A block barrier in a branch: some lanes wait there for lanes that wait for them in a shuffle.
//
// arch: sm_80 gfx90a
// launch: blocks=1 cluster=1 shared=0
// expect: deadlock
#include "broken.h"

template <bool BROKEN>
DEV_FN void divergent_barrier(const BrokenArgs& args) {
    uint32_t thread = dev::thread();
    bool early = BROKEN && dev::lane() < 16;
    if (early) dev::sync();
    uint32_t value = dev::shfl_xor(thread, 1);
    if (!early) dev::sync();
    dev::store4(word(args.out, thread), value);
}

BROKEN_KERNELS(divergent_barrier, 256)
