// Entry points of the matrix products on NVIDIA: gemm_{nt,nn}_{bf16,f16}_{256,128}, and the table a
// launch needs. One source for all architectures; which core runs is decided in the kernel's body.
//
//   target              class   unit       block      cluster   threads   dynamic shared bytes
//   sm_90a              256     256×256    128×256    2         384       230112
//   sm_90a              128     128×128    128×128    1         384       230144
//   sm_80, sm_100a, …   both    128×128    128×128    1         256       98304
//
// A launch has cluster · min(units, multiprocessors / cluster) blocks; on sm_90a class 256 gains
// from min(2 · units, …), since its last round is cut into halves where whole units would leave
// clusters idle (schedule::pieces). Grids of tiles are padded to whole units, and k_tiles is at
// least 1.
#include "../dev/dev.h"

#if defined(DEV_SM90)
#include "sm90.h"
#else
#include "sm80.h"
#endif

#if defined(DEV_SM90)
#define MUSTER_GEMM_THREADS(CLASS) (gemm::Sm90<CLASS>::THREADS)
#define MUSTER_GEMM_BODY(T, B_MN, CLASS) gemm::run_sm90<T, B_MN, CLASS>(args);
#else
#define MUSTER_GEMM_THREADS(CLASS) (gemm::Sm80::THREADS)
#define MUSTER_GEMM_BODY(T, B_MN, CLASS) gemm::run_sm80<T, B_MN>(args);
#endif

#define MUSTER_GEMM(name, T, B_MN, CLASS) \
    DEV_KERNEL(name, MUSTER_GEMM_THREADS(CLASS), 1, MusterGemmArgs) { \
        MUSTER_GEMM_BODY(T, B_MN, CLASS) \
    }

MUSTER_GEMM(gemm_nt_bf16_256, dev::Bf16, false, 256)
MUSTER_GEMM(gemm_nn_bf16_256, dev::Bf16, true, 256)
MUSTER_GEMM(gemm_nt_f16_256, dev::F16, false, 256)
MUSTER_GEMM(gemm_nn_f16_256, dev::F16, true, 256)
MUSTER_GEMM(gemm_nt_bf16_128, dev::Bf16, false, 128)
MUSTER_GEMM(gemm_nn_bf16_128, dev::Bf16, true, 128)
MUSTER_GEMM(gemm_nt_f16_128, dev::F16, false, 128)
MUSTER_GEMM(gemm_nn_f16_128, dev::F16, true, 128)
