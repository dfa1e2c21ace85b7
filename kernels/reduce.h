// Sums over a block, in an order that does not depend on the vendor.
#pragma once

#include "dev/dev.h"

namespace reduce {

// The sum of every thread's value, in every thread of a block of 32·GROUPS threads; in the same
// order for waves of 32 and of 64. Uses the first 8·GROUPS bytes of shared memory, which may hold
// anything: nobody reads them again.
template <uint32_t GROUPS>
DEV_FN double block_sum(double value) {
    for (uint32_t mask = 16; mask > 0; mask /= 2) value += dev::shfl_xor(value, mask);
    double* sums = reinterpret_cast<double*>(dev::shared());
    dev::sync();
    if (dev::thread() % 32 == 0) sums[dev::thread() / 32] = value;
    dev::sync();
    double total = sums[0];
    for (uint32_t i = 1; i < GROUPS; i++) total += sums[i];
    return total;
}

}  // namespace reduce
