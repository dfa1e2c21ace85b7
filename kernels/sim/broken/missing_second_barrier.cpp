// A buffer in shared memory is filled again while other waves may still read it.
//
// arch: sm_90a gfx950
// launch: blocks=1 cluster=1 shared=1024
// expect: race
#include "broken.h"

template <bool BROKEN>
DEV_FN void missing_second_barrier(const BrokenArgs& args) {
    uint32_t* words = reinterpret_cast<uint32_t*>(dev::shared());
    uint32_t thread = dev::thread(), sum = 0;
    for (uint32_t round = 0; round < 3; round++) {
        words[thread] = thread + round;
        dev::sync();
        sum += words[255 - thread];
        if (!BROKEN) dev::sync();
    }
    dev::store4(word(args.out, thread), sum);
}

BROKEN_KERNELS(missing_second_barrier, 256)
