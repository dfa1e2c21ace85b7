// A row too long: the write of the last thread lies after the shared memory of the launch.
//
// arch: sm_90a gfx950
// launch: blocks=1 cluster=1 shared=4096
// expect: out of bounds
#include "broken.h"

template <bool BROKEN>
DEV_FN void shared_past_the_end(const BrokenArgs& args) {
    uint32_t thread = dev::thread();
    unsigned char* at = dev::shared() + thread * (BROKEN ? 20 : 16) / 4 * 4;
    dev::store4(at, thread);
    dev::store4(word(args.out, thread), dev::load4(at));
}

BROKEN_KERNELS(shared_past_the_end, 256)
