// Entry points of the ordered sum, by the type of the inputs; f64 sums f64, the others f32. All have
// 256 threads and GROUP_BYTES of dynamic shared memory for each thread and each sum below the top.
// A launch has any number of blocks.
#include "ordered_sum.h"

using PlainF32 = ordered_sum::Plain<float, ordered_sum::F32>;
using PlainF64 = ordered_sum::Plain<double, ordered_sum::F64>;

DEV_KERNEL(ordered_sum_f32, ordered_sum::THREADS, 4, MusterSumArgs) {
    ordered_sum::sum<PlainF32, PlainF32>(args);
}

DEV_KERNEL(ordered_sum_f64, ordered_sum::THREADS, 4, MusterSumArgs) {
    ordered_sum::sum<PlainF64, PlainF64>(args);
}

DEV_KERNEL(ordered_sum_bf16, ordered_sum::THREADS, 4, MusterSumArgs) {
    ordered_sum::sum<ordered_sum::Half<dev::Bf16>, PlainF32>(args);
}

DEV_KERNEL(ordered_sum_f16, ordered_sum::THREADS, 4, MusterSumArgs) {
    ordered_sum::sum<ordered_sum::Half<dev::F16>, PlainF32>(args);
}
