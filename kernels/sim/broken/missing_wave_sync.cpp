// Lanes of a warp exchange words through shared memory as if they ran in lockstep.
//
// arch: sm_90a
// launch: blocks=1 cluster=1 shared=1024
// expect: race
#include "broken.h"

template <bool BROKEN>
DEV_FN void missing_wave_sync(const BrokenArgs& args) {
    uint32_t* words = reinterpret_cast<uint32_t*>(dev::shared());
    uint32_t lane = dev::lane();
    words[lane] = lane;
    if (!BROKEN) dev::wave_sync();
    dev::store4(word(args.out, lane), words[lane ^ 1]);
}

BROKEN_KERNELS(missing_wave_sync, 32)
