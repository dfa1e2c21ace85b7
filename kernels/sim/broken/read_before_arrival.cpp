// A bulk copy's destination is read without waiting for its barrier.
//
// arch: sm_90a
// launch: blocks=1 cluster=1 shared=9216
// expect: bulk_load
#include "broken.h"

template <bool BROKEN>
DEV_FN void read_before_arrival(const BrokenArgs& args) {
    uint64_t* bar = reinterpret_cast<uint64_t*>(dev::shared() + 8192);
    uint32_t thread = dev::thread();
    if (thread == 0) {
        dev::mbar_init(bar, 1);
        dev::mbar_init_fence();
        dev::mbar_expect(bar, 8192);
        dev::bulk_load(dev::shared(), word(args.in, 0), 8192, bar);
    }
    dev::sync();
    if (!BROKEN) dev::mbar_wait(bar, 0);
    dev::store16(word(args.out, 4 * thread), dev::load16(dev::shared() + 16 * thread));
    if (BROKEN) dev::mbar_wait(bar, 0);
}

BROKEN_KERNELS(read_before_arrival, 128)
