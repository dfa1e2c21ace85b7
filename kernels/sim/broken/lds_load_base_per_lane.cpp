// Each lane gives its own place in LDS; the instruction has one base for the wave and adds the
// lane itself.
//
// arch: gfx950
// launch: blocks=1 cluster=1 shared=4096
// expect: lanes disagree
#include "broken.h"

template <bool BROKEN>
DEV_FN void lds_load_base_per_lane(const BrokenArgs& args) {
    uint32_t thread = dev::thread();
    unsigned char* base = dev::shared() + dev::wave() * 1024 + (BROKEN ? dev::lane() * 8 : 0);
    dev::lds_load16(base, word(args.in, 4 * thread));
    dev::wait_memory<0>();
    dev::sync();
    dev::store16(word(args.out, 4 * thread), dev::load16(dev::shared() + 16 * thread));
}

BROKEN_KERNELS(lds_load_base_per_lane, 256)
