// A push does not keep the sum that was on top: a fold reads shared memory that nobody wrote.
//
// arch: sm_80 gfx950
// launch: blocks=1 cluster=1 shared=4096
// expect: uninitialised
#include "broken.h"
#include "../../ordered_sum/ordered_sum.h"

template <bool BROKEN>
DEV_FN void push_without_keeping(const BrokenArgs& args) {
    using Floats = ordered_sum::Plain<float>;
    const uint64_t element = dev::thread() * 4;
    const auto first = ordered_sum::load<Floats>(args.in, element, 4);
    if (!BROKEN) dev::store16(ordered_sum::level(0), first.words());
    const auto top = ordered_sum::load<Floats>(args.in, element + 1024, 4);
    auto below = ordered_sum::F32::of(dev::load16(ordered_sum::level(0)));
    below.combine(MUSTER_REDUCE_SUM, top);
    ordered_sum::store<Floats>(args.out, element, 4, below);
}

BROKEN_KERNELS(push_without_keeping, 256)
