// A 16-byte load at an address that is a multiple of 8.
//
// arch: sm_80 gfx942
// launch: blocks=1 cluster=1 shared=0
// expect: aligned
#include "broken.h"

template <bool BROKEN>
DEV_FN void misaligned_load(const BrokenArgs& args) {
    uint32_t thread = dev::thread();
    dev::store16(word(args.out, 4 * thread),
                 dev::load16(word(args.in, 4 * thread + (BROKEN ? 2 : 0))));
}

BROKEN_KERNELS(misaligned_load, 64)
