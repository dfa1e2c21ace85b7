// Shared memory is added to before anything was written there: it is not zero at the start.
//
// arch: sm_90a gfx942
// launch: blocks=1 cluster=1 shared=1024
// expect: uninitialised
#include "broken.h"

template <bool BROKEN>
DEV_FN void unwritten_shared(const BrokenArgs& args) {
    uint32_t* words = reinterpret_cast<uint32_t*>(dev::shared());
    uint32_t thread = dev::thread();
    if (!BROKEN) words[thread] = 0;
    words[thread] += thread;
    dev::store4(word(args.out, thread), words[thread]);
}

BROKEN_KERNELS(unwritten_shared, 64)
