// Entry points of the kernels around the products of Newton–Schulz, all with 256 threads:
//
//   kernel         unit              dynamic shared bytes
//   ns_norm        strip of 64×256   SHARED_BYTES
//   ns_cast        tile of X         SHARED_BYTES
//   ns_aol_rows    row of tiles      0
//   ns_aol_scale   tile              0
//
// A launch has any number of blocks; they share the units.
#include "aol.h"
#include "cast.h"

DEV_KERNEL(ns_norm, newton_schulz::THREADS, 4, MusterNsArgs) { newton_schulz::norm(args); }

DEV_KERNEL(ns_cast, newton_schulz::THREADS, 4, MusterNsArgs) { newton_schulz::cast(args); }

DEV_KERNEL(ns_aol_rows, newton_schulz::THREADS, 4, MusterNsAolArgs) {
    newton_schulz::aol_rows(args);
}

DEV_KERNEL(ns_aol_scale, newton_schulz::THREADS, 4, MusterNsAolArgs) {
    newton_schulz::aol_scale(args);
}
