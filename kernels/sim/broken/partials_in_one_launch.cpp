// A block adds partial sums that other blocks of the same launch make.
//
// arch: sm_80 gfx950
// launch: blocks=2 cluster=1 shared=64
// expect: race
#include "broken.h"
#include "../../reduce.h"

template <bool BROKEN>
DEV_FN void partials_in_one_launch(const BrokenArgs& args) {
    auto* partials = dev::pointer<double>(args.out);
    const double sum = reduce::block_sum<8>(dev::thread());
    if (dev::thread() == 0) partials[dev::block()] = sum;
    if (dev::block() != 1 || dev::thread() != 0) return;
    const double other = BROKEN ? partials[0] : sum;
    partials[2] = sum + other;
}

BROKEN_KERNELS(partials_in_one_launch, 256)
