// A barrier for one arrival a warp gets one from every thread.
//
// arch: sm_90a
// launch: blocks=1 cluster=1 shared=1024
// expect: over-arrival
#include "broken.h"

template <bool BROKEN>
DEV_FN void too_many_arrivals(const BrokenArgs& args) {
    uint64_t* bars = reinterpret_cast<uint64_t*>(dev::shared());
    uint32_t thread = dev::thread();
    if (thread == 0) {
        dev::mbar_init(&bars[0], 4);
        dev::mbar_init(&bars[1], 1);
        dev::mbar_init_fence();
        dev::mbar_expect(&bars[1], 512);
    }
    dev::sync();
    // The last phase of bars[1] is still waiting for its bytes when others arrive there.
    if (BROKEN || dev::elect()) dev::mbar_arrive(&bars[BROKEN ? 1 : 0]);
    dev::mbar_wait(&bars[0], 0);
    dev::store4(word(args.out, thread), thread);
}

BROKEN_KERNELS(too_many_arrivals, 128)
