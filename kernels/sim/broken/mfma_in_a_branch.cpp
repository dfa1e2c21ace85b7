// A matrix instruction that half of the wave skips: it computes with all 64 lanes' registers.
//
// arch: gfx90a gfx942
// launch: blocks=1 cluster=1 shared=0
// expect: mfma (0x
#include "broken.h"

template <bool BROKEN>
DEV_FN void mfma_in_a_branch(const BrokenArgs& args) {
    uint32_t lane = dev::lane();
    dev::u32x2 a = dev::load8(word(args.in, 2 * lane));
    dev::f32x4 c = {0, 0, 0, 0};
    if (!BROKEN || lane < 32) c = dev::mfma_16x16x16<dev::Bf16>(a, a, c);
    dev::wave_sync();
    uint32_t bits;
    float value = c[0];
    __builtin_memcpy(&bits, &value, sizeof bits);
    dev::store4(word(args.out, lane), bits);
}

BROKEN_KERNELS(mfma_in_a_branch, 64)
