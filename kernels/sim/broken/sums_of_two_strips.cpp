// A block sums two strips, and a wave leaves its part of the second sum while others still read
// that of the first.
//
// arch: sm_90a gfx942
// launch: blocks=1 cluster=1 shared=64
// expect: race
#include "broken.h"
#include "../../reduce.h"

template <bool BROKEN>
DEV_FN double sum_of_strip(double value) {
    if (!BROKEN) return reduce::block_sum<8>(value);
    for (uint32_t mask = 16; mask > 0; mask /= 2) value += dev::shfl_xor(value, mask);
    double* sums = reinterpret_cast<double*>(dev::shared());
    if (dev::thread() % 32 == 0) sums[dev::thread() / 32] = value;
    dev::sync();
    double total = sums[0];
    for (uint32_t i = 1; i < 8; i++) total += sums[i];
    return total;
}

template <bool BROKEN>
DEV_FN void sums_of_two_strips(const BrokenArgs& args) {
    for (uint32_t strip = 0; strip < 2; strip++) {
        const double sum = sum_of_strip<BROKEN>(strip + dev::thread());
        if (dev::thread() == 0) dev::pointer<double>(args.out)[strip] = sum;
    }
}

BROKEN_KERNELS(sums_of_two_strips, 256)
