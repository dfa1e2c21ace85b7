// A word of another wave is read without a barrier after it was written.
//
// arch: sm_80 gfx942
// launch: blocks=1 cluster=1 shared=1024
// expect: race
#include "broken.h"

template <bool BROKEN>
DEV_FN void missing_barrier(const BrokenArgs& args) {
    uint32_t* words = reinterpret_cast<uint32_t*>(dev::shared());
    uint32_t thread = dev::thread();
    words[thread] = thread;
    if (!BROKEN) dev::sync();
    dev::store4(word(args.out, thread), words[(thread + 64) % 256]);
}

BROKEN_KERNELS(missing_barrier, 256)
