// The last elements of a run that is no whole number of quads are loaded as if they were four.
//
// arch: sm_80 gfx942
// launch: blocks=1 cluster=1 shared=0
// expect: out of bounds
#include "broken.h"
#include "../../optimizer/elements.h"

template <bool BROKEN>
DEV_FN void quad_past_the_end(const BrokenArgs& args) {
    const uint32_t len = 1022;
    const uint64_t from = args.in + BROKEN_BYTES - 4 * len, to = args.out;
    optimizer::each_quad(from | to, len, [&](auto access, uint32_t i, uint32_t count) {
        access.store(to + 4 * i, access.load(from + 4 * i, BROKEN ? 4 : count), count);
    });
}

BROKEN_KERNELS(quad_past_the_end, 256)
