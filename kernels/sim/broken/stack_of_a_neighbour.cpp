// Sums below the top of a thread's stack lie where a neighbour in another wave keeps its own.
//
// arch: sm_90a gfx942
// launch: blocks=1 cluster=1 shared=8192
// expect: race
#include "broken.h"
#include "../../ordered_sum/ordered_sum.h"

template <bool BROKEN>
DEV_FN void* level_of(uint32_t index) {
    const uint32_t pitch = BROKEN ? 128 : 256;
    return dev::shared() + (index * pitch + dev::thread()) * ordered_sum::GROUP_BYTES;
}

template <bool BROKEN>
DEV_FN void stack_of_a_neighbour(const BrokenArgs& args) {
    using Floats = ordered_sum::Plain<float>;
    const uint64_t element = dev::thread() * 4;
    for (uint32_t i = 0; i < 2; i++) {
        const auto sum = ordered_sum::load<Floats>(args.in, element + 1024 * i, 4);
        dev::store16(level_of<BROKEN>(i), sum.words());
    }
    auto below = ordered_sum::F32::of(dev::load16(level_of<BROKEN>(0)));
    const auto top = ordered_sum::F32::of(dev::load16(level_of<BROKEN>(1)));
    below.combine(MUSTER_REDUCE_SUM, top);
    ordered_sum::store<Floats>(args.out, element, 4, below);
}

BROKEN_KERNELS(stack_of_a_neighbour, 256)
