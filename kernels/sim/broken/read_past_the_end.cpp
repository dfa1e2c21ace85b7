// The last thread reads the word after an array.
//
// arch: sm_80 gfx942
// launch: blocks=1 cluster=1 shared=0
// expect: out of bounds
#include "broken.h"

template <bool BROKEN>
DEV_FN void read_past_the_end(const BrokenArgs& args) {
    uint32_t thread = dev::thread(), last = BROKEN_BYTES / 4 - 1;
    uint32_t index = last - 255 + thread + (BROKEN ? 1 : 0);
    dev::store4(word(args.out, thread), dev::load4(word(args.in, index)));
}

BROKEN_KERNELS(read_past_the_end, 256)
