// A shuffle in a branch that half of the wave does not take.
//
// arch: sm_80 gfx942
// launch: blocks=1 cluster=1 shared=0
// expect: divergence
#include "broken.h"

template <bool BROKEN>
DEV_FN void shuffle_in_a_branch(const BrokenArgs& args) {
    uint32_t lane = dev::lane(), value = lane;
    if (!BROKEN || lane < dev::WAVE / 2) value += dev::shfl_xor(value, 1);
    dev::wave_sync();
    dev::store4(word(args.out, lane), value);
}

BROKEN_KERNELS(shuffle_in_a_branch, dev::WAVE)
