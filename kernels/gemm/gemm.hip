// The entry points of the product on AMD; the twins of gemm.cu, under the same names.
//
//   target           class   unit = block   threads   dynamic shared bytes   blocks a compute unit
//   gfx90a, gfx942   256     256×256        512       65536                  1
//   gfx90a, gfx942   128     128×128        256       32768                  2
//   gfx950           256     256×256        512       163840                 1
//   gfx950           128     128×128        256       81920                  2
//
// A launch has min(units, compute units × blocks of a compute unit) blocks. Grids of tiles are
// padded to whole units, and k_tiles is at least 1.
#include "cdna.h"

#define MUSTER_GEMM(form, nn, name, type)                                            \
    DEV_KERNEL(gemm_##form##_##name##_256, 512, 1, MusterGemmArgs) {                 \
        cdna::product<dev::type, 256, nn, cdna::PingPong>(args);                     \
    }                                                                                \
    DEV_KERNEL(gemm_##form##_##name##_128, 256, 2, MusterGemmArgs) {                 \
        cdna::product<dev::type, 128, nn, cdna::Interleaved>(args);                  \
    }

MUSTER_GEMM(nt, false, bf16, Bf16)
MUSTER_GEMM(nt, false, f16, F16)
MUSTER_GEMM(nn, true, bf16, Bf16)
MUSTER_GEMM(nn, true, f16, F16)
