// Two waves take turns by barriers; one has a barrier more than the other.
//
// arch: gfx942
// launch: blocks=1 cluster=1 shared=1024
// expect: race
#include "broken.h"

template <bool BROKEN>
DEV_FN void ping_pong_off_by_one(const BrokenArgs& args) {
    uint32_t thread = dev::thread(), sum = 0;
    unsigned char* mine = dev::shared() + 4 * dev::lane();
    if (BROKEN && dev::wave() == 1) dev::block_barrier();
    for (uint32_t round = 0; round < 4; round++) {
        if (round % 2 == dev::wave()) dev::store4(mine, sum + thread);
        dev::wait_lds<0>();
        dev::block_barrier();
        if (round % 2 != dev::wave()) sum += dev::load4(mine);
        dev::wait_lds<0>();
        dev::block_barrier();
    }
    dev::store4(word(args.out, thread), sum);
}

BROKEN_KERNELS(ping_pong_off_by_one, 128)
