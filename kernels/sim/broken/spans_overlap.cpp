// Two blocks update spans of which the second begins before the first ends.
//
// arch: sm_80 gfx942
// launch: blocks=2 cluster=1 shared=0
// expect: race
#include "broken.h"
#include "../../optimizer/elements.h"

template <bool BROKEN>
DEV_FN void spans_overlap(const BrokenArgs& args) {
    const uint32_t len = 1024;
    const uint64_t start = args.out + 4 * dev::block() * (BROKEN ? len - 4 : len);
    optimizer::each_quad(start, len, [&](auto access, uint32_t i, uint32_t count) {
        auto quad = access.load(start + 4 * i, count);
        for (uint32_t j = 0; j < 4; j++) quad.v[j] = dev::add(quad.v[j], 1);
        access.store(start + 4 * i, quad, count);
    });
}

BROKEN_KERNELS(spans_overlap, 256)
