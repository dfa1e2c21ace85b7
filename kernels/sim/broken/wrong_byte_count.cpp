// A barrier expects fewer bytes than the copies bring, so that its phase ends too early or not at
// all.
//
// arch: sm_90a
// launch: blocks=1 cluster=1 shared=17408
// expect: bulk_load
#include "broken.h"

template <bool BROKEN>
DEV_FN void wrong_byte_count(const BrokenArgs& args) {
    uint64_t* bar = reinterpret_cast<uint64_t*>(dev::shared() + 16384);
    uint32_t thread = dev::thread();
    if (thread == 0) {
        dev::mbar_init(bar, 1);
        dev::mbar_init_fence();
        dev::mbar_expect(bar, BROKEN ? 8192 : 16384);
        dev::bulk_load(dev::shared(), word(args.in, 0), 8192, bar);
        dev::bulk_load(dev::shared() + 8192, word(args.in, 2048), 8192, bar);
    }
    dev::sync();
    dev::mbar_wait(bar, 0);
    dev::store16(word(args.out, 4 * thread), dev::load16(dev::shared() + 8192 + 16 * thread));
}

BROKEN_KERNELS(wrong_byte_count, 128)
