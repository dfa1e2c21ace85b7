// The producer's first wait for an empty stage: with parity 0 it waits for a consumer that waits
// for it.
//
// arch: sm_90a
// launch: blocks=1 cluster=1 shared=1024
// expect: deadlock
#include "broken.h"

template <bool BROKEN>
DEV_FN void wrong_parity(const BrokenArgs& args) {
    uint64_t* full = reinterpret_cast<uint64_t*>(dev::shared());
    uint64_t* empty = full + 1;
    unsigned char* stage = dev::shared() + 512;
    uint32_t lane = dev::lane(), sum = 0;
    if (dev::thread() == 0) {
        dev::mbar_init(full, 32);
        dev::mbar_init(empty, 32);
        dev::mbar_init_fence();
    }
    dev::sync();
    for (uint32_t round = 0; round < 4; round++) {
        if (dev::wave() == 0) {
            dev::mbar_wait(empty, (round + (BROKEN ? 0 : 1)) % 2);
            dev::store4(stage + 4 * lane, round * 100 + lane);
            dev::mbar_arrive(full);
        } else {
            dev::mbar_wait(full, round % 2);
            sum += dev::load4(stage + 4 * (31 - lane));
            dev::mbar_arrive(empty);
        }
    }
    dev::store4(word(args.out, dev::thread()), sum);
}

BROKEN_KERNELS(wrong_parity, 64)
