// The second round waits for the phase that is over already, and then for one that never ends.
//
// arch: sm_90a
// launch: blocks=1 cluster=1 shared=1024
// expect: deadlock
#include "broken.h"

template <bool BROKEN>
DEV_FN void wrong_parity(const BrokenArgs& args) {
    uint64_t* bar = reinterpret_cast<uint64_t*>(dev::shared());
    uint32_t thread = dev::thread();
    if (thread == 0) {
        dev::mbar_init(bar, 128);
        dev::mbar_init_fence();
    }
    dev::sync();
    dev::mbar_arrive(bar);
    dev::mbar_wait(bar, BROKEN ? 1 : 0);
    dev::mbar_arrive(bar);
    dev::mbar_wait(bar, BROKEN ? 0 : 1);
    if (BROKEN) dev::mbar_wait(bar, 1), dev::mbar_wait(bar, 0);
    dev::store4(word(args.out, thread), thread);
}

BROKEN_KERNELS(wrong_parity, 128)
