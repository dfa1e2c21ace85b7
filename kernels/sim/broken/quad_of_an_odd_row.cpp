// Quads of a run that starts two elements after an aligned place are taken for whole ones.
//
// arch: sm_90a gfx950
// launch: blocks=1 cluster=1 shared=0
// expect: misaligned
#include "broken.h"
#include "../../optimizer/elements.h"

template <bool BROKEN>
DEV_FN void quad_of_an_odd_row(const BrokenArgs& args) {
    const uint64_t from = args.in + 8, to = args.out + 8;
    const uint64_t places = BROKEN ? 0 : from | to;
    optimizer::each_quad(places, 1001, [&](auto access, uint32_t i, uint32_t count) {
        access.store(to + 4 * i, access.load(from + 4 * i, count), count);
    });
}

BROKEN_KERNELS(quad_of_an_odd_row, 256)
