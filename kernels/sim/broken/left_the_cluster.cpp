// A block ends while the other block of its cluster still arrives at its barrier.
//
// arch: sm_90a
// launch: blocks=2 cluster=2 shared=1024
// expect: which has ended
#include "broken.h"

template <bool BROKEN>
DEV_FN void left_the_cluster(const BrokenArgs& args) {
    uint64_t* bar = reinterpret_cast<uint64_t*>(dev::shared());
    uint32_t thread = dev::thread(), rank = dev::cluster_rank();
    if (thread == 0) {
        dev::mbar_init(bar, 1);
        dev::mbar_init_fence();
    }
    dev::cluster_sync();
    if (rank == 1) dev::sync(), dev::sync();
    if (rank == 1 && thread == 0) dev::mbar_arrive_cluster(bar, 0);
    if (!BROKEN) dev::cluster_sync();
    dev::store4(word(args.out, rank * 64 + thread), thread);
}

BROKEN_KERNELS(left_the_cluster, 64)
