// A block of one warpgroup that multiplies two tiles: the frame of the broken kernels about wgmma.
#pragma once

#include "broken.h"

constexpr uint32_t A_BYTES = 8192, B_BYTES = 16384, BAR_AT = A_BYTES + B_BYTES;

// A is 64 × 64 at 0, B is 128 × 64 after it; both are there when all threads return.
DEV_FN void load_operands(const BrokenArgs& args) {
    uint64_t* bar = reinterpret_cast<uint64_t*>(dev::shared() + BAR_AT);
    if (dev::thread() == 0) {
        dev::mbar_init(bar, 1);
        dev::mbar_init_fence();
        dev::mbar_expect(bar, A_BYTES + B_BYTES);
        dev::bulk_load(dev::shared(), word(args.in, 0), A_BYTES, bar);
        dev::bulk_load(dev::shared() + A_BYTES, word(args.in, A_BYTES / 4), B_BYTES, bar);
    }
    dev::sync();
    dev::mbar_wait(bar, 0);
}

// One group: the four k16 steps of the tiles.
DEV_FN void multiply(float (&acc)[64], const unsigned char* a, const unsigned char* b) {
    for (uint32_t step = 0; step < 4; step++) {
        uint64_t left = dev::wgmma_desc(a + 32 * step, 16, 1024);
        uint64_t right = dev::wgmma_desc(b + 32 * step, 16, 1024);
        dev::wgmma<dev::Bf16, 128, false>(acc, left, right, step > 0);
    }
    dev::wgmma_commit();
}

DEV_FN void store_sum(const BrokenArgs& args, const float (&acc)[64]) {
    float sum = 0;
    for (uint32_t i = 0; i < 64; i++) sum += acc[i];
    uint32_t bits;
    __builtin_memcpy(&bits, &sum, sizeof bits);
    dev::store4(word(args.out, dev::thread()), bits);
}
