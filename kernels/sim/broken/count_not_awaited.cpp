// A block writes words and counts; another block of the cluster reads them without awaiting the
// count.
//
// arch: sm_90a
// launch: blocks=2 cluster=2 shared=0
// expect: race
#include "broken.h"

template <bool BROKEN>
DEV_FN void count_not_awaited(const BrokenArgs& args) {
    const uint32_t thread = dev::thread();
    const auto counter = reinterpret_cast<uint64_t>(word(args.out, 256));
    if (dev::cluster_rank() == 0) {
        dev::store4(word(args.out, thread), dev::load4(word(args.in, thread)));
        dev::wave_sync();
        if (thread == 0) dev::count_add(counter, 1);
    } else {
        if (!BROKEN) dev::count_await(counter, 1);
        dev::store4(word(args.out, 128 + thread), dev::load4(word(args.out, thread)));
    }
}

BROKEN_KERNELS(count_not_awaited, 32)
