// The entry points of the product on AMD; the twins of gemm.cu, under the same names.
//
//   class   block       threads   LDS (dynamic)   blocks a compute unit
//   256     256 × 256   512       64 KiB          1
//   128     128 × 128   256       32 KiB          2
//
// Launch min(units, compute units × blocks of a compute unit) blocks.
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
