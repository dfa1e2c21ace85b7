// Sums of squares of ranges of the gradients, in f64: the squares are exact there, and a sum is
// infinite or NaN exactly if an element is.
//
//   optimizer_squares   a block takes a strip; a range of one strip is done then
//   optimizer_sums      a block adds the sums of a longer range's strips
//
// The order of additions depends on the range's length alone, and is the same on every vendor. It
// is not the host's, which differs by at most 2^-53 of the sum for each addition.
#pragma once

#include "../reduce.h"
#include "elements.h"

namespace optimizer {

constexpr uint32_t SUMS = THREADS / 32;
constexpr uint32_t SUMS_BYTES = 8 * SUMS;  // of dynamic shared memory

DEV_FN double squares_of(const MusterSquaresArgs& args, const MusterStrip& strip) {
    const uint64_t start = args.grads + 4 * strip.start;
    double sum = 0;
    each_quad(start, strip.len, [&](auto access, uint32_t i, uint32_t count) {
        const Quad quad = access.load(start + 4 * i, count);
        for (uint32_t j = 0; j < 4; j++) {
            const double x = quad.v[j];
            sum += x * x;
        }
    });
    return sum;
}

DEV_FN void squares(const MusterSquaresArgs& args) {
    const auto* strips = dev::constant<MusterStrip>(args.strips);
    for (uint32_t index = dev::block(); index < args.strip_count; index += dev::grid()) {
        const MusterStrip strip = strips[index];
        const double sum = reduce::block_sum<SUMS>(squares_of(args, strip));
        auto* to = dev::pointer<double>(strip.is_whole ? args.sums : args.partials);
        if (dev::thread() == 0) to[strip.to] = sum;
    }
}

DEV_FN void sums(const MusterSquaresArgs& args) {
    const auto* long_ranges = dev::constant<MusterLongRange>(args.long_ranges);
    for (uint32_t index = dev::block(); index < args.long_range_count; index += dev::grid()) {
        const MusterLongRange range = long_ranges[index];
        const auto* partials = dev::pointer<const double>(args.partials) + range.first;
        double share = 0;
        for (uint32_t i = dev::thread(); i < range.count; i += THREADS) share += partials[i];
        const double sum = reduce::block_sum<SUMS>(share);
        if (dev::thread() == 0) dev::pointer<double>(args.sums)[range.statistic] = sum;
    }
}

}  // namespace optimizer
