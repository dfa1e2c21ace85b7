// Entry points of the ordered reduction, by the type of the inputs; 16-bit ones are computed in
// f32. Two names of a type: f32 inputs, and the type that results are rounded to. All have 256
// threads and GROUP_BYTES of dynamic shared memory for each thread and each number below the top. A
// launch has any number of blocks.
#include "ordered_sum.h"

#define ENTRY(name, Input, T)                                                      \
    DEV_KERNEL(name, ordered_sum::THREADS, 4, MusterReduceArgs) {                  \
        ordered_sum::reduce<ordered_sum::Input, ordered_sum::Plain<T>>(args);      \
    }

ENTRY(ordered_sum_f32, Plain<float>, float)
ENTRY(ordered_sum_f64, Plain<double>, double)
ENTRY(ordered_sum_bf16, Half<dev::Bf16>, float)
ENTRY(ordered_sum_f16, Half<dev::F16>, float)
ENTRY(ordered_sum_f32_bf16, Narrow<dev::Bf16>, float)
ENTRY(ordered_sum_f32_f16, Narrow<dev::F16>, float)
ENTRY(ordered_sum_i32, Plain<int32_t>, int32_t)
ENTRY(ordered_sum_i64, Plain<int64_t>, int64_t)
ENTRY(ordered_sum_u8, Plain<uint8_t>, uint8_t)
