// Entry points of the optimizer's kernels, all with 256 threads:
//
//   kernel               unit             dynamic shared bytes
//   optimizer_squares    strip            SUMS_BYTES
//   optimizer_sums       long range       SUMS_BYTES
//   optimizer_cast       run              0
//   the others           span             0
//
// A launch has any number of blocks; they share the units.
#include "optimizer.h"
#include "squares.h"

DEV_KERNEL(optimizer_squares, optimizer::THREADS, 4, MusterSquaresArgs) {
    optimizer::squares(args);
}

DEV_KERNEL(optimizer_sums, optimizer::THREADS, 4, MusterSquaresArgs) { optimizer::sums(args); }

DEV_KERNEL(optimizer_momentum, optimizer::THREADS, 4, MusterMomentumArgs) {
    optimizer::momentum(args);
}

DEV_KERNEL(optimizer_apply, optimizer::THREADS, 4, MusterApplyArgs) { optimizer::apply(args); }

DEV_KERNEL(optimizer_adamw, optimizer::THREADS, 4, MusterAdamWArgs) { optimizer::adamw(args); }

DEV_KERNEL(optimizer_adopt, optimizer::THREADS, 4, MusterMastersArgs) { optimizer::adopt(args); }

DEV_KERNEL(optimizer_publish, optimizer::THREADS, 4, MusterMastersArgs) {
    optimizer::publish(args);
}

DEV_KERNEL(optimizer_cast, optimizer::THREADS, 4, MusterCastArgs) { optimizer::cast(args); }
