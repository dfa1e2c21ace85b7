// Two blocks write the same word of device memory, in no order.
//
// arch: sm_80 gfx942
// launch: blocks=2 cluster=1 shared=0
// expect: race
#include "broken.h"

template <bool BROKEN>
DEV_FN void blocks_share_a_word(const BrokenArgs& args) {
    uint32_t at = dev::thread() + dev::block() * (BROKEN ? 63 : 64);
    dev::store4(word(args.out, at), at);
}

BROKEN_KERNELS(blocks_share_a_word, 64)
